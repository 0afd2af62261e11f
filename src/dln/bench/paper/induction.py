"""Automatic prompt engineering (Zhou et al., 2023): a pool of instructions induced from examples, the best one kept.

    π_n ~ p(π | a few input-output pairs),   π ← argmax_n (1/M) Σ_i log p(y_i | x_i, π_n)

over M train examples: 15 and 400 in the paper's APE-15 and APE-400.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dln.bench.paper.baselines import draw_examples
from dln.bench.paper.layers import PAPER, output_layer
from dln.bench.paper.method import Learnt, Setup
from dln.data.split import subsample
from dln.errors import BudgetReached
from dln.infer.feedback import Feedback
from dln.infer.rewrites import RewriteProposal
from dln.keys import Key
from dln.lm.base import Sampling
from dln.nn import ChoiceLayer, LayerInput, Prompt, Sequential

__all__ = ["Induction", "induced", "log_likelihood"]


@dataclass(frozen=True)
class Induction:
    """APE: the best of a pool of induced instructions.

    Args:
        judged_on: M, train examples that judge.
        pool: instructions that are induced.
        shown: input-output pairs that each is induced from.
        template: the layout of the output layer.
    """

    judged_on: int
    pool: int = 20
    shown: int = 5
    template: str = PAPER
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in the table."""
        return f"ape-{self.judged_on}"

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"the best of {self.pool} instructions induced from examples, judged on {self.judged_on} train examples"

    def __call__(self, setup: Setup) -> Learnt:
        """Induce, judge, keep the best; within the budget where there is one."""
        layer = output_layer(setup, self.template)
        network, score, notes = best_of(setup, Sequential(layer), induced(setup, layer, self.pool, self.shown), self)
        return Learnt(network, (str(network.parameters()[-1]),), score, notes)


def best_of(
    setup: Setup, network: Sequential, instructions: list[str], induction: Induction
) -> tuple[Sequential, float | None, tuple[str, ...]]:
    """`network` with the best of `instructions` in its last layer, its score, and what to know of the search."""
    judges = subsample(setup.task.train, induction.judged_on, setup.seed)
    best, best_score = network, None
    for judged, instruction in enumerate(instructions):
        layers = network.layers
        candidate = network.with_layer(len(layers) - 1, layers[-1].with_prompt(Prompt(instruction)))
        try:
            score = log_likelihood(candidate, list(judges.inputs), list(judges.targets))
        except BudgetReached:
            return best, best_score, (f"the budget ended after {judged} of {len(instructions)} instructions",)
        if score is not None and (best_score is None or score > best_score):
            best, best_score = candidate, score
    return best, best_score, ()


def induced(setup: Setup, layer: ChoiceLayer, pool: int, shown: int) -> list[str]:
    """Distinct instructions, each induced from other pairs; fewer than `pool` where the model repeats itself."""
    # a few hundred pairs to choose from are as good as all of them, and each draw looks at `shown` only
    examples = draw_examples(setup, min(len(setup.task.train), shown * pool))
    inputs = tuple(LayerInput(e.input, e.input) for e in examples)
    targets = tuple(e.target for e in examples)
    feedback = Feedback(inputs, targets, targets, (True,) * len(examples))
    proposal = RewriteProposal(sampling=Sampling(temperature=0.7, max_tokens=64), template="induce", max_examples=shown)
    found = proposal(Key(setup.seed).child("induce"), layer, feedback, pool)
    return [text for text in dict.fromkeys(p.prompt.instruction for p in found) if text]


def log_likelihood(network: Sequential, x: list[str], y: list[str]) -> float | None:
    """Mean log p(y|x) over the examples that can be scored, in nats; None if there is none."""
    predictions = network.predict_many(x)
    p = [
        prediction.probabilities[target] for prediction, target in zip(predictions, y, strict=True) if prediction.scored
    ]
    return float(np.mean(np.log(np.maximum(p, 1e-300)))) if p else None
