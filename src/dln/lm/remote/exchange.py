"""One endpoint on one loop: its connections, windows and health, and how a single call gets its answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dln.errors import DlnError
from dln.lm.remote.call import Call, MalformedReply
from dln.lm.remote.connection import Connection, Reply
from dln.lm.remote.counters import Counters
from dln.lm.remote.endpoint import Endpoint
from dln.lm.remote.faults import DeadlinePassed, Fault, RateLimited, fault_of_body, fault_of_silence, fault_of_status
from dln.lm.remote.limiter import Gate, Window
from dln.lm.remote.replicas import Health, assign, rendezvous
from dln.lm.remote.retry import back_off, wait_asked

__all__ = ["Exchange"]

T = TypeVar("T")

_MALFORMED_RETRIES = 3


class Exchange:
    """All state of an endpoint; used on its loop only, `state` apart."""

    def __init__(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
        self.endpoint = endpoint
        self.loop = loop
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
        routes = [call.route or _key(call).hex() for call in calls] if len(urls) > 1 else [""] * len(calls)
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
        if call.draws:
            return (await self._ask(call, order, read))[1]
        key = _key(call)
        while (leader := self._in_flight.get(key)) is not None:
            await asyncio.wait([leader])
            if leader.cancelled():
                continue  # whoever asked was stopped: now it is for us to ask
            error = leader.exception()
            if error is not None:
                raise _again(error)
            try:
                value = read(call, leader.result())
            except MalformedReply:
                break
            self._counters.merged += 1
            return value
        shared: asyncio.Future[Any] = self.loop.create_future()
        self._in_flight.setdefault(key, shared)
        try:
            found, value = await self._ask(call, order, read)
            shared.set_result(found)
            return value
        except DlnError as error:
            shared.set_exception(error)
            shared.exception()  # seen, even if nobody waits for it
            raise
        finally:
            if self._in_flight.get(key) is shared:
                del self._in_flight[key]
            shared.cancel()

    async def _ask(self, call: Call, order: tuple[int, ...], read: Callable[[Call, Any], T]) -> tuple[Any, T]:
        patience = self.endpoint.patience
        begun = self.loop.time()
        unreachable_since: float | None = None
        malformed = 0
        attempt = 0
        while True:
            chosen = self._choose(order)
            outcome = await self._attempt(call, chosen, begun, read)
            if not isinstance(outcome, Fault):
                return outcome
            now = self.loop.time()
            malformed += outcome.kind == "malformed"
            if outcome.kind == "connect":
                unreachable_since = now if unreachable_since is None else unreachable_since
            else:
                unreachable_since = None
            elsewhere = outcome.dead and any(self._health[r].usable(now) for r in order if r != chosen)
            wait = 0.0 if elsewhere else self._wait(call, attempt, outcome)
            given_up = (
                not outcome.retry
                or attempt >= patience.max_retries
                or malformed > _MALFORMED_RETRIES
                or (unreachable_since is not None and now + wait - unreachable_since > patience.unreachable_seconds)
            )
            if given_up:
                raise outcome.error
            if outcome.wait_seconds is not None and outcome.wait_seconds > patience.longest_wait_seconds:
                raise RateLimited(
                    f"the server asks to wait {outcome.wait_seconds:.0f} seconds",
                    where=outcome.error.where,
                    got=outcome.error.got,
                    expected=f"at most {patience.longest_wait_seconds:.0f} seconds",
                    fix="try again later, or allow a longer wait",
                )
            if now + wait - begun > patience.deadline_seconds:
                raise self._too_late(outcome.error.where, str(outcome.error.got))
            attempt += 1
            self._counters.retries[outcome.kind] += 1
            if wait:
                await asyncio.sleep(wait)

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

    async def _attempt(
        self, call: Call, chosen: int, begun: float, read: Callable[[Call, Any], T]
    ) -> tuple[Any, T] | Fault:
        gate = self._gates[chosen]
        try:
            await gate.enter(call.weight)
        except asyncio.CancelledError:
            self._health[chosen] = self._health[chosen].released()
            raise
        try:
            return await self._on_wire(call, chosen, begun, read)
        finally:
            gate.leave()

    async def _on_wire(
        self, call: Call, chosen: int, begun: float, read: Callable[[Call, Any], T]
    ) -> tuple[Any, T] | Fault:
        gate, url, counters = self._gates[chosen], self.endpoint.base_urls[chosen], self._counters
        where = url + call.path if not call.path.startswith("//") else url.removesuffix("/v1") + call.path[1:]
        task = asyncio.current_task()
        sent_at = self.loop.time()
        counters.calls += 1
        if task is not None:
            self.on_wire.add(task)
        try:
            async with asyncio.timeout_at(begun + self.endpoint.patience.deadline_seconds):
                reply = await self._connection(chosen).send(call)
        except asyncio.CancelledError:
            self._health[chosen] = self._health[chosen].released()
            raise
        except TimeoutError:
            reply = None
        finally:
            if task is not None:
                self.on_wire.discard(task)
        now = self.loop.time()
        if reply is None:
            counters.time_outs += 1
            self._health[chosen] = self._health[chosen].after_failure(now, refused=False)
            gate.crowded(sent_at, now)
            return Fault("deadline", self._too_late(where, "nothing in time"))
        if not isinstance(reply, Reply):
            counters.time_outs += "Timeout" in reply.reason
            fault = fault_of_silence(reply.kind, reply.reason, where, secrets=self._secrets)
        else:
            counters.bytes_received += len(reply.body)
            counters.latencies.append(now - sent_at)
            answered = self._read(call, reply, where, read)
            if not isinstance(answered, Fault):
                counters.replies += 1
                self._health[chosen] = self._health[chosen].after_success()
                gate.succeeded()
                return answered
            fault = answered
        if fault.crowded:
            gate.crowded(sent_at, now)
        if fault.wait_seconds is not None and fault.wait_seconds <= self.endpoint.patience.longest_wait_seconds:
            gate.pause(now + fault.wait_seconds)
        healthy = self._health[chosen]
        self._health[chosen] = (
            healthy.after_failure(now, refused=fault.kind == "connect") if fault.dead else healthy.after_success()
        )
        return fault

    def _read(self, call: Call, reply: Reply, where: str, read: Callable[[Call, Any], T]) -> tuple[Any, T] | Fault:
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
            return found, read(call, found)
        except MalformedReply as error:
            return Fault("malformed", error, retry=True)

    def _too_late(self, where: object, got: str) -> DeadlinePassed:
        seconds = self.endpoint.patience.deadline_seconds
        fix = "give it more time, or look at why the server is slow"
        return DeadlinePassed("no answer in time", where=where, got=got, expected=f"one within {seconds:g} s", fix=fix)

    def _connection(self, chosen: int) -> Connection:
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


def _key(call: Call) -> bytes:
    """What equal calls have in common: path and body."""
    content = json.dumps([call.path, call.body], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(content.encode("ascii"), digest_size=16).digest()


def _again(error: BaseException) -> BaseException:
    """The same error for another waiter: an exception that is raised in two places mixes their tracebacks."""
    if isinstance(error, DlnError):
        return type(error)(error.message, where=error.where, got=error.got, expected=error.expected, fix=error.fix)
    return error
