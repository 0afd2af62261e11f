"""The table as files: Markdown to read, CSV and JSON to compute with, a picture of accuracy against tokens."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

from dln.bench.paper.methods import METHODS
from dln.bench.paper.picture import picture
from dln.bench.paper.summary import Comparison, Row, Summary

__all__ = ["markdown", "write_table"]


def write_table(summary: Summary, directory: Path, heading: str = "") -> list[Path]:
    """Write table.md, table.csv, table.json and accuracy.svg; returns their paths."""
    document = {"rows": [asdict(r) for r in summary.rows], "comparisons": [asdict(c) for c in summary.comparisons]}
    files = {
        "table.md": f"{heading}\n\n{markdown(summary)}".lstrip(),
        "table.csv": _csv(summary),
        "table.json": json.dumps(document, indent=1) + "\n",
        "accuracy.svg": picture(summary),
    }
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in files]


def markdown(summary: Summary) -> str:
    """Accuracies as in the paper's tables, then costs, then the paired tests."""
    columns = (*summary.tasks, *(("mean",) if len(summary.tasks) > 1 else ()))
    parts = [
        "Test accuracy in percent: mean over seeds ± half of its 95 % interval (one seed: the interval of the "
        "test examples). In brackets the mean of the per-class accuracies.",
        _table(("method", *columns), [(m, *(_accuracy(summary.row(t, m)) for t in columns)) for m in summary.methods]),
        "Cost per seed, all tasks together.",
        _table(
            ("method", "training tokens", "test tokens", "calls", "seconds", "USD", "what it is"),
            [(m, *_costs(summary, m), METHODS[m].about if m in METHODS else "") for m in summary.methods],
        ),
    ]
    if summary.comparisons:
        parts += [
            "Paired tests on the same test examples (per example the mean over seeds; exact McNemar for one seed, "
            "Wilcoxon's signed ranks for more), differences in points.",
            _table(
                ("comparison", "task", "difference", "95 % interval", "better / worse", "p"),
                [_comparison(c) for c in summary.comparisons],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" if i == 0 else "--:" for i in range(len(head))), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _accuracy(row: Row | None) -> str:
    if row is None:
        return ""
    half = 50 * (row.high - row.low)
    balanced = "" if row.balanced_accuracy is None else f" ({100 * row.balanced_accuracy:.1f})"
    return f"{100 * row.accuracy:.1f} ± {half:.1f}{balanced}"


def _costs(summary: Summary, method: str) -> tuple[str, ...]:
    rows = [row for row in summary.rows if row.method == method and row.task != "mean"]
    sums = [sum(getattr(row, name) for row in rows) for name in ("train_tokens", "test_tokens", "calls", "seconds")]
    return (*(f"{value:,.0f}" for value in sums), f"{sum(row.usd for row in rows):.2f}")


def _comparison(found: Comparison) -> tuple[str, ...]:
    difference = found.result.difference
    p = found.result.p_value
    return (
        f"{found.after} against {found.before}",
        found.task,
        f"{100 * difference.mean:+.1f}",
        f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
        f"{found.result.better} / {found.result.worse}",
        f"{p:.3f}" if p >= 0.001 else f"{p:.0e}",
    )


def _csv(summary: Summary) -> str:
    text = io.StringIO()
    rows = [asdict(row) for row in summary.rows]
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
