"""Final results in tables: classes, confusions, and the examples that training fixed or broke."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dln.train.events import Evaluated
from dln.train.records import ComparedRecord, ResultRecord
from dln.view.limits import Limits

__all__ = ["Cell", "ClassRow", "Confusion", "Examples", "Recall", "class_rows", "confusion", "example_tables", "wilson"]


@dataclass(frozen=True, slots=True)
class Recall:
    """Counts of one class, and its recall with Wilson's 95 % interval (None where the class has no example)."""

    n: int
    correct: int
    predicted: int
    recall: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class before and after training."""

    label: str
    before: Recall | None
    after: Recall | None


@dataclass(frozen=True, slots=True)
class Cell:
    """A count, and its part of the row."""

    count: int
    share: float
    diagonal: bool


@dataclass(frozen=True, slots=True)
class Confusion:
    """Rows are what was wanted, columns what was predicted; an empty column name is "no label"."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """A table of examples: the first of them, and how many there are."""

    name: str
    title: str
    about: str
    rows: tuple[ComparedRecord, ...]
    total: int


def class_rows(event: Evaluated, labels: Sequence[str] | None) -> tuple[ClassRow, ...]:
    """One row per class, in the order of the labels; none for free text."""
    before = event.before.per_class if event.before else {}
    after = event.after.per_class
    names = dict.fromkeys([*(labels or ()), *after, *before])
    return tuple(
        ClassRow(label, _recall(before.get(label)), _recall(after.get(label)))
        for label in names
        if label in before or label in after
    )


def confusion(result: ResultRecord | None, labels: Sequence[str] | None) -> Confusion | None:
    """The confusion matrix, or None where there are no classes."""
    if result is None or not result.confusion:
        return None
    table = result.confusion
    targets = [label for label in dict.fromkeys([*(labels or ()), *table]) if label in table]
    said = dict.fromkeys(label for row in table.values() for label in row if label)
    columns = list(dict.fromkeys([*(labels or targets), *said]))
    if any(row.get("") for row in table.values()):
        columns.append("")
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for target in targets:
        total = sum(table[target].values())
        counts = [table[target].get(column, 0) for column in columns]
        cells = [Cell(n, n / total if total else 0.0, c == target) for n, c in zip(counts, columns, strict=True)]
        rows.append((target, tuple(cells)))
    return Confusion(tuple(columns), tuple(rows))


def example_tables(event: Evaluated, limits: Limits) -> tuple[Examples, ...]:
    """Fixed, broken, and those that are wrong as before."""
    fixed = [e for e in event.examples if e.before_correct is False and e.after_correct]
    broken = [e for e in event.examples if e.before_correct is True and not e.after_correct]
    wrong = [e for e in event.examples if not e.before_correct and not e.after_correct]
    still = "Wrong before and after" if event.before else "Wrong"
    tables = (
        _examples("fixed", "Fixed", "Wrong before training, right now.", fixed, limits),
        _examples("broken", "Broken", "Right before training, wrong now.", broken, limits),
        _examples("wrong", still, "What is left to learn, or mislabelled.", wrong, limits),
    )
    return tables if event.before else tables[2:]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a part: (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = Φ⁻¹(0.975)."""
    z, p = 1.959963984540054, correct / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _examples(name: str, title: str, about: str, rows: Sequence[ComparedRecord], limits: Limits) -> Examples:
    return Examples(name, title, about, tuple(rows[: limits.changed]), len(rows))


def _recall(counts: dict[str, int] | None) -> Recall | None:
    if counts is None:
        return None
    n, correct, predicted = counts.get("n", 0), counts.get("correct", 0), counts.get("predicted", 0)
    if not 0 <= correct <= n or n == 0:
        return Recall(n, correct, predicted, None, None, None)
    return Recall(n, correct, predicted, correct / n, *wilson(correct, n))
