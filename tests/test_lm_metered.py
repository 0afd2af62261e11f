from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import BudgetReached, InputError, ProviderError
from dln.lm.base import Completion, LanguageModel, Sampling, Target, Token, TokenLogProbs
from dln.lm.cache import Cached, Store
from dln.lm.laws import LAWS, Law, LawCase, check_wrapper
from dln.lm.meter import Bills, Budget, Meter, Metered, Usage
from dln.lm.prices import Price
from dln.lm.table import TableLM

TEXTS = ["", "yes", "yes sir", "yes sir now", " no", "no way"]
CASE = LawCase(["x", "", "Q: a?\nA:"], ["yes sir now", " no", "never seen", ""], ["yes", "yes sir", " no"])
WARM = Sampling(temperature=1.0)

usages = st.builds(
    Usage,
    *[st.integers(0, 10**9)] * 4,
    seconds=st.integers(0, 10**6).map(lambda n: n / 64),
    cached_tokens=st.integers(0, 10**9),
    usd=st.integers(0, 10**6).map(lambda n: n / 64),
)  # dyadic seconds and dollars: sums are exact


def lm() -> TableLM:
    return TableLM.random(TEXTS, 3)


def test_a_meter_changes_nothing() -> None:
    check_wrapper(Metered(lm()), lm(), CASE)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws_hold_through_a_meter_and_a_cache(law: Law) -> None:
    assert law(Metered(lm()), CASE) in ("holds", "skipped")
    assert law(Cached(Metered(lm()), Store(":memory:")), CASE) in ("holds", "skipped")


def test_every_token_is_counted_once() -> None:
    metered = Metered(lm())
    draws = metered.sample(["one two", "three"], WARM, [1, 2])
    drawn = sum(len(d.token_ids or ()) for d in draws)
    after_draws = metered.meter.snapshot()
    assert (after_draws.calls, after_draws.prompt_tokens, after_draws.completion_tokens) == (2, 3, drawn)
    metered.log_prob(["one two", "three"], ["yes sir", draws[0]])
    scored = 2 + len(draws[0].token_ids or ())
    used = metered.meter.snapshot() - after_draws
    assert (used.calls, used.prompt_tokens, used.completion_tokens, used.scored_tokens) == (2, 3 + scored, 0, scored)
    before = metered.meter.snapshot()
    metered.choice_log_probs(["one two", "three"], ["yes", "yes sir"])
    used = metered.meter.snapshot() - before
    assert (used.calls, used.prompt_tokens, used.scored_tokens) == (2, 3 + 2 * 3, 2 * 3)
    assert used.seconds > 0
    before = metered.meter.snapshot()
    metered.next_token_log_probs(["one two", "three"], [Token("yes"), Token(" no"), Token(" sir")], 3)
    used = metered.meter.snapshot() - before
    assert (used.calls, used.prompt_tokens, used.completion_tokens, used.scored_tokens) == (2, 3 + 2, 0, 2)


def test_a_foreign_draw_is_counted_as_the_text_it_is_scored_as() -> None:
    metered = Metered(lm())
    metered.log_prob(["c"], [Completion("yes sir", tuple(range(50)), model="another")])
    assert metered.meter.snapshot().scored_tokens == 2


def test_cache_hits_are_free_inside_and_counted_outside() -> None:
    inside = Metered(lm())
    outside = Metered(Cached(inside, Store(":memory:")))
    for _ in range(3):
        outside.log_prob(["a", "b"], ["yes", "yes"])
    assert (inside.meter.snapshot().calls, outside.meter.snapshot().calls) == (2, 6)
    assert outside.unwrapped is inside.inner


@settings(deadline=None)
@given(usages, usages)
def test_usage_is_added_subtracted_and_written_down(a: Usage, b: Usage) -> None:
    assert (a + b) - b == a
    assert a + Usage() == a
    assert Usage(**json.loads(json.dumps(a.to_dict()))) == a
    assert (a + b).tokens == a.tokens + b.tokens


ASKS: list[Callable[[LanguageModel, Sequence[str]], object]] = [
    lambda model, contexts: model.sample(contexts, WARM, range(len(contexts))),
    lambda model, contexts: model.log_prob(contexts, ["yes"] * len(contexts)),
    lambda model, contexts: model.choice_log_probs(contexts, ["yes", " no"]),
]


@pytest.mark.parametrize("ask", ASKS, ids=["sample", "log_prob", "choice"])
@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 20))
def test_calls_never_exceed_the_budget_and_what_fits_is_done(
    ask: Callable[[LanguageModel, Sequence[str]], object], sizes: list[int], limit: int
) -> None:
    metered = Metered(lm(), Budget(max_calls=limit))
    used = 0
    for size in sizes:
        if used + size <= limit:
            ask(metered, ["c"] * size)
            used += size
        else:
            with pytest.raises(BudgetReached, match=rf"max_calls(.|\n)*{used} calls used(.|\n)*{limit} calls"):
                ask(metered, ["c"] * size)
        assert metered.meter.snapshot().calls == used


def test_tokens_that_are_known_beforehand_never_exceed_the_budget() -> None:
    metered = Metered(lm(), Budget(max_tokens=10))
    metered.log_prob(["a b c"], ["yes sir"])
    with pytest.raises(BudgetReached, match="max_tokens"):
        metered.log_prob(["a b c d"], ["yes sir"])
    metered.log_prob(["a b c"], ["yes sir"])
    assert metered.meter.snapshot().tokens == 10
    with pytest.raises(BudgetReached):
        metered.sample(["a"], WARM, [1])


class SlowLM(TableLM):
    """Takes a moment, so that calls of several threads overlap; remembers how many did."""

    delay = 0.0
    at_once = 0
    most_at_once = 0

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        self.at_once -= 1
        return super().sample(contexts, sampling, seeds)


class BillingLM(TableLM):
    """A server that counts for itself: every call `factor` times what it looks like."""

    def __init__(self, factor: int) -> None:
        super().__init__(lambda _: {"yes": 0.5, " no": 0.5})
        self._left = Usage()
        self.billed = Usage()
        self.factor = factor
        self.fails = False

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        more = Usage(prompt_tokens=self.factor * len(contexts), cached_tokens=len(contexts))
        self._left += more
        self.billed += more
        if self.fails:
            raise ProviderError("the server broke down")
        return super().log_prob(contexts, targets)

    def take_usage(self) -> Usage | None:
        left, self._left = self._left, Usage()
        return left


PRICE = Price(input=3.0, output=7.0, cached_input=1.0)
prices = st.builds(
    Price, *[st.integers(0, 10**6).map(float)] * 2, cached_input=st.none() | st.integers(0, 9).map(float)
)


@settings(deadline=None, max_examples=60)
@given(
    prices,
    st.integers(0, 400),
    st.lists(st.tuples(st.sampled_from(range(3)), st.integers(1, 6), st.integers(1, 8)), max_size=20),
)
def test_money_and_tokens_never_exceed_their_limits(price: Price, limit: int, work: list[tuple[int, int, int]]) -> None:
    dollars = limit * max(price.input, price.output) / 1e6 / 2
    metered = Metered(lm(), Budget(max_tokens=limit, max_usd=dollars), price=price)
    for verb, size, longest in work:
        before, contexts = metered.meter.snapshot(), ["a b"] * size
        try:
            if verb == 0:
                metered.sample(contexts, replace(WARM, max_tokens=longest), range(size))
            else:
                ASKS[verb](metered, contexts)
        except BudgetReached:
            assert metered.meter.snapshot() == before, "what is refused costs nothing"
        used = metered.meter.snapshot()
        assert used.tokens <= limit
        assert used.usd <= dollars + 1e-9
        assert used.usd == pytest.approx(price.usd(used.prompt_tokens, used.completion_tokens), abs=1e-9)


def test_a_call_is_refused_only_for_what_it_might_use() -> None:
    ask = replace(WARM, max_tokens=9)
    Metered(lm(), Budget(max_tokens=10)).sample(["a"], ask, [1])
    with pytest.raises(BudgetReached, match=r"max_tokens(.|\n)*at most 11 more wanted"):
        Metered(lm(), Budget(max_tokens=10)).sample(["a b"], ask, [1])


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_cannot_spend_the_same_money_twice(threads: int) -> None:
    engine = SlowLM(lambda _: {"yes": 0.5, "yes sir now": 0.5})
    engine.delay = 0.002
    ask = replace(WARM, max_tokens=20)
    # the worst case of a call is 20 tokens drawn, a real one draws at most 4
    one = PRICE.usd(1, 20)
    budget = Budget(max_usd=3.5 * one)
    metered = Metered(engine, budget, price=PRICE)
    refused: list[Usage] = []

    def work() -> None:
        for i in range(40):
            try:
                metered.sample(["a"], ask, [i])
            except BudgetReached:
                refused.append(metered.meter.snapshot())
                return

    pool = [threading.Thread(target=work) for _ in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join(60)
        assert not thread.is_alive()
    used = metered.meter.snapshot()
    assert used.usd <= 3.5 * one
    assert engine.most_at_once <= 3, "no more are in flight than could all be as long as can be"
    assert len(refused) == threads
    # nobody is refused because of what others have only reserved
    assert all(seen.usd + one > 3.5 * one for seen in refused)


def test_the_servers_own_count_beats_the_estimate_and_is_counted_once() -> None:
    engine = BillingLM(factor=100)
    assert isinstance(engine, Bills)
    metered = Metered(engine, price=PRICE)
    for _ in range(3):
        metered.log_prob(["a b", "c"], ["yes", "yes"])
    used = metered.meter.snapshot()
    assert (used.prompt_tokens, used.cached_tokens, used.calls) == (600, 6, 6)
    assert used.usd == pytest.approx((594 * 3 + 6 * 1) / 1e6)
    assert used.prompt_tokens == engine.billed.prompt_tokens


def test_what_a_failing_call_was_billed_is_counted_and_its_reservation_given_back() -> None:
    engine = BillingLM(factor=10)
    metered = Metered(engine, Budget(max_calls=2), price=PRICE)
    engine.fails = True
    with pytest.raises(ProviderError):
        metered.log_prob(["a"], ["yes"])
    assert metered.meter.snapshot().prompt_tokens == 10
    engine.fails = False
    metered.log_prob(["a"], ["yes"])
    with pytest.raises(BudgetReached):
        metered.log_prob(["a"], ["yes"])
    assert metered.meter.snapshot().prompt_tokens == 20


def test_a_cache_hit_costs_no_money() -> None:
    inside = Metered(lm(), price=PRICE)
    cached = Cached(inside, Store(":memory:"))
    cached.sample(["a", "a", "b"], WARM, [1, 1, 2])
    once = inside.meter.snapshot()
    cached.sample(["a", "a", "b"], WARM, [1, 1, 2])
    assert inside.meter.snapshot() == once
    assert once.calls == 2
    assert once.usd > 0


def test_a_limit_in_money_needs_a_price() -> None:
    with pytest.raises(InputError, match=r"openai/unheard-of(.|\n)*--price openai/unheard-of=INPUT/OUTPUT"):
        Metered(TableLM(lambda _: {"yes": 1.0}, name="openai/unheard-of"), Budget(max_usd=1.0))
    known = Metered(TableLM(lambda _: {"yes": 1.0}, name="openai/gpt-4o-mini"), Budget(max_usd=1.0))
    assert known.price.output == 0.6
    own = Metered(lm(), Budget(max_usd=0.0))
    own.sample(["a"], WARM, [1])
    assert own.meter.snapshot().usd == 0


def test_no_call_begins_after_the_last_second() -> None:
    meter = Meter(Usage(seconds=2.0))
    Metered(lm(), Budget(max_seconds=60.0), meter).log_prob(["a"], ["yes"])
    with pytest.raises(BudgetReached, match="max_seconds"):
        Metered(lm(), Budget(max_seconds=2.0), meter).log_prob(["a"], ["yes"])
    assert meter.snapshot().calls == 1


def test_a_spent_budget_does_not_refuse_what_asks_nothing() -> None:
    metered = Metered(lm(), Budget(max_calls=0, max_seconds=0.0))
    assert metered.log_prob([], []) == []
    assert metered.meter.snapshot() == Usage()


def test_purposes_share_a_meter_and_a_budget() -> None:
    train = Metered(lm(), Budget(max_calls=3), purpose="train")
    dev = train.for_purpose("dev")
    train.log_prob(["a"], ["yes"])
    dev.log_prob(["a", "b"], ["yes", "yes"])
    with pytest.raises(BudgetReached):
        train.log_prob(["a"], ["yes"])
    by_purpose = train.meter.by_purpose()
    assert {name: usage.calls for name, usage in by_purpose.items()} == {"train": 1, "dev": 2}
    assert by_purpose["train"] + by_purpose["dev"] == dev.meter.snapshot()


def test_threads_cannot_overdraw_a_budget_together() -> None:
    metered = Metered(lm(), Budget(max_calls=50))
    refused: list[int] = []

    def work() -> None:
        for i in range(20):
            try:
                metered.log_prob(["a"], ["yes"])
            except BudgetReached:
                refused.append(i)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metered.meter.snapshot().calls == 50
    assert len(refused) == 8 * 20 - 50


@pytest.mark.parametrize("name", ["max_calls", "max_tokens", "max_seconds", "max_usd"])
@pytest.mark.parametrize("limit", [-1, float("nan")])
def test_a_limit_is_not_negative(name: str, limit: float) -> None:
    with pytest.raises(InputError, match=name):
        Budget(**{name: limit})


def test_other_attributes_are_reached_through_inner_only() -> None:
    metered = Metered(lm())
    assert not hasattr(metered, "support")
    assert isinstance(metered.inner, TableLM)
    assert isinstance(metered, LanguageModel)
