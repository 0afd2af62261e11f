"""Errors in the words of the command line: its flags, and one form for what Typer and pydantic find."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, cast

import typer

from dln.errors import InputError

__all__ = ["UsageError", "closest", "expectation", "in_flags", "usage_error"]

UsageError: type[Exception] = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""The base of Typer's errors about a command line. It is found from a public class: Typer has its own since 0.26,
and took Click's before."""

_WORDS: tuple[tuple[str, str], ...] = (
    (r'\b(input|target)="([^"]*)"', r'--\1 "\2"'),
    (r'\bdata="([^"]*)"', r"--data \1"),
    (r"\bdata=…", "--data DIR"),
    (r"\bfree_form=True", "--free-form"),
    (r"\bfree_form=False", "--labels"),
    (r"\blabels=(\{.*\})", r"task: {labels: \1} in a --config file"),
    (r'\b(?:say |or name its encoding: )encoding="[^"]*", or save', "save"),
    (r',? or name its encoding: encoding="[^"]*"', ""),
)

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
    fix = error.fix
    for pattern, flag in _WORDS:
        fix = None if fix is None else re.sub(pattern, flag, fix)
    return type(error)(error.message, where=error.where, got=error.got, expected=error.expected, fix=fix)


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
        flag = str(found.option_name)
        if not message.startswith("No such option"):  # a value is missing, or too much
            return InputError(_lower(message), where=command, got=flag, expected=_form_of(context, flag), fix=help_of)
        flags = _flags(context)
        near = closest(flag, flags)
        fix = f"did you mean {near}?" if near else help_of
        return InputError("there is no such option", where=command, got=flag, expected=_few(flags), fix=fix)
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
