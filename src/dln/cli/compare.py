"""`dln compare`: several runs of one task together, with an interval over their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dln.cli import flags
from dln.cli import flags as complete
from dln.cli.flags import examples
from dln.cli.output import note, out, percent, print_record, safe
from dln.train.evaluate import Interval
from dln.view.seeds import Together, read_together

__all__ = ["COMPARE_EPILOG", "compare", "tell_together"]

COMPARE_EPILOG = examples(
    "dln compare runs/mail-seeds",
    "dln compare runs/mail-a runs/mail-b runs/mail-c --json",
)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|DIR...", help="Run directories, or folders of them.", autocompletion=complete.runs),
    ],
    as_json: flags.Json = False,
) -> None:
    """Read several runs of one task together: mean and 95 % interval over them, and the best by dev score."""
    tell_together(read_together(runs), as_json=as_json)


def tell_together(together: Together, *, as_json: bool) -> None:
    """The table of the runs, or one record of it."""
    if as_json:
        print_record(together.to_record())
        return
    if together.differences:
        note(f"note: these runs differ in more than their seed: {', '.join(together.differences)}")
    left_out = len(together.runs) - len(together.finished)
    if left_out:
        note(f"note: {left_out} of {len(together.runs)} runs are not finished and count in no mean")
    out().print(_table(together))
    if together.best is not None:
        out().print(safe(f"best by dev score: {together.best.path}"), soft_wrap=True)


def _table(together: Together) -> Table:
    table = Table(box=None, pad_edge=False, title=safe(together.task), title_justify="left")
    dev = "dev score" if together.select_by is None else f"dev {together.select_by.replace('_', '-')}"
    for heading in ("seed", "run", "state", dev, "test accuracy"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for run in together.runs:
        summary = run.summary
        table.add_row(
            str(run.seed),
            safe(run.path),
            summary.state if summary.reason in (None, "steps") else f"{summary.state} ({safe(summary.reason)})",
            "–" if summary.best_score is None else f"{summary.best_score:.3f}",
            "–" if summary.test is None else f"{percent(summary.test.accuracy)} (n = {summary.test.n})",
        )
    count = len(together.finished)
    table.add_row("mean", f"{count} run{'s' if count != 1 else ''}", "", _mean(together.dev), _mean(together.test, 100))
    return table


def _mean(value: Interval | None, factor: float = 1) -> str:
    """`mean ± half of the 95 % interval`; one run has no interval."""
    if value is None:
        return "–"
    digits, unit = (1, " %") if factor == 100 else (3, "")
    mean = f"{factor * value.mean:.{digits}f}"
    several = value.low == value.low  # NaN: one run
    return f"{mean} ± {factor * (value.high - value.mean):.{digits}f}{unit}" if several else f"{mean}{unit}"
