"""One endpoint on one loop: its connections, windows and health, and how a single call gets its answer."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from dln.lm.remote.call import Call, MalformedReply, Reply
from dln.lm.remote.counters import Counters
from dln.lm.remote.endpoint import Endpoint
from dln.lm.remote.faults import (
    Fault,
    fault_of_body,
    fault_of_reading,
    fault_of_silence,
    fault_of_status,
    too_late,
    too_long_a_wait,
)
from dln.lm.remote.limiter import Gate, Window
from dln.lm.remote.merging import Merger
from dln.lm.remote.replicas import Health, assign, rendezvous
from dln.lm.remote.retry import back_off, wait_asked

if TYPE_CHECKING:
    from dln.lm.remote.transport import Connection

__all__ = ["Exchange", "encoded"]

T = TypeVar("T")

_MALFORMED_RETRIES = 3


class Exchange:
    """All state of an endpoint; used on its loop only, `state` apart."""

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
        self._merger = Merger(counters)

    def queues(self, calls: Sequence[Call]) -> list[deque[tuple[int, tuple[int, ...]]]]:
        """Per preferred replica the calls, as (index, order of replicas), heaviest first."""
        urls = self.endpoint.base_urls
        if len(urls) == 1:
            routes = [""] * len(calls)
        else:  # calls that share nothing are spread
            routes = [call.route or hashlib.blake2b(encoded(call) or b"").hexdigest() for call in calls]
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
        """What `read` makes of the call's reply; equal calls in flight are asked once."""
        question = _Question(call, encoded(call), read)

        async def ask() -> tuple[Any, T]:
            return await self._ask(question, order)

        if call.draws:
            return (await ask())[1]
        return await self._merger.answer(call.path, question.payload, ask, lambda reply: read(call, reply))

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
                unreachable_since = now - outcome.spent_seconds
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
        except asyncio.CancelledError:
            self._health[chosen] = self._health[chosen].released()
            raise
        try:
            return await self._on_wire(question, chosen)
        finally:
            gate.leave()

    async def _on_wire(self, question: _Question[T], chosen: int) -> tuple[Any, T] | Fault:
        gate, counters, patience = self._gates[chosen], self._counters, self.endpoint.patience
        url, path = self.endpoint.base_urls[chosen], question.call.path
        where = url.removesuffix("/v1") + path[1:] if path.startswith("//") else url + path
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        sent_at = self.loop.time()
        question.begun = sent_at if question.begun is None else question.begun
        counters.calls += 1
        counters.bytes_sent += len(question.payload or b"")
        self.on_wire.add(task)
        try:
            async with asyncio.timeout_at(question.begun + patience.deadline_seconds):
                reply = await self._connection(chosen).send(path, question.payload)
        except asyncio.CancelledError:
            self._health[chosen] = self._health[chosen].released()
            raise
        except TimeoutError:
            reply = None
        finally:
            self.on_wire.discard(task)
        now = self.loop.time()
        if reply is None:
            counters.time_outs += 1
            self._health[chosen] = self._health[chosen].after_failure(now, refused=False)
            gate.crowded(sent_at, now)
            return Fault("deadline", too_late(where, "nothing in time", patience.deadline_seconds))
        if not isinstance(reply, Reply):
            counters.time_outs += reply.timed_out
            fault = fault_of_silence(reply.kind, reply.reason, where, secrets=self._secrets)
            fault = replace(fault, spent_seconds=now - sent_at)
        else:
            counters.bytes_received += len(reply.body)
            counters.latencies.append(now - sent_at)
            answered = self._read(question, reply, where)
            if not isinstance(answered, Fault):
                counters.replies += 1
                self._health[chosen] = self._health[chosen].after_success()
                gate.succeeded()
                return answered
            fault = answered
            if fault.kind == "malformed":
                self._connection(chosen).begin_anew()
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
        from dln.lm.remote.transport import Connection

        if chosen not in self._connections:
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
        for connection in self._connections.values():
            await connection.close()
        self._connections.clear()


@dataclass(slots=True)
class _Question(Generic[T]):
    """A call on its way to an answer."""

    call: Call
    payload: bytes | None
    read: Callable[[Call, Any], T]
    begun: float | None = None  # when it was first sent


def encoded(call: Call) -> bytes | None:
    """The body as it is sent: equal bodies give equal bytes."""
    if call.body is None:
        return None
    text = json.dumps(call.body, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair; escaped, it can be sent
        return json.dumps(call.body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
