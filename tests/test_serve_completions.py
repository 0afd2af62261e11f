"""A served model through the openai SDK, unchanged: what comes back is what the engine gives in process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dln.lm.base import Sampling
from dln.lm.local.engine import TransformersLM
from serve_clients import running

TEXTS = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
a_few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(tiny_lm: TransformersLM) -> Iterator[openai.OpenAI]:
    with running(tiny_lm) as found:
        yield found


def ask(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    return client.completions.create(model="tiny", prompt=prompt, **fields)


@a_few
@given(context=TEXTS, target=TEXTS)
def test_an_echo_scores_the_target_as_the_engine_does(
    client: openai.OpenAI, tiny_lm: TransformersLM, context: str, target: str
):
    ids = [*tiny_lm.context_ids(context), *tiny_lm.encode(target)]
    choice = ask(client, ids, echo=True, max_tokens=0, logprobs=1).choices[0]
    values = choice.logprobs.token_logprobs
    assert values[0] is None
    assert len(values) == len(ids)
    expected = tiny_lm.log_prob([context], [target])[0].values
    np.testing.assert_allclose(values[len(ids) - len(expected) :], expected, atol=1e-5)


@a_few
@given(text=TEXTS)
def test_the_tokens_of_an_echo_are_the_prompt_piece_by_piece(client: openai.OpenAI, text: str):
    choice = ask(client, text, echo=True, max_tokens=0, logprobs=0).choices[0]
    shown = choice.logprobs
    assert choice.text == text
    assert "".join(shown.tokens) == text
    assert shown.text_offset == [len("".join(shown.tokens[:i])) for i in range(len(shown.tokens))]


@a_few
@given(text=TEXTS, seed=st.integers(-(2**63), 2**64 - 4), temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_a_seed_gives_the_draw_of_the_engine(
    client: openai.OpenAI, tiny_lm: TransformersLM, text: str, seed: int, temperature: float
):
    fields = {"max_tokens": 6, "temperature": temperature, "top_p": 0.9, "stop": ["a", "e"]}
    answer = ask(client, text, seed=seed, n=3, logprobs=0, extra_body={"return_token_ids": True}, **fields)
    draws = tiny_lm.sample([text] * 3, Sampling(temperature, 0.9, 6, ("a", "e")), [seed, seed + 1, seed + 2])
    assert [choice.text for choice in answer.choices] == [draw.text for draw in draws]
    assert [choice.finish_reason for choice in answer.choices] == [draw.finish_reason for draw in draws]
    for choice, draw in zip(answer.choices, draws, strict=True):
        assert tuple(choice.token_ids) == draw.token_ids
        np.testing.assert_allclose(choice.logprobs.token_logprobs, draw.log_probs, atol=1e-5)
        np.testing.assert_allclose(choice.logprobs.sampling_logprobs, draw.sampling_log_probs, atol=1e-5)
    assert answer.usage.completion_tokens == sum(len(draw.token_ids or ()) for draw in draws)


def test_without_a_seed_draws_differ(client: openai.OpenAI):
    texts = {choice.text for choice in ask(client, "the", max_tokens=12, n=8).choices}
    assert len(texts) > 1


def test_every_form_of_a_prompt_is_the_same_prompt(client: openai.OpenAI, tiny_lm: TransformersLM):
    ids = list(tiny_lm.context_ids("the cat sat"))
    forms: list[Any] = ["the cat sat", ["the cat sat"], ids, [ids]]
    assert len({ask(client, form, max_tokens=5, seed=4).choices[0].text for form in forms}) == 1
    both = ask(client, ["the dog", "the cat sat"], max_tokens=5, seed=4, n=2).choices
    assert [choice.index for choice in both] == [0, 1, 2, 3]
    assert both[2].text == ask(client, ids, max_tokens=5, seed=4).choices[0].text


def test_top_log_probabilities_are_the_largest(client: openai.OpenAI, tiny_lm: TransformersLM):
    fields: dict[str, Any] = {"extra_body": {"return_tokens_as_token_ids": True}}
    shown = ask(client, "the cat", max_tokens=3, logprobs=4, seed=1, **fields).choices[0].logprobs
    ids = tiny_lm.context_ids("the cat")
    for position, (top, token) in enumerate(zip(shown.top_logprobs, shown.tokens, strict=True)):
        prefix = (*ids, *shown.token_ids[:position])
        expected = dict(tiny_lm.next_log_probs([prefix], (), 4)[0].top[0])
        found = {int(name.removeprefix("token_id:")): value for name, value in top.items()}
        assert expected.keys() <= found.keys() <= {*expected, int(token.removeprefix("token_id:"))}
        for one, value in expected.items():
            assert found[one] == pytest.approx(value, abs=1e-4)


def test_prompt_log_probabilities_name_every_token(client: openai.OpenAI, tiny_lm: TransformersLM):
    ids = tiny_lm.context_ids("the cat sat on")
    rows = ask(client, list(ids), max_tokens=1, extra_body={"prompt_logprobs": 2}).choices[0].prompt_logprobs
    assert rows[0] is None
    scores = tiny_lm.score_ids([ids], [1])[0].log_probs
    for row, token, value in zip(rows[1:], ids[1:], scores, strict=True):
        assert row[str(token)]["logprob"] == pytest.approx(value, abs=1e-5)
        best = sorted((entry["logprob"] for entry in row.values()), reverse=True)
        assert [entry["logprob"] for entry in row.values() if entry["rank"] == 1] == best[:1]


def test_chosen_tokens_are_scored_at_the_next_position(client: openai.OpenAI, tiny_lm: TransformersLM):
    ids, wanted = tiny_lm.context_ids("Label:"), [5, 300, 7]
    body = {"logprob_token_ids": wanted, "return_tokens_as_token_ids": True}
    shown = ask(client, list(ids), max_tokens=1, temperature=0, extra_body=body).choices[0].logprobs.top_logprobs[0]
    for token, value in zip(wanted, tiny_lm.next_log_probs([ids], wanted)[0].log_probs, strict=True):
        assert shown[f"token_id:{token}"] == pytest.approx(value, abs=1e-5)


def test_only_allowed_tokens_are_drawn(client: openai.OpenAI, tiny_lm: TransformersLM):
    ids = tiny_lm.context_ids("Label:")
    body = {"allowed_token_ids": [300, 301], "return_token_ids": True}
    answer = ask(client, list(ids), max_tokens=4, n=4, seed=0, logprobs=0, extra_body=body)
    assert {token for choice in answer.choices for token in choice.token_ids} <= {300, 301}
    first = answer.choices[0]
    expected = tiny_lm.score_ids([(*ids, *first.token_ids)], [len(ids)])[0].log_probs
    np.testing.assert_allclose(first.logprobs.token_logprobs, expected, atol=1e-4)


def test_allowing_every_token_changes_no_draw(client: openai.OpenAI, tiny_lm: TransformersLM):
    everything = {"allowed_token_ids": list(range(tiny_lm.network.vocabulary))}
    free = ask(client, "the cat", max_tokens=5, seed=9).choices[0].text
    assert ask(client, "the cat", max_tokens=5, seed=9, extra_body=everything).choices[0].text == free


def test_many_clients_get_what_each_would_get_alone(client: openai.OpenAI):
    def one(i: int) -> tuple[str, float]:
        kind = {"temperature": 0.0} if i % 4 == 0 else {"temperature": 1.0, "seed": i}
        choice = ask(client, f"the cat {i % 8}", max_tokens=8, logprobs=2, **kind).choices[0]
        return choice.text, sum(choice.logprobs.token_logprobs)

    alone = [one(i) for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(one, range(16)))
    assert [text for text, _ in together] == [text for text, _ in alone]
    np.testing.assert_allclose([p for _, p in together], [p for _, p in alone], atol=1e-4)


def test_a_stream_says_what_an_answer_says(client: openai.OpenAI):
    whole = ask(client, "the cat", max_tokens=6, seed=2, n=2)
    events = list(
        ask(client, "the cat", max_tokens=6, seed=2, n=2, stream=True, stream_options={"include_usage": True})
    )
    texts = ["".join(c.text for e in events for c in e.choices if c.index == i) for i in range(2)]
    assert texts == [choice.text for choice in whole.choices]
    assert events[-1].usage.total_tokens == whole.usage.total_tokens
