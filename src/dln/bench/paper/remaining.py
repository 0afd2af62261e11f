"""How long a bench still takes, from the cells that are finished.

    seconds(task, method) ≈ m(method) · t(task)

m is the mean of a method's finished cells, t how much longer than their method's mean the cells of a task took. A
method or a task of which nothing is known counts as the mean of those that are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from dln.bench.paper.cell import Cell, CellResult

__all__ = ["remaining", "seconds_of"]


def seconds_of(results: Iterable[CellResult]) -> float:
    """Seconds that these cells took, one after another."""
    return sum(result.train.seconds + result.test.seconds for result in results)


def remaining(missing: Sequence[Cell], finished: Sequence[CellResult], jobs: int = 1) -> float | None:
    """Seconds until all of `missing` are made, `jobs` side by side; None while nothing is known."""
    if not finished:
        return None
    methods: dict[str, list[float]] = {}
    for result in finished:
        methods.setdefault(result.method, []).append(seconds_of([result]))
    means = {name: fmean(values) for name, values in methods.items()}
    tasks: dict[str, list[float]] = {}
    for result in finished:
        if means[result.method] > 0:
            tasks.setdefault(result.task, []).append(seconds_of([result]) / means[result.method])
    factors = {name: fmean(values) for name, values in tasks.items()}
    usual = fmean(means.values())
    expected = sum(means.get(cell.method, usual) * factors.get(cell.task, 1.0) for cell in missing)
    return expected / max(1, jobs)
