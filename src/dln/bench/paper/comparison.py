"""Paired tests: two methods on the same test examples, however many seeds answered each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dln.bench.paper.cell import CellResult
from dln.train.statistics import Interval, Paired, paired

__all__ = ["ALL", "COMPARISONS", "Comparison", "compare"]

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
