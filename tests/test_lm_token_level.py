"""Ids in, ids out: the token level against the text level and against direct calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import ContextLengthError, InputError
from dln.lm.base import Sampling
from dln.lm.local.engine import TokenLevel, TransformersLM
from dln.lm.local.query import Answer, Question, read
from dln.lm.local.tokenizer import token_bytes
from dln.numerics import log_softmax

TEXTS = ["the cat sat", " yes no é🙂", "Input: a\nLabel:", "a<|end|>b"]


def table(lm: TransformersLM, ids: tuple[int, ...]) -> np.ndarray:
    """[T, V] log-probabilities by one plain call."""
    with torch.inference_mode():
        return log_softmax(lm.network.model(input_ids=torch.tensor([ids])).logits[0].double().numpy())


@pytest.fixture(params=["packed", "plain"])
def lm(tiny_lm: TransformersLM, request: pytest.FixtureRequest):
    """The tiny model, by both ways of scoring."""
    if request.param == "plain":
        tiny_lm.network.fallbacks["why_plain"] = "asked for by the test"
    yield tiny_lm
    tiny_lm.network.fallbacks.pop("why_plain", None)


@given(st.data())
@settings(deadline=None)
def test_read_answers_each_question_from_its_own_row(data):
    logits = torch.tensor(
        data.draw(st.lists(st.lists(st.floats(-8, 8), min_size=5, max_size=5), min_size=1, max_size=4))
    )
    question = st.builds(
        Question,
        st.lists(st.integers(0, 4), max_size=3, unique=True).map(tuple),
        st.booleans(),
        st.integers(0, 7),
    )
    asked = data.draw(st.lists(st.tuples(st.integers(0, len(logits) - 1), question), min_size=1, max_size=6))
    log_p = log_softmax(logits.double().numpy())
    for (row, wanted), found in zip(asked, read(logits, [r for r, _ in asked], [q for _, q in asked]), strict=True):
        np.testing.assert_allclose(found.log_probs, log_p[row, list(wanted.tokens)], atol=1e-5)
        others = np.delete(np.exp(log_p[row]), wanted.tokens).sum()
        assert np.exp(found.rest) == pytest.approx(others if wanted.rest else 1.0, abs=1e-5)
        assert len(found.top) == min(wanted.top, 5)
        values = [value for _, value in found.top]
        assert values == sorted(values, reverse=True)
        np.testing.assert_allclose(values, np.sort(log_p[row])[::-1][: wanted.top], atol=1e-5)
        assert len({token for token, _ in found.top}) == len(found.top)


def test_an_answer_to_nothing_is_empty():
    assert len(Answer.of([]).log_probs) == 0


def test_is_token_level(tiny_lm):
    assert isinstance(tiny_lm, TokenLevel)


@pytest.mark.parametrize("top", [0, 1, 4])
def test_scores_and_top_tokens_are_those_of_plain_calls(lm, top):
    sequences = [lm.context_ids(text) for text in TEXTS]
    starts = [1, 2, len(sequences[2]), 3]
    for ids, start, scores in zip(sequences, starts, lm.score_ids(sequences, starts, top), strict=True):
        expected = table(lm, ids)
        np.testing.assert_allclose(
            scores.log_probs, [expected[t - 1, ids[t]] for t in range(start, len(ids))], atol=1e-4
        )
        for t, best in zip(range(start, len(ids)), scores.top, strict=True):
            order = np.argsort(-expected[t - 1], kind="stable")[:top]
            assert [token for token, _ in best] == order.tolist()
            np.testing.assert_allclose([value for _, value in best], expected[t - 1, order], atol=1e-4)


def test_the_next_token_is_what_a_plain_call_says(lm):
    prompts = [lm.context_ids(text) for text in TEXTS]
    for ids, found in zip(prompts, lm.next_log_probs(prompts, [7, 3], top=2), strict=True):
        expected = table(lm, ids)[-1]
        np.testing.assert_allclose(found.log_probs, expected[[7, 3]], atol=1e-4)
        assert [token for token, _ in found.top[0]] == np.argsort(-expected)[:2].tolist()
    assert lm.next_log_probs([], top=1) == []
    assert len(lm.next_log_probs(prompts)[0].log_probs) == 0


def test_draws_on_ids_are_the_draws_on_texts(tiny_lm):
    for lm in (tiny_lm, tiny_lm.with_chat(True)):
        sampling = Sampling(0.8, max_tokens=6)
        drawn = lm.sample_ids([lm.context_ids(text) for text in TEXTS], sampling, [1, 2, 3, 4])
        assert drawn == lm.sample(TEXTS, sampling, [1, 2, 3, 4])


@given(st.text())
@settings(deadline=None)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tiny_lm, text):
    ids = tiny_lm.encode(text)
    assert b"".join(map(tiny_lm.token_bytes, ids)) == text.encode("utf-8", "surrogatepass")
    assert tiny_lm.decode(ids) == text


def test_tokens_of_other_vocabularies():
    assert token_bytes("\u2581cat", byte_level=False) == b" cat"
    assert token_bytes("<0x0A>", byte_level=False) == b"\n"
    assert token_bytes("é", byte_level=False) == "é".encode()
    assert token_bytes("\u0120cat\u010a", byte_level=True) == b" cat\n"


def test_a_special_token_is_its_name_and_no_text(tiny_lm):
    terminator = next(iter(tiny_lm.codec.terminators))
    assert tiny_lm.token_text(terminator).startswith("<|")
    assert tiny_lm.decode([terminator]) == ""


def test_what_is_no_id_or_no_start_is_refused(tiny_lm):
    ids = tiny_lm.context_ids("the cat sat")
    with pytest.raises(InputError, match=r"prompts\[1\]"):
        tiny_lm.sample_ids([ids, ()], Sampling(max_tokens=1), [0, 0])
    with pytest.raises(InputError, match="no token id"):
        tiny_lm.score_ids([(*ids, 10**6)], [1])
    with pytest.raises(InputError, match="no token id"):
        tiny_lm.next_log_probs([ids], [-1])
    with pytest.raises(InputError, match="no token id"):
        tiny_lm.token_bytes(10**6)
    for start in (0, len(ids) + 1):
        with pytest.raises(InputError, match=r"start\[0\]"):
            tiny_lm.score_ids([ids], [start])
    with pytest.raises(ContextLengthError):
        tiny_lm.score_ids([ids * 100], [1])
