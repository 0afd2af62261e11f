"""Foreign text made fit to be shown: what a model or a data set wrote is cleaned, and cut where it is long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

__all__ = ["Clipped", "clean", "clip", "plain"]

_TERMINAL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor moves
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links and other strings
    r"|\x1b[ -/]*[0-~]"  # the short ones
    r"|\x9b[0-?]*[ -/]*[@-~]"  # colours again, in their one-byte form
)
# C0 and C1 controls but tab and newline; then the marks that turn the direction of the text around them
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Clipped:
    """A text as shown.

    Attributes:
        text: its beginning, or all of it.
        length: characters of the whole.
    """

    text: str
    length: int

    @property
    def shortened(self) -> bool:
        """Whether something is missing."""
        return len(self.text) < self.length


def clean(text: str) -> str:
    r"""`text` without terminal escapes, control characters and direction overrides; always encodable as UTF-8.

    >>> clean("a\x1b[31mb\x1b[0m\r\nc\ud800")
    'ab\nc�'
    """
    if text.isascii() and text.isprintable():
        return text
    text = _TERMINAL.sub("", text.replace("\r\n", "\n"))
    return _LONE_SURROGATE.sub("\ufffd", _CONTROL.sub("", text))


def clip(text: object, limit: int) -> Clipped:
    """The cleaned text, cut after `limit` characters at most; None becomes an empty text."""
    whole = "" if text is None else clean(str(text))
    if len(whole) <= limit:
        return Clipped(whole, len(whole))
    return Clipped(whole[: max(limit, 0)], len(whole))


def plain(value: object) -> Any:
    """The same data with every text in it cleaned, and nothing but what JSON knows."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(item) for key, item in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in cast(list[object], value)]
    return clean(str(value))
