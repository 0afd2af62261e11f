"""The table as files: Markdown to read, CSV and JSON to compute with, a picture of accuracy against tokens."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from dln.bench.paper.markdown import accuracy, comparison_rows, count, nats, table
from dln.bench.paper.methods import METHODS
from dln.bench.paper.picture import picture
from dln.bench.paper.summary import Summary
from dln.errors import InputError

__all__ = ["TESTS", "examples_line", "markdown", "write_table"]

TESTS = (
    "Paired tests on the same examples (per example the mean over seeds; exact McNemar where all are right or wrong, "
    "else Wilcoxon's signed ranks): difference in points with its 95 % interval, examples that got better and worse, "
    "and the difference of log p(y|x) in nats."
)


def write_table(summary: Summary, directory: Path, text: str, title: str = "Test accuracy") -> list[Path]:
    """Write table.md, table.csv, table.json and accuracy.svg; returns their paths.

    Args:
        summary: the numbers.
        directory: where to.
        text: table.md.
        title: of the picture.

    Raises:
        InputError: the directory cannot be written.
    """
    document = {
        "rows": [asdict(row) for row in summary.rows],
        "comparisons": [asdict(comparison) for comparison in summary.comparisons],
    }
    files = {
        "table.md": text,
        "table.csv": _csv(summary),
        "table.json": json.dumps(document, indent=1) + "\n",
        "accuracy.svg": picture(summary, title),
    }
    try:
        for name, content in files.items():
            (directory / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError("the table cannot be written", where=directory, got=error.strerror) from error
    return [directory / name for name in files]


def markdown(summary: Summary, abouts: Mapping[str, str] | None = None) -> str:
    """Accuracies as in the paper's tables, then costs, then the paired tests.

    Args:
        summary: the numbers.
        abouts: what each method is; default the methods of the paper's comparison.
    """
    said = {name: method.about for name, method in METHODS.items()} if abouts is None else abouts
    head = ("method", *summary.columns)
    rows = [(m, *(accuracy(summary.row(t, m), balanced=True) for t in summary.columns)) for m in summary.methods]
    parts = [
        "Test accuracy in percent: mean over seeds ± half of its 95 % interval (one seed, or the same answers under "
        "every seed: the interval of the test examples). In brackets the balanced accuracy, that is the mean of the "
        "per-class accuracies.",
        table(head, rows),
        examples_line(summary),
        "Cost per seed, all tasks together; log p(y|x) is the mean log-likelihood of the right label per test "
        "example, in nats, tasks counting alike.",
        table(
            ("method", "training tokens", "test tokens", "calls", "seconds", "USD", "log p(y|x)", "what it is"),
            [(m, *_costs(summary, m), said.get(m, "")) for m in summary.methods],
        ),
    ]
    if summary.comparisons:
        heads = ("comparison", "task", "difference [95 %]", "better / worse", "p", "nats [95 %]")
        parts += [TESTS, table(heads, comparison_rows(summary.comparisons))]
    return "\n\n".join(part for part in parts if part) + "\n"


def examples_line(summary: Summary) -> str:
    """How many examples and seeds the numbers are of, and what could not be scored."""
    sizes = {task: max(row.n for row in summary.rows if row.task == task) for task in summary.tasks}
    line = f"n per seed: {', '.join(f'{task} {n}' for task, n in sizes.items())}. Seeds: "
    line += f"{', '.join(map(str, summary.seeds))}."
    unscored = [
        f"{row.unscored} of {row.task} with {row.method}"
        for row in summary.rows
        if row.unscored and row.task in summary.tasks
    ]
    return f"{line} Without a usable score, counted as wrong: {'; '.join(unscored)}." if unscored else line


def _costs(summary: Summary, method: str) -> tuple[str, ...]:
    rows = [row for row in summary.rows if row.method == method and row.task in summary.tasks]
    sums = [sum(getattr(row, name) for row in rows) for name in ("train_tokens", "test_tokens", "calls", "seconds")]
    whole = summary.overall(method)
    return (
        *map(count, sums),
        f"{sum(row.usd for row in rows):.2f}",
        nats(whole.log_likelihood if whole is not None else None),
    )


def _csv(summary: Summary) -> str:
    text = io.StringIO()
    rows = [asdict(row) for row in summary.rows]
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
