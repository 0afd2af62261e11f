"""Read a text file whole, and say precisely what is wrong with it: missing, empty, binary, badly encoded."""

from __future__ import annotations

import codecs
from pathlib import Path

from dln.errors import InputError

__all__ = ["read_text"]


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
