"""Metered: a language model that counts what is asked of it and stops before a budget is overdrawn.

`Cached(Metered(lm), store)` counts only what is computed (a cache hit is free);
`Metered(Cached(lm, store))` counts everything that is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TypeVar

from dln.errors import BudgetReached, InputError
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs, text_of
from dln.lm.wrapper import Wrapper
from dln.numerics import Floats

__all__ = ["Budget", "Meter", "Metered", "Usage"]

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used: a value, to be added, subtracted and written down.

    Attributes:
        calls: requests; each context of a batch is one.
        prompt_tokens: tokens read: contexts, and the targets and labels that were scored.
        completion_tokens: tokens drawn, terminators included.
        scored_tokens: tokens of targets and labels (part of `prompt_tokens`).
        seconds: time spent inside the model, summed over threads.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    scored_tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and drawn."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.scored_tokens + other.scored_tokens,
            self.seconds + other.seconds,
        )

    def __sub__(self, other: Usage) -> Usage:
        return self + Usage(
            -other.calls, -other.prompt_tokens, -other.completion_tokens, -other.scored_tokens, -other.seconds
        )

    def to_dict(self) -> dict[str, int | float]:
        """Plain numbers by name, for JSON; `Usage(**usage.to_dict())` is the same value."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits; None is no limit.

    Args:
        max_calls: requests; never exceeded.
        max_tokens: tokens read and drawn. What will be read is known before a call and never exceeds
            it; how much will be drawn is not, so the last call may pass it by what it draws.
        max_seconds: seconds inside the model; no call begins after them.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_calls", "max_tokens", "max_seconds"):
            limit: float | None = getattr(self, name)
            if limit is not None and not limit >= 0:
                raise InputError("a limit must be ≥ 0, or None for no limit", where=f"budget.{name}", got=limit)

    def check(self, used: Usage, wanted: Usage) -> None:
        """Raise `BudgetReached` if `wanted` does not fit any more."""
        for name, limit, spent, more, unit in (
            ("max_calls", self.max_calls, used.calls, wanted.calls, "calls"),
            ("max_tokens", self.max_tokens, used.tokens, wanted.tokens, "tokens"),
        ):
            if limit is not None and spent + more > limit:
                raise _reached(name, f"{spent} {unit} used, {more} more wanted", f"{limit} {unit}")
        if self.max_seconds is not None and used.seconds >= self.max_seconds:
            raise _reached("max_seconds", f"{used.seconds:.3f} seconds used", f"{self.max_seconds:g} seconds")


class Meter:
    """A running total, shared by the threads and purposes that use one model.

    Args:
        initial: what was used before (by the run that is being resumed).
    """

    def __init__(self, initial: Usage = Usage()) -> None:
        self._lock = threading.Lock()
        self._total = initial
        self._by_purpose: dict[str, Usage] = {}

    def snapshot(self) -> Usage:
        """The total so far."""
        with self._lock:
            return self._total

    def by_purpose(self) -> dict[str, Usage]:
        """The totals of each purpose since this meter was made."""
        with self._lock:
            return dict(self._by_purpose)

    def add(self, usage: Usage, purpose: str = "", budget: Budget | None = None) -> None:
        """Add to the total; with a budget, check and add are one step that no other thread can part.

        Raises:
            BudgetReached: `usage` does not fit; nothing was added.
        """
        with self._lock:
            if budget is not None:
                budget.check(self._total, usage)
            self._total += usage
            self._by_purpose[purpose] = self._by_purpose.get(purpose, Usage()) + usage


class Metered(Wrapper):
    """Counts every request to `inner`, and refuses those that do not fit in the budget.

    Requests are counted before the model is called: one that fails there may have been paid for.

    Args:
        inner: the model.
        budget: what may be used, counted from the meter's zero.
        meter: a meter to share; otherwise a new one.
        purpose: the name under which this wrapper's use is listed.

    Raises:
        BudgetReached: from the three verbs, before the model is called; it names the limit.
    """

    def __init__(
        self, inner: LanguageModel, budget: Budget | None = None, meter: Meter | None = None, *, purpose: str = ""
    ) -> None:
        super().__init__(inner)
        self.budget = budget or Budget()
        self.meter = meter or Meter()
        self.purpose = purpose
        self._count = lru_cache(maxsize=65536)(inner.count_tokens)

    def for_purpose(self, purpose: str) -> Metered:
        """The same model, budget and meter, listed under another purpose."""
        return Metered(self._inner, self.budget, self.meter, purpose=purpose)

    def count_tokens(self, text: str) -> int:
        """As the wrapped model counts; recent texts are remembered."""
        return self._count(text)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """As the wrapped model draws."""
        draws = self._metered(
            Usage(calls=len(contexts), prompt_tokens=sum(map(self._count, contexts))),
            lambda: self._inner.sample(contexts, sampling, seeds),
        )
        self.meter.add(Usage(completion_tokens=sum(map(self._drawn, draws))), self.purpose)
        return draws

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """As the wrapped model scores."""
        scored = sum(map(self._drawn, targets))
        wanted = Usage(len(contexts), sum(map(self._count, contexts)) + scored, 0, scored)
        return self._metered(wanted, lambda: self._inner.log_prob(contexts, targets))

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """As the wrapped model scores; each context is one call, which reads every label once."""
        scored = len(contexts) * sum(map(self._count, labels))
        wanted = Usage(len(contexts), sum(map(self._count, contexts)) + scored, 0, scored)
        return self._metered(wanted, lambda: self._inner.choice_log_probs(contexts, labels))

    def _drawn(self, target: Target) -> int:
        if isinstance(target, Completion) and target.token_ids is not None and target.model == self.fingerprint():
            return len(target.token_ids)
        return self._count(text_of(target))

    def _metered(self, wanted: Usage, call: Callable[[], A]) -> A:
        if not wanted.calls:
            return call()  # nothing is asked: an empty batch fits in any budget
        self.meter.add(wanted, self.purpose, self.budget)
        began = time.perf_counter()
        try:
            return call()
        finally:
            self.meter.add(Usage(seconds=time.perf_counter() - began), self.purpose)


def _reached(limit: str, used: str, allowed: str) -> BudgetReached:
    return BudgetReached(
        "the budget is spent", where=f"budget.{limit}", got=used, expected=f"at most {allowed}", fix=f"raise {limit}"
    )
