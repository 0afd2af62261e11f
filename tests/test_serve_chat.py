"""Conversations with a served model, its tokenizer behind HTTP, and its card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from dln.lm.base import Sampling
from dln.lm.local.engine import TransformersLM
from dln.lm.table import TableLM
from serve_clients import refused, running

HELLO: list[Any] = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(tiny_lm: TransformersLM) -> Iterator[openai.OpenAI]:
    with running(tiny_lm) as found:
        yield found


def post(client: openai.OpenAI, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return client.post(f"{str(client.base_url).removesuffix('/v1/')}{path}", body=body, cast_to=dict[str, Any])


def test_one_user_message_is_a_context_of_the_chat_engine(client: openai.OpenAI, tiny_lm: TransformersLM):
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=6, seed=5, n=2, logprobs=True, top_logprobs=3,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    chat = tiny_lm.with_chat(True)
    draws = chat.sample(["the cat"] * 2, Sampling(1.0, 1.0, 6), [5, 6])
    assert tuple(answer.model_extra["prompt_token_ids"]) == chat.context_ids("the cat")
    for choice, draw in zip(answer.choices, draws, strict=True):
        assert choice.message.content == draw.text
        entries = choice.logprobs.content
        np.testing.assert_allclose([entry.logprob for entry in entries], draw.log_probs, atol=1e-5)
        for entry, token in zip(entries, draw.token_ids, strict=True):
            assert bytes(entry.bytes) == tiny_lm.token_bytes(token)
            assert [top.logprob for top in entry.top_logprobs] == sorted(
                (top.logprob for top in entry.top_logprobs), reverse=True
            )
            assert len(entry.top_logprobs) == 3


def test_a_conversation_is_written_in_the_models_own_form(client: openai.OpenAI, tiny_lm: TransformersLM):
    turns: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "and the dog"},
    ]
    answer = client.chat.completions.create(
        model="tiny", messages=turns, max_completion_tokens=2, extra_body={"return_token_ids": True}
    )
    text = (
        "<|system|>be brief<|end|><|user|>the cat<|end|><|assistant|>sat<|end|><|user|>and the dog<|end|><|assistant|>"
    )
    expected = tiny_lm.codec.tokenizer.encode(text, add_special_tokens=False)
    assert answer.model_extra["prompt_token_ids"] == expected
    assert answer.usage.prompt_tokens == len(expected)


def test_a_streamed_chat(client: openai.OpenAI):
    whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, seed=5)
    events = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, seed=5, stream=True)
    parts = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(parts) == whole.choices[0].message.content


def test_tokens_go_there_and_back(client: openai.OpenAI, tiny_lm: TransformersLM):
    found = post(client, "/tokenize", {"model": "tiny", "prompt": "the cat", "add_special_tokens": True})
    assert found["tokens"] == list(tiny_lm.context_ids("the cat"))
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == 256
    alone = post(client, "/tokenize", {"prompt": " cat", "add_special_tokens": False, "content": " cat"})
    assert alone["tokens"] == list(tiny_lm.encode(" cat"))
    turns = post(client, "/tokenize", {"messages": HELLO, "add_generation_prompt": True})
    assert turns["tokens"] == list(tiny_lm.with_chat(True).context_ids("the cat"))
    assert post(client, "/detokenize", {"tokens": found["tokens"]})["prompt"] == "the cat"


def test_the_card(client: openai.OpenAI):
    (card,) = client.models.list().data
    assert (card.id, card.object) == ("tiny", "model")
    assert card.model_extra["max_model_len"] == 256
    assert client.models.retrieve("tiny").id == "tiny"
    assert isinstance(refused(client.models.retrieve, model="other"), openai.NotFoundError)


def test_a_model_without_token_ids_is_served_by_text():
    lm = TableLM.random(["yes", "no", "perhaps not"], 1)
    with running(lm) as client:
        answer = client.completions.create(model="tiny", prompt=["a", "b"], seed=3, n=2)
        draws = lm.sample(["a", "a", "b", "b"], Sampling(1.0, 1.0, 16), [3, 4, 3, 4])
        assert [choice.text for choice in answer.choices] == [draw.text for draw in draws]
        for field, value in (("echo", True), ("logprobs", 1), ("prompt", [1, 2]), ("max_tokens", 0)):
            error = refused(client.completions.create, **{"model": "tiny", "prompt": "a", field: value})
            assert (error.status_code, error.param) == (400, field)
        error = refused(client.chat.completions.create, model="tiny", messages=HELLO)
        assert error.code == "no_chat_template"
        answer = client.completions.create(model="tiny", prompt="a", logprobs=None, echo=False)
        assert answer.choices[0].text in ("yes", "no", "perhaps not")


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_answers_as_in_process(smollm2: TransformersLM):
    with running(smollm2, "smollm2") as client:
        chat = smollm2.with_chat(True)
        answer = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "Say hi."}], max_tokens=6, seed=1,
            extra_body={"return_token_ids": True},
        )  # fmt: skip
        assert answer.choices[0].message.content == chat.sample(["Say hi."], Sampling(1.0, 1.0, 6), [1])[0].text
        assert tuple(answer.model_extra["prompt_token_ids"]) == chat.context_ids("Say hi.")
        ids = [*smollm2.context_ids("Input: dull\nLabel:"), *smollm2.encode(" negative")]
        shown = client.completions.create(model="smollm2", prompt=ids, echo=True, max_tokens=0, logprobs=0).choices[0]
        expected = smollm2.log_prob(["Input: dull\nLabel:"], [" negative"])[0].values
        np.testing.assert_allclose(shown.logprobs.token_logprobs[-len(expected) :], expected, atol=1e-5)
