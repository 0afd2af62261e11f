"""Numbers as the tables print them, and tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from dln.bench.paper.comparison import ALL, Comparison
from dln.bench.paper.summary import Row
from dln.train.statistics import Interval

__all__ = ["accuracy", "comparison_rows", "count", "difference", "nats", "p_text", "points", "table"]


_WORDS = {"task", "what it is", "what is changed", "training pays", "depth pays"}
"""Columns of words; the first one is, too."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    rule = ["---" if i == 0 or name in _WORDS else "--:" for i, name in enumerate(head)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (escaped[0], rule, *escaped[1:]))


def accuracy(row: Row | None, *, balanced: bool = False) -> str:
    """83.2 ± 1.4, in percent; with the mean of the per-class accuracies in brackets if wanted and there."""
    if row is None:
        return ""
    text = f"{100 * row.accuracy:.1f} ± {50 * (row.high - row.low):.1f}"
    return f"{text} ({100 * row.balanced_accuracy:.1f})" if balanced and row.balanced_accuracy is not None else text


def nats(value: float | None) -> str:
    """A log-likelihood."""
    return "" if value is None else f"{value:.3f}"


def count(value: float) -> str:
    """A number of tokens, calls or seconds."""
    return f"{value:,.0f}"


def points(found: Interval) -> str:
    """A difference of accuracies with its interval, in points."""
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def difference(found: Interval | None) -> str:
    """A difference of log-likelihoods with its interval, in nats."""
    return "" if found is None else f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def p_text(p: float) -> str:
    """A p-value."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def comparison_rows(found: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Paired tests as rows: what, where, difference, better and worse examples, p, difference in nats."""
    return [
        (
            f"{c.after} against {c.before}",
            "all tasks" if c.task == ALL else c.task,
            points(c.result.difference),
            f"{c.result.better} / {c.result.worse}",
            p_text(c.result.p_value),
            difference(c.log_likelihood),
        )
        for c in found
    ]
