"""`dln report`: write the HTML report of a run."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from dln.cli import flags
from dln.cli.command_line import command_of
from dln.cli.flags import examples
from dln.cli.resume import recorded_config
from dln.cli.show import out, safe
from dln.train.run import read_meta
from dln.view.report import write_report

__all__ = ["EPILOG", "report"]

EPILOG = examples("dln report runs/questions", "dln report runs/questions --open")


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
