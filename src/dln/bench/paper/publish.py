"""Tables as sections of a page: with the command that makes them, where and when, and what was left out.

Everything is read from the cells and the protocol, so that writing the same cells again gives the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dln.bench.paper.cell import CellResult
from dln.bench.paper.made import Made
from dln.bench.paper.markdown import accuracy, table
from dln.bench.paper.remaining import seconds_of
from dln.bench.paper.summary import GROUPS, MEAN, Summary

__all__ = ["REGIONS", "SHORT", "Circumstances", "circumstances", "full_section", "reductions", "short_section"]

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

_SHORT = ("majority", "0-shot", "0-shot-line", "icl-5", "dln-1", "dln-2")
_TITLES = {"0-shot-line": "0-shot, same line"}


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
    """Tasks by the methods that most is learnt from, for the front page; those that are not there are left out."""
    methods = [name for name in _SHORT if name in summary.methods]
    rows = [
        (task, *(accuracy(summary.row(task, name)) for name in methods), _examples(summary, task))
        for task in summary.columns
    ]
    command, facts = about.lines
    explained = "Test accuracy in percent, mean over seeds ± half of its 95 % interval; n is per seed."
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
