from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import BudgetReached, InputError
from dln.lm.base import Completion, LanguageModel, Sampling
from dln.lm.cached import Cached
from dln.lm.laws import LAWS, Law, LawCase, check_wrapper
from dln.lm.metered import Budget, Meter, Metered, Usage
from dln.lm.store import Store
from dln.lm.table import TableLM

TEXTS = ["", "yes", "yes sir", "yes sir now", " no", "no way"]
CASE = LawCase(["x", "", "Q: a?\nA:"], ["yes sir now", " no", "never seen", ""], ["yes", "yes sir", " no"])
WARM = Sampling(temperature=1.0)

usages = st.builds(
    Usage, *[st.integers(0, 10**9)] * 4, seconds=st.integers(0, 10**6).map(lambda n: n / 64)
)  # dyadic seconds: sums are exact


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


@pytest.mark.parametrize("name", ["max_calls", "max_tokens", "max_seconds"])
@pytest.mark.parametrize("limit", [-1, float("nan")])
def test_a_limit_is_not_negative(name: str, limit: float) -> None:
    with pytest.raises(InputError, match=name):
        Budget(**{name: limit})


def test_other_attributes_are_reached_through_inner_only() -> None:
    metered = Metered(lm())
    assert not hasattr(metered, "support")
    assert isinstance(metered.inner, TableLM)
    assert isinstance(metered, LanguageModel)
