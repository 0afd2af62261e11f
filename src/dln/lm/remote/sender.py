"""Brings calls to a server, through bad weather: bounded, merged, retried, routed, and plain about what failed.

Per call: find the replica, wait for a place in its window, send, read. What can be mended is asked again after a
while; what cannot ends the whole `send`, with nothing more sent. Everything happens on the background loop; the
calling thread only waits, so that Ctrl-C is heard at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dln.lm.remote.batch import Batch
from dln.lm.remote.call import Call
from dln.lm.remote.counters import Counters, Traffic
from dln.lm.remote.endpoint import Endpoint
from dln.lm.remote.exchange import Exchange
from dln.lm.remote.loop import background_loop, forget, in_background, remember

__all__ = ["HttpSender"]

T = TypeVar("T")


class HttpSender:
    """A `Sender` for an endpoint; may be used from several threads at once.

    Args:
        endpoint: the model, its replicas and how patiently to ask.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._counters = Counters()
        self._guard = threading.Lock()
        self._exchange: Exchange | None = None

    def send(
        self,
        calls: Sequence[Call],
        read: Callable[[Call, Any], T],
        *,
        on_reply: Callable[[int, T], None] | None = None,
    ) -> list[T]:
        """`read(call, JSON of the reply)` for every call, in the order of `calls`.

        Args:
            calls: what to ask.
            read: turns a reply into a value; may raise `MalformedReply`. Runs on the loop's thread.
            on_reply: gets (index, value) for every answered call, in the calling thread, before this returns or
                raises: also when another call failed or the user interrupted, so that no paid reply is lost.

        Raises:
            ProviderError: what could not be mended.
            ContextLengthError: the server finds a call too long.
            KeyboardInterrupt: passed on, with what was in flight cancelled.
        """
        if in_background():
            raise RuntimeError("a reader cannot send: it runs on the loop that would have to answer it")
        if not calls:
            return []
        batch = Batch(calls, read)
        future = asyncio.run_coroutine_threadsafe(batch.run(self._current()), background_loop())
        try:
            future.result()
        except BaseException:
            future.cancel()
            batch.stopped.wait(timeout=2.0)
            raise
        finally:
            values = dict(batch.values)
            if on_reply is not None:
                for index in sorted(values):
                    on_reply(index, values[index])
        return [values[index] for index in range(len(calls))]

    def traffic(self) -> Traffic:
        """What was done so far."""
        exchange = self._exchange
        return self._counters.traffic({}, ()) if exchange is None else self._counters.traffic(*exchange.state())

    def close(self) -> None:
        """Close the connections; the next `send` opens new ones. Also done when the sender is not used any more."""
        with self._guard:
            exchange, self._exchange = self._exchange, None
        if exchange is not None:
            closing = _close(exchange)
            if closing is not None:
                closing.result(timeout=5.0)

    def _current(self) -> Exchange:
        loop = background_loop()
        with self._guard:
            if self._exchange is None or self._exchange.loop is not loop:
                self._exchange = Exchange(self.endpoint, loop, self._counters)
                remember(self._exchange)
                weakref.finalize(self, _close, self._exchange).atexit = False  # then the loop closes it
            return self._exchange


def _close(exchange: Exchange) -> concurrent.futures.Future[None] | None:
    """Begin to close; nothing where the loop is gone or belongs to the process this one was forked from."""
    forget(exchange)
    if exchange.loop.is_closed() or exchange.process != os.getpid():
        return None
    return asyncio.run_coroutine_threadsafe(exchange.close(), exchange.loop)
