"""Methods without training: majority class, the instruction alone, and examples in the context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dln.bench.paper.layers import PAPER, SAME_LINE, fitted, output_layer
from dln.bench.paper.method import Learnt, Setup
from dln.data import Example
from dln.keys import Key
from dln.nn import Prediction, Sequential

__all__ = ["InContext", "Majority", "ZeroShot", "draw_examples"]


@dataclass(frozen=True)
class Majority:
    """The most frequent class of the train examples, whatever the input; its probabilities are the classes' shares."""

    name: str = "majority"
    about: str = "the most frequent class of the train examples"
    after: tuple[str, ...] = ()

    def __call__(self, setup: Setup) -> Learnt:
        """Count; every class once more than it occurs, so that none is impossible."""
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
    """The task's instruction and nothing else.

    Args:
        name: in the table.
        template: the layout of the output layer.
        fit: whether bias and temperature are fitted on the dev set.
    """

    name: str = "0-shot"
    template: str = PAPER
    fit: bool = False
    after: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"the instruction alone, template {self.template}" + (", output layer fitted on dev" if self.fit else "")

    def __call__(self, setup: Setup) -> Learnt:
        """Nothing to learn but, with `fit`, C + 1 numbers."""
        return _learnt(setup, self.template, (), self.fit)


@dataclass(frozen=True)
class InContext:
    """k-shot in-context learning: the instruction and k random train examples, every class as often as can be.

    Args:
        k: how many.
        template: the layout.
        fit: whether bias and temperature are fitted on the dev set.
    """

    k: int
    template: str = SAME_LINE
    fit: bool = False
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in the table."""
        return f"icl-{self.k}" + ("-fitted" if self.fit else "")

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"{self.k} random train examples in the context" + (", output layer fitted on dev" if self.fit else "")

    def __call__(self, setup: Setup) -> Learnt:
        """Draw the examples; the same for the method with and without a fitted output layer."""
        return _learnt(setup, self.template, draw_examples(setup, self.k), self.fit)


def draw_examples(setup: Setup, k: int, draw: int = 0) -> tuple[Example, ...]:
    """k random train examples in random order, classes in equal parts as far as they go."""
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
