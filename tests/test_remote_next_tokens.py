"""Next-token log-probabilities over HTTP: every kind of server, censoring, long lists of tokens, unknown tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import ContextLengthError, InputError, ProviderError
from dln.lm.base import Token
from dln.lm.remote.call import BadRequest
from dln.lm.remote.dialects import DIALECTS
from dln.lm.remote.engine import RemoteLM
from dln.lm.remote.next_tokens import legible
from dln.lm.remote.read import ScoredToken, TokenRow
from dln.lm.table import TableLM, id_of
from remote_forms import FORMS, Form
from remote_simulator import TEXTS, Simulator, chat_text


def next_remote(form: Form, lm: TableLM, **changes: Any) -> tuple[RemoteLM, Any]:
    dialect, server = form(lm, **changes)
    return RemoteLM(dialect, server, name="x/table", servers=["http://h/v1"], chat=form.chat), server


WORDS = (" yes", " no", " sir", " never")


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000))
@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_next_tokens_are_the_tables_or_censored(form: Form, seed: int) -> None:
    table = TableLM.random(TEXTS[1:], seed)
    lm, server = next_remote(form, table)
    tokens, context = [Token(word) for word in WORDS], "Q:"
    expected = "none" if form.labels == "Monte-Carlo" else "all" if form.labels == "target scoring" else "top"
    assert lm.capabilities.next_tokens == expected
    if expected == "none":
        with pytest.raises(ProviderError, match="next tokens"):
            lm.next_token_log_probs([context], tokens)
        return
    truth = table.next_token_log_probs([chat_text(context) if form.chat else context], tokens, 3)
    before = len(server.calls)
    found = lm.next_token_log_probs([context], tokens, 3)
    asked = [call for call in server.calls[before:] if call.path != "//tokenize"]
    assert len(asked) == (2 if expected == "all" else 1)
    told = ~np.isnan(found.log_probs[0])
    np.testing.assert_allclose(found.log_probs[0, told], truth.log_probs[0, told])
    assert np.isneginf(truth.log_probs[0, ~told]).all(), "all words are among the likeliest here"
    assert (told.all() and np.isneginf(found.bounds[0])) if expected == "all" else np.isfinite(found.bounds[0])
    assert [(token.text, pytest.approx(p)) for token, p in truth.top[0]] == [(t.text, p) for t, p in found.top[0]]
    if expected == "all":
        assert all(token.id == id_of(token.text) for token, _ in found.top[0])


@pytest.mark.parametrize("chat", [False, True])
def test_untold_tokens_are_bounded_by_the_smallest_that_is_told(chat: bool) -> None:
    form = next(form for form in FORMS if form.labels == "top-k" and form.chat == chat)
    table = TableLM.from_table({}, default={" yes": 0.5, " no": 0.3, " maybe": 0.15, " so": 0.05})
    lm, _ = next_remote(form, table, tops=2)
    assert (lm.capabilities.next_tokens, lm.capabilities.top_log_probs) == ("top", 2)
    found = lm.next_token_log_probs(["Q:"], [Token(" maybe"), Token(" no"), Token(" so", 5), Token("never")], 9)
    np.testing.assert_allclose(found.log_probs[0], [np.nan, math.log(0.3), np.nan, np.nan])
    np.testing.assert_allclose(found.bounds, [math.log(0.3)])
    assert [token.text for token, _ in found.top[0]] == [" yes", " no"]


def test_an_answer_that_ends_at_once_tells_nothing() -> None:
    form = next(form for form in FORMS if form.labels == "top-k" and form.chat)
    table = TableLM.from_table({chat_text("Q:"): {"": 1.0}}, default={" yes": 0.5, " no": 0.5})
    found = next_remote(form, table)[0].next_token_log_probs(["Q:"], [Token(" yes")], 3)
    assert (np.isnan(found.log_probs).all(), found.bounds.tolist(), found.top) == (True, [0.0], ((),))


class Limited(Simulator):
    """Takes at most 128 token ids, as vLLM does."""

    most = 128

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        if len(body.get("logprob_token_ids") or ()) > self.most:
            raise BadRequest("too many token ids", where="logprob_token_ids")
        return super().reply(path, body)


@pytest.mark.parametrize(("most", "calls"), [(128, 3), (1000, 1)])
def test_long_lists_of_tokens_are_cut_only_where_the_server_refuses_them(most: int, calls: int) -> None:
    words = [f" w{i}" for i in range(300)]
    table = TableLM.random(words, 2)
    server = Limited(table)
    server.most = most
    lm = RemoteLM(DIALECTS["vllm"]("table"), server, name="vllm/table", servers=["http://h/v1"])
    tokens, contexts = [Token(word) for word in words], ["Q:", "R:", "S:"]
    assert lm.capabilities.next_tokens == "all"
    for new in (True, False):
        before = len(server.calls)
        found = lm.next_token_log_probs(contexts, tokens)
        picks = [call for call in server.calls[before:] if call.path == "/completions"]
        assert len(picks) == calls * len(contexts) + new, "one trial, at the first long list"
        np.testing.assert_allclose(found.log_probs, table.next_token_log_probs(contexts, tokens).log_probs)


def test_a_text_of_several_tokens_is_refused_where_all_tokens_are_told() -> None:
    lm, server = next_remote(FORMS[0], TableLM.random(TEXTS, 1))
    assert lm.capabilities.next_tokens == "all"
    before = len(server.calls)
    with pytest.raises(InputError, match="no such token"):
        lm.next_token_log_probs(["Q:"], [Token(" yes sir", 3)])
    assert {call.path for call in server.calls[before:]} == {"//tokenize"}
    with pytest.raises(ContextLengthError):
        lm.next_token_log_probs(["word " * 300 + "Q:"], [Token(" yes")])


def test_special_and_illegible_tokens_are_left_out_of_top_lists() -> None:
    shown = [("<|im_end|>", -0.1), (" yes", -2.0), ("\ufffd", -3.0), ("", -3.5), ("<s>", -4.0), (" <b", -5.0)]
    row = TokenRow((), (tuple(ScoredToken(None, text, p) for text, p in shown),))
    assert [token.text for token, _ in legible(row)] == [" yes", " <b"]
