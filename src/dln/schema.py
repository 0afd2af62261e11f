"""From plain data to typed values and back: pydantic does the work, errors speak our language.

An unknown key is an error in whatever is read here, at any depth: a key that was misspelt would otherwise leave its
field at the default and say nothing.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dln.arguments import did_you_mean, shown
from dln.errors import InputError

__all__ = ["dump", "input_error", "parse"]

T = TypeVar("T")

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls a key that is no field: of a model, of a dataclass."""


def parse(kind: type[T], data: object, where: str) -> T:
    """A value of type `kind` from plain data (what JSON or YAML gives).

    Raises:
        InputError: one line per field that is wrong, each with its place under `where`.
    """
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise input_error(error, kind, where) from error


def dump(value: object) -> Any:
    """Plain data for JSON: the inverse of `parse`."""
    return _adapter(type(value)).dump_python(value, mode="json")


def input_error(error: ValidationError, kind: object, where: str) -> InputError:
    """What pydantic found, as an error of ours: field, got, expected, and the field that was probably meant."""
    problems = error.errors(include_url=False)
    first = problems[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError) and len(problems) == 1:  # a value's own check, which says it better
        place = ".".join(str(part) for part in first["loc"])
        at = f"{where}: {place}" if place else where
        return InputError(inner.message, where=at, got=inner.got, expected=inner.expected, fix=inner.fix)
    lines = [f"{_place(e['loc'])}: {_said(e)}" for e in problems]
    known = fields_at(kind, first["loc"][:-1]) if first["type"] in _UNKNOWN else []
    expected = f"one of {', '.join(known)}" if known else _expected(first)
    # pydantic names the choices of a literal within quotes
    choices = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
    word = first["loc"][-1] if known else first["input"]
    close = did_you_mean(str(word), known or choices)
    return InputError(
        "; ".join(lines),
        where=where,
        got=shown(first["input"], 60) if first["type"] != "missing" else "nothing",
        expected=expected,
        fix=f"did you mean {close!r}?" if close else _mend(first),
    )


def fields_at(kind: object, place: Iterable[object]) -> list[str]:
    """Names of the fields of the dataclass or model that stands at `place` within a value of type `kind`."""
    kinds = _structures(kind)
    for part in place:
        if isinstance(part, int):
            continue
        below = [hint for one in kinds for name, hint in _fields(one).items() if name == part]
        # a tag of a union names no field: the members of the union are looked at together
        kinds = [found for hint in below for found in _structures(hint)] if below else kinds
    return list(dict.fromkeys(name for one in kinds for name in _fields(one)))


def _mend(first: Mapping[str, Any]) -> str:
    verb = {"missing": "add", **dict.fromkeys(_UNKNOWN, "remove")}.get(first["type"], "correct")
    return f"{verb} {_place(first['loc'])}"


def _place(loc: tuple[object, ...]) -> str:
    return ".".join(str(part) for part in loc) or "value"


def _expected(e: Mapping[str, Any]) -> str:
    """pydantic's "Input should be …" and "Field required" as what is expected."""
    name = str(e["loc"][-1]) if e["loc"] else "a value"
    return f"the field {name!r}" if e["type"] == "missing" else e["msg"].removeprefix("Input should be ")


def _said(e: Mapping[str, Any]) -> str:
    if e["type"] in _UNKNOWN:
        return f"there is no field {e['loc'][-1]!r}"
    return f"{e['msg']} (got {shown(e['input'], 60)})"


def _fields(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {name: hints[name] for name in cast("type[BaseModel]", kind).model_fields}


def _structures(kind: Any) -> list[type]:
    """The dataclasses and models that an annotation names, however deep in unions and containers."""
    if get_origin(kind) is not None:
        return [found for argument in get_args(kind) for found in _structures(argument)]
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)):
        return [kind]
    return []


def _forbid_unknown(kind: object, seen: set[type]) -> None:
    for found in _structures(kind):
        if found in seen:
            continue
        seen.add(found)
        if dataclasses.is_dataclass(found) and "__pydantic_config__" not in vars(found):
            setattr(found, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010 - not a field
        for hint in _fields(found).values():
            _forbid_unknown(hint, seen)


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    _forbid_unknown(kind, set())
    return TypeAdapter(kind)
