"""The modes: exact where the server tells enough, bounded where it does not, and never two of them in one softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dln.lm.base import Sampling
from dln.lm.local.decoding import drawing_probabilities
from dln.lm.remote.call import Call
from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialects import VLLM, OpenAI
from dln.lm.remote.draws import TOLERANCE, draw_log_probs, token_log_prob
from dln.lm.remote.read import ScoredToken
from dln.lm.remote.scoring import AnsweredLabels, PickedLabels, labels_in, log_rest
from dln.lm.remote.session import Session
from dln.lm.remote.top_labels import TopLabels, spread
from dln.lm.table import TableLM
from dln.numerics import logsumexp
from remote_simulator import TEXTS, Simulator, chat_text

LABELS = (" yes", " no", " yes sir", " maybe so")
contexts = st.sampled_from(["Q:", "a b:", "x y z:"])
seeds = st.integers(0, 500)


def table(seed: int) -> TableLM:
    return TableLM.random(TEXTS[1:], seed)


def completion(lm: TableLM, **options: Any) -> tuple[Session, Simulator]:
    server = Simulator(lm, **options)
    return Session(Dialect("table"), server, chat=False), server


def chat(lm: TableLM) -> Session:
    return Session(OpenAI("table"), Simulator(lm), chat=True)


# -- likeliest tokens ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(seeds, contexts, st.permutations(LABELS))
def test_with_all_tokens_the_masses_are_exact(seed: int, context: str, labels: list[str]):
    lm = table(seed)
    session, _ = completion(lm)
    got = TopLabels(session, 20).log_masses([context], labels)
    expected = lm.choice_log_probs([context], labels)
    kept = np.exp(expected) > 1e-3  # what branches off below a ten-thousandth is not followed
    np.testing.assert_allclose(np.exp(got[kept]), np.exp(expected[kept]), atol=5e-4)


@settings(deadline=None)
@given(seeds, contexts, st.integers(1, 3), st.booleans())
def test_a_missing_label_is_censored_and_never_impossible(seed: int, context: str, top: int, in_chat: bool):
    lm = table(seed)
    labels = [" yes", " no", " maybe", " never"]
    session = chat(lm) if in_chat else completion(lm)[0]
    masses = TopLabels(session, top).log_masses([context], labels)[0]
    truth = chat_text(context) if in_chat else context
    server = Simulator(lm)
    first = server.following(server.words(truth))
    returned = sorted(first.values(), reverse=True)[:top]
    assert np.isfinite(masses).all()
    assert logsumexp(masses) <= 2e-6
    for label, mass in zip(labels, masses, strict=True):
        if first.get(label, 0.0) in returned:
            assert mass == pytest.approx(math.log(first[label]))
        else:
            assert mass <= math.log(min(returned)) + 1e-9, "no likelier than the least likely token that was returned"
    missing = [m for label, m in zip(labels, masses, strict=True) if first.get(label, 0.0) not in returned]
    if math.fsum(returned) + len(missing) * min(returned) <= 1:
        assert missing == pytest.approx([math.log(min(returned))] * len(missing))


def tops(*pairs: tuple[str, float]) -> tuple[ScoredToken, ...]:
    return tuple(ScoredToken(None, text, math.log(p)) for text, p in pairs)


def test_a_chat_merges_case_and_blanks():
    found = spread(
        ["yes", "no"], {"": tops(("Yes", 0.5), (" yes", 0.2), ("YES", 0.05), ("No", 0.1), ("the", 0.1))}, chat=True
    )
    assert found.masses == pytest.approx({"yes": 0.75, "no": 0.1})
    found = spread(["yes", "no"], {"": tops(("Yes", 0.5), ("yes", 0.2), (" no", 0.1))}, chat=False)
    assert found.masses == pytest.approx({"yes": 0.2}), "a completion is taken to the letter"


def test_wordings_that_differ_in_case_share_or_are_told_apart_by_their_spelling():
    found = spread(["yes", "Yes"], {"": tops(("Yes", 0.5), (" yes", 0.2), ("YES", 0.1))}, chat=True)
    assert found.masses["Yes"] == pytest.approx(0.55)
    assert found.masses["yes"] == pytest.approx(0.25)


def test_the_first_token_that_tells_labels_apart_decides():
    tables = {"": tops(("pos", 0.4), ("neg", 0.3), ("po", 0.1), ("n", 0.1))}
    found = spread(["positive", "negative"], tables, chat=True)
    assert found.masses == pytest.approx({"positive": 0.5, "negative": 0.4})


def test_labels_that_begin_alike_need_the_next_token():
    tables = {"": tops(("New", 0.6), ("Paris", 0.3))}
    labels = ["New York", "New Delhi", "Paris", "New"]
    open_ones = spread(labels, tables, chat=True)
    assert open_ones.open == pytest.approx({"New": 0.6})
    assert open_ones.unsettled == pytest.approx(0.6)
    tables["New"] = tops((" York", 0.5), (" Delhi", 0.25), (".", 0.2))
    settled = spread(labels, tables, chat=True)
    assert settled.open == {}
    assert settled.masses == pytest.approx({"New York": 0.3, "New Delhi": 0.15, "New": 0.15, "Paris": 0.3})


def test_what_stays_open_between_some_labels_makes_the_row_unusable():
    lm = TableLM.from_table({}, {"no": 0.5, "yes sir": 0.3, "yes madam": 0.2})
    row = TopLabels(chat(lm), 5).log_masses(["Q:"], ["no", "yes sir", "yes madam"])
    assert np.isnan(row).all(), "the greedy answer is 'no': nothing is known of what follows 'yes'"
    lm = TableLM.from_table({}, {"no": 0.2, "yes sir": 0.5, "yes madam": 0.3})
    row = TopLabels(chat(lm), 5).log_masses(["Q:"], ["no", "yes sir", "yes madam"])
    np.testing.assert_allclose(np.exp(row), [[0.2, 0.5, 0.3]])


def test_labels_without_a_common_beginning_cost_one_call():
    session, server = completion(table(3))
    TopLabels(session, 5).log_masses(["Q:", "R:"], [" yes", " no", " maybe"])
    assert len(server.calls) == 2


@pytest.mark.parametrize("wrong", [math.nan, 0.5, math.inf])
def test_impossible_numbers_make_no_masses(wrong: float):
    class Broken(Simulator):
        def top(self, before: Sequence[str], body: dict[str, Any]) -> dict[str, float]:
            return dict.fromkeys(super().top(tuple(before), body), wrong)

    session = Session(Dialect("table"), Broken(table(3)), chat=False)
    assert np.isnan(TopLabels(session, 5).log_masses(["Q:"], [" yes", " no"])).all()


# -- exact labels --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seeds, contexts, st.permutations(LABELS))
def test_picked_labels_are_exact(seed: int, context: str, labels: list[str]):
    lm = TableLM.random(TEXTS, seed)
    session = Session(VLLM("table"), Simulator(lm), chat=False)
    session.takes_ids = True
    np.testing.assert_allclose(
        PickedLabels(session).log_masses([context], labels), lm.choice_log_probs([context], labels), atol=1e-9
    )


@pytest.mark.parametrize("wrong", [math.nan, 0.5, math.inf])
def test_one_impossible_number_in_the_middle_of_a_label_makes_its_row_unusable(wrong: float):
    class Broken(Simulator):
        def log_prob(self, before: tuple[str, ...], word: str) -> float:
            return wrong if word == " yes" else super().log_prob(before, word)

    session = Session(VLLM("table"), Broken(TableLM.random(TEXTS, 3)), chat=False)
    session.takes_ids = True
    assert np.isnan(PickedLabels(session).log_masses(["Q:"], [" yes sir", " no"])).all()


def test_many_labels_are_asked_for_at_once_where_the_server_takes_them():
    words = [f" w{i}" for i in range(250)]
    lm = TableLM.from_table({}, dict.fromkeys(words, 1 / 250))
    server = Simulator(lm)
    session = Session(VLLM("table"), server, chat=False)
    session.takes_ids = True
    got = PickedLabels(session).log_masses(["Q:"], words)
    np.testing.assert_allclose(got, math.log(1 / 250))
    asked = [len(body["logprob_token_ids"]) for body in bodies(server) if "logprob_token_ids" in body]
    assert asked == [250, 250], "one trial"


def bodies(server: Simulator) -> list[Mapping[str, Any]]:
    return [call.body or {} for call in server.calls]


@given(st.lists(st.floats(-30, 0), max_size=5))
def test_the_rest_is_what_is_left(values: list[float]):
    total = math.fsum(map(math.exp, values))
    rest = log_rest(values)
    if total > 1 + 1e-3:
        assert math.isnan(rest)
    elif total < 1:
        assert math.exp(rest) == pytest.approx(1 - total, abs=1e-12)
    assert math.isnan(log_rest([*values, math.nan]))


# -- frequencies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["Q:", "a b:"])
def test_frequencies_come_near_the_truth(context: str):
    lm = TableLM.from_table({context: {" yes": 0.6, " no": 0.3, " what": 0.1}})
    session, _ = completion(lm)
    got = np.exp(AnsweredLabels(session, 400).log_masses([context], [" yes", " no"]))[0]
    assert np.abs(got - [0.6, 0.3]).max() < 5 * math.sqrt(0.25 / 400)


@settings(deadline=None, max_examples=20)
@given(seeds, contexts, st.integers(1, 20))
def test_smoothed_frequencies_are_a_distribution_and_never_zero(seed: int, context: str, draws: int):
    session, server = completion(table(seed))
    mode = AnsweredLabels(session, draws)
    masses = mode.log_masses([context], LABELS)
    assert np.isfinite(masses).all()
    assert logsumexp(masses)[0] < 0, "there is always room for none of them"
    assert len(server.calls) == draws
    assert len({body["seed"] for body in bodies(server)}) == draws
    np.testing.assert_array_equal(mode.log_masses([context], LABELS), masses)


def test_one_answer_is_accuracy():
    lm = TableLM.from_table({}, {" yes": 0.6, " no": 0.4})
    session, server = completion(lm)
    mode = AnsweredLabels(session, 0)
    masses = mode.log_masses(["Q:"], [" no", " yes"])[0]
    assert mode.name == "accuracy"
    assert masses[1] > masses[0]
    assert [body["temperature"] for body in bodies(server)] == [0.0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes", {0}),
        (" Yes.", {0}),
        ("**Yes** it is", {0}),
        ("yes sir!", {2}),
        ("yesterday", set()),
        ("The answer is no.", {1}),
        ("I think yes, or no", set()),
        ("The answer is yes sir", {2}),
        ("", set()),
        ("maybe", set()),
    ],
)
def test_answers_are_read_as_labels(answer: str, expected: set[int]):
    assert set(labels_in(answer, ["yes", "no", "yes sir"])) == expected


def test_labels_that_differ_in_case_share_an_answer_unless_spelled_so():
    assert labels_in("Yes", ["yes", "Yes"]) == (1,)
    assert labels_in("YES", ["yes", "Yes"]) == (0, 1)


# -- densities of draws --------------------------------------------------------------------------------

weights = st.lists(st.floats(0.01, 1), min_size=2, max_size=12)


@given(weights, st.floats(0.2, 2), st.floats(0.2, 1), st.data())
def test_with_all_tokens_the_density_is_exact(
    weight: list[float], temperature: float, top_p: float, data: st.DataObject
):
    p = np.array(weight) / sum(weight)
    sampling = Sampling(temperature=temperature, top_p=top_p)
    q = drawing_probabilities(p, sampling)
    i = data.draw(st.sampled_from(np.flatnonzero(q).tolist()))
    tokens = [ScoredToken(k, None, math.log(value)) for k, value in enumerate(p)]
    got = token_log_prob(tokens[i], tokens, sampling)
    assert got is not None
    ties = np.isclose(p, p[i], rtol=1e-9).sum() > 1  # which of equals is in the nucleus is not seen
    if not ties or top_p == 1:
        assert got[0] == pytest.approx(math.log(q[i]), abs=1e-6)
        assert got[1] < 1e-6


@given(weights, st.floats(0.2, 0.95), st.integers(1, 6), st.data())
def test_with_some_tokens_the_density_is_near_or_unknown(
    weight: list[float], temperature: float, top: int, data: st.DataObject
):
    p = np.sort(np.array(weight) / sum(weight))[::-1]
    assume(top < len(p))
    i = data.draw(st.integers(0, len(p) - 1))
    sampling = Sampling(temperature=temperature)
    tokens = [ScoredToken(k, None, math.log(value)) for k, value in enumerate(p)]
    got = token_log_prob(tokens[i], tokens[:top], sampling)
    if got is not None:
        value, error = got
        assert value == pytest.approx(math.log(drawing_probabilities(p, sampling)[i]), abs=error + 1e-6)


def test_above_temperature_one_a_part_of_the_tokens_tells_nothing():
    token = ScoredToken(1, None, math.log(0.5))
    assert draw_log_probs([token], [[token]], Sampling(temperature=1.5)) is None
    assert draw_log_probs([token], [], Sampling(temperature=0.0)) == (0.0,)
    assert draw_log_probs([token], [], Sampling(temperature=1.0)) == (token.log_prob,)


@given(st.integers(1, 200), st.floats(0.0, 0.5))
def test_a_draw_has_a_density_while_its_errors_are_small_together(count: int, mass: float):
    sampling = Sampling(temperature=0.5)
    token, second = ScoredToken(1, None, math.log(0.99 - mass)), ScoredToken(2, None, math.log(0.009))
    one = token_log_prob(token, [token, second], sampling)
    assert one is not None
    whole = draw_log_probs([token] * count, [[token, second]] * count, sampling)
    assert (whole is None) == (count * one[1] > TOLERANCE)


# -- sessions ------------------------------------------------------------------------------------------


def test_a_session_forgets_the_oldest_ids(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dln.lm.remote.session.REMEMBERED_TOKENS", 20)
    session = Session(VLLM("table"), Simulator(table(1)), chat=False)
    texts = [f"{i} a b c:" for i in range(10)]
    first = session.encode(texts, alone=False)
    assert session.encode(texts, alone=False) == first
    remembered: Callable[[], int] = lambda: session._known_tokens  # noqa: E731
    assert remembered() <= 20


def test_calls_are_counted():
    session, server = completion(table(1))
    AnsweredLabels(session, 3).log_masses(["Q:"], LABELS)
    assert session.calls == len(server.calls) == 3
    assert all(isinstance(call, Call) for call in server.calls)
