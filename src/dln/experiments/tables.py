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
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from dln.errors import InputError
from dln.experiments.methods import METHODS
from dln.experiments.summary import ALL, Comparison, Row, Summary
from dln.train.evaluate import Interval

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


WIDTH, LEAST = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 40, 52
LINE = 13
"""Pixels between the names at the right."""


@dataclass(frozen=True)
class Axes:
    """Where numbers lie, in pixels.

    Args:
        height: of the whole picture.
        low: accuracy at the bottom.
        high: accuracy at the top.
        first: decade of tokens at the left; everything below stands for none.
        last: decade at the right.
    """

    height: int
    low: float
    high: float
    first: int
    last: int

    def across(self, tokens: float) -> float:
        """Logarithmic."""
        share = (math.log10(max(tokens, 10.0**self.first)) - self.first) / (self.last - self.first)
        return round(LEFT + 10 + share * (WIDTH - LEFT - RIGHT - 20), 1)

    def down(self, accuracy: float) -> float:
        """Linear."""
        share = (accuracy - self.low) / (self.high - self.low)
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)


def picture(summary: Summary, title: str = "Test accuracy") -> str:
    """The mean over tasks (of the one task, where there is one), with its interval; tokens on a logarithmic axis."""
    rows = [row for method in summary.methods if (row := summary.overall(method)) is not None]
    rows.sort(key=lambda row: -row.accuracy)
    count = max(1, len(summary.tasks))
    axes = _axes(rows, count)
    bottom = axes.height - BOTTOM
    what = f"mean of {count} tasks" if count > 1 else "".join(summary.tasks)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {axes.height}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f'<rect width="{WIDTH}" height="{axes.height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)} against training tokens, {escape(what)}</text>',
    ]
    step = 20 if axes.high - axes.low > 0.5 else 10
    for percent in range(round(100 * axes.low), round(100 * axes.high) + 1, step):
        y = axes.down(percent / 100)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{percent} %</text>')
    for decade in range(axes.first, axes.last + 1):
        x = axes.across(10.0**decade)
        label = "none" if decade == axes.first else f"{10**decade:,}"
        parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="#eee"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    below = f'x="{middle}" y="{axes.height - 12}" text-anchor="middle"'
    parts.append(f"<text {below}>training tokens per task and seed</text>")
    for row, label in zip(rows, _labels([axes.down(row.accuracy) for row in rows], bottom), strict=True):
        parts.extend(_point(row, count, axes, label))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(rows: Sequence[Row], tasks: int) -> Axes:
    """As much of the plane as the points need, in tens of percent and whole decades."""
    low = min((math.floor(10 * row.low) for row in rows), default=0) / 10
    high = max((math.ceil(10 * row.high) for row in rows), default=10) / 10
    tokens = [row.train_tokens / tasks for row in rows if row.train_tokens > 0]
    first = max(1, math.floor(math.log10(min(tokens, default=1000.0))) - 1)
    last = max(first + 2, math.ceil(math.log10(max(tokens, default=1000.0))))
    height = max(LEAST, TOP + BOTTOM + LINE * (len(rows) + 2))
    return Axes(height, low, max(high, low + 0.1), first, last)


def _labels(wanted: Sequence[float], bottom: float) -> list[float]:
    """Heights of the names at the right, one below the other and none below the plane; `wanted` goes downwards."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + LINE) if placed else y)
    for i in range(len(placed) - 1, -1, -1):
        most = bottom if i == len(placed) - 1 else placed[i + 1] - LINE
        placed[i] = min(placed[i], most)
    return placed


def _point(row: Row, tasks: int, axes: Axes, label: float) -> list[str]:
    x, y = axes.across(row.train_tokens / tasks), axes.down(row.accuracy)
    colour = "#1f5fbf" if row.method.startswith(("dln", "base")) else "#888"
    side = WIDTH - RIGHT + 12
    top, low = axes.down(row.high), axes.down(row.low)
    return [
        f'<line x1="{x}" x2="{x}" y1="{low}" y2="{top}" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>',
        f'<line x1="{x + 5}" x2="{side - 3}" y1="{y}" y2="{label}" stroke="{colour}" stroke-width="0.4"/>',
        f'<text x="{side}" y="{label + 4}" fill="{colour}">{escape(row.method)} {100 * row.accuracy:.1f}</text>',
    ]


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
