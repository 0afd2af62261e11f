"""Metered: a language model that counts what is asked of it and stops before a budget is overdrawn.

`Cached(Metered(lm), store)` counts only what is computed (a cache hit is free);
`Metered(Cached(lm, store))` counts everything that is asked.

A call is begun only if the most that it can use still fits: what will be read is known before it, and for
every draw `max_tokens` is kept free. After it, what it did use takes the place of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

from dln.arguments import checked
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs, text_of
from dln.lm.budget import Budget, Meter, Usage
from dln.lm.prices import FREE, Price, PriceTable
from dln.lm.wrapper import Wrapper
from dln.numerics import Floats

__all__ = ["Bills", "Budget", "Meter", "Metered", "Usage"]

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
        BudgetReached: from the three verbs, before the model is called; it names the limit.
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
        return self._metered(
            known,
            Usage(completion_tokens=len(contexts) * sampling.max_tokens),
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
