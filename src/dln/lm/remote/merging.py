"""Equal calls in flight are one call: whoever comes first asks, the others wait for the same reply."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from dln.errors import DlnError
from dln.lm.remote.call import MalformedReply
from dln.lm.remote.counters import Counters

__all__ = ["Merger", "again"]

T = TypeVar("T")


class Merger:
    """The calls in flight on one loop, by what they say.

    Args:
        counters: whose `merged` counts the calls that were answered by another's reply.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._in_flight: dict[bytes, asyncio.Future[Any]] = {}

    async def answer(
        self, path: str, payload: bytes | None, ask: Callable[[], Awaitable[tuple[Any, T]]], read: Callable[[Any], T]
    ) -> T:
        """The value that `ask` gives, or what `read` makes of the reply to an equal call.

        Args:
            path: with `payload`, what makes calls equal.
            payload: the body as it is sent.
            ask: sends the call; gives (reply, value).
            read: turns a reply into a value. If it finds the other's reply malformed, the call is sent after all.

        Raises:
            DlnError: what the call that was sent failed with, for all that waited on it.
        """
        key = hashlib.blake2b(path.encode() + b"\x00" + (payload or b""), digest_size=16).digest()
        while (leader := self._in_flight.get(key)) is not None:
            await asyncio.wait([leader])
            if leader.cancelled():
                continue  # whoever asked was stopped: somebody else has to
            error = leader.exception()
            if error is not None:
                raise again(error)
            try:
                value = read(leader.result())
            except MalformedReply:
                return (await ask())[1]
            self._counters.merged += 1
            return value
        return await self._lead(key, ask)

    async def _lead(self, key: bytes, ask: Callable[[], Awaitable[tuple[Any, T]]]) -> T:
        shared: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._in_flight[key] = shared
        try:
            reply, value = await ask()
        except DlnError as error:
            shared.set_exception(again(error))
            shared.exception()  # seen, even if nobody waits for it
            raise
        else:
            shared.set_result(reply)
            return value
        finally:
            del self._in_flight[key]
            shared.cancel()  # without effect where a result or an error is set


def again(error: BaseException) -> BaseException:
    """The same error anew: one exception raised in two places would mix their tracebacks."""
    if isinstance(error, DlnError):
        return type(error)(error.message, where=error.where, got=error.got, expected=error.expected, fix=error.fix)
    return error
