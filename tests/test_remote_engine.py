"""RemoteLM over every kind of server: it keeps the laws of a language model, and says what the table says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import ContextLengthError, InputError, ProviderError
from dln.lm.base import LanguageModel, Sampling
from dln.lm.laws import LAWS, LawCase, check_laws
from dln.lm.load import load_lm
from dln.lm.remote.dialects import DIALECTS
from dln.lm.remote.engine import RemoteLM
from dln.lm.table import TableLM

if TYPE_CHECKING:
    from dln.lm.local.engine import TransformersLM
    from dln.lm.remote.sender import HttpSender
from remote_forms import FORMS, Form
from remote_simulator import TEXTS, Simulator, chat_text

CONTEXTS = ("Q:", "Is it so? Answer:", "a b c:")
LABELS = (" yes", " no", " yes sir")
CHAT_LABELS = (" yes", " no", " maybe")


def remote(form: Form, lm: TableLM | None = None, **changes: Any) -> RemoteLM:
    # a chat does not show its terminator: an answer that is nothing else has no likeliest tokens
    texts = TEXTS[1:] if form.chat and form.labels == "top-k" else TEXTS
    dialect, server = form(lm or TableLM.random(texts, 3), **changes)
    return RemoteLM(dialect, server, name=f"{form.kind}/table", servers=["http://127.0.0.1:8000/v1"], chat=form.chat)


def labels_of(form: Form) -> tuple[str, ...]:
    return CHAT_LABELS if form.chat and form.labels == "top-k" else LABELS


@lru_cache
def shared(form: Form) -> RemoteLM:
    """One probe for all laws of a kind of server."""
    return remote(form)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_every_law_holds_over_every_kind_of_server(form: Form, law):
    verdict = law(shared(form), LawCase(CONTEXTS, (" yes", " yes sir", " no way", ""), labels_of(form)))
    if form.texts == "target scoring" and law.__name__ not in ("too_long_is_refused",):
        assert verdict == "holds"


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_the_probe_finds_the_scoring_modes(form: Form):
    can = remote(form).capabilities
    assert (can.label_scoring, can.text_scoring) == (form.labels, form.texts)
    assert can.scores_labels
    assert can.scores_targets == (form.texts != "accuracy")
    assert can.chat == form.chat


@given(st.integers(0, 1000), st.sampled_from(CONTEXTS), st.lists(st.sampled_from([*TEXTS, " nowhere"]), max_size=4))
@pytest.mark.parametrize("form", [form for form in FORMS if form.texts != "accuracy"], ids=repr)
def test_scores_are_the_tables(form: Form, seed: int, context: str, targets: list[str]):
    table = TableLM.random(TEXTS, seed)
    lm = remote(form, table)
    truth = chat_text(context) if form.chat else context
    got = lm.log_prob([context] * len(targets), targets)
    for score, expected in zip(got, table.log_prob([truth] * len(targets), targets), strict=True):
        np.testing.assert_allclose(score.values, expected.values, atol=1e-9)
        assert score.text_tokens == expected.text_tokens
    np.testing.assert_allclose(
        lm.choice_log_probs([context], LABELS), table.choice_log_probs([truth], LABELS), atol=1e-9
    )


@given(st.integers(0, 2**64), st.sampled_from([0.0, 0.6, 1.0, 1.5]), st.integers(1, 4), st.sampled_from(CONTEXTS))
@pytest.mark.parametrize("form", [form for form in FORMS if form.kind == "vllm"], ids=repr)
def test_draws_are_the_tables_draws(form: Form, seed: int, temperature: float, tokens: int, context: str):
    table = TableLM.random(TEXTS, 7)
    sampling = Sampling(temperature=temperature, max_tokens=tokens)
    truth = table.sample([chat_text(context) if form.chat else context], sampling, [seed])[0]
    draw = remote(form, table).sample([context], sampling, [seed])[0]
    assert (draw.text, draw.token_ids, draw.finish_reason) == (truth.text, truth.token_ids, truth.finish_reason)
    assert draw.text_tokens == truth.text_tokens
    np.testing.assert_allclose(draw.log_probs, truth.log_probs, atol=1e-12)
    if draw.sampling_log_probs is not None:
        np.testing.assert_allclose(draw.sampling_log_probs, truth.sampling_log_probs, atol=0.25)
    else:
        assert temperature > 1, "the density is known wherever the likeliest tokens tell it"


def test_a_draw_is_scored_on_its_own_ids():
    lm = remote(FORMS[0])
    draw = lm.sample(["Q:"], Sampling(temperature=1.0, max_tokens=3), [5])[0]
    shown = draw.with_text("something else")
    np.testing.assert_allclose(lm.log_prob(["Q:"], [shown])[0].values, draw.log_probs)
    foreign = lm.sample(["Q:"], Sampling(), [0])[0]
    other = remote(FORMS[3])
    text = other.log_prob(["Q:"], [foreign])[0]
    assert text.text_tokens == len(text.values) == other.count_tokens(foreign.text), "ids of another model mean nothing"


def test_a_boundary_within_a_token_is_unusable_and_not_cut():
    lm = remote(next(form for form in FORMS if form.kind == "together"))
    straddling, clean = lm.log_prob(["Q:", "Q:"], ["yes", " yes"])
    assert np.isnan(straddling.values).all()
    assert not straddling.finite
    assert clean.finite
    assert np.isnan(lm.choice_log_probs(["Q:"], ["yes", "no"])).all()


def test_too_long_is_found_before_anything_is_sent():
    lm = remote(FORMS[0])
    server = lm.sender
    assert isinstance(server, Simulator)
    lm.log_prob(["Q:"], [" yes"])
    sent = len([call for call in server.calls if call.path == "/completions"])
    with pytest.raises(ContextLengthError, match="at most 256 tokens") as caught:
        lm.log_prob(["Q:", "Q:"], [" yes", " yes" * 280])
    assert caught.value.where == f"{lm.name}, request 1"
    with pytest.raises(ContextLengthError):
        lm.sample(["Q:"], Sampling(max_tokens=300), [0])
    with pytest.raises(ContextLengthError):
        lm.choice_log_probs([" word" * 270], LABELS)
    assert len([call for call in server.calls if call.path == "/completions"]) == sent


def test_a_server_that_cannot_score_texts_says_why():
    lm = remote(next(form for form in FORMS if form.kind == "openai"))
    with pytest.raises(ProviderError, match="cannot score texts") as caught:
        lm.log_prob(["Q:"], [" yes"])
    assert "vLLM" in str(caught.value.fix)


def test_another_model_in_the_middle_is_an_error_that_names_both():
    lm = remote(FORMS[0], defects=frozenset({"other model"}))
    with pytest.raises(ProviderError, match="another model answers") as caught:
        for seed in range(100):
            lm.sample(["Q:"], Sampling(temperature=1.0), [seed])
    assert "'another'" in str(caught.value)
    assert "'table'" in str(caught.value)


def test_fingerprints_tell_apart_what_has_different_numbers():
    table = TableLM.random(TEXTS, 3)

    def fingerprint(form: Form = FORMS[0], server: str = "http://one:8000/v1", **options: Any) -> str:
        dialect, sender = form(table)
        lm: LanguageModel = RemoteLM(dialect, sender, name="x", servers=[server], chat=form.chat, **options)
        return lm.fingerprint()

    prints = [
        fingerprint(),
        fingerprint(server="http://two:8000/v1"),
        fingerprint(FORMS[1]),
        fingerprint(FORMS[2]),
        fingerprint(revision="abc"),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint() == fingerprint()
    assert fingerprint(revision="abc", server="http://two/v1") == fingerprint(revision="abc")


def test_requests_of_one_context_share_a_route():
    lm = remote(FORMS[0])
    server = lm.sender
    assert isinstance(server, Simulator)
    _ = lm.capabilities
    server.calls.clear()
    lm.log_prob(["Q:"] * 3 + ["R:"], [" yes", " no", " maybe so", " yes"])
    lm.choice_log_probs(["Q:"], LABELS)
    scored = [call for call in server.calls if call.path == "/completions"]
    assert {call.route for call in scored} == {"Q:", "R:"}
    assert all(call.weight > 0 for call in scored)


def test_every_draw_is_a_call_of_its_own_and_carries_its_seed():
    lm = remote(FORMS[0])
    server = lm.sender
    assert isinstance(server, Simulator)
    _ = lm.capabilities
    server.calls.clear()
    lm.sample(["Q:"] * 2, Sampling(temperature=1.0), [5, 2**63 + 1])
    lm.sample(["Q:"] * 2, Sampling(), [5, 6])
    seeds = [(call.body or {}).get("seed") for call in server.calls if call.path == "/completions"]
    assert seeds == [5, -(2**63) + 1, None, None], "64 bits, signed; none where it has no effect"
    assert all((call.body or {}).get("n", 1) == 1 for call in server.calls)


def test_short_texts_are_counted_and_long_ones_estimated_without_a_call():
    lm = remote(FORMS[0])
    server = lm.sender
    assert isinstance(server, Simulator)
    assert lm.count_tokens(" yes sir") == 2
    assert lm.count_tokens("") == 0
    calls = len(server.calls)
    words = 500
    assert words / 2 < lm.count_tokens(" word" * words) < words * 2
    assert len(server.calls) == calls
    bare = remote(next(form for form in FORMS if form.kind == "together"))
    assert bare.count_tokens("abcdefgh") == 2


def test_context_ids_are_asked_for_once():
    lm = remote(FORMS[1])
    server = lm.sender
    assert isinstance(server, Simulator)
    for _ in range(3):
        lm.log_prob(["Q:", "R:"], [" yes", " no"])
    encoded = [json.dumps(call.body) for call in server.calls if call.path == "//tokenize"]
    assert len(encoded) == len(set(encoded))


@pytest.mark.parametrize("labels", [[], [""], ["a", "a"]])
@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_impossible_label_sets_are_refused(form: Form, labels: list[str]):
    with pytest.raises(InputError):
        remote(form).choice_log_probs(["Q:"], labels)


def test_mismatched_batches_are_refused():
    lm = RemoteLM(DIALECTS["vllm"]("table"), Simulator(TableLM.random(TEXTS, 1)), name="vllm/table")
    with pytest.raises(InputError):
        lm.log_prob(["a:"], [])
    with pytest.raises(InputError):
        lm.sample(["a:"], Sampling(), [])


@pytest.fixture(scope="module", params=[False, True], ids=["completion", "chat"])
def served_tiny(request: pytest.FixtureRequest, tiny_lm: TransformersLM) -> Iterator[tuple[RemoteLM, TransformersLM]]:
    """A tiny model in this process, and the same model behind a real server."""
    pytest.importorskip("uvicorn")
    from dln.serve.models import served
    from dln.serve.server import serving

    local = tiny_lm.with_chat(request.param)
    with serving(served(local, "tiny")) as url:
        lm = load_lm("vllm/tiny:chat" if request.param else "vllm/tiny", base_url=url)
        assert isinstance(lm, RemoteLM)
        yield lm, local
        cast("HttpSender", lm.sender).close()


@pytest.mark.parametrize(
    "served_tiny",
    [pytest.param(False, id="completion"), pytest.param(True, id="chat", marks=pytest.mark.slow)],
    indirect=True,
)
def test_a_served_model_says_what_it_says_in_process(served_tiny: tuple[RemoteLM, TransformersLM]):
    lm, local = served_tiny
    can = lm.capabilities
    assert (can.label_scoring, can.text_scoring, can.token_ids) == ("target scoring", "target scoring", True)
    assert can.context_length == local.capabilities.context_length
    contexts, labels = ["Input: a thriller\nLabel:", "the cat sat"], [" yes", " no", " yes yes"]
    np.testing.assert_allclose(
        lm.choice_log_probs(contexts, labels), local.choice_log_probs(contexts, labels), atol=1e-3
    )
    for got, expected in zip(lm.log_prob(contexts, labels[:2]), local.log_prob(contexts, labels[:2]), strict=True):
        np.testing.assert_allclose(got.values, expected.values, atol=1e-3)
    for temperature in (0.0, 0.7, 1.0):
        sampling = Sampling(temperature=temperature, max_tokens=6)
        draws = zip(
            lm.sample(contexts, sampling, [1, 2**62]), local.sample(contexts, sampling, [1, 2**62]), strict=True
        )
        for got, expected in draws:
            assert (got.text, got.token_ids, got.text_tokens) == (
                expected.text,
                expected.token_ids,
                expected.text_tokens,
            )
            np.testing.assert_allclose(got.log_probs, expected.log_probs, atol=1e-3)
            np.testing.assert_allclose(got.sampling_log_probs, expected.sampling_log_probs, atol=1e-3)


@pytest.mark.slow
def test_a_served_model_gives_the_next_tokens_that_it_gives_in_process(
    served_tiny: tuple[RemoteLM, TransformersLM],
):
    lm, local = served_tiny
    assert lm.capabilities.next_tokens == "all"
    contexts = ["Input: a thriller\nLabel:", "the cat sat", "the cat sat"]
    tokens = [token for token in map(local.codec.token, range(local.network.vocabulary)) if token]
    assert len(tokens) > 128, "more than vLLM takes at once"
    got, expected = (model.next_token_log_probs(contexts, tokens, 5) for model in (lm, local))
    np.testing.assert_allclose(got.log_probs, expected.log_probs, atol=1e-3)
    assert np.isneginf(got.bounds).all()
    for one, two in zip(got.top, expected.top, strict=True):
        assert one  # the server's top list has tokens that are left out: it may be shorter
        np.testing.assert_allclose([p for _, p in one], [p for _, p in two[: len(one)]], atol=1e-3)
        assert {token for token, _ in one} <= set(tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    "served_tiny",
    [pytest.param(False, id="completion"), pytest.param(True, id="chat", marks=pytest.mark.slow)],
    indirect=True,
)
def test_a_served_model_keeps_the_laws(served_tiny: tuple[RemoteLM, TransformersLM]):
    lm, _ = served_tiny
    verdicts = check_laws(lm, ["Input: a\nLabel:", "the cat"], [" yes no", " dog"], [" yes", " no", " yes no"])
    assert set(verdicts.values()) == {"holds"}
