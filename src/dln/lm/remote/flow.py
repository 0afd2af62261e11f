"""When and where a call is sent: concurrency windows, back-off, and the choice among replicas.

All rules are pure values and functions except `Gate`, which applies a window on the loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["Gate", "Health", "Window", "assign", "back_off", "rendezvous", "wait_asked"]


@dataclass(frozen=True, slots=True)
class Window:
    """The bound on calls in flight.

    It doubles per round trip until the first cut. Then, per round trip, it grows by a quarter of its distance from
    where the last cut was, and a little: fast back to near there, slowly past it, faster again far beyond.

    Args:
        size: the bound, in calls; its whole part counts.
        most: which it never exceeds.
        least: under which it never falls.
        wall: its size at the last cut; None before.
        cut_at: time of the last cut, in seconds.
    """

    size: float = 8.0
    most: int = 64
    least: int = 1
    wall: float | None = None
    cut_at: float = float("-inf")

    @property
    def calls(self) -> int:
        """Calls that may be in flight."""
        return int(self.size)

    def after_success(self) -> Window:
        """After a reply that came while the window was full."""
        step = 1.0 if self.wall is None else (0.25 + abs(self.wall - self.size) / 4) / self.size
        return replace(self, size=min(float(self.most), self.size + min(1.0, step)))

    def after_crowding(self, sent_at: float, now: float) -> Window:
        """Seven tenths of it, after a refusal of a call sent at `sent_at`.

        Refusals of calls that were sent before the last cut say nothing new: one burst cuts once.
        """
        if sent_at < self.cut_at:
            return self
        return replace(self, size=max(float(self.least), 0.7 * self.size), wall=self.size, cut_at=now)


class Gate:
    """Lets calls through to one replica: at most the window's, none before `pause` ends. Used on one loop only."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.in_flight = 0
        self._resume_at = 0.0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, weight: int) -> None:
        """Wait for a place; heavier calls first."""
        loop = asyncio.get_running_loop()
        if not self._waiting and self._open(loop.time()):
            self.in_flight += 1
            return
        place = loop.create_future()
        heapq.heappush(self._waiting, (-weight, next(self._numbers), place))
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # admitted and cancelled at once: the place goes to the next
            raise

    def leave(self) -> None:
        """Give the place back."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        """A reply came, still counted as in flight."""
        if self.in_flight >= self.window.calls:
            self.window = self.window.after_success()

    def crowded(self, sent_at: float, now: float) -> None:
        """The server refused for crowding a call that was sent at `sent_at`."""
        self.window = self.window.after_crowding(sent_at, now)

    def pause(self, until: float) -> None:
        """Let nobody in before this time of the loop."""
        self._resume_at = max(self._resume_at, until)

    def _open(self, now: float) -> bool:
        return self.in_flight < self.window.calls and now >= self._resume_at

    def _admit(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiting and self._open(now):
            place = heapq.heappop(self._waiting)[2]
            if not place.done():
                self.in_flight += 1
                place.set_result(None)
        if self._waiting and now < self._resume_at and self._timer is None:
            self._timer = loop.call_at(self._resume_at, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._admit()


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")

_EPOCH = 1e9  # larger numbers are dates, in seconds since 1970


def back_off(attempt: int, jitter: float, *, first: float = 0.25, longest: float = 20.0) -> float:
    """Seconds to wait after failed attempt number `attempt` (0, 1, …): first · 2^attempt · (1 + jitter)/2, ≤ longest.

    Args:
        attempt: how many attempts failed before this one.
        jitter: in [0, 1], different for different calls, so that they do not come back all at once.
        first: seconds after the first failure.
        longest: seconds, at most.
    """
    full = min(longest, first * 2.0 ** min(attempt, 60))
    return full * (0.5 + 0.5 * jitter)


def wait_asked(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks us to wait, None if it does not say.

    `retry-after-ms`, `Retry-After` (seconds or an HTTP date), else the reset of a rate limit that is used up
    (`x-ratelimit-remaining-…: 0` with `x-ratelimit-reset-…`: seconds, a duration such as "6m0s", or a date).

    Args:
        headers: of the reply, names in lower case.
        now: seconds since 1970.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    asked = _seconds(headers.get("retry-after"), now)
    if asked is not None:
        return asked
    waits = [
        wait
        for name, value in headers.items()
        if name.startswith(("x-ratelimit-reset", "ratelimit-reset"))
        and _number(headers.get(name.replace("-reset", "-remaining", 1))) in (0, None)
        and (wait := _seconds(value, now)) is not None
    ]
    return max(waits, default=None)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _seconds(text: str | None, now: float) -> float | None:
    if text is None or not text.strip():
        return None
    text = text.strip()
    number = _number(text)
    if number is not None:
        return max(0.0, number - now if number > _EPOCH else number)
    if text.endswith("ms"):
        milliseconds = _number(text[:-2])
        return None if milliseconds is None else max(0.0, milliseconds / 1000)
    found = _DURATION.fullmatch(text)
    if found:
        units = (86400.0, 3600.0, 60.0, 1.0)
        return sum(float(part or 0) * unit for part, unit in zip(found.groups(), units, strict=True))
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)


def rendezvous(route: str, replicas: Sequence[str]) -> tuple[int, ...]:
    """The replicas' indices in the order in which this route prefers them.

    Each replica is scored by a hash of (replica, route): adding or losing one moves only the routes that it wins
    or held, and all processes agree.
    """
    if len(replicas) == 1:
        return (0,)

    def score(index: int) -> bytes:
        text = f"{replicas[index]}\x00{route}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16).digest()

    return tuple(sorted(range(len(replicas)), key=score, reverse=True))


def assign(routes: Sequence[str], replicas: Sequence[str], *, slack: float = 0.1) -> dict[str, tuple[int, ...]]:
    """For each distinct route its order of replicas, such that no replica gets far more calls than its part.

    A route goes to its first choice unless that would then hold more than (1 + slack) times the mean; so a route
    is always in one place, and few heavy routes do not leave a replica idle.
    """
    counts = Counter(routes)
    most = (1 + slack) * len(routes) / max(1, len(replicas))
    load = [0] * len(replicas)
    orders: dict[str, tuple[int, ...]] = {}
    for route, count in sorted(counts.items(), key=lambda item: -item[1]):
        order = rendezvous(route, replicas)
        chosen = next((r for r in order if load[r] + count <= most), min(order, key=lambda r: load[r]))
        load[chosen] += count
        orders[route] = (chosen, *(r for r in order if r != chosen))
    return orders


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a replica is asked: a circuit breaker.

    Args:
        failures: in a row.
        closed_until: time before which it is left alone, in seconds; then one call tries it.
        probing: whether that call is under way.
        limit: failures in a row after which it is left.
    """

    failures: int = 0
    closed_until: float = 0.0
    probing: bool = False
    limit: int = 3

    def usable(self, now: float) -> bool:
        """Whether a call may go there now."""
        return self.failures < self.limit or (now >= self.closed_until and not self.probing)

    def taken(self) -> Health:
        """After a call was sent there."""
        return (
            self
            if self.failures < self.limit and not self.probing
            else replace(self, probing=self.failures >= self.limit)
        )

    def after_success(self) -> Health:
        """After any reply that shows it alive."""
        return self if self.failures == 0 else Health(limit=self.limit)

    def after_failure(self, now: float, *, refused: bool) -> Health:
        """After no reply; one that takes no connection at all is left at once, and longer each time it is tried.

        Failures of calls that were under way when it was left say nothing new.
        """
        if self.failures >= self.limit and not self.probing:
            return self
        failures = max(self.failures + 1, self.limit if refused else 0)
        rest = min(30.0, 1.0 * 2.0 ** min(10, failures - self.limit))
        return replace(self, failures=failures, closed_until=now + rest, probing=False)

    def released(self) -> Health:
        """After a call there that was cancelled and told nothing."""
        return replace(self, probing=False)
