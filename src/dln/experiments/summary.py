"""From cells to the table: means over seeds with intervals, costs, and paired tests on the same test examples.

Paired tests: two methods on the same test examples, however many seeds answered each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from dln.experiments.cells import CellResult
from dln.train.evaluate import Interval, Paired, interval, paired

__all__ = ["ALL", "COMPARISONS", "GROUPS", "MEAN", "Comparison", "Row", "Summary", "compare", "summarize"]

ALL = "all"
"""Stands for the examples of all tasks together, each example counted once."""

COMPARISONS = (
    ("majority", "dln-1"),
    ("0-shot", "dln-1"),
    ("0-shot-line", "dln-1"),
    ("0-shot-fitted", "dln-1"),
    ("icl-5", "dln-1"),
    ("icl-5-fitted", "dln-1"),
    ("random-demonstrations", "dln-1"),
    ("dln-1-paper", "dln-1"),
    ("dln-1", "dln-1-ensemble"),
    ("dln-1", "dln-2-fix"),
    ("dln-1", "dln-2-tune"),
    ("dln-1", "dln-2"),
    ("dln-2", "dln-3"),
)
"""Pairs of methods that are tested against one another, where both are there."""

Values = dict[tuple[str, str], float]
"""A number per (task, test example)."""


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same test examples: per example the mean over seeds, then a paired test.

    Attributes:
        task: whose examples, or `ALL`.
        before: a method.
        after: what is compared with it.
        result: of right and wrong answers.
        log_likelihood: difference of log p(y|x), in nats, with its interval; None where one has none.
    """

    task: str
    before: str
    after: str
    result: Paired
    log_likelihood: Interval | None = None


def compare(cells: Sequence[CellResult], pairs: Sequence[tuple[str, str]], tasks: Sequence[str]) -> list[Comparison]:
    """Every pair on every task, and on all tasks together where there are several and both have all of them."""
    found: list[Comparison] = []
    for before, after in pairs:
        # both methods under the same seeds: an example's mean is over the same draws of train and dev examples
        own = [{(cell.task, cell.seed) for cell in cells if cell.method == name} for name in (before, after)]
        both = own[0] & own[1]
        kept = [cell for cell in cells if (cell.task, cell.seed) in both and cell.method in (before, after)]
        single = [_compare([c for c in kept if c.task == task], task, before, after) for task in tasks]
        found += [comparison for comparison in single if comparison is not None]
        if len(tasks) > 1 and {task for task, _ in both} == set(tasks):
            whole = _compare(kept, ALL, before, after)
            found += [whole] if whole is not None else []
    return found


def _compare(cells: Sequence[CellResult], task: str, before: str, after: str) -> Comparison | None:
    if not cells:
        return None
    a, b = _together(cells, before, after, lambda cell: [float(x) for x in cell.correct])
    if not a:
        return None
    p, q = _together(cells, before, after, lambda cell: cell.log_probs or [None] * len(cell.correct))
    gain = paired(p, q).difference if p else None
    return Comparison(task, before, after, paired(a, b), gain)


def _together(
    cells: Sequence[CellResult],
    before: str,
    after: str,
    of: Callable[[CellResult], Sequence[float | None]],
) -> tuple[list[float], list[float]]:
    """A number of each example that both methods answered, in the same order: means over the seeds."""
    one, other = (_means([cell for cell in cells if cell.method == name], of) for name in (before, after))
    common = [example for example in one if example in other]
    return [one[example] for example in common], [other[example] for example in common]


def _means(cells: Sequence[CellResult], of: Callable[[CellResult], Sequence[float | None]]) -> Values:
    rows: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        # cells of before `tested` was recorded all have the same examples, in the same order
        names = cell.tested or [str(i) for i in range(len(cell.correct))]
        for name, value in zip(names, of(cell), strict=True):
            if value is not None:
                rows.setdefault((cell.task, name), []).append(value)
    return {example: float(np.mean(values)) for example, values in rows.items()}


MEAN = "mean"
"""Stands for all tasks of the table, which count alike."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "NLU mean": ("mpqa", "trec", "subj", "disaster", "airline"),
    "BIG-bench mean": ("hyperbaton", "navigate", "date_understanding", "logical_deduction_seven_objects"),
}
"""The paper's two kinds of tasks; a mean of its own where a table has all of one kind and others too."""


@dataclass(frozen=True)
class Row:
    """A method on a task (or on several of them, under the name of their mean).

    Attributes:
        task: the task, or the name of a mean.
        method: the method.
        accuracy: mean over seeds (and tasks).
        low: lower end of the 95 % interval: Student's over seeds, or Wilson's over the test examples where there
            is one seed, or every seed gave the same answers.
        high: upper end.
        balanced_accuracy: mean of the per-class accuracies.
        log_likelihood: mean log p(y|x) of the test examples, in nats; None where a cell has none.
        seeds: how many.
        n: test examples per seed.
        unscored: test examples without a usable score, of all seeds.
        calls: requests, mean per seed: training and test together.
        train_tokens: mean per seed.
        test_tokens: mean per seed.
        usd: mean per seed.
        seconds: mean per seed.
        train_seconds: the part of it before the test, mean per seed.
    """

    task: str
    method: str
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float | None
    log_likelihood: float | None
    seeds: int
    n: int
    unscored: int
    calls: float
    train_tokens: float
    test_tokens: float
    usd: float
    seconds: float
    train_seconds: float


@dataclass(frozen=True)
class Summary:
    """The whole table.

    Attributes:
        tasks: in order.
        methods: in order.
        seeds: all that occur.
        groups: names of the means over some of the tasks.
        rows: the entries.
        comparisons: the paired tests.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]

    def row(self, task: str, method: str) -> Row | None:
        """One entry."""
        return next((row for row in self.rows if (row.task, row.method) == (task, method)), None)

    def overall(self, method: str) -> Row | None:
        """The entry over all tasks: the mean, or that of the only task."""
        return self.row(MEAN if len(self.tasks) > 1 else "".join(self.tasks), method)

    @property
    def columns(self) -> tuple[str, ...]:
        """Tasks, then means."""
        return (*self.tasks, *self.groups, *((MEAN,) if len(self.tasks) > 1 else ()))


def summarize(cells: Sequence[CellResult], comparisons: Sequence[tuple[str, str]] = COMPARISONS) -> Summary:
    """The table of these cells.

    Args:
        cells: in the order that tasks and methods shall have.
        comparisons: pairs of methods that are tested against one another, where both are there.
    """
    tasks = tuple(dict.fromkeys(cell.task for cell in cells))
    methods = tuple(dict.fromkeys(cell.method for cell in cells))
    groups = {name: of for name, of in GROUPS.items() if set(of) < set(tasks)}
    rows: list[Row] = []
    for method in methods:
        own = [cell for cell in cells if cell.method == method]
        rows.extend(_row(task, method, [c for c in own if c.task == task]) for task in tasks if _has(own, task))
        for name, of in (*groups.items(), *(((MEAN, tasks),) if len(tasks) > 1 else ())):
            if all(_has(own, task) for task in of):
                rows.append(_mean(name, method, of, [cell for cell in own if cell.task in of]))
    pairs = [(a, b) for a, b in comparisons if a in methods and b in methods]
    seeds = tuple(dict.fromkeys(cell.seed for cell in cells))
    return Summary(tasks, methods, seeds, tuple(groups), tuple(rows), tuple(compare(cells, pairs, tasks)))


def _has(cells: Sequence[CellResult], task: str) -> bool:
    return any(cell.task == task for cell in cells)


def _row(task: str, method: str, cells: Sequence[CellResult]) -> Row:
    values = [cell.accuracy for cell in cells]
    # answers that no seed changes say nothing of how far seeds scatter, and as little of how sure the number is
    low, high = _over_examples(cells[:1]) if _alike(cells) else _over_seeds(values)
    n = round(float(np.mean([len(cell.correct) for cell in cells])))
    return _entry(task, method, cells, (float(np.mean(values)), low, high), n)


def _mean(name: str, method: str, tasks: Sequence[str], cells: Sequence[CellResult]) -> Row:
    """Tasks count alike; the interval is that of the mean over tasks, from seed to seed."""
    seeds = sorted({cell.seed for cell in cells})
    by_seed = [
        [float(np.mean([c.accuracy for c in cells if c.task == t and c.seed == s])) for t in tasks]
        for s in seeds
        if all(any(c.task == t and c.seed == s for c in cells) for t in tasks)
    ]
    means = [float(np.mean(row)) for row in by_seed]
    whole = float(np.mean([np.mean([c.accuracy for c in cells if c.task == t]) for t in tasks]))
    if len(means) > 1 and not all(_alike([c for c in cells if c.task == t]) for t in tasks):
        low, high = _over_seeds(means)
    else:
        each = [next(c for c in cells if c.task == t) for t in tasks]
        # about the mean of the tasks, which is not that of the examples where tasks differ in size
        shift = whole - float(np.mean([x for c in each for x in c.correct]))
        low, high = (bound + shift for bound in _over_examples(each))
    n = round(sum(float(np.mean([len(c.correct) for c in cells if c.task == t])) for t in tasks))
    return _entry(name, method, cells, (whole, low, high), n)


def _entry(task: str, method: str, cells: Sequence[CellResult], accuracy: tuple[float, float, float], n: int) -> Row:
    seeds = len({cell.seed for cell in cells})
    balanced = [cell.balanced_accuracy for cell in cells if cell.balanced_accuracy is not None]
    likelihoods = [[c.log_likelihood for c in cells if c.task == t] for t in dict.fromkeys(cell.task for cell in cells)]
    known = [[value for value in row if value is not None] for row in likelihoods]
    whole = all(len(row) == len(values) for row, values in zip(likelihoods, known, strict=True))
    return Row(
        task=task,
        method=method,
        accuracy=accuracy[0],
        low=max(0.0, accuracy[1]),
        high=min(1.0, accuracy[2]),
        balanced_accuracy=float(np.mean(balanced)) if balanced else None,
        log_likelihood=float(np.mean([np.mean(row) for row in known])) if whole else None,
        seeds=seeds,
        n=n,
        unscored=sum(c.unscored for c in cells),
        calls=sum(c.train.calls + c.test.calls for c in cells) / seeds,
        train_tokens=sum(c.train.tokens for c in cells) / seeds,
        test_tokens=sum(c.test.tokens for c in cells) / seeds,
        usd=sum(c.train.usd + c.test.usd for c in cells) / seeds,
        seconds=sum(c.train.seconds + c.test.seconds for c in cells) / seeds,
        train_seconds=sum(c.train.seconds for c in cells) / seeds,
    )


def _over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval; the seeds are few, so it is wide: that is what is known."""
    from scipy import stats  # takes a second or two: not before it is needed

    mean, count = float(np.mean(values)), len(values)
    quantile = float(cast(Any, stats).t.ppf(0.975, count - 1))
    half = quantile * float(np.std(values, ddof=1)) / count**0.5
    return mean - half, mean + half


def _over_examples(cells: Sequence[CellResult]) -> tuple[float, float]:
    """Wilson's interval of all their examples together."""
    found = interval([float(x) for cell in cells for x in cell.correct])
    return found.low, found.high


def _alike(cells: Sequence[CellResult]) -> bool:
    """Whether every seed gave the same answers to the same examples (one seed does)."""
    return len({(*cell.tested, *cell.correct) for cell in cells}) == 1
