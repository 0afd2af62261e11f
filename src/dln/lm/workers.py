"""Running many pure work items on the workers of any `concurrent.futures.Executor`.

**Lost and slow workers.** An item whose worker was lost is given to another one. `LOSSES` such losses without a result
in between end the call with an error. When no item waits and a worker is idle, an item that takes far longer than
usual is given to it as well: the first result counts, the other is dropped.

**Memory.** At most `IN_FLIGHT` items per worker are with the executor at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar, cast

from dln.arguments import Count
from dln.errors import RunFailed

__all__ = ["IN_FLIGHT", "LOSSES", "PATIENCE", "SLOW", "Processes", "process_number", "run_items", "workers_of"]

T = TypeVar("T")
P = ParamSpec("P")

LOST = ("KilledWorker", "FutureCancelledError")
"""Errors of Dask that mean a lost worker or scheduler, by name: they have no common base with the standard ones."""

IN_FLIGHT = 2
"""Items with the executor, per worker: one that is computed and one that waits for it."""

LOSSES = 4
"""Losses of workers without a result in between that end a call."""

SLOW = 3.0
"""An item that takes this many times the mean is given to an idle worker too."""

PATIENCE = 30.0
"""Seconds to wait for a cluster that has no workers."""

TICK = 1.0
"""Seconds between two looks at the workers while no result comes."""


def workers_of(executor: Executor) -> int:
    """The number of workers that an executor has now; 1 where it does not say."""
    for name in ("workers", "_max_workers", "num_workers"):
        found: object = getattr(executor, name, None)
        if isinstance(found, int):
            return found
    client: Any = getattr(executor, "_client", None)  # of Dask's `Client.get_executor()`
    return sum(client.ncores().values()) if client is not None else 1


def run_items(executor: Executor, function: Callable[..., T], items: Sequence[tuple[Any, ...]]) -> list[T]:
    """The results of `function(*item)` for all items, in their order.

    Raises:
        RunFailed: no worker is left.
        Exception: whatever `function` raised; items that have not begun are dropped.
    """
    call = _Call(executor, function, items)
    try:
        return call.results()
    finally:
        for one in call.flying:
            one.cancel()


@dataclass(eq=False)
class _Call:
    """One call of `run_items`: results by item number, and what is with the executor."""

    executor: Executor
    function: Callable[..., Any]
    items: Sequence[tuple[Any, ...]]
    found: dict[int, Any] = field(default_factory=dict[int, Any])
    flying: dict[Future[Any], tuple[int, float]] = field(default_factory=dict[Future[Any], tuple[int, float]])
    done: queue.SimpleQueue[Future[Any]] = field(default_factory=queue.SimpleQueue["Future[Any]"])
    seconds: float = 0.0
    losses: int = 0
    seen: tuple[float, int] | None = None
    alone_since: float | None = None

    def results(self) -> list[Any]:
        """Run all items."""
        waiting = deque(range(len(self.items)))
        while len(self.found) < len(self.items):
            workers = self._workers()
            while waiting and len(self.flying) < IN_FLIGHT * max(1, workers):
                self._submit(waiting.popleft())
            if not waiting:
                self._steal(workers)
            try:
                future = self.done.get(timeout=self._pause(bool(waiting)))
            except queue.Empty:
                continue
            number, began = self.flying.pop(future)
            if number in self.found:
                continue  # an item that two workers had
            error = CancelledError() if future.cancelled() else future.exception()
            if error is None:
                self.found[number] = future.result()
                self.losses = 0
                self.seconds += time.monotonic() - began
                continue
            self._lost(error)
            if all(other != number for other, _ in self.flying.values()):
                waiting.appendleft(number)
        return [self.found[number] for number in range(len(self.items))]

    def _submit(self, number: int) -> None:
        try:
            future = self.executor.submit(self.function, *self.items[number])
        except RuntimeError as error:  # it is broken for good, or shut down
            raise _none_left(error) from error
        self.flying[future] = (number, time.monotonic())
        future.add_done_callback(self.done.put)

    def _steal(self, workers: int) -> None:
        """Give slow items to idle workers too: items that are with one worker, the longest first."""
        idle = workers - len(self.flying)
        if idle <= 0 or not self.found:
            return
        numbers = [number for number, _ in self.flying.values()]
        limit = time.monotonic() - SLOW * self._usual()
        late = sorted((began, number) for number, began in self.flying.values() if began < limit)
        slow = [number for _, number in late if numbers.count(number) == 1 and number not in self.found]
        for number in slow[:idle]:
            self._submit(number)

    def _usual(self) -> float:
        """Mean seconds from handing an item out to its result."""
        return self.seconds / max(1, len(self.found))

    def _pause(self, more: bool) -> float:
        """Seconds after which to look again."""
        return TICK if more or not self.found else min(TICK, max(0.01, SLOW * self._usual() / 2))

    def _workers(self) -> int:
        """The number of workers; a cluster may have none for `PATIENCE` seconds."""
        now = time.monotonic()
        if self.seen is None or now - self.seen[0] >= TICK:  # a cluster is asked over the network
            self.seen = (now, workers_of(self.executor))
        workers = self.seen[1]
        self.alone_since = None if workers else self.alone_since or now
        if self.alone_since is not None and now - self.alone_since > PATIENCE:
            raise _none_left(None)
        return workers

    def _lost(self, error: BaseException) -> None:
        """Count the loss of a worker; raise the error if it is none, or there are too many."""
        if not isinstance(error, BrokenExecutor | CancelledError) and type(error).__name__ not in LOST:
            raise error
        self.losses += 1
        if self.losses > LOSSES * IN_FLIGHT * max(1, workers_of(self.executor)):
            raise _none_left(error) from error


def _none_left(error: BaseException | None) -> RunFailed:
    return RunFailed(
        "all workers were lost",
        where="workers",
        got=None if error is None else f"{type(error).__name__}: {error}",
        fix="look for a shortage of memory; a run is continued with dln resume, and answers that were stored are kept",
    )


class Processes(Executor):
    """Worker processes on this machine, started when they are needed; after a loss they are started anew.

    A script that uses them needs `if __name__ == "__main__":`, as with `multiprocessing`.

    Args:
        workers: number of processes.
    """

    def __init__(self, workers: Count) -> None:
        self.workers = workers
        self._lock = threading.Lock()
        self._context = multiprocessing.get_context("spawn")
        self._counter = self._context.Value("i", 0)
        self._pool = self._fresh()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a process."""
        with self._lock:
            try:
                return self._pool.submit(fn, *args, **kwargs)
            except BrokenExecutor:
                self._pool = self._fresh()
                return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes after what they are computing."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    @property
    def processes(self) -> tuple[int, ...]:
        """Ids of the worker processes."""
        return tuple(cast("Any", self._pool)._processes or ())

    def _fresh(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.workers, mp_context=self._context, initializer=_begin, initargs=(self._counter,)
        )


_number: list[int] = []


def process_number() -> int | None:
    """The number of this process among the workers; None where it is none of `Processes`."""
    return _number[0] if _number else None


def _begin(counter: Any) -> None:
    """Prepare a worker process: Ctrl-C ends its parent first, and it ends with its parent."""
    with counter.get_lock():
        _number[:] = [counter.value]
        counter.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
