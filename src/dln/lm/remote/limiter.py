"""How many calls may be in flight: grows while all goes well, shrinks when the server says that it is too much.

`Window` is the rule, a pure value: additive increase, multiplicative decrease, with a fast start; in flight never
exceeds it. `Gate` applies it to one replica, heaviest waiter first.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, replace

__all__ = ["Gate", "Window"]


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
