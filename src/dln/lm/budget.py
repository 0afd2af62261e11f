"""What was used, what may be used, and a running total that several threads share without overdrawing it."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, fields

from dln.arguments import NonNegative, Size, checked
from dln.errors import BudgetReached

__all__ = ["Budget", "Meter", "Usage"]


@checked
@dataclass(frozen=True, slots=True)
class Usage:
    """What was used: a value, to be added, subtracted and written down.

    Attributes:
        calls: requests; each context of a batch is one.
        prompt_tokens: tokens read: contexts, and the targets and labels that were scored.
        completion_tokens: tokens drawn, terminators included.
        scored_tokens: tokens of targets and labels (part of `prompt_tokens`).
        seconds: time spent inside the model, summed over threads.
        cached_tokens: tokens that the server read from its prompt cache (part of `prompt_tokens`).
        usd: what that costs in US dollars.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    scored_tokens: int = 0
    seconds: float = 0.0
    cached_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and drawn."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))

    def to_dict(self) -> dict[str, int | float]:
        """Plain numbers by name, for JSON; `Usage(**usage.to_dict())` is the same value."""
        return asdict(self)


@checked
@dataclass(frozen=True, slots=True)
class Budget:
    """Limits; None is no limit.

    A call that might pass one of them is not begun: of calls, tokens and money the most that it can use is
    reserved first. So none of these is ever passed, but for what a server counts differently than was
    estimated for the calls in flight.

    Args:
        max_calls: requests.
        max_tokens: tokens read and drawn.
        max_seconds: seconds inside the model; no call begins after them.
        max_usd: US dollars.

    Raises:
        InputError: a limit is negative, or no number.
    """

    max_calls: Size | None = None
    max_tokens: Size | None = None
    max_seconds: NonNegative | None = None
    max_usd: NonNegative | None = None

    def check(self, used: Usage, wanted: Usage) -> None:
        """Raise `BudgetReached` if `wanted` does not fit any more."""
        for name, limit, spent, more, unit in (
            ("max_calls", self.max_calls, used.calls, wanted.calls, "calls"),
            ("max_tokens", self.max_tokens, used.tokens, wanted.tokens, "tokens"),
        ):
            if limit is not None and spent + more > limit:
                raise _reached(name, f"{spent} {unit} used, at most {more} more wanted", f"{limit} {unit}")
        # sums of many small amounts: a billionth of a dollar is rounding, not spending
        if self.max_usd is not None and used.usd + wanted.usd > self.max_usd + 1e-9:
            raise _reached("max_usd", f"${used.usd:.6f} used, at most ${wanted.usd:.6f} more wanted", _usd(self))
        if self.max_seconds is not None and used.seconds >= self.max_seconds:
            raise _reached("max_seconds", f"{used.seconds:.3f} seconds used", f"{self.max_seconds:g} seconds")


@checked
class Meter:
    """A running total, shared by the threads and purposes that use one model.

    Args:
        initial: what was used before (by the run that is being resumed).
    """

    def __init__(self, initial: Usage = Usage()) -> None:
        self._changed = threading.Condition()
        self._total = initial
        self._by_purpose: dict[str, Usage] = {}
        self._reserved: dict[int, Usage] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Meter:
        """A meter with the same totals that counts on by itself; nothing is reserved in it."""
        copied = Meter(self.snapshot())
        copied._by_purpose = self.by_purpose()
        memo[id(self)] = copied
        return copied

    def snapshot(self) -> Usage:
        """The total so far, without what is reserved."""
        with self._changed:
            return self._total

    def by_purpose(self) -> dict[str, Usage]:
        """The totals of each purpose since this meter was made."""
        with self._changed:
            return dict(self._by_purpose)

    def add(self, usage: Usage, purpose: str = "", budget: Budget | None = None) -> None:
        """Add to the total; with a budget, check and add are one step that no other thread can part.

        Raises:
            BudgetReached: `usage` does not fit; nothing was added.
        """
        self.reserve(usage, budget or Budget())
        self.settle(usage, usage, purpose)

    def reserve(self, most: Usage, budget: Budget) -> None:
        """Keep room for a call that may use as much as `most`; `settle` must follow, in the same thread.

        What fits only when the calls of other threads turn out smaller than feared waits until they have
        ended.

        Raises:
            BudgetReached: it does not fit; nothing is reserved.
        """
        thread = threading.get_ident()
        with self._changed:
            while True:
                own = self._reserved.get(thread, Usage())
                budget.check(self._total + own, most)
                others = sum((held for holder, held in self._reserved.items() if holder != thread), Usage())
                try:
                    budget.check(self._total + own + others, most)
                except BudgetReached:
                    self._changed.wait()  # somebody who is in flight has still to settle
                    continue
                self._reserved[thread] = own + most
                return

    def settle(self, most: Usage, used: Usage, purpose: str = "") -> None:
        """Replace what was reserved by what was used."""
        thread = threading.get_ident()
        with self._changed:
            left = self._reserved[thread] - most
            if left.calls or left.tokens:
                self._reserved[thread] = left
            else:
                del self._reserved[thread]
            self._total += used
            self._by_purpose[purpose] = self._by_purpose.get(purpose, Usage()) + used
            self._changed.notify_all()


def _usd(budget: Budget) -> str:
    return f"${budget.max_usd:g}"


def _reached(limit: str, used: str, allowed: str) -> BudgetReached:
    return BudgetReached(
        "the budget is spent", where=f"budget.{limit}", got=used, expected=f"at most {allowed}", fix=f"raise {limit}"
    )
