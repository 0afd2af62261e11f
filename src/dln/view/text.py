"""Cleaning and clipping of untrusted text, for display in a terminal or a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

__all__ = ["Clipped", "clean", "clip", "plain"]

_TERMINAL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movement
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links and other strings
    r"|\x1b[ -/]*[0-~]"  # two-character sequences
    r"|\x9b[0-?]*[ -/]*[@-~]"  # one-byte form of the first
)
# C0 and C1 controls except tab and newline, and direction overrides
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Clipped:
    """A text as shown.

    Attributes:
        text: the beginning of the text, or all of it.
        length: number of characters of the whole text.
    """

    text: str
    length: int

    @property
    def shortened(self) -> bool:
        """Whether `text` is incomplete."""
        return len(self.text) < self.length


def clean(text: str) -> str:
    r"""Remove terminal escapes, control characters and direction overrides; the result can be encoded as UTF-8.

    >>> clean("a\x1b[31mb\x1b[0m\r\nc\ud800")
    'ab\nc�'
    """
    if text.isascii() and text.isprintable():
        return text
    text = _TERMINAL.sub("", text.replace("\r\n", "\n"))
    return _LONE_SURROGATE.sub("\ufffd", _CONTROL.sub("", text))


def clip(text: object, limit: int) -> Clipped:
    """Clean a text and cut it to at most `limit` characters; None becomes an empty text."""
    whole = "" if text is None else clean(str(text))
    if len(whole) <= limit:
        return Clipped(whole, len(whole))
    return Clipped(whole[: max(limit, 0)], len(whole))


def plain(value: object) -> Any:
    """Return the data as JSON types, with every text cleaned."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(item) for key, item in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in cast(list[object], value)]
    return clean(str(value))
