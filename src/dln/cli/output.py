"""Terminal output: results on standard output, all else on standard error; untrusted text is escaped.

Errors are printed in one form, in terms of flags, whether they come from this package, Typer or pydantic.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dln.errors import InputError
from dln.view.text import clean

if TYPE_CHECKING:
    from dln.train.events import Evaluated

__all__ = [
    "Terminated",
    "UsageError",
    "closest",
    "duration",
    "err",
    "evaluation_table",
    "examples",
    "expectation",
    "in_flags",
    "note",
    "note_in_flags",
    "one_line",
    "out",
    "p_value",
    "percent",
    "print_record",
    "record_line",
    "safe",
    "sparkline",
    "terminable",
    "usage_error",
]

_BARS = "▁▂▃▄▅▆▇█"


def out() -> Console:
    """Standard output, for results."""
    # off a terminal nothing is gained by folding lines
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def err() -> Console:
    """Standard error, for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


def safe(text: object) -> str:
    """Text of a model, a file or the user, without terminal escapes and with markup shown as it is."""
    return escape(clean(str(text)))


def one_line(text: object, length: int = 100) -> str:
    """The same on one line, shortened."""
    flat = " ".join(clean(str(text)).split())
    return escape(flat if len(flat) <= length else flat[: length - 1] + "…")


def note(text: object) -> None:
    """A line on standard error."""
    err().print(safe(text), style="dim", soft_wrap=True)


def record_line(record: dict[str, Any]) -> str:
    """A JSON record as one line."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def print_record(record: dict[str, Any]) -> None:
    """One JSON record on a line of standard output, flushed."""
    sys.stdout.write(record_line(record))
    sys.stdout.flush()


def percent(value: float | None) -> str:
    """0.8312 as 83.1 %."""
    return "–" if value is None else f"{100 * value:.1f} %"


def p_value(value: float | None) -> str:
    """A p-value with two digits."""
    return "–" if value is None else "< 1e-12" if value < 1e-12 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3:05 or 2:03:05."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last values as a line of bars between their least and greatest."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[min(7, int(8 * (value - low) / span))] for value in shown)


def evaluation_table(event: Evaluated, names: tuple[str, str] = ("before", "after")) -> Table:
    """Accuracies with their intervals, the difference and its test."""
    table = Table(title=f"{safe(event.split)} accuracy, n = {event.after.n}", title_justify="left")
    for heading in ("", "accuracy", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = ((names[0], event.before), ("initial prompt + fitted output layer", event.fitted), (names[1], event.after))
    for name, result in rows:
        if result is not None:
            table.add_row(name, percent(result.accuracy), f"{percent(result.low)} … {percent(result.high)}")
    for one in event.baselines:
        result, name = one.result, safe(one.name)
        table.add_row(name, percent(result.accuracy), f"{percent(result.low)} … {percent(result.high)}")
    if event.difference is not None:
        mean, low, high = (f"{100 * value:+.1f}" for value in event.difference)
        table.add_row("difference", f"{mean} points", f"{low} … {high}")
        table.add_row("paired test", f"p = {p_value(event.p_value)}", f"{event.fixed} fixed, {event.broken} broken")
    if event.fitted is not None:
        table.add_row(
            "gain over fitted output layer",
            f"p = {p_value(event.fitted_p_value)}",
            "paired test, trained prompts against it",
        )
    for one in event.baselines:
        mean, low, high = (f"{100 * value:+.1f}" for value in one.difference)
        table.add_row(f"gain over {safe(one.name)}", f"{mean} points", f"{low} … {high}, p = {p_value(one.p_value)}")
    if event.after.unscored:
        table.add_row("not scored", str(event.after.unscored), "counted as wrong")
    for name, result in ((names[0], event.before), (names[1], event.after)):
        if result is not None and result.overall is not None:
            value, low, high = result.overall
            table.add_row(f"{safe(result.metric)} {name}", f"{value:.3f}", f"{low:.3f} … {high:.3f}")
    if event.after.excluded:
        why = "; ".join(event.after.problems)
        table.add_row(f"no value of {safe(event.after.metric)}", str(event.after.excluded), f"not counted: {safe(why)}")
    return table


class Terminated(KeyboardInterrupt):
    """The process was asked to end."""


@contextmanager
def terminable() -> Generator[None]:
    """Let SIGTERM raise `Terminated` within this block; elsewhere than in the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated(f"signal {number}")


def examples(*lines: str) -> str:
    """The end of a help text: commands to copy."""
    return "\n\n".join(["[bold]Examples[/bold]", *(line.replace("[", r"\[") for line in lines)])


UsageError: type[Exception] = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""The base of Typer's errors about a command line. It is found from a public class: Typer has its own since 0.26,
and took Click's before."""


def _flag_of(match: re.Match[str]) -> str:
    name = "file-format" if match[1] == "format" else match[1].replace("_", "-")
    return f"--{name} {match[2]}"


_WORDS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r'\b(input|target)="([^"]*)"', r'--\1 "\2"'),
    (r'\bdata="([^"]*)"', r"--data \1"),
    (r"\bdata=…", "--data DIR"),
    (r"\bfree_form=True", "--free-form"),
    (r"\bfree_form=False", "--labels"),
    (r"\blabels=(\{.*\})", r"task: {labels: \1} in a --config file"),
    (r"\bheader=False", "--no-header"),
    (r"\bheader=True", "--header"),
    (r"\bmerge_labels=True", "--merge-labels"),
    (
        r"\b(encoding|delimiter|quotechar|sheet|long_rows|missing|several|split_column|format)=[\"']?([\w./-]+|…)[\"']?",
        _flag_of,
    ),
)

RENAMED: dict[str, dict[str, str]] = {
    "dln bench paper": {"--out": "--run-dir", "--budget": "--max-tokens, --max-calls, --max-minutes or --max-usd"},
    "dln bench ablation": {"--out": "--run-dir", "--budget": "--max-tokens, --max-calls, --max-minutes or --max-usd"},
    "dln tune": {"--out": "--run-dir"},
    "dln eval": {"--size": "--test-size, --dev-size or --train-size"},
    "dln predict": {"--column": "--input"},
    "dln serve": {"--api-key-env": "--client-key-env"},
}
"""Former names of flags, by command."""

_KINDS = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number that is not so large",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
    "list_type": "a list",
    "tuple_type": "a list",
    "missing": "a value",
}
_BOUNDS = {
    "greater_than_equal": ("≥", "ge"),
    "greater_than": (">", "gt"),
    "less_than_equal": ("≤", "le"),
    "less_than": ("<", "lt"),
}


def in_flags(error: InputError) -> InputError:
    """The same error, of the same class, with a fix that can be typed.

    >>> print(in_flags(InputError("no input column", fix='name it: input="text"')))
    no input column
      try: name it: --input "text"
    """
    fix = None if error.fix is None else note_in_flags(error.fix)
    return type(error)(error.message, where=error.where, got=error.got, expected=error.expected, fix=fix)


def note_in_flags(text: str) -> str:
    """A note with flags in the place of Python arguments.

    >>> note_in_flags("merge_labels=True merges them")
    '--merge-labels merges them'
    """
    for pattern, flag in _WORDS:
        text = re.sub(pattern, flag, text)
    return text


def expectation(problem: Mapping[str, Any]) -> str:
    """What one of pydantic's problems says that it expected.

    >>> expectation({"type": "greater_than_equal", "ctx": {"ge": 1}, "msg": "Input should be greater than …"})
    'a number ≥ 1'
    """
    kind, context = str(problem["type"]), cast("Mapping[str, Any]", problem.get("ctx") or {})
    if kind in _BOUNDS:
        sign, bound = _BOUNDS[kind]
        return f"a number {sign} {context[bound]}"
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return _KINDS.get(kind) or _plain(message)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, if there is one."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return found[0] if found else None


def usage_error(error: Exception, words: Sequence[str] = ()) -> InputError:
    """Typer's error about a command line, in the form of all others.

    Args:
        error: a `UsageError`.
        words: the command line; it tells the command where the error does not.
    """
    found = cast(Any, error)
    context: Any = found.ctx
    names = takewhile(lambda word: not word.startswith("-"), words[:1])
    command = " ".join(["dln", *names]) if context is None else str(context.command_path)
    message = str(found.format_message()).rstrip(".")
    help_of = f"see {command} --help"
    parameter = getattr(found, "param", None)
    if getattr(found, "option_name", None) is not None:
        return _option_error(context, command, str(found.option_name), message)
    missing = re.match(r"No such command '(.*?)'", message)
    if missing:
        names = _commands(context)
        near = closest(missing[1], names)
        fix = f"did you mean {command} {near}?" if near else help_of
        return InputError("there is no such command", where=command, got=missing[1], expected=_few(names, 20), fix=fix)
    if parameter is None:
        return InputError(_lower(message), where=command, expected=_usage(context), fix=help_of)
    name = _name(parameter)
    if message.startswith("Missing"):
        what = "argument" if parameter.param_type_name == "argument" else "option"
        return InputError(f"an {what} is missing", where=command, expected=name, fix=f"{_usage(context)}; {help_of}")
    cause = found.__cause__
    problem = cause.errors(include_url=False)[0] if hasattr(cause, "errors") else None
    variable = _variable(context, parameter)
    return InputError(
        "invalid value",
        where=f"{command}: {f'${variable}' if variable else name}",
        got=None if problem is None else repr(problem["input"])[:80],
        expected=_plain(str(found.message)) if problem is None else expectation(problem),
        fix=_help_of(parameter, help_of),
    )


def _option_error(context: Any, command: str, flag: str, message: str) -> InputError:
    """An option that does not exist, or has a value too many or too few."""
    help_of = f"see {command} --help"
    if not message.startswith("No such option"):
        return InputError(_lower(message), where=command, got=flag, expected=_form_of(context, flag), fix=help_of)
    if flag in RENAMED.get(command, {}):
        now = RENAMED[command][flag]
        return InputError("this option has been renamed", where=command, got=flag, expected=now, fix=f"use {now}")
    flags = _flags(context)
    near = closest(flag, flags)
    fix = f"did you mean {near}?" if near else help_of
    return InputError("there is no such option", where=command, got=flag, expected=_few(flags), fix=fix)


def _plain(message: str) -> str:
    """What a check of Typer's own says that it expected."""
    choices = re.search(r"is not (one of .*?)\.?$", message)
    return choices[1] if choices else message.rstrip(".")


def _commands(context: Any) -> list[str]:
    return [str(name) for name in context.command.list_commands(context)]


def _parameters(context: Any) -> list[Any]:
    return [] if context is None else list(context.command.get_params(context))


def _flags(context: Any) -> list[str]:
    options = [parameter for parameter in _parameters(context) if parameter.param_type_name == "option"]
    return [flag for option in options for flag in (*option.opts, *option.secondary_opts)]


def _form_of(context: Any, flag: str) -> str | None:
    for parameter in _parameters(context):
        if flag in parameter.opts:
            return f"{flag} {parameter.make_metavar(context)}".rstrip()
    return None


def _few(names: list[str], most: int = 8) -> str | None:
    return None if not names else ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _usage(context: Any) -> str | None:
    if context is None:
        return None
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return f"{context.command_path} {pieces}"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).strip("[]. ")
    return str(max(parameter.opts, key=len))


def _variable(context: Any, parameter: Any) -> str | None:
    """The environment variable that a value came from."""
    source = None if context is None else context.get_parameter_source(parameter.name)
    if getattr(source, "name", "") != "ENVIRONMENT":
        return None
    given = parameter.envvar
    return str(cast("Sequence[str]", given)[0]) if isinstance(given, list | tuple) else str(given)


def _help_of(parameter: Any, otherwise: str) -> str:
    about = getattr(parameter, "help", None)
    return f"{_name(parameter)}: {about}" if about else otherwise


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
