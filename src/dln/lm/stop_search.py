"""Finding stop strings while a text grows token by token, without decoding all of it for every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["REPLACEMENT", "StopSearch", "stop_at"]

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""


class StopSearch:
    """Says after each token whether a stop string has appeared.

    Kept are the ids since the last whole character and as many characters before them as the longest stop
    string could reach back, so that each token costs a decoding of a few ids. Trailing bytes that are no
    character yet are no text; a hit is confirmed on the whole text, which is what counts.

    Args:
        stop: the stop strings.
        text: the text that ids add to what stands before them.
    """

    def __init__(self, stop: Sequence[str], text: Callable[[Sequence[int]], str]) -> None:
        self._stop = stop
        self._text = text
        self._reach = max(map(len, stop), default=1) - 1
        self._ids: list[int] = []
        self._open = 0  # from this id on, characters are not complete
        self._before = ""

    def add(self, token: int) -> bool:
        """Take one more token; whether the text up to here contains a stop string."""
        if not self._stop:
            return False
        self._ids.append(token)
        opened = self._text(self._ids[self._open :])
        seen = self._before + opened.rstrip(REPLACEMENT)
        if opened and not opened.endswith(REPLACEMENT):
            self._open = len(self._ids)
            self._before = seen[max(0, len(seen) - self._reach) :]
        if stop_at(seen, self._stop) is None:
            return False
        return stop_at(self._text(self._ids).rstrip(REPLACEMENT), self._stop) is not None


def stop_at(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string in `text` begins, or None."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found) if found else None
