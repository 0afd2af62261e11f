"""Writing measured tables into a Markdown page, between two marker comments each.

<!-- measured: cpu scoring -->
(replaced)
<!-- end of cpu scoring -->

Numbers as the tables print them, and tables as Markdown.

Accuracy against training tokens, one point per method: an SVG that needs nothing else.

The table as files: Markdown to read, CSV and JSON to compute with, a picture of accuracy against tokens.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from dln.errors import InputError
from dln.experiments.methods import METHODS
from dln.experiments.summary import ALL, Comparison, Row, Summary
from dln.train.evaluate import Interval
from dln.view.charts import Mark, scatter

__all__ = [
    "TESTS",
    "accuracy",
    "check_section",
    "comparison_rows",
    "count",
    "difference",
    "examples_line",
    "markdown",
    "nats",
    "p_text",
    "picture",
    "points",
    "table",
    "write_section",
    "write_table",
]


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name`; nothing else of the page is touched.

    Raises:
        InputError: the page is not there, has not exactly one such pair of markers, or cannot be written.
    """
    old, pattern = check_section(page, name)
    new = pattern.sub(lambda _: f"{_begin(name)}\n\n{text.strip()}\n\n{_end(name)}", old)
    try:
        page.write_text(new, encoding="utf-8")
    except OSError as error:
        raise InputError("the page cannot be written", where=page, got=error.strerror) from error


def check_section(page: Path, name: str) -> tuple[str, re.Pattern[str]]:
    """The page and what finds the section in it: asked before hours of measuring that shall be written there.

    Raises:
        InputError: the page is not there, or has not exactly one such pair of markers.
    """
    if not page.is_file():
        raise InputError("there is no such page", where=page, expected="a Markdown file with markers")
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(_begin(name)) + r".*?" + re.escape(_end(name)), re.DOTALL)
    found = len(pattern.findall(text))
    if found != 1:
        raise InputError(
            "the page has no place for these figures",
            where=page,
            got=f"{found} pairs of markers",
            expected=f"one: {_begin(name)} … {_end(name)}",
        )
    return text, pattern


def _begin(name: str) -> str:
    return f"<!-- measured: {name} -->"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->"


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


def picture(summary: Summary, title: str = "Test accuracy") -> str:
    """Return an SVG: mean accuracy over the tasks with its interval, against training tokens."""
    tasks = max(1, len(summary.tasks))
    name = f"mean of {tasks} tasks" if tasks > 1 else "".join(summary.tasks)
    rows = [row for method in summary.methods if (row := summary.overall(method)) is not None]
    marks = [
        Mark(r.method, r.train_tokens / tasks, r.accuracy, r.low, r.high, r.method.startswith(("dln", "base")))
        for r in rows
    ]
    return scatter(marks, f"{title} against training tokens, {name}")


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
        "Test accuracy in percent: mean over seeds ± half-width of the 95 % CI (one seed, or the same answers under "
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
