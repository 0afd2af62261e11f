"""One event loop in one daemon thread per process, for all servers.

It runs beside whatever loop the program itself may have (a notebook's, a web server's). A process that was forked
has no such thread: it gets a new loop, and what belonged to the old one is left alone, not closed, because its
connections are shared with the parent.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from typing import Protocol

__all__ = ["background_loop", "forget", "in_background", "remember"]


class Closable(Protocol):
    """What has connections on the loop."""

    async def close(self) -> None:
        """Close them."""
        ...


_guard = threading.Lock()
_closables: set[Closable] = set()
_running: dict[int, tuple[asyncio.AbstractEventLoop, threading.Thread]] = {}
_abandoned: list[object] = []  # kept, so that no destructor closes what the parent still uses


def background_loop() -> asyncio.AbstractEventLoop:
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


def in_background() -> bool:
    """Whether this code runs on the loop itself, where waiting for it would never end."""
    found = _running.get(os.getpid())
    return found is not None and found[1] is threading.current_thread()


def remember(closable: Closable) -> None:
    """Close it when the process ends, unless it is forgotten before."""
    _closables.add(closable)


def forget(closable: Closable) -> None:
    """It is closed."""
    _closables.discard(closable)


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
        loop.run_until_complete(_close_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _close_all() -> None:
    while _closables:
        await _closables.pop().close()


def _after_fork() -> None:
    global _guard  # noqa: PLW0603 — the parent's lock may have been held when it forked
    _guard = threading.Lock()
    _abandoned.extend(_running.values())
    _abandoned.extend(_closables)
    _running.clear()
    _closables.clear()


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
