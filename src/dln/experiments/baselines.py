"""Baselines: majority class, instruction alone, in-context examples, nearest examples, chain of thought, and APE.

KATE (Liu et al., 2022) shows each input with the k most similar train examples. APE (Zhou et al., 2023) induces a
pool of instructions from input-output pairs and keeps the best by log-likelihood on M train examples:

    π_n ~ p(π | a few pairs),     π ← argmax_n (1/M) Σ_i log p(y_i | x_i, π_n)

with M = 15 and 400 in the paper's APE-15 and APE-400.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from dln.data import Dataset, Example
from dln.data.splits import subsample
from dln.errors import BudgetReached
from dln.experiments.encoders import Encoder, WordVectors
from dln.experiments.method import (
    PAPER,
    SAME_LINE,
    Learnt,
    Setup,
    demonstrations,
    fitted,
    labels_of,
    output_layer,
    read_words,
)
from dln.infer.memory import Feedback
from dln.infer.prompts import RewriteProposal
from dln.lm.base import Sampling
from dln.nn import ChoiceLayer, LayerInput, Prediction, Prompt, Sequential
from dln.nn.layers import PromptedLayer
from dln.numerics import Floats
from dln.random import Key
from dln.train.layout import standard_network

__all__ = [
    "ChainOfThought",
    "InContext",
    "Induction",
    "Majority",
    "Nearest",
    "WordRegression",
    "ZeroShot",
    "chain",
    "draw_examples",
    "induced",
    "log_likelihood",
]


@dataclass(frozen=True)
class Majority:
    """Predict the most frequent class of the train examples, with the class frequencies as probabilities."""

    name: str = "majority"
    about: str = "most frequent class of the train examples"
    after: tuple[str, ...] = ()

    def __call__(self, setup: Setup) -> Learnt:
        """Count the classes, with add-one smoothing."""
        counts = Counter(setup.task.train.targets)
        ((label, _),) = counts.most_common(1)
        labels = setup.task.label_names or tuple(counts)
        total = sum(counts[name] + 1 for name in labels)
        shares = {name: (counts[name] + 1) / total for name in labels}
        return Learnt(_Always(label, shares), (f"always {label}",))


@dataclass(frozen=True)
class _Always:
    label: str
    shares: Mapping[str, float]

    def predict_many(self, x: Sequence[str]) -> list[Prediction]:
        return [Prediction(self.label, dict(self.shares)) for _ in x]


@dataclass(frozen=True)
class ZeroShot:
    """The instruction of the task without examples.

    Args:
        name: in the table.
        template: layout of the output layer.
        fit: whether bias and temperature are fitted on the dev set.
        refit: whether they are fitted on train and dev set, as linear classifiers are.
    """

    name: str = "0-shot"
    template: str = PAPER
    fit: bool = False
    refit: bool = False
    after: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """A description in one sentence."""
        fitted = ", output layer fitted on " + ("train and dev" if self.refit else "dev")
        return f"instruction only, template {self.template}" + (fitted if self.fit or self.refit else "")

    def __call__(self, setup: Setup) -> Learnt:
        """Build the layer and, with `fit` or `refit`, fit its C + 1 parameters."""
        if not self.refit:
            return _learnt(setup, self.template, (), self.fit)
        layer, task = output_layer(setup, self.template), setup.task
        network, score = fitted(layer, task.train.with_examples([*task.train, *task.dev]))
        return Learnt(network, (str(layer.prompt),), score)


@dataclass(frozen=True)
class InContext:
    """k-shot in-context learning with random, class-balanced train examples; `fit` as in `ZeroShot`."""

    k: int
    template: str = SAME_LINE
    fit: bool = False
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"icl-{self.k}" + ("-fitted" if self.fit else "")

    @property
    def about(self) -> str:
        """A description in one sentence."""
        return f"{self.k} random train examples in the context" + (", output layer fitted on dev" if self.fit else "")

    def __call__(self, setup: Setup) -> Learnt:
        """Draw the examples, the same ones with and without a fitted output layer."""
        return _learnt(setup, self.template, draw_examples(setup, self.k), self.fit)


@dataclass(frozen=True)
class WordRegression:
    """The initial prompt with k random train examples (as in `InContext`) and a fitted readout of words."""

    k: int = 0
    template: str = SAME_LINE
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"icl-{self.k}-words" if self.k else "word-readout"

    @property
    def about(self) -> str:
        """A description in one sentence."""
        shown = f"{self.k} random train examples in the context" if self.k else "instruction only"
        return f"{shown}, word readout fitted on train and dev"

    def __call__(self, setup: Setup) -> Learnt:
        """Choose the words and fit their weights."""
        layer = output_layer(setup, self.template, draw_examples(setup, self.k) if self.k else ())
        found = read_words(layer, setup.task.train, setup.task.dev, setup.options)
        return Learnt(found.network, (str(layer.prompt),), found.log_likelihood)


def draw_examples(setup: Setup, k: int, draw: int = 0) -> tuple[Example, ...]:
    """Draw k train examples in random order, with equal numbers per class as far as possible."""
    train = setup.task.train
    key = Key(setup.seed).child("icl", k, draw)
    by_label: dict[str, list[Example]] = {}
    for i in key.child("order").generator().permutation(len(train)):
        by_label.setdefault(train[int(i)].target, []).append(train[int(i)])
    chosen: list[Example] = []
    while len(chosen) < min(k, len(train)):
        for label in [name for name in by_label if by_label[name]]:
            if len(chosen) < k:
                chosen.append(by_label[label].pop())
    order = key.child("shown").generator().permutation(len(chosen))
    return tuple(chosen[int(i)] for i in order)


def _learnt(setup: Setup, template: str, examples: Sequence[Example], fit: bool) -> Learnt:
    layer = output_layer(setup, template, examples)
    if not fit:
        return Learnt(Sequential(layer), (str(layer.prompt),))
    network, score = fitted(layer, setup.task.dev)
    return Learnt(network, (str(layer.prompt),), score)


@dataclass(frozen=True)
class Induction:
    """APE: the best of a pool of induced instructions.

    Args:
        judged_on: M, number of train examples to score instructions on.
        pool: number of instructions.
        shown: input-output pairs per induction.
        template: layout of the output layer.
    """

    judged_on: int
    pool: int = 20
    shown: int = 5
    template: str = PAPER
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"ape-{self.judged_on}"

    @property
    def about(self) -> str:
        """A description in one sentence."""
        return f"best of {self.pool} instructions induced from examples, scored on {self.judged_on} train examples"

    def __call__(self, setup: Setup) -> Learnt:
        """Induce instructions and keep the best, within the budget."""
        layer = output_layer(setup, self.template)
        network, score, notes = best_of(setup, Sequential(layer), induced(setup, layer, self.pool, self.shown), self)
        return Learnt(network, (str(network.parameters()[-1]),), score, notes)


def best_of(
    setup: Setup, network: Sequential, instructions: list[str], induction: Induction
) -> tuple[Sequential, float | None, tuple[str, ...]]:
    """Return `network` with the best instruction in its last layer, its score, and notes on the search."""
    judges = subsample(setup.task.train, induction.judged_on, setup.seed)
    best, best_score = network, None
    for judged, instruction in enumerate(instructions):
        last = cast(PromptedLayer, network.layers[-1])
        candidate = network.with_layer(len(network) - 1, last.with_prompt(Prompt(instruction)))
        try:
            score = log_likelihood(candidate, list(judges.inputs), list(judges.targets))
        except BudgetReached:
            return best, best_score, (f"budget spent after {judged} of {len(instructions)} instructions",)
        if score is not None and (best_score is None or score > best_score):
            best, best_score = candidate, score
    return best, best_score, ()


def induced(setup: Setup, layer: ChoiceLayer, pool: int, shown: int) -> list[str]:
    """Induce distinct instructions, each from other pairs; fewer than `pool` if the model repeats itself."""
    # each draw uses only `shown` pairs, so a few hundred to choose from suffice
    examples = draw_examples(setup, min(len(setup.task.train), shown * pool))
    inputs = tuple(LayerInput(e.input, e.input) for e in examples)
    targets = tuple(e.target for e in examples)
    feedback = Feedback(inputs, targets, targets, (True,) * len(examples))
    proposal = RewriteProposal(sampling=Sampling(temperature=0.7, max_tokens=64), template="induce", max_examples=shown)
    found = proposal(Key(setup.seed).child("induce"), layer, feedback, pool)
    return [text for text in dict.fromkeys(p.prompt.instruction for p in found) if text]


def log_likelihood(network: Sequential, x: list[str], y: list[str]) -> float | None:
    """Mean log p(y|x) over the scored examples, in nats; None without any."""
    predictions = network.predict_many(x)
    p = [
        prediction.probabilities[target] for prediction, target in zip(predictions, y, strict=True) if prediction.scored
    ]
    return float(np.mean(np.log(np.maximum(p, 1e-300)))) if p else None


@dataclass(frozen=True)
class ChainOfThought:
    """Zero-shot chain of thought: an untrained two-layer network, "Let's think step by step", then the answer.

    Args:
        name: in the table.
        induction: how to induce the instruction of the answer; None uses the task's.
        thoughts: maximum tokens of the chain of thought; 256 as in the released code.
        templates: of the two layers.
    """

    name: str = "cot"
    induction: Induction | None = None
    thoughts: int = 256
    templates: tuple[str, str] = ("think_steps", "classify_residual_answer")
    after: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """A description in one sentence."""
        return "chain of thought, then answer" + ("" if self.induction is None else "; induced instruction")

    def __call__(self, setup: Setup) -> Learnt:
        """Build the network and, with `induction`, induce the instruction of the answer."""
        network = chain(setup, self.templates, self.thoughts)
        if self.induction is None:
            return Learnt(network, tuple(map(str, network.parameters())))
        pool = induced(setup, output_layer(setup, self.templates[1]), self.induction.pool, self.induction.shown)
        network, score, notes = best_of(setup, network, pool, self.induction)
        return Learnt(network, tuple(map(str, network.parameters())), score, notes)


def chain(setup: Setup, templates: tuple[str, str], thoughts: int) -> Sequential:
    """Build the untrained two-layer network.

    Raises:
        InputError: the task has no labels.
    """
    labels_of(setup.task)
    prompts = [Prompt(""), Prompt(setup.task.instruction)]
    return standard_network(setup.task, setup.lm, 2, templates=templates, prompts=prompts, hidden_tokens=thoughts)


@dataclass(frozen=True)
class Nearest:
    """KATE: the k train examples nearest to the input by cosine similarity, the most similar one last."""

    k: int
    template: str = SAME_LINE
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"kate-{self.k}"

    @property
    def about(self) -> str:
        """A description in one sentence."""
        return f"the {self.k} nearest train examples of each input in the context"

    def __call__(self, setup: Setup) -> Learnt:
        """Encode the train examples."""
        encoder = setup.encoder or WordVectors()
        vectors = np.asarray(encoder(setup.task.train.inputs), dtype=np.float64)
        layer = output_layer(setup, self.template)
        predictor = _NearestPredictor(layer, setup.task.train, vectors, encoder, self.k)
        return Learnt(predictor, (f"{layer.prompt.instruction} + the {self.k} nearest train examples",))


@dataclass(frozen=True, eq=False)
class _NearestPredictor:
    layer: ChoiceLayer
    train: Dataset
    vectors: Floats
    encoder: Encoder
    k: int

    def predict_many(self, x: Sequence[str]) -> list[Prediction]:
        similarity = np.asarray(self.encoder(x), dtype=np.float64) @ self.vectors.T
        # a stable sort keeps ties in the order of the train set
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : self.k]
        contexts: list[str] = []
        for text, row in zip(x, nearest, strict=True):
            shown = demonstrations([self.train[int(i)] for i in reversed(row)])
            prompt = self.layer.prompt.with_demonstrations(shown)
            contexts.extend(self.layer.with_prompt(prompt).contexts([LayerInput(text, text)]))
        masses = self.layer.label_log_masses(contexts)
        return [self.layer.prediction(row[None], ((),)) for row in masses]
