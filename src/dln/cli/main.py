"""The command `dln`: its subcommands, exit codes and error output.

Exit codes: 0 ok · 1 run failed · 2 usage or bad input · 3 provider · 4 budget reached · 5 corrupt data ·
130 Ctrl-C · 143 SIGTERM.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

import dln
from dln.cli.output import Terminated, UsageError, err, examples, note, safe, terminable, usage_error
from dln.errors import DlnError, InputError

__all__ = ["app", "log_warnings", "main", "run"]


COMMANDS = {
    "init": "dln.cli.init:init",
    "train": "dln.cli.train:train",
    "eval": "dln.cli.evaluate:evaluate",
    "predict": "dln.cli.predict:predict",
    "resume": "dln.cli.train:resume",
    "bench": "dln.cli.bench:app",
    "probe-task": "dln.cli.tune:probe_task",
    "tune": "dln.cli.tune:tune",
    "doctor": "dln.cli.doctor:doctor",
    "report": "dln.cli.runs:report",
    "runs": "dln.cli.runs:runs",
    "show": "dln.cli.runs:show",
    "export": "dln.cli.export:export",
    "compare": "dln.cli.runs:compare",
    "view": "dln.cli.view:view",
    "label": "dln.cli.label:label",
    "serve": "dln.cli.serve:serve",
    "model": "dln.cli.doctor:app",
}
"""Module and function of each command (its examples are `<NAME>_EPILOG` of the module), or the app of a group."""

APPEARANCE: dict[str, Any] = {"rich_markup_mode": "rich", "pretty_exceptions_enable": False}


class CommandsByName(MutableMapping[str, Any]):
    """The commands of a group; each module is imported when its command is looked up."""

    def __init__(self, places: dict[str, str]) -> None:
        self._places = dict(places)
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module_name, _, attribute = self._places[name].partition(":")
            module = import_module(module_name)
            found = getattr(module, attribute)
            holder = typer.Typer(**APPEARANCE)
            if isinstance(found, typer.Typer):
                for info in found.registered_commands:
                    info.cls = Command
                holder.add_typer(found, name=name)
            else:
                holder.command(name, cls=Command, epilog=getattr(module, f"{attribute.upper()}_EPILOG"))(found)
            self._made[name] = get_group(holder).commands[name]
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._places.setdefault(name, "")
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._places[name]
        self._made.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Command(TyperCommand):
    """Refuses an option that takes one value and is given twice: the last one would win without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the command."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            counts = Counter(p for p in order if p.param_type_name == "option" and not p.multiple)
            twice = next((p for p, n in counts.items() if n > 1), None)
            if twice is not None:
                name = max(twice.opts, key=len)
                raise InputError(
                    "an option with one value is given twice",
                    where=f"{ctx.command_path}: {name}",
                    got=f"{name} {counts[twice]} times",
                    expected=f"{name} once",
                    fix="leave out all but one",
                )
        return super().parse_args(ctx, args)


class Commands(TyperGroup):
    """Looks commands up by name, and turns an interruption into an exit code for every version of Typer."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: MutableMapping[str, Any] = CommandsByName(COMMANDS)

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
        "dln init tickets",
        "dln train --task questions",
        "dln eval runs/questions --task questions",
        'dln predict runs/questions "How tall is the tower?"',
        "dln --install-completion",
    ),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **APPEARANCE,
)


def main() -> None:
    """The console script."""
    log_warnings(shown=_debugging(sys.argv[1:]))
    sys.exit(run())


def log_warnings(*, shown: bool) -> None:
    """Send warnings, each text once, to the logger `py.warnings` instead of the terminal.

    They come from other packages, and a user of the command line cannot act on them. Python's own warning options
    take precedence.

    Args:
        shown: whether the log goes to standard error.
    """
    if sys.warnoptions:
        return
    warnings.simplefilter("once")
    logging.captureWarnings(True)
    log = logging.getLogger("py.warnings")
    log.propagate = False
    log.addHandler(logging.StreamHandler() if shown else logging.NullHandler())
    if not shown:  # this package logs its deprecations by itself
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; raise nothing.

    Args:
        arguments: the words after `dln` (default: those of the process).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = _debugging(words)
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
            f"this is a bug: {type(error).__name__}: {error}\n  try: dln --debug …, and report the traceback", debug
        )
        return 1


def _run(words: list[str]) -> int:
    try:
        code: object = get_command(app).main(words, prog_name="dln", standalone_mode=False)
    except UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            raise usage_error(error, words) from error
        # a group without a command: Typer with rich has printed its help already
        sys.stderr.write(str(error).strip())
        return InputError.exit_code
    return code if isinstance(code, int) else 0


def _debugging(words: Sequence[str]) -> bool:
    return "--debug" in words or os.environ.get("DLN_DEBUG", "") not in ("", "0")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"dln {dln.__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="DLN_DEBUG", help="Print tracebacks of errors.")] = False,
) -> None:
    """Deep Language Networks: train the prompts of multi-stage LLM programs."""


def _complain(text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    err().print(f"[bold red]error:[/] {safe(text)}", soft_wrap=True)


def _close_output() -> None:
    """Discard the interpreter's last flush: the reader of the output has closed it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
