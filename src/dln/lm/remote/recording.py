"""The replies of one verb, kept while it runs: if it fails, each row is worked out again from what had come.

A row may need several replies (the steps of a trie, the draws that are counted), in rounds that depend on earlier
ones. So a rung is not asked which rows are complete: it is run again, row by row, with the recorded replies in the
server's place, and a row for which one is missing is left.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from dln.errors import DlnError
from dln.lm.remote.call import Call
from dln.lm.remote.exchange import encoded
from dln.lm.salvage import keeper_of

__all__ = ["NotRecorded", "Recording", "recording", "rescued"]

Key = tuple[str, bytes | None]


class NotRecorded(Exception):
    """The reply to this call had not come."""


class Recording:
    """What was read from replies, by call.

    Attributes:
        replaying: whether calls are answered from here, and no longer sent.
    """

    def __init__(self) -> None:
        self.replaying = False
        self._sent: list[tuple[Sequence[Call], Mapping[int, Any]]] = []
        self._known: dict[Key, Any] = {}
        self._draws: defaultdict[Key, deque[Any]] = defaultdict(deque)

    def listen(self, calls: Sequence[Call]) -> Callable[[int, Any], None]:
        """What takes (index, value) of the replies to `calls`."""
        values: dict[int, Any] = {}
        self._sent.append((calls, values))
        return values.__setitem__

    def replay(self) -> bool:
        """From now on answer from what came; whether anything did."""
        self.replaying = True
        for calls, values in self._sent:
            for index, value in values.items():
                key = _key(calls[index])
                if calls[index].draws:
                    self._draws[key].append(value)
                else:
                    self._known[key] = value
        return bool(self._known or self._draws)

    def answers(self, calls: Sequence[Call]) -> list[Any]:
        """The values of `calls`; of equal ones that draw, each reply is one call's.

        Raises:
            NotRecorded: one of them had not come; no draw is used up then.
        """
        keys = [_key(call) for call in calls]
        taken: defaultdict[Key, int] = defaultdict(int)
        found: list[Any] = []
        for key, call in zip(keys, calls, strict=True):
            if call.draws:
                if taken[key] >= len(self._draws[key]):
                    raise NotRecorded
                found.append(self._draws[key][taken[key]])
                taken[key] += 1
            elif key in self._known:
                found.append(self._known[key])
            else:
                raise NotRecorded
        for key, count in taken.items():
            for _ in range(count):
                self._draws[key].popleft()
        return found


recording: ContextVar[Recording | None] = ContextVar("recording", default=None)
"""Of the verb that runs in this thread, where somebody keeps what it answers."""


@contextmanager
def rescued(contexts: Sequence[str], one: Callable[[int], object]) -> Generator[None]:
    """Where the block fails, Ctrl-C included, hand over the rows whose replies had all come; then raise.

    Args:
        contexts: the batch of the verb.
        one: the verb's answer to the row at a position.
    """
    keep = keeper_of(contexts)
    if keep is None:
        yield
        return
    current = Recording()
    token = recording.set(current)
    try:
        yield
    except BaseException:
        if current.replay():
            for index in range(len(contexts)):
                try:
                    answer = one(index)
                except (NotRecorded, DlnError):
                    continue  # this row is not complete, or is what failed: the first error is the one to raise
                keep(index, answer)
        raise
    finally:
        recording.reset(token)


def _key(call: Call) -> Key:
    return call.path, encoded(call)
