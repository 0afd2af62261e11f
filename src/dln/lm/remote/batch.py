"""The calls of one `send`: who starts when, and what happens to the others when one fails for good."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from dln.lm.remote.call import Call
from dln.lm.remote.exchange import Exchange

__all__ = ["Batch"]

T = TypeVar("T")

_GRACE = 1.0  # seconds that calls on the wire have to end when another has failed for good


class Batch(Generic[T]):
    """Runs calls with a bounded number of tasks, heaviest first.

    Attributes:
        values: what was read, by index; complete when `run` returns.
        stopped: set when nothing of it runs any more.
    """

    def __init__(self, calls: Sequence[Call], read: Callable[[Call, Any], T]) -> None:
        self._calls = calls
        self._read = read
        self.values: dict[int, T] = {}
        self.stopped = threading.Event()

    async def run(self, exchange: Exchange) -> None:
        """Answer all calls, or raise what the first that failed for good raised."""
        queues = exchange.queues(self._calls)
        most = exchange.endpoint.patience.max_concurrency
        tasks = {
            asyncio.ensure_future(self._work(exchange, queue)) for queue in queues for _ in range(min(most, len(queue)))
        }
        try:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = [error for task in done if (error := task.exception()) is not None]
            if failed:
                for queue in queues:
                    queue.clear()
                if pending:
                    for task in pending:
                        if task not in exchange.on_wire:
                            task.cancel()
                    await asyncio.wait(pending, timeout=_GRACE)
                raise failed[0]
        finally:
            left = [task for task in tasks if not task.done()]
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=1.0)
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.exception()  # seen
            self.stopped.set()

    async def _work(self, exchange: Exchange, queue: deque[tuple[int, tuple[int, ...]]]) -> None:
        while queue:
            index, order = queue.popleft()
            self.values[index] = await exchange.answer(self._calls[index], order, self._read)
