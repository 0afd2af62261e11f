"""Statistics over cells: means over seeds with intervals, costs, and paired tests on the same test examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dln.experiments.cells import CellResult
from dln.train.evaluate import Interval, Paired, interval, over_runs, paired

__all__ = ["ALL", "COMPARISONS", "GROUPS", "MEAN", "Comparison", "Row", "Summary", "compare", "summarize"]

ALL = "all"
"""Name for the examples of all tasks together, each counted once."""

COMPARISONS = (
    ("majority", "dln-1"),
    ("tfidf-lr", "dln-1"),
    ("encoder-lr", "dln-1"),
    ("label-words", "dln-1"),
    ("word-readout", "dln-1"),
    ("icl-24-words", "dln-1"),
    ("dln-1-labels", "dln-1"),
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
"""Pairs of methods to test against each other."""

Values = dict[tuple[str, str], float]
"""A number per (task, test example)."""


@dataclass(frozen=True)
class Comparison:
    """A paired test of two methods on the same test examples, with the mean over seeds per example.

    Attributes:
        task: name of the task, or `ALL`.
        before: the first method.
        after: the second method.
        result: test of the correct answers.
        log_likelihood: difference of log p(y|x), in nats, with its interval; None without likelihoods.
    """

    task: str
    before: str
    after: str
    result: Paired
    log_likelihood: Interval | None = None


def compare(cells: Sequence[CellResult], pairs: Sequence[tuple[str, str]], tasks: Sequence[str]) -> list[Comparison]:
    """Test every pair on every task, and on all tasks together if there are several and both methods have all."""
    found: list[Comparison] = []
    for before, after in pairs:
        # use common seeds only, so that both means are over the same draws of train and dev examples
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
    """Means over seeds per example that both methods answered, in the same order."""
    one, other = (_means([cell for cell in cells if cell.method == name], of) for name in (before, after))
    common = [example for example in one if example in other]
    return [one[example] for example in common], [other[example] for example in common]


def _means(cells: Sequence[CellResult], of: Callable[[CellResult], Sequence[float | None]]) -> Values:
    rows: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        # older cells did not record `tested`; they all have the same examples in the same order
        names = cell.tested or [str(i) for i in range(len(cell.correct))]
        for name, value in zip(names, of(cell), strict=True):
            if value is not None:
                rows.setdefault((cell.task, name), []).append(value)
    return {example: float(np.mean(values)) for example, values in rows.items()}


MEAN = "mean"
"""Name for the unweighted mean over all tasks."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "NLU mean": ("mpqa", "trec", "subj", "disaster", "airline"),
    "BIG-bench mean": ("hyperbaton", "navigate", "date_understanding", "logical_deduction_seven_objects"),
}
"""The paper's two groups of tasks; a table with a whole group and other tasks shows the mean of the group."""


@dataclass(frozen=True)
class Row:
    """A method on a task, or on a group of tasks.

    Attributes:
        task: name of the task or of the mean.
        method: name of the method.
        accuracy: mean over seeds (and tasks).
        low: lower end of the 95 % interval: Student's over seeds; Wilson's over the test examples for one seed, or if
            all seeds gave the same answers.
        high: upper end of the interval.
        balanced_accuracy: mean of the per-class accuracies.
        log_likelihood: mean log p(y|x) of the test examples, in nats; None if a cell has none.
        seeds: number of seeds.
        n: test examples per seed.
        unscored: test examples without a usable score, over all seeds.
        calls: requests for training and test, mean per seed, as all costs below.
        train_tokens: tokens of training.
        computed_tokens: tokens of training that an in-process model was fed, shared prefixes once; None if unknown.
        test_tokens: tokens of the test.
        usd: cost in US dollars.
        seconds: time for training and test.
        train_seconds: time for training.
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
    computed_tokens: float | None = None


@dataclass(frozen=True)
class Summary:
    """All rows and paired tests of a table; `groups` are the names of means over some of the tasks."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]

    def row(self, task: str, method: str) -> Row | None:
        """Return a row, None if it is missing."""
        return next((row for row in self.rows if (row.task, row.method) == (task, method)), None)

    def overall(self, method: str) -> Row | None:
        """Return the row over all tasks."""
        return self.row(MEAN if len(self.tasks) > 1 else "".join(self.tasks), method)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the tasks, then of the means."""
        return (*self.tasks, *self.groups, *((MEAN,) if len(self.tasks) > 1 else ()))


def summarize(cells: Sequence[CellResult], comparisons: Sequence[tuple[str, str]] = COMPARISONS) -> Summary:
    """Summarize cells.

    Args:
        cells: determine the order of tasks and methods.
        comparisons: pairs of methods to test against each other; pairs with a missing method are left out.
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
    # if all seeds give the same answers, the spread over seeds (zero) says nothing about the uncertainty
    found = _over_examples(cells[:1]) if _alike(cells) else over_runs(values)
    n = round(float(np.mean([len(cell.correct) for cell in cells])))
    return _entry(task, method, cells, (float(np.mean(values)), found.low, found.high), n)


def _mean(name: str, method: str, tasks: Sequence[str], cells: Sequence[CellResult]) -> Row:
    """The unweighted mean over tasks, with the interval of this mean over seeds."""
    seeds = sorted({cell.seed for cell in cells})
    by_seed = [
        [float(np.mean([c.accuracy for c in cells if c.task == t and c.seed == s])) for t in tasks]
        for s in seeds
        if all(any(c.task == t and c.seed == s for c in cells) for t in tasks)
    ]
    means = [float(np.mean(row)) for row in by_seed]
    whole = float(np.mean([np.mean([c.accuracy for c in cells if c.task == t]) for t in tasks]))
    if len(means) > 1 and not all(_alike([c for c in cells if c.task == t]) for t in tasks):
        found = over_runs(means)
        low, high = found.low, found.high
    else:
        each = [next(c for c in cells if c.task == t) for t in tasks]
        # center it on the mean over tasks, which differs from the mean over examples if tasks differ in size
        found = _over_examples(each)
        shift = whole - found.mean
        low, high = found.low + shift, found.high + shift
    n = round(sum(float(np.mean([len(c.correct) for c in cells if c.task == t])) for t in tasks))
    return _entry(name, method, cells, (whole, low, high), n)


def _entry(task: str, method: str, cells: Sequence[CellResult], accuracy: tuple[float, float, float], n: int) -> Row:
    seeds = len({cell.seed for cell in cells})
    balanced = [cell.balanced_accuracy for cell in cells if cell.balanced_accuracy is not None]
    likelihoods = [[c.log_likelihood for c in cells if c.task == t] for t in dict.fromkeys(cell.task for cell in cells)]
    known = [[value for value in row if value is not None] for row in likelihoods]
    whole = all(len(row) == len(values) for row, values in zip(likelihoods, known, strict=True))
    computed = [c.train.computed for c in cells]
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
        computed_tokens=None if None in computed else sum(c for c in computed if c is not None) / seeds,
    )


def _over_examples(cells: Sequence[CellResult]) -> Interval:
    """Wilson's interval over all their examples."""
    return interval([float(x) for cell in cells for x in cell.correct])


def _alike(cells: Sequence[CellResult]) -> bool:
    """Whether all seeds gave the same answers to the same examples."""
    return len({(*cell.tested, *cell.correct) for cell in cells}) == 1
