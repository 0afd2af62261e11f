"""Tables of a comparison: Markdown, CSV, JSON and SVG files, and measured sections of Markdown pages.

A measured section stands between two marker comments and is replaced as a whole:

    <!-- measured: NAME -->
    <!-- end of NAME -->

Everything is computed from the cells and the protocol, so the same cells give the same text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from dln.errors import InputError
from dln.experiments.cells import Cell, CellResult, Made
from dln.experiments.methods import BASE, METHODS
from dln.experiments.summary import ALL, GROUPS, Comparison, Row, Summary
from dln.io import write_atomically
from dln.train.evaluate import Interval
from dln.view.charts import Mark, scatter

__all__ = [
    "FRONT",
    "REGIONS",
    "SHORT",
    "Circumstances",
    "ablation_markdown",
    "accuracy",
    "check_section",
    "circumstances",
    "frontier",
    "full_section",
    "markdown",
    "nats",
    "p_value",
    "picture",
    "points",
    "reductions",
    "remaining",
    "seconds_of",
    "short_section",
    "table",
    "write_section",
    "write_table",
]

REGIONS = (
    "paper",
    "sentences",
    "labels",
    "larger model",
    "equal tokens",
    "ablation",
    "depth",
    "headroom",
    "results",
)
"""Names of the sections that commands write."""

SHORT = "results"
"""The section with the short table."""

FULL_TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)
FULL_SEEDS = (13, 42, 25)
FULL_TEST = 250

FRONT: Mapping[str, str] = {
    "majority": "majority",
    "tfidf-lr": "TF-IDF + LR",
    "encoder-lr": "encoder + LR",
    "0-shot": "0-shot",
    "0-shot-line": "0-shot, same line",
    "0-shot-fitted": "0-shot, fitted",
    "label-words": "label words, untrained",
    "word-readout": "word readout, untrained",
    "icl-24-words": "word readout, 24 random examples",
    "icl-5": "icl-5",
    "icl-5-fitted": "icl-5, fitted",
    "dln-1": "dln-1",
    "dln-2": "dln-2",
}
"""Methods of the short table, with their titles."""

_WORDS = {"task", "what it is", "to beat", "what is changed", "training pays", "depth pays"}
"""Left-aligned columns, like the first one."""


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section `name` of a page.

    Raises:
        InputError: the page is missing, does not have exactly one such section, or cannot be written.
    """
    old, pattern = check_section(page, name)
    begin, end = _markers(name)
    try:
        write_atomically(page, pattern.sub(lambda _: f"{begin}\n\n{text.strip()}\n\n{end}", old))
    except OSError as error:
        raise InputError("cannot write the page", where=page, got=error.strerror) from error


def check_section(page: Path, name: str) -> tuple[str, re.Pattern[str]]:
    """Return the page and a pattern that matches the section; call this before hours of measuring.

    Raises:
        InputError: the page is missing, or does not have exactly one such section.
    """
    if not page.is_file():
        raise InputError("there is no such page", where=page, expected="a Markdown file with markers")
    text = page.read_text(encoding="utf-8")
    begin, end = _markers(name)
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    found = len(pattern.findall(text))
    if found != 1:
        raise InputError(
            "the page has no section for these results",
            where=page,
            got=f"{found} pairs of markers",
            expected=f"one: {begin} … {end}",
        )
    return text, pattern


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- measured: {name} -->", f"<!-- end of {name} -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with right-aligned numbers."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    rule = ["---" if i == 0 or name in _WORDS else "--:" for i, name in enumerate(head)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (escaped[0], rule, *escaped[1:]))


def accuracy(row: Row | None, *, balanced: bool = False) -> str:
    """Format 83.2 ± 1.4 in percent, with the balanced accuracy in brackets if asked for."""
    if row is None:
        return ""
    text = f"{100 * row.accuracy:.1f} ± {50 * (row.high - row.low):.1f}"
    return f"{text} ({100 * row.balanced_accuracy:.1f})" if balanced and row.balanced_accuracy is not None else text


def nats(value: float | None) -> str:
    """Format a log-likelihood."""
    return "" if value is None else f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def points(found: Interval) -> str:
    """A difference of accuracies with its interval, in percentage points."""
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _difference(found: Interval | None) -> str:
    """A difference of log-likelihoods with its interval, in nats."""
    return "" if found is None else f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def p_value(p: float) -> str:
    """Format a p-value."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def markdown(summary: Summary, abouts: Mapping[str, str] | None = None) -> str:
    """Return the tables of accuracies, costs and paired tests.

    Args:
        summary: the numbers.
        abouts: descriptions of the methods; default those of the paper's comparison.
    """
    said = {name: method.about for name, method in METHODS.items()} if abouts is None else abouts
    head = ("method", *summary.columns)
    rows = [(m, *(accuracy(summary.row(t, m), balanced=True) for t in summary.columns)) for m in summary.methods]
    parts = [
        "Test accuracy in percent: mean over seeds ± half-width of the 95 % CI (one seed, or the same answers under "
        "every seed: the interval of the test examples). In brackets the balanced accuracy, that is the mean of the "
        "per-class accuracies.",
        table(head, rows),
        _sizes(summary),
        "Cost per seed, sum over the tasks. Computed tokens are what a model in this process was fed in training: a "
        "prefix that several requests share counts once. log p(y|x) is the mean log-likelihood of the correct label "
        "per test example, in nats, averaged over the tasks.",
        table(
            (
                *("method", "training tokens", "computed", "test tokens", "calls", "seconds", "USD", "log p(y|x)"),
                "what it is",
            ),
            [(m, *_costs(summary, m), said.get(m, "")) for m in summary.methods],
        ),
    ]
    if summary.comparisons:
        heads = ("comparison", "task", "difference [95 %]", "better / worse", "p", "nats [95 %]")
        parts += [
            "Paired tests on the same examples (mean over seeds per example; exact McNemar if all answers are right "
            "or wrong, else Wilcoxon signed-rank): difference in points with its 95 % interval, number of examples "
            "that got better and worse, and difference of log p(y|x) in nats.",
            table(heads, [_tested(c) for c in summary.comparisons]),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tested(found: Comparison) -> tuple[str, ...]:
    """A paired test as a row."""
    return (
        f"{found.after} against {found.before}",
        "all tasks" if found.task == ALL else found.task,
        points(found.result.difference),
        f"{found.result.better} / {found.result.worse}",
        p_value(found.result.p_value),
        _difference(found.log_likelihood),
    )


def _sizes(summary: Summary) -> str:
    """Numbers of examples and seeds, and of examples that could not be scored."""
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
    asked, *sums = [
        sum(getattr(row, name) for row in rows) for name in ("train_tokens", "test_tokens", "calls", "seconds")
    ]
    computed = [row.computed_tokens for row in rows]
    whole = summary.overall(method)
    return (
        _count(asked),
        "" if None in computed else _count(sum(tokens for tokens in computed if tokens is not None)),
        *map(_count, sums),
        f"{sum(row.usd for row in rows):.2f}",
        nats(whole.log_likelihood if whole is not None else None),
    )


def picture(summary: Summary, title: str = "Test accuracy") -> str:
    """Return an SVG of mean accuracy over the tasks, with its interval, against training tokens."""
    tasks = max(1, len(summary.tasks))
    name = f"mean of {tasks} tasks" if tasks > 1 else "".join(summary.tasks)
    rows = [row for method in summary.methods if (row := summary.overall(method)) is not None]
    marks = [
        Mark(r.method, r.train_tokens / tasks, r.accuracy, r.low, r.high, r.method.startswith(("dln", "base")))
        for r in rows
    ]
    return scatter(marks, f"{title} against training tokens, {name}")


def write_table(summary: Summary, directory: Path, text: str, title: str = "Test accuracy") -> list[Path]:
    """Write table.md, table.csv, table.json and accuracy.svg; return their paths.

    Args:
        summary: the numbers.
        directory: output directory.
        text: content of table.md.
        title: title of the picture.

    Raises:
        InputError: the directory cannot be written.
    """
    rows = [asdict(row) for row in summary.rows]
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]) if rows else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    document = {"rows": rows, "comparisons": [asdict(comparison) for comparison in summary.comparisons]}
    files = {
        "table.md": text,
        "table.csv": lines.getvalue(),
        "table.json": json.dumps(document, indent=1) + "\n",
        "accuracy.svg": picture(summary, title),
    }
    try:
        for name, content in files.items():
            write_atomically(directory / name, content)
    except OSError as error:
        raise InputError("cannot write the table", where=directory, got=error.strerror) from error
    return [directory / name for name in files]


def seconds_of(results: Iterable[CellResult]) -> float:
    """Return the sum of the seconds of cells."""
    return sum(result.train.seconds + result.test.seconds for result in results)


def remaining(missing: Sequence[Cell], finished: Sequence[CellResult], jobs: int = 1) -> float | None:
    """Estimate the seconds until all of `missing` are done with `jobs` in parallel; None without finished cells.

    seconds(task, method) ≈ (mean of the method's cells) · (mean ratio of the task's cells to their methods' means);
    an unknown method or task counts as the mean of the known ones.
    """
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


@dataclass(frozen=True)
class Circumstances:
    """How a table was made.

    Args:
        command: shell command.
        model: spec of the model.
        seconds: sum of the seconds of the cells.
        made: when and where, without repeats, in the order of the cells.
    """

    command: str
    model: str
    seconds: float
    made: tuple[Made, ...] = ()

    @property
    def text(self) -> str:
        """The command as a block, and the rest in a sentence."""
        dates = sorted({made.date for made in self.made})
        places = list(dict.fromkeys(made.place for made in self.made))
        versions = list(dict.fromkeys(made.version for made in self.made))
        minutes, seconds = divmod(max(0, round(self.seconds)), 60)
        facts = [
            " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
            self.model,
            " and ".join(places),
            f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} h in total",
            f"dln {' and '.join(versions)}" if versions else "",
        ]
        return f"```console\n$ {self.command}\n```\n\n{'; '.join(fact for fact in facts if fact)}."


def circumstances(command: str, model: str, cells: Sequence[CellResult]) -> Circumstances:
    """Return how these cells were made."""
    made = tuple(dict.fromkeys(cell.made for cell in cells if cell.made is not None))
    return Circumstances(command, model, seconds_of(cells), made)


def full_section(text: str, about: Circumstances, reduced: str) -> str:
    """Return a table below its circumstances and its reductions."""
    return "\n\n".join([about.text, reduced, text.strip()])


def short_section(summary: Summary, about: Circumstances, reduced: str) -> str:
    """Return the table of the front page: tasks by the main methods and the strongest cheap baselines."""
    methods = [name for name in FRONT if name in summary.methods]
    single = {task: str(max(r.n for r in summary.rows if r.task == task)) for task in summary.tasks}
    rows = [
        (task, *(accuracy(summary.row(task, name)) for name in methods), single.get(task, ""))
        for task in summary.columns
    ]
    explained = (
        "Test accuracy in percent, mean over seeds ± half-width of the 95 % CI; n is per seed. "
        "What is fitted to untrained prompts: label words and word readouts on train and dev, 0-shot and icl-5 on dev."
    )
    head = ("task", *(FRONT[name] for name in methods), "n")
    return full_section(f"{explained}\n\n{table(head, rows)}", about, reduced)


def reductions(summary: Summary, *, judged: str = "test") -> str:
    """Describe what the table lacks of the full protocol: nine tasks, seeds 13, 42, 25, and 250 test items each.

    Args:
        summary: the table.
        judged: name of the items; only "test" items are compared with the full number.
    """
    missing = [task for task in FULL_TASKS if task not in summary.tasks]
    seeds = [seed for seed in FULL_SEEDS if seed not in summary.seeds]
    sizes = {task: max(row.n for row in summary.rows if row.task == task) for task in summary.tasks}
    small = {task: n for task, n in sizes.items() if n < FULL_TEST} if judged == "test" else {}
    found = [
        f"without {', '.join(missing)}" if missing else "",
        f"without seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else "",
        f"{', '.join(f'{n} {judged} items of {task}' for task, n in small.items())}" if small else "",
        *(
            f"{row.method} on {row.task} with {row.seeds} of {len(summary.seeds)} seeds"
            for row in summary.rows
            if row.task in summary.tasks and row.seeds < len(summary.seeds)
        ),
    ]
    full = f"nine tasks, seeds {', '.join(map(str, FULL_SEEDS))}"
    full += f", {FULL_TEST} test items" if judged == "test" else ""
    if not any(found):
        return f"Full protocol ({full})."
    return f"Reduced from the full protocol ({full}): {'; '.join(part for part in found if part)}."


def ablation_markdown(summary: Summary, abouts: Mapping[str, str]) -> str:
    """Return a table with one row per variant, accuracies by task, and the significant differences.

    Args:
        summary: with `BASE` among the methods, and comparisons of the others with it.
        abouts: what each variant changes.
    """
    base = summary.overall(BASE)
    best = frontier(summary)
    against = {c.after: c for c in summary.comparisons if c.task == (ALL if len(summary.tasks) > 1 else c.task)}
    rows = [_variant(summary, name, base, against.get(name), name in best, abouts) for name in summary.methods]
    heads = (
        *("variant", "accuracy", "points [95 %]", "p", "log p(y|x)", "nats [95 %]"),
        *("training tokens", "× base", "seconds", "what is changed"),
    )
    parts = [
        "Train and dev examples only: one half of the dev set is for selection, the other half for evaluation. "
        "Accuracy in percent on the evaluation half: mean over seeds ± half-width of the 95 % CI. Points, p and "
        f"nats: paired difference to *{BASE}* on the same examples. Tokens and seconds: training, per task and seed. "
        "\\* No other variant has a higher log p(y|x) for as few training tokens.",
        table(heads, rows),
        _sizes(summary),
    ]
    if len(summary.tasks) > 1:
        single = [(m, *(accuracy(summary.row(t, m)) for t in summary.columns)) for m in summary.methods]
        parts += ["By task.", table(("variant", *summary.columns), single)]
    better, worse = ([name for name, c in against.items() if _side(c) == side] for side in (1, -1))
    parts.append(
        f"Significantly better than *{BASE}*: {', '.join(better) or 'none'}. "
        f"Significantly worse: {', '.join(worse) or 'none'}. "
        "Significant means that the 95 % interval of the difference in nats (in points without nats) excludes 0; "
        f"with {len(against)} variants about {len(against) / 20:.1g} are significant by chance."
    )
    return "\n\n".join(parts) + "\n"


def frontier(summary: Summary) -> set[str]:
    """Return the Pareto-optimal variants in likelihood (accuracy without likelihoods) and training tokens."""
    rows = [row for name in summary.methods if (row := summary.overall(name)) is not None]
    known = all(row.log_likelihood is not None for row in rows)

    def gain(row: Row) -> float:
        return row.log_likelihood if known and row.log_likelihood is not None else row.accuracy

    return {
        row.method
        for row in rows
        if not any(
            gain(other) >= gain(row)
            and other.train_tokens <= row.train_tokens
            and (gain(other), -other.train_tokens) != (gain(row), -row.train_tokens)
            for other in rows
        )
    }


def _variant(
    summary: Summary, name: str, base: Row | None, found: Comparison | None, best: bool, abouts: Mapping[str, str]
) -> tuple[str, ...]:
    row, tasks = summary.overall(name), len(summary.tasks)
    if row is None:
        return (name, *[""] * 8, f"{abouts.get(name, '')} (not on every task)")
    times = f"{row.train_tokens / base.train_tokens:.2f}" if base is not None and base.train_tokens else ""
    return (
        f"{name} \\*" if best else name,
        accuracy(row),
        "" if found is None else points(found.result.difference),
        "" if found is None else p_value(found.result.p_value),
        nats(row.log_likelihood),
        "" if found is None else _difference(found.log_likelihood),
        _count(row.train_tokens / tasks),
        times,
        _count(row.train_seconds / tasks),
        abouts.get(name, ""),
    )


def _side(comparison: Comparison) -> int:
    found = comparison.log_likelihood or comparison.result.difference
    return 1 if found.low > 0 else -1 if found.high < 0 else 0
