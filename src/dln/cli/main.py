"""The command `dln`: its subcommands, its exit codes, and how it says that something went wrong.

Exit codes: 0 ok · 1 run failed · 2 usage or bad input · 3 provider · 4 budget reached · 5 corrupt data ·
130 Ctrl-C · 143 SIGTERM.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import dln
from dln.cli import (
    bench,
    compare,
    doctor,
    evaluate,
    model,
    predict,
    probe_task,
    report,
    resume,
    runs,
    serve,
    train,
    tune,
)
from dln.cli.errors import UsageError, usage_error
from dln.cli.flags import examples
from dln.cli.show import err, note, safe
from dln.cli.stopping import Terminated, terminable
from dln.errors import DlnError, InputError

__all__ = ["app", "main", "run"]


class Commands(TyperGroup):
    """Passes an interruption on as an exit code, whatever version of Typer runs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            note("interrupted")
            raise typer.Exit(143 if isinstance(error, Terminated) else 130) from error


app = typer.Typer(
    name="dln",
    cls=Commands,
    help="Deep Language Networks: train the prompts of multi-stage LLM programs.",
    epilog=examples(
        "dln train --task questions",
        "dln eval runs/questions --task questions",
        'dln predict runs/questions "How tall is the tower?"',
        "dln --install-completion",
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", epilog=train.EPILOG)(train.train)
app.command("eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command("predict", epilog=predict.EPILOG)(predict.predict)
app.command("resume", epilog=resume.EPILOG)(resume.resume)
app.add_typer(bench.app, name="bench")
app.command("probe-task", epilog=probe_task.EPILOG)(probe_task.probe_task)
app.command("tune", epilog=tune.EPILOG)(tune.tune)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("runs", epilog=runs.EPILOG)(runs.runs)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("serve", epilog=serve.EPILOG)(serve.serve)
app.add_typer(model.app, name="model")


def main() -> None:
    """The console script."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; nothing is raised.

    Args:
        arguments: what follows `dln`; default the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("DLN_DEBUG", "") not in ("", "0")
    try:
        with terminable():
            return _run(words)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except (KeyboardInterrupt, typer.Abort) as error:
        return 143 if isinstance(error, Terminated) else 130
    except DlnError as error:
        _complain(str(error), debug)
        return error.exit_code
    except BrokenPipeError:
        _close_output()
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: one line for the user, all of it with --debug
        _complain(
            f"this is a bug: {type(error).__name__}: {error}\n  try: dln --debug …, and report what it says", debug
        )
        return 1


def _run(words: list[str]) -> int:
    try:
        code: object = get_command(app).main(words, prog_name="dln", standalone_mode=False)
    except UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            raise usage_error(error, words) from error
        # a group that was asked for nothing: Typer with rich has printed its help already
        sys.stderr.write(str(error).strip())
        return InputError.exit_code
    return code if isinstance(code, int) else 0


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"dln {dln.__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="DLN_DEBUG", help="Show tracebacks of errors.")] = False,
) -> None:
    """Deep Language Networks: train the prompts of multi-stage LLM programs."""


def _complain(text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    err().print(f"[bold red]error:[/] {safe(text)}", soft_wrap=True)


def _close_output() -> None:
    """Let the interpreter's last flush go nowhere: the reader of our output has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
