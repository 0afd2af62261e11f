"""Names that other installed packages add, and descriptions of the objects that a run was made with.

A package registers names with entry points of the group `dln`; each is called `kind.name` and names a factory:

    [project.entry-points.dln]
    "prompt_proposal.hints" = "my_package:Hints"
    "metric.f1" = "my_package:f1"

Then `hints` and `f1` can be used wherever an option, an argument or the command line takes such a name. A factory is
called without arguments. Two kinds differ: a metric is the function (example, prediction) itself, and an engine is a
function (model, **options) that loads the model of a spec `name/model`. Without an entry point, the factory can be
named as `package.module:factory`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, cast

from dln.arguments import unknown_name
from dln.errors import InputError

__all__ = ["KINDS", "Extension", "create", "described", "from_file", "imported", "is_path", "load", "registered"]

KINDS: tuple[str, ...] = (
    "callback",
    "engine",
    "hidden_proposal",
    "metric",
    "objective",
    "output_layer",
    "penalty",
    "prompt_proposal",
    "selector",
    "stopper",
    "task",
    "template",
    "weight_term",
)
"""What can be registered."""

_GROUP = "dln"
_SECRETS = ("key", "password", "secret", "header")
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Extension:
    """A registered name.

    Attributes:
        kind: one of `KINDS`.
        name: how it is used.
        value: what it names, as package.module:attribute.
        package: the distribution that registers it, with its version.
    """

    kind: str
    name: str
    value: str
    package: str


def registered(kind: str | None = None) -> tuple[Extension, ...]:
    """All registered names, or those of one kind, sorted; of a kind that does not exist too."""
    found: set[tuple[str, str, str, str]] = set()
    for point in metadata.entry_points(group=_GROUP):
        its_kind, _, name = point.name.partition(".")
        package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown package"
        if kind is None or its_kind == kind:
            found.add((its_kind, name, point.value, package))
    return tuple(Extension(*row) for row in sorted(found))


def load(kind: str, name: str, builtin: tuple[str, ...] = (), where: str | None = None) -> Any:
    """What a registered name, or `package.module:attribute`, stands for.

    Args:
        kind: one of `KINDS`.
        name: the name; it is not one of `builtin`, which are listed in the message of the error.
        builtin: names that need no package.
        where: the argument or option that has the name, for messages; default the kind.

    Raises:
        InputError: nobody or several packages register the name, or it cannot be imported.
    """
    if is_path(name):
        return imported(name, kind)
    extensions = registered(kind)
    found = [one for one in extensions if one.name == name]
    if not found:
        names = [*builtin, *(one.name for one in extensions)]
        expected = "{}, or package.module:factory" if names else "a registered name, or package.module:factory"
        raise unknown_name(kind.replace("_", " "), name, names, where=where or kind, expected=expected)
    if len(found) > 1:
        raise InputError(
            f"several packages register the {kind.replace('_', ' ')} {name!r}",
            where=where or kind,
            got=", ".join(f"{one.package} ({one.value})" for one in found),
            expected="one",
            fix="uninstall all but one of them, or write package.module:factory",
        )
    return imported(found[0].value, kind)


def create(kind: str, name: str, builtin: tuple[str, ...] = (), where: str | None = None) -> Any:
    """The object that a registered name stands for: its factory, called without arguments.

    Raises:
        InputError: as `load`, or the factory cannot be called without arguments.
    """
    factory = load(kind, name, builtin, where)
    try:
        return factory()
    except TypeError as error:
        raise InputError(
            f"the factory of the {kind.replace('_', ' ')} {name!r} cannot be called without arguments",
            where=where or kind,
            got=str(error),
            expected="a class or function that needs no arguments",
            fix="give every argument a default, or pass the object itself in Python",
        ) from error


def is_path(name: str) -> bool:
    """Whether a name has the form package.module:attribute."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def imported(path: str, what: str) -> Any:
    """The attribute that `package.module:attribute` names; modules in the working directory are found too.

    Raises:
        InputError: the module cannot be imported, or does not have the attribute.
    """
    name, _, attribute = path.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # a console script, unlike `python -m`, does not look in the working directory
        sys.path.insert(0, here)
    try:
        return functools.reduce(getattr, attribute.split("."), cast(Any, importlib.import_module(name)))
    except (ImportError, SyntaxError) as error:
        raise InputError(
            f"the {what.replace('_', ' ')}'s module cannot be imported",
            where=f"{what} {path}",
            got=f"{type(error).__name__}: {error}",
            expected="a module that can be imported",
            fix=f"python -c 'import {name}' in {here}",
        ) from error
    except AttributeError as error:
        raise InputError(
            f"the module has no {attribute!r}",
            where=f"{what} {path}",
            got=str(error),
            expected=f"a function or class in {name}",
            fix=f"define {attribute} in {name}",
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def from_file(path: Path, attribute: str, what: str) -> Any:
    """The attribute that `path/file.py:attribute` names; the file is executed as a module of its own.

    Raises:
        InputError: there is no such file, it cannot be executed, or it does not have the attribute.
    """
    where = f"{what} {path}:{attribute}"
    if not path.is_file():
        raise InputError(f"the {what}'s file does not exist", where=where, got=path, fix=f"def {attribute}(…): …")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"the {what}'s file cannot be read", where=where, got=path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"the {what}'s file cannot be executed",
            where=where,
            got=f"{type(error).__name__}: {error}",
            expected="a file that Python can import",
            fix=f"python {path}",
        ) from error
    if not hasattr(module, attribute):
        raise InputError(
            f"the {what}'s file has no {attribute!r}",
            where=where,
            got=", ".join(name for name in vars(module) if not name.startswith("_")) or "nothing",
            fix=f"def {attribute}(…): …",
        )
    return getattr(module, attribute)


def described(value: object, depth: int = 0) -> Any:
    """Plain data that says what an object is: its qualified name and its parameters.

    Numbers, texts and containers of them stay as they are. A function is its qualified name; of a dataclass and of
    any other object the public attributes are the parameters; a language model is its name and fingerprint. Attributes
    whose names speak of keys, passwords or headers are left out.

    >>> from fractions import Fraction
    >>> described([1, "a", print])
    [1, 'a', 'builtins.print']
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # a NaN would differ from itself
    if isinstance(value, Mapping):
        rows = cast("Mapping[object, object]", value)
        return {str(described(name, depth + 1)): described(one, depth + 1) for name, one in rows.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [described(one, depth + 1) for one in cast("list[object]", value)]
        return items if isinstance(value, list | tuple) else sorted(items, key=str)
    return _object(value, depth)


def _object(value: object, depth: int) -> Any:
    if callable(tolist := getattr(value, "tolist", None)):  # an array
        return tolist()
    if isinstance(value, functools.partial):
        part = cast("functools.partial[object]", value)
        return {"partial": described(part.func), "parameters": described([*part.args, part.keywords], depth + 1)}
    name = _qualified(value)
    if isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType) or depth >= _DEEPEST:
        return name
    fingerprint = getattr(value, "fingerprint", None)
    attributes = {"fingerprint": fingerprint()} if callable(fingerprint) else _attributes(value)
    parameters = {
        key: described(one, depth + 1)
        for key, one in attributes.items()
        if not key.startswith("_") and not any(word in key.lower() for word in _SECRETS)
    }
    return {"object": name, "parameters": parameters}


def _qualified(value: object) -> str:
    named = cast("Callable[..., object]", value if hasattr(value, "__qualname__") else type(value))
    return f"{named.__module__}.{named.__qualname__}"


def _attributes(value: object) -> dict[str, object]:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(getattr(value, "__dict__", {}))
