"""The networks of the table: one, two and three layers, end to end or layer by layer.

Random demonstrations at equal tokens: what is left of training if nothing but luck and selection is used.

Prompts with k random worked examples are drawn and judged on the dev set, with the output layer fitted, until
as many tokens are used as the trained network took; the best one by cross-fitted log-likelihood is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from dln.errors import BudgetReached, InputError
from dln.experiments.baselines import draw_examples
from dln.experiments.method import SAME_LINE, Learnt, Setup, fitted, output_layer
from dln.nn import LayerInput, Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble, best_of, members_of
from dln.random import Key
from dln.train import Options, fit, resolve_options
from dln.train.estimate import affordable, check_room, estimate, layer_sizes, reduced
from dln.train.layout import Hidden, copyable, deepened, staged, standard_network
from dln.train.options import dotted_names

__all__ = ["LayerByLayer", "RandomDemonstrations", "Trained"]


@dataclass(frozen=True)
class Trained:
    """A network trained end to end.

    Args:
        depth: L.
        name: in the table.
        preset: of the training options.
        changes: to the options of the preset.
        template: of the last layer; empty is the preset's.
        hidden: what hidden layers begin as; None is the usual (see `standard_network`).
        what: this in a sentence; empty says depth and preset.
    """

    depth: int
    name: str
    preset: str = "default"
    after: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    template: str = ""
    hidden: Hidden | None = None
    what: str = ""

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        layers = "one layer" if self.depth == 1 else f"{self.depth} layers, end to end"
        return self.what or f"{layers}, preset {self.preset}"

    def __call__(self, setup: Setup) -> Learnt:
        """Train on train, choose by dev."""
        network = standard_network(
            setup.task, setup.lm, self.depth, preset=self.preset, hidden=self.hidden, last_template=self.template
        )
        return trained(setup, network, self.preset, dict(self.changes))


@dataclass(frozen=True)
class LayerByLayer:
    """Two layers whose second one begins as the trained single layer (paper, Table 9).

    The first one begins as a copy of its input, so that the network begins as the single layer. Where the task names
    its steps, it begins as the first of these; where more than a tenth of the inputs have several lines or are long, it
    thinks.

    Args:
        name: in the table.
        tune_last: whether the second layer is trained on, or stays as it is.
        start: the method whose layer it begins with.
        preset: of the training options.
    """

    name: str
    tune_last: bool
    start: str = "dln-1"
    preset: str = "default"

    @property
    def after(self) -> tuple[str, ...]:
        """The single layer must be there first."""
        return (self.start,)

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"two layers, the second one from {self.start}" + (" and trained on" if self.tune_last else " and fixed")

    def __call__(self, setup: Setup) -> Learnt:
        """Train the first layer, with the second one fixed or not."""
        found = setup.known[self.start].network
        if found is None:
            raise InputError("this method needs a trained layer to start from", where=self.name, got=self.start)
        single = best_of(found)
        lines = [] if staged(2, setup.task) else copyable(setup.task.train.inputs)
        network = deepened(single, _shuffled(setup.seed, lines)) if lines else self._on_top(setup, single)
        steps = {} if self.tune_last else {"inference": {"layer_steps": [1, 0]}}
        learnt = trained(setup, network, self.preset, steps)
        return replace(learnt, notes=(*learnt.notes, f"training tokens without those of {self.start}"))

    def _on_top(self, setup: Setup, single: Sequential) -> Sequential:
        """The usual first layer, then the single layer, its examples with what the first one writes about them."""
        network = standard_network(setup.task, setup.lm, 2, preset=self.preset)
        first, prompt = network.layers[0], single.layers[-1].prompt
        shown = prompt.demonstrations
        read = [LayerInput(d.x, d.x) for d in shown]
        written = first.sample(Key(setup.seed).child("thoughts"), read, temperature=0.0) if shown else []
        examples = tuple(replace(d, h=text.text) for d, text in zip(shown, written, strict=True))
        return network.with_prompts([first.prompt, prompt.with_demonstrations(examples)])


def _shuffled(seed: int, inputs: Sequence[str]) -> list[str]:
    order = Key(seed).child("copied").generator().permutation(len(inputs))
    return [inputs[int(i)] for i in order]


def trained(setup: Setup, network: Sequential, preset: str, changes: dict[str, Any]) -> Learnt:
    """`network` after `dln.fit`; with a token budget as many steps as it lasts for, and none too large for it."""
    options = resolve_options(preset, dict(setup.options), changes, {"seed": setup.seed})
    notes: tuple[str, ...] = ()
    if setup.budget is not None and options.steps:
        wanted = options.model_copy(update={"steps": 10_000, "patience": None})
        keep = dotted_names(setup.options) | dotted_names(changes)
        options = _within(setup, setup.budget, network, wanted, keep)
        smaller = reduced(wanted, options)
        notes = tuple(f"for the budget {name} = {now} instead of {before}" for name, (before, now) in smaller.items())
    unseen = setup.readable if setup.readable is not None else setup.task.dev
    check_room(network, setup.task.train, setup.task.dev, unseen)
    result = fit(
        network,
        setup.task.train,
        setup.task.dev,
        options=options,
        run_dir=None if setup.workspace is None else setup.workspace / "run",
        metric=setup.task.metric,
        task=setup.task.name,
        readable=unseen.inputs,
    )
    return Learnt(
        result.predictor,
        tuple(str(prompt) for member in members_of(result.predictor) for prompt in member.parameters()),
        None if math.isnan(result.score) else result.score,
        (
            f"{result.steps} steps, best after {result.best_step}, ended by {result.reason}",
            *notes,
            *_weights(result.predictor),
        ),
    )


def _within(setup: Setup, budget: int, network: Sequential, options: Options, keep: Set[str]) -> Options:
    """Options whose first validation comes before the tokens are spent; those named by protocol or method stay."""
    sizes = layer_sizes(network, setup.task.train)
    train_size, dev_size = len(setup.task.train), len(setup.task.dev)

    def fits(smaller: Options) -> bool:
        cost = estimate(sizes, smaller, train_size=train_size, dev_size=dev_size, test_size=0)
        return cost.total.tokens <= budget

    return affordable(options, fits, keep=keep)


def _weights(predictor: AnyNetwork) -> tuple[str, ...]:
    if not isinstance(predictor, Ensemble):
        return ()
    return (f"{len(predictor.members)} prompts, weights {', '.join(f'{weight:.3f}' for weight in predictor.weights)}",)


@dataclass(frozen=True)
class RandomDemonstrations:
    """The best of random prompts, at the tokens of another method.

    Args:
        k: worked examples per prompt.
        equal_to: the method whose training tokens may be used.
        most: prompts that are drawn at most.
    """

    k: int = 24
    equal_to: str = "dln-1"
    most: int = 200
    name: str = "random-demonstrations"

    @property
    def after(self) -> tuple[str, ...]:
        """The method that says how many tokens there are."""
        return (self.equal_to,)

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"the best of random prompts with {self.k} examples, at the training tokens of {self.equal_to}"

    def __call__(self, setup: Setup) -> Learnt:
        """Draw and judge until the tokens are used."""
        allowed = setup.known[self.equal_to].tokens
        best: Sequential | None = None
        best_score, drawn, used = float("-inf"), 0, 0
        dev = setup.task.dev
        while drawn < self.most and (used < allowed or best is None):
            layer = output_layer(setup, SAME_LINE, draw_examples(setup, self.k, draw=drawn + 1))
            try:
                network, score = fitted(layer, dev)
            except BudgetReached:
                break
            drawn += 1
            used += sum(map(setup.lm.count_tokens, layer.contexts([LayerInput(x, x) for x in dev.inputs])))
            if score > best_score:
                best, best_score = network, score
        if best is None:
            raise BudgetReached("the budget does not suffice for one prompt", where=self.name, fix="raise the budget")
        return Learnt(best, tuple(map(str, best.parameters())), best_score, (f"{drawn} prompts drawn",))
