"""Metrics: how good a predicted text is for a wanted one, between 0 and 1.

A metric is a callable (prediction, target) -> float with a name. `accuracy` and the others
aggregate over examples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from dln.answers import begins_with, labels_said
from dln.data.labels import spelling_map
from dln.errors import InputError
from dln.numerics import Floats

__all__ = [
    "ExactMatch",
    "FunctionMetric",
    "Metric",
    "NumberPresence",
    "accuracy",
    "balanced_accuracy",
    "confusion_matrix",
    "exact_match",
    "number_presence",
    "scores",
]


@runtime_checkable
class Metric(Protocol):
    """Score of one prediction, from 0 (wrong) to 1 (right)."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def __call__(self, prediction: str, target: str) -> float:
        """The score of `prediction` where `target` was wanted."""
        ...


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """1 if the prediction begins with the target, after normalisation; else 0.

    Case, punctuation and a leading word "option" do not count, nor do digits where the target has
    none: `"Option (A)."` is `"(A)"`, `"1. Positive, because …"` is `"positive"`. For a target of one
    word this is the paper's rule, which looks at the first word alone; here a target of n words is
    compared with the first n, and a target of digits with digits.

    Args:
        labels: label specifications ("yes|Yes"). With them, the longest label that the prediction
            begins with is what it says, so that "new york" is not taken for "new".
    """

    labels: tuple[str, ...] = ()
    name: str = "exact_match"

    def __call__(self, prediction: str, target: str) -> float:
        """1.0 or 0.0."""
        if prediction == target:
            return 1.0
        if not self.labels:
            return float(begins_with(prediction, target))
        names = spelling_map(self.labels)
        return float(names.get(target, target) in labels_said(prediction, names))


@dataclass(frozen=True, slots=True)
class NumberPresence:
    """1 if the target number stands in the prediction as a number of its own, else 0.

    `1,000`, `$1000` and `1000.0` are one number; `-5` is not `5`; parts of longer numbers, of
    fractions, of clock times and of words (`x2`, `18th`) do not count.

    Raises:
        InputError: the target holds no number, or several.
    """

    name: str = "number_presence"

    def __call__(self, prediction: str, target: str) -> float:
        """1.0 or 0.0."""
        wanted = _numbers(target)
        if len(wanted) != 1:
            raise InputError(
                "the metric number_presence needs a target that is one number",
                where="target",
                got=repr(target),
                fix="use exact_match, or give a metric of your own",
            )
        return float(wanted[0] in _numbers(prediction))


@dataclass(frozen=True, slots=True)
class FunctionMetric:
    """A user's function (prediction, target) -> bool or float in [0, 1] as a metric.

    Raises:
        InputError: the function returns something that is not a number between 0 and 1.
    """

    function: Callable[[str, str], object]
    name: str

    def __call__(self, prediction: str, target: str) -> float:
        """What the function says, as a float."""
        value = self.function(prediction, target)
        if not isinstance(value, bool | int | float | np.bool_ | np.number):
            raise InputError("a metric must return a number", where=self.name, got=f"{type(value).__name__} {value!r}")
        score = float(cast(float, value))
        if not math.isfinite(score) or not 0.0 <= score <= 1.0:
            raise InputError("a metric must return a number from 0 to 1", where=self.name, got=score)
        return score


exact_match = ExactMatch()
number_presence = NumberPresence()


def scores(predictions: Sequence[str], targets: Sequence[str], metric: Metric = exact_match) -> Floats:
    """[N] metric of each prediction.

    Raises:
        InputError: the lengths differ, or there is nothing to score.
    """
    if len(predictions) != len(targets) or not targets:
        raise InputError(
            "a score needs one prediction per target, and at least one",
            got=f"{len(predictions)} predictions, {len(targets)} targets",
        )
    return np.array([metric(p, t) for p, t in zip(predictions, targets, strict=True)], dtype=np.float64)


def accuracy(predictions: Sequence[str], targets: Sequence[str], metric: Metric = exact_match) -> float:
    """Mean of the metric over the examples."""
    return float(scores(predictions, targets, metric).mean())


def balanced_accuracy(predictions: Sequence[str], targets: Sequence[str], metric: Metric = exact_match) -> float:
    """Mean over classes of the mean metric in the class; classes without a target do not count."""
    values = scores(predictions, targets, metric)
    classes = np.array(targets)
    return float(np.mean([values[classes == label].mean() for label in dict.fromkeys(targets)]))


def confusion_matrix(
    predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]
) -> npt.NDArray[np.int64]:
    """[C, C + 1] counts: row = wanted label, column = predicted label, last column = no label at all.

    Raises:
        InputError: the lengths differ, or a target is not one of the labels.
    """
    names = tuple(dict.fromkeys(spelling_map(labels).values()))
    row = {name: i for i, name in enumerate(names)}
    metric = ExactMatch(tuple(labels))
    scores(predictions, targets)
    counts = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    for prediction, target in zip(predictions, targets, strict=True):
        if target not in row:
            raise InputError("a target is not one of the labels", got=repr(target), expected=", ".join(names))
        said = [i for i, name in enumerate(names) if metric(prediction, name)]
        counts[row[target], said[0] if said else len(names)] += 1
    return counts


# A sign counts only where no operand stands before it: "16 -3" is a subtraction to a reader, "= -3" a value.
_NUMBER = re.compile(
    r"(?<![\w/])(?<!\d[.,:])(?P<sign>[-\u2212])?[$€£]?(?P<body>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?![\w/]|[.,:]\d)"
)


def _numbers(text: str) -> list[Decimal]:
    """Every number in a text, as exact decimals."""
    found: list[Decimal] = []
    for match in _NUMBER.finditer(text):
        value = Decimal(match["body"].replace(",", ""))
        operand_before = re.search(r"[\d)]\s*[$€£]?$", text[: match.start()]) is not None
        currency_sign = re.search(r"[-\u2212]\s?[$€£]$", text[: match.start()]) is not None
        negative = (match["sign"] is not None and not operand_before) or currency_sign
        found.append(-value if negative else value)
    return found
