"""From plain data to typed values and back: pydantic does the work, errors speak our language."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dln.errors import InputError

__all__ = ["dump", "parse"]

T = TypeVar("T")


def parse(kind: type[T], data: object, where: str) -> T:
    """A value of type `kind` from plain data (what JSON or YAML gives).

    Raises:
        InputError: one line per field that is wrong, each with its place under `where`.
    """
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in e['loc']) or 'value'}: {e['msg']} (got {_short(e['input'])})"
            for e in error.errors(include_url=False)
        ]
        raise InputError("; ".join(problems), where=where) from error


def dump(value: object) -> Any:
    """Plain data for JSON: the inverse of `parse`."""
    return _adapter(type(value)).dump_python(value, mode="json")


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
