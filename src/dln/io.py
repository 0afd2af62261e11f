"""Files: plain data to typed values and back, atomic writes, locks, digests of large files, text files.

Pydantic parses, and its errors become `InputError`. An unknown key is an error at any depth: a misspelt key would
otherwise leave its field at the default silently. The operating system releases a lock when its holder ends. SHA-256
digests are remembered in the user's cache directory, one small file per path, so that two processes never write to
the same file; a file of the same path, size and modification time is not read again.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
import os
import re
import sys
import tempfile
import time
import typing
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import platformdirs
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dln.arguments import did_you_mean, shown
from dln.errors import InputError

__all__ = [
    "cache_directory",
    "dump",
    "file_digest",
    "file_lock",
    "forget_digest",
    "input_error",
    "parse",
    "read_text",
    "write_atomically",
]

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
    for problem in problems:
        inner = problem.get("ctx", {}).get("error")
        if isinstance(inner, InputError):  # a value's own check, which says it better
            place = ".".join(str(part) for part in problem["loc"])
            own = "" if inner.where is None else str(inner.where)
            if own.startswith(f"{where}: "):  # a section, whose place is below this one
                at = f"{where}: {'.'.join(part for part in (place, own.removeprefix(f'{where}: ')) if part)}"
            else:  # a value that names itself, unless the place says the same
                at = f"{where}: {place}" if place else where
                at = at if own in at.replace("_", " ") else f"{at}: {own}"
            return InputError(inner.message, where=at, got=inner.got, expected=inner.expected, fix=inner.fix)
    lines = [f"{_place(e['loc'])}: {_said(e)}" if e["loc"] else _said(e) for e in problems]
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
    return (
        f"the field {name!r}"
        if e["type"] == "missing"
        else e["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    )


def _said(e: Mapping[str, Any]) -> str:
    if e["type"] in _UNKNOWN:
        return f"there is no field {e['loc'][-1]!r}"
    message = str(e["msg"]).removeprefix("Value error, ")
    return message if e["type"] == "value_error" else f"{message} (got {shown(e['input'], 60)})"


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
        hints = list(_fields(found).values())
        structure: Any = found
        if not issubclass(structure, BaseModel) and "__pydantic_config__" not in vars(structure):
            structure.__pydantic_config__ = ConfigDict(extra="forbid")
        for hint in hints:
            _forbid_unknown(hint, seen)


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    _forbid_unknown(kind, set())
    return TypeAdapter(kind)


@contextmanager
def file_lock(path: Path) -> Generator[None]:
    """Hold `path` as a lock; waits for another process that holds it. The file itself stays, empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:  # held by another process
                    time.sleep(0.2)
            try:
                yield
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            yield  # closing the file releases it


_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_directory() -> Path:
    """Where models and digests are kept: `DLN_CACHE_DIR`, or `dln` in the user's cache directory."""
    chosen = os.environ.get("DLN_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("dln", appauthor=False))


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, from memory where path, size and modification time are as before."""
    path = path.resolve()
    if _SHA256.fullmatch(path.name):
        return path.name  # the hub's cache names its large files by their digest
    stat = path.stat()
    known = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    record = _record(path)
    try:
        remembered = cast("dict[str, Any]", json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # none yet, or torn: it is only a memory, the file itself is the truth
        remembered = {}
    digest = remembered.pop("sha256", "") if remembered else ""
    if remembered == known and _SHA256.fullmatch(str(digest)):
        return str(digest)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        write_atomically(record, json.dumps({**known, "sha256": digest}))
    except OSError:  # a cache directory that cannot be written costs time at the next start, nothing else
        return digest
    return digest


def forget_digest(path: Path) -> None:
    """Drop what is remembered of a file, so that the next digest reads it whole."""
    _record(path.resolve()).unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _record(path: Path) -> Path:
    return cache_directory() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """The text of a file, without a byte order mark; line ends are kept as they are.

    Raises:
        InputError: no such file, not readable, empty, NUL bytes, or not in this encoding.
    """
    path = Path(path)
    try:
        codec = codecs.lookup(encoding)
    except LookupError as error:
        raise InputError("unknown encoding", where=path, got=repr(encoding), fix='encoding="utf-8"') from error
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            "there is no such file", where=path, got="nothing", expected="a text file", fix="check the path"
        ) from error
    except OSError as error:
        raise InputError("the file cannot be read", where=path, got=error.strerror or str(error)) from error
    if not data.strip(b"\xef\xbb\xbf \t\r\n"):
        raise InputError("the file is empty", where=path, got=f"{len(data)} bytes", expected="at least one example")
    wide = codec.name.startswith(("utf-16", "utf-32"))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not wide:
        raise InputError(
            "the file is UTF-16, not UTF-8", where=path, fix='say encoding="utf-16", or save the file as UTF-8'
        )
    if not wide and b"\x00" in data:
        offset = data.index(b"\x00")
        raise InputError(
            "the file holds NUL bytes",
            where=f"{path}, line {_line(data, offset)}",
            got=f"{data.count(0)} of them, the first at byte {offset}",
            expected="a text file",
            fix="remove them, or export the file as text again",
        )
    try:
        text = data.decode(codec.name)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the file is not valid {encoding}",
            where=f"{path}, line {_line(data, error.start)}",
            got=f"byte 0x{data[error.start]:02x} at byte {error.start}",
            fix='save the file as UTF-8, or name its encoding: encoding="cp1252"',
        ) from error
    return text.removeprefix("\ufeff")


def _line(data: bytes, offset: int) -> int:
    before = data[:offset]
    return before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n") + 1
