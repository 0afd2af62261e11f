"""`Metered`: a language model that counts its use and stops before a budget is exceeded.

`Cached(Metered(lm), store)` counts only what is computed (a cache hit is free);
`Metered(Cached(lm, store))` counts everything that is asked.

A call starts only if the most that it can use still fits in the budget: its prompt tokens are known, and `max_tokens`
are reserved per draw. Afterwards its actual use replaces the reservation. Several threads may share one `Meter`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

from dln.arguments import NonNegative, Size, checked
from dln.errors import BudgetReached
from dln.lm.base import (
    Completion,
    LanguageModel,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    Wrapper,
    next_tokens_verb,
    text_of,
)
from dln.lm.prices import FREE, Price, PriceTable
from dln.numerics import Floats

__all__ = ["Bills", "Budget", "Meter", "Metered", "Usage"]


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

    A call starts only if its worst case in calls, tokens and money fits, which is then reserved. Limits are
    never exceeded, except where the server's token count differs from the estimate of the calls in flight.

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


A = TypeVar("A")


@runtime_checkable
class Bills(Protocol):
    """An engine whose server says what it has counted, which is better than any estimate."""

    def take_usage(self) -> Usage | None:
        """The tokens counted since this thread last asked, every one once; None if the server did not count.

        Only `prompt_tokens`, `completion_tokens` and `cached_tokens` are looked at.
        """
        ...


@checked
class Metered(Wrapper):
    """Counts every request to `inner`, and refuses those that might not fit in the budget.

    A batch is refused as a whole, before anything of it is paid for. Of one that fails in the model, what the
    server counted is used; where it counts nothing, all of it, since it may have been paid for.

    Args:
        inner: the model; if it `Bills`, its tokens are the server's.
        budget: what may be used, counted from the meter's zero.
        meter: a meter to share; otherwise a new one.
        purpose: the name under which this wrapper's use is listed.
        price: of `inner`'s tokens; None looks up the list price. If there is none, and no limit
            in money is set, no money is counted.

    Raises:
        InputError: `budget` has a limit in money and the price is not known.
        BudgetReached: from the four verbs, before the model is called; it names the limit.
    """

    def __init__(
        self,
        inner: LanguageModel,
        budget: Budget | None = None,
        meter: Meter | None = None,
        *,
        purpose: str = "",
        price: Price | None = None,
    ) -> None:
        super().__init__(inner)
        self.budget = budget or Budget()
        self.meter = meter or Meter()
        self.purpose = purpose
        if price is None:
            table = PriceTable()
            quote = table.find(inner.name) if self.budget.max_usd is None else table.needed(inner.name)
            price = FREE if quote is None else quote.price
        self.price = price
        self._count = lru_cache(maxsize=65536)(inner.count_tokens)
        # only of the engine itself: a cache in between answers what no server has counted
        self._bills = inner if isinstance(inner, Bills) else None

    def for_purpose(self, purpose: str) -> Metered:
        """The same model, budget, meter and price, listed under another purpose."""
        return Metered(self._inner, self.budget, self.meter, purpose=purpose, price=self.price)

    def count_tokens(self, text: str) -> int:
        """As the wrapped model counts; recent texts are remembered."""
        return self._count(text)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """As the wrapped model draws."""
        known = Usage(calls=len(contexts), prompt_tokens=sum(map(self._count, contexts)))
        longest = sampling.max_tokens + (self._inner.capabilities.thinking_tokens if contexts else 0)
        return self._metered(
            known,
            Usage(completion_tokens=len(contexts) * longest),
            lambda: self._inner.sample(contexts, sampling, seeds),
            lambda draws: Usage(completion_tokens=sum(map(self._drawn, draws))),
        )

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """As the wrapped model scores."""
        scored = sum(map(self._drawn, targets))
        known = Usage(len(contexts), sum(map(self._count, contexts)) + scored, 0, scored)
        return self._metered(known, Usage(), lambda: self._inner.log_prob(contexts, targets))

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """As the wrapped model scores; each context is one call, which reads every label once."""
        scored = len(contexts) * sum(map(self._count, labels))
        known = Usage(len(contexts), sum(map(self._count, contexts)) + scored, 0, scored)
        return self._metered(known, Usage(), lambda: self._inner.choice_log_probs(contexts, labels))

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """As the wrapped model gives them; one position is scored per context, whatever the number of tokens."""
        known = Usage(len(contexts), sum(map(self._count, contexts)) + len(contexts), 0, len(contexts))
        ask = next_tokens_verb(self._inner)
        return self._metered(known, Usage(), lambda: ask(contexts, tokens, top))

    def _drawn(self, target: Target) -> int:
        if isinstance(target, Completion) and target.token_ids is not None and target.model == self.fingerprint():
            return len(target.token_ids)
        return self._count(text_of(target))

    def _metered(
        self, known: Usage, more: Usage, call: Callable[[], A], drawn: Callable[[A], Usage] = lambda _: Usage()
    ) -> A:
        """Call the model: `known` will be used, `more` at most, and `drawn` says how much of that it was."""
        if not known.calls:
            return call()  # nothing is asked: an empty batch fits in any budget
        # what was billed between the verbs (a probe) is spent, and no longer free for this one
        self.meter.add(self._priced(self._counted(Usage())), self.purpose)
        most = known + more
        dearest = Price(self.price.dearest_input, self.price.output)
        most = replace(most, usd=dearest.usd(most.prompt_tokens, most.completion_tokens))
        self.meter.reserve(most, self.budget)
        used, began = known, time.perf_counter()
        try:
            answer = call()
            used = known + drawn(answer)
            return answer
        finally:
            seconds = time.perf_counter() - began
            self.meter.settle(most, self._priced(replace(self._counted(used), seconds=seconds)), self.purpose)

    def _counted(self, used: Usage) -> Usage:
        """With the server's own count of the tokens, where it has one."""
        reported = None if self._bills is None else self._bills.take_usage()
        if reported is None:
            return used
        return replace(
            used,
            prompt_tokens=reported.prompt_tokens,
            completion_tokens=reported.completion_tokens,
            cached_tokens=reported.cached_tokens,
        )

    def _priced(self, used: Usage) -> Usage:
        return replace(used, usd=self.price.usd(used.prompt_tokens, used.completion_tokens, used.cached_tokens))
