"""Honest numbers: intervals for a mean metric, and paired tests on the same examples.

All intervals are at 95 %. scipy does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from dln.arguments import checked
from dln.errors import InputError

__all__ = ["Interval", "Paired", "interval", "over_runs", "paired"]

_DECIMALS = 9
"""Digits of a difference of scores that count; the rest is rounding."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}  95% CI [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Paired:
    """Two networks on the same examples.

    Attributes:
        difference: mean of after − before, with its 95 % interval.
        p_value: two-sided; exact McNemar for right/wrong outcomes, Wilcoxon's signed ranks for graded ones.
        better: examples on which `after` scores higher.
        worse: examples on which it scores lower.
        test: name of the test.
    """

    difference: Interval
    p_value: float
    better: int
    worse: int
    test: str


@checked
def interval(scores: Sequence[float]) -> Interval:
    """Mean of per-example scores in [0, 1]: Wilson's interval for 0/1 scores, Student's for graded ones.

    Raises:
        InputError: no scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise InputError("an interval needs one score or more")
    mean = float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        ci = _stats().binomtest(int(values.sum()), n).proportion_ci(0.95, method="wilson")
        return Interval(mean, float(ci.low), float(ci.high))
    half = _student(values)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


@checked
def over_runs(values: Sequence[float]) -> Interval:
    """Mean of one number per run, with Student's 95 % interval of what another run gives; NaN bounds for one run.

    Unlike `interval`, the values may lie anywhere, and 0 and 1 are numbers like others.

    Raises:
        InputError: no values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise InputError("a mean over runs needs one run or more")
    half = _student(numbers) if len(numbers) > 1 else float("nan")
    mean = float(numbers.mean())
    return Interval(mean, mean - half, mean + half)


@checked
def paired(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Compare per-example scores of two networks on the same examples.

    For right/wrong outcomes the interval of the difference is Agresti and Min's (half a count added to
    each cell of the 2 × 2 table before the Wald formula).

    Raises:
        InputError: the two differ in length, or are empty.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    n = len(a)
    if n == 0 or len(b) != n:
        raise InputError("a paired test needs the same examples for both", got=f"{n} and {len(b)} scores")
    # averages over seeds that are equal differ by rounding, and ranks must see the ties
    difference = (b - a).round(_DECIMALS)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    mean = float(difference.mean())
    if np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        p = float(_stats().binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0
        gained, lost, total = better + 0.5, worse + 0.5, n + 2.0
        centre = (gained - lost) / total
        half = 1.959964 * np.sqrt((gained + lost) - (gained - lost) ** 2 / total) / total
        bounds = Interval(mean, max(-1.0, float(centre - half)), min(1.0, float(centre + half)))
        return Paired(bounds, p, better, worse, "exact McNemar")
    p = float(_stats().wilcoxon(difference).pvalue) if better + worse else 1.0
    half = _student(difference)
    return Paired(Interval(mean, mean - half, mean + half), p, better, worse, "Wilcoxon signed rank")


def _student(values: Any) -> float:
    n = len(values)
    if n < 2:
        return 1.0
    return float(_stats().t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))


def _stats() -> Any:
    from scipy import stats  # takes a second or two: not before a number is wanted

    return cast(Any, stats)
