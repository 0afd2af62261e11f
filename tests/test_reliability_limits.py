"""What a table of outcomes does not show: when and how often is asked, and that answers never change places."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from dln.errors import ContextLengthError, DlnError
from dln.lm.base import Sampling, Token
from dln.lm.load import load_lm
from fault_language import Language, LanguageLM
from fault_replies import Manners
from fault_scripts import FAULTS, every, first, status
from fault_server import FaultServer

TRUTH = LanguageLM(Language())
CONTEXTS = [f"Input: box {i} of the tiles broke\nLabel:" for i in range(40)]
LABELS = [" yes", " no", " deep thought of"]
SAMPLING = Sampling(temperature=1.0, max_tokens=4)
SEEDS = list(range(40))
TOKENS = [Token(" yes"), Token(" no"), Token(" order")]


def loaded(server: FaultServer, **options: Any) -> Any:
    """An engine whose probe is over."""
    lm = load_lm("vllm/tiny", base_url=server.base_url, **{"timeout": 0.5, "connect_timeout": 0.3, **options})
    assert lm.capabilities.scores_targets
    return lm


@pytest.mark.parametrize("concurrency", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_reply_that_is_delivered_twice_never_answers_another_request(concurrency: int):
    with FaultServer() as server:
        lm = loaded(server, max_concurrency=concurrency)
        drawn = [(draw.text, draw.token_ids) for draw in lm.sample(CONTEXTS, SAMPLING, SEEDS)]
        server.play("reply delivered twice", every(3), paths=())
        again = [(draw.text, draw.token_ids) for draw in lm.sample(CONTEXTS, SAMPLING, SEEDS)]
        scores = lm.log_prob(CONTEXTS, [" yes sir no"] * 40)
        masses = lm.choice_log_probs(CONTEXTS, LABELS)
        following = lm.next_token_log_probs(CONTEXTS, TOKENS, 3)
        ids = [lm.count_tokens(f"{'no ' * i}word") for i in range(20)]
    assert again == drawn
    for score, right in zip(scores, TRUTH.log_prob(CONTEXTS, [" yes sir no"] * 40), strict=True):
        assert score.values == pytest.approx(right.values, abs=1e-9)
    assert masses == pytest.approx(TRUTH.choice_log_probs(CONTEXTS, LABELS), abs=1e-9)
    for j, token in enumerate(TOKENS):
        right = [score.log_prob for score in TRUTH.log_prob(CONTEXTS, [token.text] * 40)]
        assert following.log_probs[:, j] == pytest.approx(right, abs=1e-9)
    for context, top in zip(CONTEXTS, following.top, strict=True):
        scores = TRUTH.log_prob([context] * len(top), [token.text for token, _ in top])
        assert [p for _, p in top] == pytest.approx([score.log_prob for score in scores], abs=1e-9)
    assert ids == [TRUTH.count_tokens(f"{'no ' * i}word") for i in range(20)]


@pytest.mark.parametrize(
    ("name", "k", "manners"),
    [
        # every bad value once, in one of the four ways; the others are slow
        pytest.param(
            name, k, Manners(chosen_ids=ids), marks=() if i % 4 == way else pytest.mark.slow, id=f"{name}-{way}"
        )
        for i, name in enumerate(["NaN", "+inf", "-inf", "-9999", "null", "positive"])
        for way, (k, ids) in enumerate([(2, True), (5, False), (5, True), (2, False)])
    ],
)
def test_some_bad_values_never_make_a_plausible_wrong_one(name: str, k: int, manners: Manners):
    """A bad value in the middle of a label or text could be added to good ones and look like a log-probability."""
    labels, contexts = [" deep thought of", " deep quick", " yes", " yes no please"], CONTEXTS[:8]
    targets = [" yes sir no"] * 8
    with FaultServer(manners) as server:
        lm = loaded(server)
        server.play(f"log-probs {name}", every(k))
        masses = lm.choice_log_probs(contexts, labels)
        scores = lm.log_prob(contexts, targets)
        following = lm.next_token_log_probs(contexts, TOKENS)
    assert np.isneginf(following.bounds).all() == manners.chosen_ids
    for j, token in enumerate(TOKENS):
        for value, right in zip(
            following.log_probs[:, j], TRUTH.log_prob(contexts, [token.text] * len(contexts)), strict=True
        ):
            assert not (np.isfinite(value) and value <= 0) or abs(value - right.log_prob) < 1e-9
    for row, right in zip(masses, TRUTH.choice_log_probs(contexts, labels), strict=True):
        for value, wanted in zip(row, right, strict=True):
            assert abs(value - wanted) < 1e-9 or not (np.isfinite(row).all() and np.exp(row).sum() <= 1.05), row
    for score, right in zip(scores, TRUTH.log_prob(contexts, targets), strict=True):
        assert not score.finite or score.values == pytest.approx(right.values, abs=1e-9)


def test_a_server_that_asks_to_wait_is_not_asked_before():
    with FaultServer() as server:
        lm = loaded(server)
        server.play("429 with Retry-After in seconds", first(1))
        before = len(server.asked())
        lm.sample(CONTEXTS[:1], SAMPLING, SEEDS[:1])
        refused, answered = server.asked()[before:]
    assert answered.at - refused.at >= 1.0


def test_a_wait_that_is_too_long_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch):
    fault = status(429, "Come back tomorrow", "rate_limit", Retry_After="86400")
    monkeypatch.setitem(FAULTS, "429 until tomorrow", fault)
    with FaultServer() as server:
        lm = loaded(server)
        server.play("429 until tomorrow")
        began = time.monotonic()
        with pytest.raises(DlnError, match="86400 seconds"):
            lm.sample(CONTEXTS[:1], SAMPLING, SEEDS[:1])
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("fault", ["401", "429 quota exhausted", "404", "400"])
def test_after_an_error_that_is_final_nothing_more_is_sent(fault: str):
    with FaultServer(latency=0.02) as server:
        lm = loaded(server, max_concurrency=4)
        before = len(server.asked())
        server.play(fault)
        with pytest.raises(DlnError):
            lm.sample(CONTEXTS, SAMPLING, SEEDS)
        time.sleep(0.1)
        assert len(server.asked()) - before <= 8  # what was in flight, and no more


def test_a_request_that_cannot_fit_is_refused_before_anything_is_sent():
    with FaultServer(Manners(context_length=256)) as server:
        lm = loaded(server)
        before = len(server.asked())
        with pytest.raises(ContextLengthError, match="256 tokens"):
            lm.sample([*CONTEXTS[:3], "x" * 300], SAMPLING, SEEDS[:4])
        with pytest.raises(ContextLengthError, match="request 3"):
            lm.log_prob([*CONTEXTS[:3], "x" * 255], [" yes no"] * 4)
        assert len(server.asked()) == before


def test_a_slow_reply_is_given_up_at_the_deadline():
    with FaultServer() as server:
        lm = loaded(server, deadline=1.0)
        server.play("body drips for ever")
        began = time.monotonic()
        with pytest.raises(DlnError, match="within 1 s"):
            lm.sample(CONTEXTS[:2], SAMPLING, SEEDS[:2])
        assert 0.9 < time.monotonic() - began < 2.5


def test_a_replica_that_dies_is_left_and_taken_back():
    with ExitStack() as stack:
        servers = [stack.enter_context(FaultServer(keep_alive=False)) for _ in range(2)]
        urls = [server.base_url for server in servers]
        lm: Any = load_lm("vllm/tiny", base_url=urls, timeout=5, connect_timeout=5)
        truth = TRUTH.choice_log_probs(CONTEXTS, LABELS)
        assert lm.choice_log_probs(CONTEXTS, LABELS) == pytest.approx(truth, abs=1e-9)
        assert all(server.asked() for server in servers)  # both work
        servers[0].stop_listening()
        assert lm.choice_log_probs(CONTEXTS, LABELS) == pytest.approx(truth, abs=1e-9)
        servers[0].listen_again()
        before, deadline = len(servers[0].asked()), time.monotonic() + 20
        while len(servers[0].asked()) == before and time.monotonic() < deadline:
            assert lm.choice_log_probs(CONTEXTS, LABELS) == pytest.approx(truth, abs=1e-9)
            time.sleep(0.25)
        assert len(servers[0].asked()) > before


def test_a_replica_that_serves_another_model_is_noticed():
    with ExitStack() as stack:
        servers = [
            stack.enter_context(FaultServer(Manners(language=Language(seed=seed)), keep_alive=False)) for seed in (0, 1)
        ]
        servers[1].play("another model answers", paths=())
        lm = load_lm("vllm/tiny", base_url=[server.base_url for server in servers])
        with pytest.raises(DlnError, match="another model answers"):
            lm.choice_log_probs(CONTEXTS, LABELS)
