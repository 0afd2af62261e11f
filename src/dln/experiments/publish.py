"""How long a bench still takes, from the cells that are finished.

    seconds(task, method) ≈ m(method) · t(task)

m is the mean of a method's finished cells, t how much longer than their method's mean the cells of a task took. A
method or a task of which nothing is known counts as the mean of those that are.

Tables as sections of a page: with the command that makes them, where and when, and what was left out.

Everything is read from the cells and the protocol, so that writing the same cells again gives the same text.

The table of an ablation: what every change of the base does to accuracy, likelihood and cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dln.experiments.cells import Cell, CellResult, Made
from dln.experiments.methods import BASE
from dln.experiments.summary import ALL, GROUPS, MEAN, Comparison, Row, Summary
from dln.experiments.tables import accuracy, count, difference, examples_line, nats, p_text, points, table

__all__ = [
    "REGIONS",
    "SHORT",
    "Circumstances",
    "ablation_markdown",
    "circumstances",
    "frontier",
    "full_section",
    "reductions",
    "remaining",
    "seconds_of",
    "short_section",
]


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


REGIONS = (
    "paper",
    "baselines",
    "more steps",
    "equal tokens",
    "ablation",
    "more search",
    "more search on subj",
    "depth",
    "layer by layer",
    "depth over seeds",
    "headroom",
    "results",
)
"""Regions of pages that commands write into."""

SHORT = "results"
"""The region that takes the short form."""

FULL_TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)
FULL_SEEDS = (13, 42, 25)
FULL_TEST = 250

_SHORT = ("majority", "0-shot", "0-shot-line", "0-shot-fitted", "icl-5", "icl-5-fitted", "dln-1", "dln-2")
_TITLES = {"0-shot-line": "0-shot, same line", "0-shot-fitted": "0-shot, fitted", "icl-5-fitted": "icl-5, fitted"}


@dataclass(frozen=True)
class Circumstances:
    """What a reader must know to make a table again.

    Args:
        command: to be typed.
        model: its spec.
        seconds: that the cells took, one after another.
        made: where and when, each once, in the order of the cells.
    """

    command: str
    model: str
    seconds: float
    made: tuple[Made, ...] = ()

    @property
    def lines(self) -> tuple[str, str]:
        """The command as a block, and the rest in a sentence."""
        dates = sorted({made.date for made in self.made})
        places = list(dict.fromkeys(made.place for made in self.made))
        versions = list(dict.fromkeys(made.version for made in self.made))
        facts = [
            " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
            self.model,
            " and ".join(places),
            f"{_clock(self.seconds)} of work, cell after cell",
            f"dln {' and '.join(versions)}" if versions else "",
        ]
        return f"```console\n$ {self.command}\n```", f"{'; '.join(fact for fact in facts if fact)}."


def circumstances(command: str, model: str, cells: Sequence[CellResult]) -> Circumstances:
    """Those of these cells."""
    made = tuple(dict.fromkeys(cell.made for cell in cells if cell.made is not None))
    return Circumstances(command, model, seconds_of(cells), made)


def full_section(text: str, about: Circumstances, reduced: str) -> str:
    """The command, the circumstances and what was left out, above a table."""
    command, facts = about.lines
    return "\n\n".join([command, facts, reduced, text.strip()])


def short_section(summary: Summary, about: Circumstances, reduced: str) -> str:
    """Return the table of the front page: tasks by the main methods and the strongest cheap baselines."""
    methods = [name for name in _SHORT if name in summary.methods]
    rows = [
        (task, *(accuracy(summary.row(task, name)) for name in methods), _examples(summary, task))
        for task in summary.columns
    ]
    command, facts = about.lines
    explained = (
        "Test accuracy in percent, mean over seeds ± half-width of the 95 % CI; n is per seed. "
        "Fitted: bias and temperature of the output layer fitted on the dev set, as in dln-1."
    )
    return "\n\n".join(
        [command, facts, reduced, explained, table(("task", *(_TITLES.get(m, m) for m in methods), "n"), rows)]
    )


def reductions(summary: Summary, *, judged: str = "test") -> str:
    """What the table is less than: nine tasks, seeds 13, 42, 25, and 250 test items each.

    Args:
        summary: the table.
        judged: what the items are called; only "test" items are counted against the full number.
    """
    missing = [task for task in FULL_TASKS if task not in summary.tasks]
    seeds = [seed for seed in FULL_SEEDS if seed not in summary.seeds]
    sizes = {task: max(row.n for row in summary.rows if row.task == task) for task in summary.tasks}
    small = {task: n for task, n in sizes.items() if n < FULL_TEST} if judged == "test" else {}
    partial = [
        f"{row.method} on {row.task} with {row.seeds} of {len(summary.seeds)} seeds"
        for row in summary.rows
        if row.task in summary.tasks and row.seeds < len(summary.seeds)
    ]
    said = [
        f"without {', '.join(missing)}" if missing else "",
        f"without seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else "",
        f"{', '.join(f'{n} {judged} items of {task}' for task, n in small.items())}" if small else "",
        *partial,
    ]
    full = f"nine tasks, seeds {', '.join(map(str, FULL_SEEDS))}"
    full += f", {FULL_TEST} test items" if judged == "test" else ""
    found = [part for part in said if part]
    if not found:
        return f"Nothing is reduced against the full protocol ({full})."
    return f"Reduced against the full protocol ({full}): {'; '.join(found)}."


def _examples(summary: Summary, task: str) -> str:
    if task == MEAN or task in summary.groups:
        return ""
    return str(max(row.n for row in summary.rows if row.task == task))


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d} h"


def ablation_markdown(summary: Summary, abouts: Mapping[str, str]) -> str:
    """One row per variant, then accuracies task by task, then what is more than noise.

    Args:
        summary: with `BASE` among the methods, and every other one compared with it.
        abouts: what each variant changes.
    """
    base = summary.overall(BASE)
    best = frontier(summary)
    against = {c.after: c for c in summary.comparisons if c.task == (ALL if len(summary.tasks) > 1 else c.task)}
    rows = [_row(summary, name, base, against.get(name), name in best, abouts) for name in summary.methods]
    heads = (
        *("variant", "accuracy", "points [95 %]", "p", "log p(y|x)", "nats [95 %]"),
        *("training tokens", "× base", "seconds", "what is changed"),
    )
    parts = [
        "Train and dev examples only: one half of the dev set selects, the other half judges. Accuracy in percent on "
        "the half that judges: mean over seeds ± half-width of the 95 % CI. Points, p and nats are the paired "
        f"difference to *{BASE}* on the same examples. Tokens and seconds are those of training per task and seed. "
        "\\* No other variant has a higher log p(y|x) for as few training tokens.",
        table(heads, rows),
        examples_line(summary),
    ]
    if len(summary.tasks) > 1:
        heads = ("variant", *summary.columns)
        single = [(m, *(accuracy(summary.row(t, m)) for t in summary.columns)) for m in summary.methods]
        parts += ["Task by task.", table(heads, single)]
    return "\n\n".join([*parts, _verdict(against)]) + "\n"


def frontier(summary: Summary) -> set[str]:
    """Variants that none beats in likelihood at as few training tokens (in accuracy where there is no likelihood)."""
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


def _row(
    summary: Summary,
    name: str,
    base: Row | None,
    found: Comparison | None,
    best: bool,
    abouts: Mapping[str, str],
) -> tuple[str, ...]:
    row, tasks = summary.overall(name), len(summary.tasks)
    if row is None:
        return (name, *[""] * 8, f"{abouts.get(name, '')} (not on every task)")
    times = f"{row.train_tokens / base.train_tokens:.2f}" if base is not None and base.train_tokens else ""
    return (
        f"{name} \\*" if best else name,
        accuracy(row),
        "" if found is None else points(found.result.difference),
        "" if found is None else p_text(found.result.p_value),
        nats(row.log_likelihood),
        "" if found is None else difference(found.log_likelihood),
        count(row.train_tokens / tasks),
        times,
        count(row.train_seconds / tasks),
        abouts.get(name, ""),
    )


def _verdict(against: Mapping[str, Comparison]) -> str:
    """Which changes are more than noise, in plain words."""
    better, worse = ([name for name, c in against.items() if _side(c) == side] for side in (1, -1))
    return (
        f"Better than *{BASE}* by more than noise: {', '.join(better) or 'none'}. "
        f"Worse by more than noise: {', '.join(worse) or 'none'}. "
        "What is more than noise is read from the 95 % interval of the difference in nats (in points where there are "
        f"no nats); with {len(against)} variants about {len(against) / 20:.1g} of these would be outside by chance."
    )


def _side(comparison: Comparison) -> int:
    found = comparison.log_likelihood or comparison.result.difference
    return 1 if found.low > 0 else -1 if found.high < 0 else 0
