"""Accuracy, likelihood and calibration of methods by the number of training examples.

The dev set grows with the train set, in the proportion of the main comparison, so that the number of labels is what a
user would have. Calibration is measured at the largest size: the predictions are put into ten bins of equal width by
their confidence, max_y p(y|x), and

    ECE = Σ_b (n_b / n) |accuracy_b − confidence_b|

is the expected calibration error. Seeds of a task are pooled, and ECE is the mean over the tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dln.experiments.cells import CellResult
from dln.experiments.method import EvaluationProtocol
from dln.experiments.summary import ALL, Comparison, Summary, summarize
from dln.experiments.tables import accuracy, nats, p_value, points, table
from dln.view.charts import Curve, Point, plot

__all__ = [
    "LEAST_DEV",
    "SIZES",
    "LabelsNeeded",
    "Reliability",
    "labels_markdown",
    "labels_pictures",
    "protocol_of",
    "reliability",
    "summarize_sizes",
]

SIZES = (16, 32, 64, 128, 256, 400)
"""Numbers of training examples."""

LEAST_DEV = 8
"""Dev examples of the smallest sizes."""

BINS = 10


def protocol_of(whole: EvaluationProtocol, size: int) -> EvaluationProtocol:
    """Return the protocol of a size, with train and dev set in the proportion of the whole one."""
    dev = round(whole.dev_size * size / whole.train_size)
    return replace(whole, train_size=size, dev_size=max(min(LEAST_DEV, whole.dev_size), dev))


@dataclass(frozen=True)
class Reliability:
    """Calibration of a method.

    Attributes:
        error: expected calibration error.
        bins: mean confidence, accuracy and number of predictions of each bin that has some, all tasks together.
    """

    error: float
    bins: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class LabelsNeeded:
    """The results by number of training examples.

    Attributes:
        protocols: of each size.
        summaries: of each size.
        calibration: by method, at the largest size; without methods that have no probabilities.
    """

    protocols: Mapping[int, EvaluationProtocol]
    summaries: Mapping[int, Summary]
    calibration: Mapping[str, Reliability]


def summarize_sizes(
    cells: Mapping[int, Sequence[CellResult]],
    protocols: Mapping[int, EvaluationProtocol],
    comparisons: Sequence[tuple[str, str]],
) -> LabelsNeeded:
    """Summarize the cells of each size; `comparisons` are pairs of methods to test against each other."""
    summaries = {size: summarize(found, comparisons) for size, found in cells.items() if found}
    last = cells[max(summaries)]
    methods = dict.fromkeys(cell.method for cell in last)
    found = {name: reliability([cell for cell in last if cell.method == name]) for name in methods}
    return LabelsNeeded(protocols, summaries, {name: one for name, one in found.items() if one is not None})


def reliability(cells: Sequence[CellResult]) -> Reliability | None:
    """Return the calibration of cells of one method; None without confidences."""
    errors: list[float] = []
    pooled: list[tuple[float, bool]] = []
    for task in dict.fromkeys(cell.task for cell in cells):
        own = [
            (confidence, correct)
            for cell in cells
            if cell.task == task and cell.confidences is not None
            for confidence, correct in zip(cell.confidences, cell.correct, strict=True)
            if confidence is not None
        ]
        if own:
            pooled += own
            errors.append(sum(n / len(own) * abs(right - sure) for sure, right, n in _bins(own)))
    if not pooled:
        return None
    return Reliability(float(np.mean(errors)), tuple(_bins(pooled)))


def _bins(pairs: Sequence[tuple[float, bool]]) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, number) of each bin that has predictions."""
    rows = [[pair for pair in pairs if min(BINS - 1, int(pair[0] * BINS)) == b] for b in range(BINS)]
    return [(float(np.mean([c for c, _ in row])), float(np.mean([r for _, r in row])), len(row)) for row in rows if row]


def labels_markdown(found: LabelsNeeded, abouts: Mapping[str, str]) -> str:
    """Return the tables: accuracies and likelihoods by size, paired tests, calibration, and accuracies by task."""
    sizes = list(found.summaries)
    last = found.summaries[sizes[-1]]
    methods, tasks = last.methods, last.columns
    head = ("method", *map(str, sizes))
    whole = {(name, size): found.summaries[size].overall(name) for name in methods for size in sizes}
    devs = ", ".join(f"{found.protocols[size].dev_size} at {size}" for size in sizes)
    numbers = ", ".join(f"{task} {max(r.n for r in last.rows if r.task == task)}" for task in last.tasks)
    parts = [
        "Columns are numbers of training examples. The dev set, which options and penalties are chosen on, grows with "
        f"them and its labels come on top: {devs}. Test accuracy in percent, mean over tasks and seeds ± half-width of "
        f"the 95 % CI; n per seed: {numbers}. Seeds: {', '.join(map(str, last.seeds))}.",
        table(head, [(name, *(accuracy(whole[name, size]) for size in sizes)) for name in methods]),
        "Mean log p(y|x) of the correct label per test example, in nats.",
        table(
            head,
            [
                (name, *(nats(None if (row := whole[name, size]) is None else row.log_likelihood) for size in sizes))
                for name in methods
            ],
        ),
    ]
    tests = [(size, one) for size in sizes for one in _overall(found.summaries[size])]
    if tests:
        heads = ("comparison", "training examples", "difference [95 %]", "better / worse", "p")
        parts += [
            "Paired tests on the same test examples of all tasks (mean over seeds per example; exact McNemar if all "
            "answers are right or wrong, else Wilcoxon signed-rank), in points.",
            table(heads, [_test(size, one) for size, one in tests]),
        ]
    if found.calibration:
        heads = ("method", "ECE, points", *(f"{b / BINS:.1f} to {(b + 1) / BINS:.1f}" for b in range(BINS)))
        parts += [
            f"Calibration at {sizes[-1]} training examples: expected calibration error (ten bins of equal width, mean "
            "over tasks), and accuracy in percent (number of predictions) by confidence.",
            table(heads, [_calibrated(name, one) for name, one in found.calibration.items()]),
        ]
    if len(last.tasks) > 1:
        parts.append("By task.")
        rows = [
            (f"{name}, {task}", *(accuracy(found.summaries[size].row(task, name)) for size in sizes))
            for task in tasks
            for name in methods
        ]
        parts.append(table(("method", *map(str, sizes)), rows))
    parts.append("\n".join(f"- {name}: {abouts[name]}." for name in methods if name in abouts))
    return "\n\n".join(parts) + "\n"


def _overall(summary: Summary) -> list[Comparison]:
    wanted = ALL if len(summary.tasks) > 1 else "".join(summary.tasks)
    return [one for one in summary.comparisons if one.task == wanted]


def _test(size: int, found: Comparison) -> tuple[str, ...]:
    result = found.result
    return (
        f"{found.after} against {found.before}",
        str(size),
        points(result.difference),
        f"{result.better} / {result.worse}",
        p_value(result.p_value),
    )


def _calibrated(name: str, found: Reliability) -> tuple[str, ...]:
    cells = [""] * BINS
    for sure, right, n in found.bins:
        cells[min(BINS - 1, int(sure * BINS))] = f"{100 * right:.0f} ({n})"
    return (name, f"{100 * found.error:.1f}", *cells)


def labels_pictures(found: LabelsNeeded, highlighted: str) -> dict[str, tuple[str, str]]:
    """Return SVGs with their descriptions by the end of a file's name: accuracy by size, and reliability."""
    sizes = list(found.summaries)
    curves: list[Curve] = []
    for name in found.summaries[sizes[-1]].methods:
        rows = [(size, found.summaries[size].overall(name)) for size in sizes]
        marks = tuple(Point(math.log2(n), r.accuracy, r.low, r.high) for n, r in rows if r is not None)
        curves.append(Curve(name, marks, name == highlighted))
    title = "Test accuracy by number of training examples"
    pictures = {"": (title, plot(curves, title, "training examples", [(math.log2(n), str(n)) for n in sizes]))}
    if found.calibration:
        lines: list[Curve] = []
        for name, one in found.calibration.items():
            marks = tuple(Point(sure, right) for sure, right, _ in one.bins)
            lines.append(Curve(f"{name}, ECE {100 * one.error:.1f}", marks, name == highlighted))
        lines.append(Curve("calibrated", (Point(0.0, 0.0), Point(1.0, 1.0)), dashed=True))
        title = f"Accuracy by confidence at {sizes[-1]} training examples"
        tenths = [(b / BINS, f"{b * 10} %") for b in range(0, BINS + 1, 2)]
        pictures["-reliability"] = (title, plot(lines, title, "confidence", tenths, (0.0, 1.0)))
    return pictures
