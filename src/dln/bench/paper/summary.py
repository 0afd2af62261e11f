"""From cells to the table: means over seeds with intervals, costs, and paired tests on the same test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import stats

from dln.bench.paper.cell import CellResult
from dln.train.statistics import Paired, interval, paired

__all__ = ["COMPARISONS", "Comparison", "Row", "Summary", "summarize"]

COMPARISONS = (
    ("0-shot", "dln-1"),
    ("0-shot-line", "dln-1"),
    ("icl-5", "dln-1"),
    ("icl-5-fitted", "dln-1"),
    ("random-demonstrations", "dln-1"),
    ("dln-1-paper", "dln-1"),
    ("dln-1", "dln-2"),
)
"""Pairs of methods that are tested against one another, where both are there."""


@dataclass(frozen=True)
class Row:
    """A method on a task (or on all of them, as "mean").

    Attributes:
        task: the task, or "mean".
        method: the method.
        accuracy: mean over seeds (and tasks).
        low: lower end of the 95 % interval: Student's over seeds where there are two or more, else Wilson's over
            the test examples.
        high: upper end.
        balanced_accuracy: mean of the per-class accuracies.
        seeds: how many.
        n: test examples per seed.
        calls: requests, mean per seed: training and test together.
        train_tokens: mean per seed.
        test_tokens: mean per seed.
        usd: mean per seed.
        seconds: mean per seed.
    """

    task: str
    method: str
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float | None
    seeds: int
    n: int
    calls: float
    train_tokens: float
    test_tokens: float
    usd: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same test examples of one task: per example the mean over seeds, then a paired test."""

    task: str
    before: str
    after: str
    result: Paired


@dataclass(frozen=True)
class Summary:
    """The whole table."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]

    def row(self, task: str, method: str) -> Row | None:
        """One entry."""
        return next((row for row in self.rows if (row.task, row.method) == (task, method)), None)


def summarize(cells: Sequence[CellResult]) -> Summary:
    """The table of these cells."""
    tasks = tuple(dict.fromkeys(cell.task for cell in cells))
    methods = tuple(dict.fromkeys(cell.method for cell in cells))
    rows: list[Row] = []
    for method in methods:
        own = [cell for cell in cells if cell.method == method]
        rows.extend(_row(task, method, [c for c in own if c.task == task]) for task in tasks if _has(own, task))
        if len(tasks) > 1 and all(_has(own, task) for task in tasks):
            rows.append(_mean(method, tasks, own))
    pairs = [(a, b) for a, b in COMPARISONS if a in methods and b in methods]
    found = [_compare(cells, task, a, b) for a, b in pairs for task in tasks]
    return Summary(tasks, methods, tuple(rows), tuple(c for c in found if c is not None))


def _has(cells: Sequence[CellResult], task: str) -> bool:
    return any(cell.task == task for cell in cells)


def _row(task: str, method: str, cells: Sequence[CellResult]) -> Row:
    values = [cell.accuracy for cell in cells]
    low, high = _over_seeds(values) if len(values) > 1 else _over_examples(cells[0])
    return _entry(task, method, cells, (float(np.mean(values)), low, high), len(cells[0].correct))


def _mean(method: str, tasks: Sequence[str], cells: Sequence[CellResult]) -> Row:
    """Tasks count alike; the interval is that of the mean over tasks, from seed to seed."""
    seeds = sorted({cell.seed for cell in cells})
    by_seed = [
        [float(np.mean([c.accuracy for c in cells if c.task == t and c.seed == s])) for t in tasks]
        for s in seeds
        if all(any(c.task == t and c.seed == s for c in cells) for t in tasks)
    ]
    means = [float(np.mean(row)) for row in by_seed]
    whole = float(np.mean([np.mean([c.accuracy for c in cells if c.task == t]) for t in tasks]))
    if len(means) > 1:
        low, high = _over_seeds(means)
    else:
        found = interval([float(x) for cell in cells for x in cell.correct])
        low, high = found.low, found.high
    return _entry("mean", method, cells, (whole, low, high), sum(len(c.correct) for c in cells) // max(1, len(seeds)))


def _entry(task: str, method: str, cells: Sequence[CellResult], accuracy: tuple[float, float, float], n: int) -> Row:
    seeds = len({cell.seed for cell in cells})
    balanced = [cell.balanced_accuracy for cell in cells if cell.balanced_accuracy is not None]
    return Row(
        task=task,
        method=method,
        accuracy=accuracy[0],
        low=max(0.0, accuracy[1]),
        high=min(1.0, accuracy[2]),
        balanced_accuracy=float(np.mean(balanced)) if balanced else None,
        seeds=seeds,
        n=n,
        calls=sum(c.train.calls + c.test.calls for c in cells) / seeds,
        train_tokens=sum(c.train.tokens for c in cells) / seeds,
        test_tokens=sum(c.test.tokens for c in cells) / seeds,
        usd=sum(c.train.usd + c.test.usd for c in cells) / seeds,
        seconds=sum(c.train.seconds + c.test.seconds for c in cells) / seeds,
    )


def _over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval; the seeds are few, so it is wide: that is what is known."""
    mean, count = float(np.mean(values)), len(values)
    quantile = float(cast(Any, stats).t.ppf(0.975, count - 1))
    half = quantile * float(np.std(values, ddof=1)) / count**0.5
    return mean - half, mean + half


def _over_examples(cell: CellResult) -> tuple[float, float]:
    found = interval([float(x) for x in cell.correct])
    return found.low, found.high


def _compare(cells: Sequence[CellResult], task: str, before: str, after: str) -> Comparison | None:
    """Seeds that both have; each test example is one observation, however many seeds answered it."""
    of: dict[str, dict[int, list[bool]]] = {
        name: {c.seed: c.correct for c in cells if c.task == task and c.method == name} for name in (before, after)
    }
    seeds = sorted(of[before].keys() & of[after].keys())
    if not seeds:
        return None
    scores = {name: np.mean([of[name][seed] for seed in seeds], axis=0) for name in (before, after)}
    return Comparison(task, before, after, paired(list(scores[before]), list(scores[after])))
