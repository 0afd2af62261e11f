"""`dln runs`: what runs there are and how they ended.

`dln report`: write the HTML report of a run.
"""

from __future__ import annotations

import fcntl
import time
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dln.cli import flags
from dln.cli.flags import examples
from dln.cli.output import note, out, percent, print_record, safe
from dln.cli.train import command_of, recorded_config
from dln.errors import DlnError, InputError
from dln.train.run import read_events, read_meta
from dln.view.report import write_report
from dln.view.summary import RunSummary, summarize

__all__ = ["REPORT_EPILOG", "RUNS_EPILOG", "report", "runs"]

RUNS_EPILOG = examples("dln runs", "dln runs experiments --json")


def runs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the run directories are.")] = Path("runs"),
    as_json: flags.Json = False,
) -> None:
    """List the runs of a directory, the newest first."""
    if not directory.is_dir():
        raise InputError("there is no such directory", where=directory, fix="dln train --task questions makes a run")
    found: list[tuple[Path, RunSummary, str]] = []
    series = [file.parent for file in directory.glob("*/seeds.yaml")]
    for file in sorted(file for place in (directory, *series) for file in place.glob("*/run.yaml")):
        try:
            summary = summarize(read_events(file.parent / "events.jsonl"))
        except DlnError as error:
            note(f"{file.parent}: {error.message}")
            continue
        found.append((file.parent, summary, _state(file.parent, summary)))
    found.sort(key=lambda row: row[1].started, reverse=True)
    if as_json:
        for path, summary, state in found:
            modes = None if summary.scoring_modes is None else summary.scoring_modes.model_dump(mode="json")
            print_record({**asdict(summary), "scoring_modes": modes, "run_dir": str(path), "state": state})
        return
    if not found:
        note(f"no runs in {directory}")
        return
    out().print(_table(found))


def _table(found: list[tuple[Path, RunSummary, str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "steps", "best", "dev score", "test accuracy", "tokens", "started"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for path, summary, state in found:
        test = summary.test
        cells: list[Any] = [
            safe(path),
            state,
            f"{summary.steps_done}/{summary.steps_planned}",
            "–" if summary.best_step is None else str(summary.best_step),
            "–" if summary.best_score is None else f"{summary.best_score:.3f}",
            "–" if test is None else f"{percent(test.accuracy)} (n = {test.n})",
            "–" if summary.tokens is None else f"{summary.tokens:,.0f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.started)),
        ]
        table.add_row(*cells)
    return table


def _state(run: Path, summary: RunSummary) -> str:
    """A run whose events just end is at work if a process holds its lock, and was killed otherwise."""
    if summary.state != "running?":
        return summary.state if summary.reason in (None, "steps") else f"{summary.state} ({safe(summary.reason)})"
    with (run / "events.jsonl").open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return "running"
    return "killed"


REPORT_EPILOG = examples("dln report runs/questions", "dln report runs/questions --open")


def report(
    run: flags.RunDirectory,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write report.html of a run, finished or not, and say where it is."""
    command = command_of(recorded_config(run)) if read_meta(run).get("config") else None
    path = write_report(run, command=command)
    out().print(safe(path), soft_wrap=True)
    if show:
        webbrowser.open(path.resolve().as_uri())
