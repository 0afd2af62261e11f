"""A trained network behind the server: the message is its input, the answer its output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from dln.lm.table import TableLM
from dln.nn import LanguageLayer, Sequential
from dln.random import Key
from serve_clients import refused, running, small_network

X = "it snows"


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with running(small_network(), "weather") as found:
        yield found


def chat(client: openai.OpenAI, text: str = X, **fields: Any) -> Any:
    messages: list[Any] = [
        {"role": "system", "content": "never read"},
        {"role": "user", "content": "never read either"},
        {"role": "assistant", "content": "nor this"},
        {"role": "user", "content": text},
    ]
    return client.chat.completions.create(model="weather", messages=messages, **fields)


@pytest.mark.parametrize("text", ["it snows", "sun", "ärger 好"])
def test_the_answer_is_the_prediction(client: openai.OpenAI, text: str):
    expected = small_network().predict(text)
    message = chat(client, text).choices[0].message
    assert message.content == expected.label
    assert message.dln["hidden"] == list(expected.hidden[0])
    assert message.dln["probabilities"] == pytest.approx(expected.probabilities)


def test_completions_take_inputs_too(client: openai.OpenAI):
    answer = client.completions.create(model="weather", prompt=["sun", X], max_tokens=5)
    expected = small_network().predict_many(["sun", X])
    assert [choice.text for choice in answer.choices] == [one.label for one in expected]
    assert [choice.dln["hidden"] for choice in answer.choices] == [list(one.hidden[0]) for one in expected]


def test_log_probabilities_of_the_label(client: openai.OpenAI):
    expected = small_network().predict(X)
    (entry,) = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert entry.token == expected.label
    found = {top.token: math.exp(top.logprob) for top in entry.top_logprobs}
    assert found == pytest.approx(expected.probabilities)
    lists = client.completions.create(model="weather", prompt=X, logprobs=2).choices[0].logprobs
    assert lists.tokens == [expected.label]
    assert lists.token_logprobs == [pytest.approx(entry.logprob)]


def test_averaging_over_hidden_texts(client: openai.OpenAI):
    message = chat(client, seed=4, extra_body={"samples": 6}).choices[0].message
    expected = small_network().predict(X, samples=6, seed=4)
    assert message.content == expected.label
    assert message.dln["probabilities"] == pytest.approx(expected.probabilities)
    assert message.dln["hidden_draws"] == [list(chain) for chain in expected.hidden]


def test_a_temperature_draws_the_whole_network(client: openai.OpenAI):
    answer = chat(client, temperature=1.0, seed=3, n=4)
    traces = [small_network().sample(Key(3 + i), [X], 1.0) for i in range(4)]
    assert [choice.message.content for choice in answer.choices] == [trace.predictions[0] for trace in traces]
    assert [c.message.dln["hidden"] for c in answer.choices] == [[trace.hidden[0][0].text] for trace in traces]


@pytest.mark.parametrize(
    ("field", "value"),
    [("echo", True), ("prompt", [1, 2]), ("stop", "x"), ("top_p", 0.5), ("max_tokens", 0), ("prompt_logprobs", 1)],
)
def test_what_a_network_cannot_do_is_refused_by_name(client: openai.OpenAI, field: str, value: Any):
    body = {"extra_body": {field: value}} if field == "prompt_logprobs" else {field: value}
    error = refused(client.completions.create, **({"model": "weather", "prompt": X} | body))
    assert (error.status_code, error.param) == (400, field)


def test_a_network_that_writes_free_text():
    lm = TableLM.random(["one two three", "four five six"], 2)
    network = Sequential(LanguageLayer(lm, "answer", "Count."))
    with running(network, "weather") as client:
        assert chat(client).choices[0].message.content == network.predict(X).label
        assert chat(client, max_tokens=1).choices[0].message.content == network.predict(X).label.split()[0]
        error = refused(client.completions.create, model="weather", prompt=X, logprobs=1)
        assert (error.status_code, error.param) == (400, "logprobs")
