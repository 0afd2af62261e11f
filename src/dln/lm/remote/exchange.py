"""The calls of a batch on the event loop: merging of equal calls, retries, choice of a replica.

Per call: choose the replica, wait for a place in its window, send, read. Transient failures are retried after a while;
a permanent one ends the whole batch, and nothing more is sent. Equal calls in flight are one call.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np

from dln.errors import DlnError
from dln.lm.remote.call import (
    Call,
    Fault,
    MalformedReply,
    Reply,
    fault_of_body,
    fault_of_reading,
    fault_of_silence,
    fault_of_status,
    too_late,
    too_long_a_wait,
)
from dln.lm.remote.endpoint import Endpoint
from dln.lm.remote.flow import Gate, Health, Window, assign, back_off, rendezvous, wait_asked

if TYPE_CHECKING:
    from dln.lm.remote.transport import Connection

__all__ = ["Batch", "Counters", "Exchange", "Traffic"]

T = TypeVar("T")

_MALFORMED_RETRIES = 3

_RECENT = 4096  # latencies kept for the percentiles

_GRACE = 1.0  # seconds that calls on the wire have to end when another has failed for good


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one sender has done so far.

    Args:
        calls: HTTP requests sent, repeated ones included.
        replies: calls that were answered.
        merged: calls answered by the reply to an equal one in flight.
        retries: requests sent again, by what was wrong before.
        time_outs: requests that ran into the connect, read or total time-out.
        bytes_sent: of request bodies.
        bytes_received: of reply bodies.
        latency_p50: seconds from sending to reply, median over the latest calls; None before the first.
        latency_p95: the same, 95th percentile.
        concurrency: calls that may be in flight now, by base URL.
        left_alone: base URLs that do not answer and are not asked at present.
    """

    calls: int = 0
    replies: int = 0
    merged: int = 0
    retries: Mapping[str, int] = field(default_factory=dict[str, int])
    time_outs: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    latency_p50: float | None = None
    latency_p95: float | None = None
    concurrency: Mapping[str, int] = field(default_factory=dict[str, int])
    left_alone: tuple[str, ...] = ()


class Counters:
    """The running counts; written on the loop only."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # of the fields of `Traffic` that are one number
        self.retries: Counter[str] = Counter()
        self.latencies: deque[float] = deque(maxlen=_RECENT)

    def traffic(self, concurrency: Mapping[str, int], left_alone: tuple[str, ...]) -> Traffic:
        """The counts as they are now."""
        seen = list(self.latencies)
        p50, p95 = map(float, np.percentile(seen, [50, 95])) if seen else (None, None)
        return Traffic(
            **self.counts,
            retries=dict(self.retries),
            latency_p50=p50,
            latency_p95=p95,
            concurrency=dict(concurrency),
            left_alone=left_alone,
        )


class Batch(Generic[T]):
    """The calls of one `send`, run with a bounded number of tasks, heaviest first.

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


@dataclass(slots=True)
class _Question(Generic[T]):
    """A call on its way to an answer; `begun` is when it was first sent."""

    call: Call
    payload: bytes | None
    read: Callable[[Call, Any], T]
    begun: float | None = None


class Exchange:
    """All state of an endpoint: connections, windows, health; used on its loop only, `state` apart."""

    def __init__(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
        self.endpoint = endpoint
        self.loop = loop
        self.process = os.getpid()
        self.on_wire: set[asyncio.Task[Any]] = set()
        self._counters = counters
        self._secrets = endpoint.secrets()
        self._connections: dict[int, Connection] = {}
        most = endpoint.patience.max_concurrency
        self._gates = [Gate(Window(size=float(min(8, most)), most=most)) for _ in endpoint.base_urls]
        self._health = [Health() for _ in endpoint.base_urls]
        self._in_flight: dict[bytes, asyncio.Future[Any]] = {}

    def queues(self, calls: Sequence[Call]) -> list[deque[tuple[int, tuple[int, ...]]]]:
        """Per preferred replica the calls, as (index, order of replicas), heaviest first."""
        urls = self.endpoint.base_urls
        if len(urls) == 1:
            routes = [""] * len(calls)
        else:  # calls that share nothing are spread
            routes = [call.route or hashlib.blake2b(call.payload() or b"").hexdigest() for call in calls]
        if len(urls) > 1 and len(calls) > 2 * self.endpoint.patience.max_concurrency:
            orders = assign(routes, urls)
        else:
            orders = {route: rendezvous(route, urls) for route in set(routes)}
        queues = [deque[tuple[int, tuple[int, ...]]]() for _ in urls]
        for index in sorted(range(len(calls)), key=lambda i: -calls[i].weight):
            order = orders[routes[index]]
            queues[order[0]].append((index, order))
        return queues

    async def answer(self, call: Call, order: tuple[int, ...], read: Callable[[Call, Any], T]) -> T:
        """What `read` makes of the call's reply.

        Of equal calls in flight the first is sent, the others wait for its reply or its error. One that finds the
        other's reply malformed is sent after all.
        """
        question = _Question(call, call.payload(), read)
        if call.draws:
            return (await self._ask(question, order))[1]
        key = hashlib.blake2b(call.path.encode() + b"\x00" + (question.payload or b""), digest_size=16).digest()
        while (leader := self._in_flight.get(key)) is not None:
            await asyncio.wait([leader])
            if leader.cancelled():
                continue  # whoever asked was stopped: somebody else has to
            if (error := leader.exception()) is not None:
                raise _copy(error)
            try:
                value = read(call, leader.result())
            except MalformedReply:
                return (await self._ask(question, order))[1]
            self._counters.counts["merged"] += 1
            return value
        shared = self._in_flight[key] = self.loop.create_future()
        try:
            reply, value = await self._ask(question, order)
        except DlnError as error:
            shared.set_exception(_copy(error))
            shared.exception()  # seen, even if nobody waits for it
            raise
        else:
            shared.set_result(reply)
            return value
        finally:
            del self._in_flight[key]
            shared.cancel()  # without effect where a result or an error is set

    async def _ask(self, question: _Question[T], order: tuple[int, ...]) -> tuple[Any, T]:
        patience = self.endpoint.patience
        unreachable_since: float | None = None
        malformed = 0
        for attempt in itertools.count():
            chosen = self._choose(order)
            outcome = await self._attempt(question, chosen)
            if not isinstance(outcome, Fault):
                return outcome
            now = self.loop.time()
            malformed += outcome.kind == "malformed"
            if outcome.kind != "connect":
                unreachable_since = None
            elif unreachable_since is None:
                unreachable_since = now  # not when it was sent: one slow connect alone is never final
            elsewhere = outcome.dead and any(self._health[r].usable(now) for r in order if r != chosen)
            wait = 0.0 if elsewhere else self._wait(question.call, attempt, outcome)
            silent = 0.0 if unreachable_since is None or elsewhere else now + wait - unreachable_since
            if (
                not outcome.retry
                or attempt >= patience.max_retries
                or malformed > _MALFORMED_RETRIES
                or silent > patience.unreachable_seconds
            ):
                raise outcome.error
            if outcome.wait_seconds is not None and outcome.wait_seconds > patience.longest_wait_seconds:
                raise too_long_a_wait(outcome, patience.longest_wait_seconds)
            if now + wait - (question.begun or now) > patience.deadline_seconds:
                raise too_late(outcome.error.where, outcome.error.got, patience.deadline_seconds)
            self._counters.retries[outcome.kind] += 1
            if wait:
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _wait(self, call: Call, attempt: int, fault: Fault) -> float:
        jitter = hashlib.blake2b(f"{id(call)} {time.monotonic_ns()}".encode(), digest_size=2).digest()
        usual = back_off(attempt, int.from_bytes(jitter) / 65535)
        if fault.kind == "connect":
            return min(usual, self.endpoint.patience.unreachable_seconds / 4)
        return usual if fault.wait_seconds is None else fault.wait_seconds + 0.1 * usual

    def _choose(self, order: tuple[int, ...]) -> int:
        now = self.loop.time()
        chosen = next((r for r in order if self._health[r].usable(now)), None)
        if chosen is None:  # none is well: the one that will be tried first anyway
            chosen = min(order, key=lambda r: self._health[r].closed_until)
        self._health[chosen] = self._health[chosen].taken()
        return chosen

    async def _attempt(self, question: _Question[T], chosen: int) -> tuple[Any, T] | Fault:
        gate = self._gates[chosen]
        try:
            await gate.enter(question.call.weight)
            try:
                return await self._on_wire(question, chosen)
            finally:
                gate.leave()
        except asyncio.CancelledError:
            self._health[chosen] = self._health[chosen].released()
            raise

    async def _on_wire(self, question: _Question[T], chosen: int) -> tuple[Any, T] | Fault:
        gate, counts, patience = self._gates[chosen], self._counters.counts, self.endpoint.patience
        url, path = self.endpoint.base_urls[chosen], question.call.path
        where = url.removesuffix("/v1") + path[1:] if path.startswith("//") else url + path
        connection = self._connection(chosen)  # the first one imports the SDK: before the clock starts
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        sent_at = self.loop.time()
        question.begun = sent_at if question.begun is None else question.begun
        counts["calls"] += 1
        counts["bytes_sent"] += len(question.payload or b"")
        self.on_wire.add(task)
        try:
            async with asyncio.timeout_at(question.begun + patience.deadline_seconds):
                reply = await connection.send(path, question.payload)
        except TimeoutError:
            reply = None
        finally:
            self.on_wire.discard(task)
        now = self.loop.time()
        if reply is None:
            counts["time_outs"] += 1
            self._health[chosen] = self._health[chosen].after_failure(now, refused=False)
            gate.crowded(sent_at, now)
            return Fault("deadline", too_late(where, "nothing in time", patience.deadline_seconds))
        if not isinstance(reply, Reply):
            counts["time_outs"] += reply.timed_out
            fault = fault_of_silence(reply.kind, reply.reason, where, secrets=self._secrets)
        else:
            counts["bytes_received"] += len(reply.body)
            self._counters.latencies.append(now - sent_at)
            answered = self._read(question, reply, where)
            if not isinstance(answered, Fault):
                counts["replies"] += 1
                self._health[chosen] = self._health[chosen].after_success()
                gate.succeeded()
                return answered
            fault = answered
            if fault.kind == "malformed":
                connection.begin_anew()
        if fault.crowded:
            gate.crowded(sent_at, now)
        if fault.wait_seconds is not None and fault.wait_seconds <= patience.longest_wait_seconds:
            gate.pause(now + fault.wait_seconds)
        health, refused = self._health[chosen], fault.kind == "connect"
        self._health[chosen] = health.after_failure(now, refused=refused) if fault.dead else health.after_success()
        return fault

    def _read(self, question: _Question[T], reply: Reply, where: str) -> tuple[Any, T] | Fault:
        if not 200 <= reply.status < 300:
            wait = wait_asked(reply.headers, time.time())
            return fault_of_status(
                reply.status, reply.body, where, self.endpoint.model, wait_seconds=wait, secrets=self._secrets
            )
        try:
            found = json.loads(reply.body)
        except (ValueError, RecursionError):
            return fault_of_body(reply.body, where, secrets=self._secrets)
        try:
            return found, question.read(question.call, found)
        except MalformedReply as error:
            return fault_of_reading(error, where, secrets=self._secrets)

    def _connection(self, chosen: int) -> Connection:
        if chosen not in self._connections:
            from dln.lm.remote.transport import Connection

            self._connections[chosen] = Connection(self.endpoint, self.endpoint.base_urls[chosen])
        return self._connections[chosen]

    def state(self) -> tuple[Mapping[str, int], tuple[str, ...]]:
        """(Bound on calls in flight by base URL, base URLs left alone)."""
        urls = self.endpoint.base_urls
        concurrency = {url: gate.window.calls for url, gate in zip(urls, self._gates, strict=True)}
        now = self.loop.time()
        return concurrency, tuple(u for u, h in zip(urls, self._health, strict=True) if not h.usable(now))

    async def close(self) -> None:
        """Close all connections."""
        while self._connections:
            await self._connections.popitem()[1].close()


def _copy(error: BaseException) -> BaseException:
    """The same error anew: one exception raised in two places would mix their tracebacks."""
    if isinstance(error, DlnError):
        return type(error)(error.message, where=error.where, got=error.got, expected=error.expected, fix=error.fix)
    return error
