"""`HttpSender`: batches of calls from any thread, answered on one event loop per process.

Everything happens on one event loop in one daemon thread per process, whatever loop the program itself runs (a
notebook's, a web server's). The calling thread only waits, so that Ctrl-C is handled at once. A forked process has no
such thread: it starts a new loop, and what belonged to the old one is left open, because its connections are shared
with the parent.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dln.lm.remote.call import Call
from dln.lm.remote.endpoint import Endpoint
from dln.lm.remote.exchange import Batch, Counters, Exchange, Traffic

__all__ = ["HttpSender"]

T = TypeVar("T")

_guard = threading.Lock()

_exchanges: set[Exchange] = set()

_running: dict[int, tuple[asyncio.AbstractEventLoop, threading.Thread]] = {}

_abandoned: list[object] = []  # kept, so that no destructor closes what the parent still uses


class HttpSender:
    """A `Sender` for an endpoint; may be used from several threads at once.

    Args:
        endpoint: the model, its replicas, time-outs and retries.
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
        """See `Sender`. `read` runs on the loop's thread; what is in flight is cancelled on KeyboardInterrupt."""
        running = _running.get(os.getpid())
        if running is not None and running[1] is threading.current_thread():
            raise RuntimeError("a reader cannot send: it runs on the loop that would have to answer it")
        if not calls:
            return []
        batch = Batch(calls, read)
        future = asyncio.run_coroutine_threadsafe(batch.run(self._current()), _loop())
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
        closing = None if exchange is None else _close(exchange)
        if closing is not None:
            closing.result(timeout=5.0)

    def _current(self) -> Exchange:
        loop = _loop()
        with self._guard:
            if self._exchange is None or self._exchange.loop is not loop:
                self._exchange = Exchange(self.endpoint, loop, self._counters)
                _exchanges.add(self._exchange)
                weakref.finalize(self, _close, self._exchange).atexit = False  # then the loop closes it
            return self._exchange


def _close(exchange: Exchange) -> concurrent.futures.Future[None] | None:
    """Begin to close; nothing where the loop is gone or belongs to the process this one was forked from."""
    _exchanges.discard(exchange)
    if exchange.loop.is_closed() or exchange.process != os.getpid():
        return None
    return asyncio.run_coroutine_threadsafe(exchange.close(), exchange.loop)


def _loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, started at first use."""
    with _guard:
        found = _running.get(os.getpid())
        if found is not None and found[1].is_alive() and not found[0].is_closed():
            return found[0]
        loop = asyncio.new_event_loop()
        started = threading.Event()
        thread = threading.Thread(target=_run, args=(loop, started), name="dln-remote", daemon=True)
        thread.start()
        started.wait()
        _running[os.getpid()] = (loop, thread)
        return loop


def _run(loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(started.set)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        while _exchanges:
            loop.run_until_complete(_exchanges.pop().close())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _after_fork() -> None:
    global _guard  # noqa: PLW0603 — the parent's lock may have been held when it forked
    _guard = threading.Lock()
    _abandoned.extend(_running.values())
    _abandoned.extend(_exchanges)
    _running.clear()
    _exchanges.clear()


def _stop() -> None:
    found = _running.pop(os.getpid(), None)
    if found is None or found[0].is_closed():
        return
    loop, thread = found
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=2.0)


atexit.register(_stop)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
