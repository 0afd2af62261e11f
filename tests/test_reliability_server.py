"""The fault server itself: what it answers in good health, and that each fault is on the wire what its name says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dln.lm.base import Sampling
from dln.lm.laws import LAWS, Law, LawCase
from fault_asking import CONTEXT, LANGUAGE, TARGET, ask, completion
from fault_language import LanguageLM
from fault_replies import Manners
from fault_server import FaultServer


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as serving:
        yield serving


# The model behind the server.


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_language_satisfies_the_laws(law: Law):
    case = LawCase(
        ["Input: a\nLabel:", "Input: b é\nLabel:"], [" yes sir no", " order", "\n"], [" yes", " yes no", " no"]
    )
    assert law(LanguageLM(LANGUAGE), case) in {"holds", "skipped"}


def test_every_distribution_sums_to_one_and_texts_survive_their_tokens():
    assert np.allclose(np.exp(LANGUAGE.table).sum(axis=1), 1.0)
    for text in ("", " yes sir", "naïve 好\n\n no\x00"):
        assert LANGUAGE.decode(LANGUAGE.encode(text)) == text


# Good answers.


def test_echo_and_prompt_log_probs_are_the_model_s_own(server: FaultServer):
    ids = [*LANGUAGE.encode(CONTEXT), *LANGUAGE.encode(TARGET)]
    truth = LANGUAGE.score(ids)
    echoed = completion(server, ids, echo=True, logprobs=1, max_tokens=0)["choices"][0]
    assert echoed["text"] == CONTEXT + TARGET
    assert echoed["logprobs"]["token_logprobs"] == [None, *truth[1:]]
    entries = completion(server, ids, prompt_logprobs=0)["choices"][0]["prompt_logprobs"]
    assert entries[0] is None
    assert [entries[t][str(ids[t])]["logprob"] for t in range(1, len(ids))] == truth[1:]
    assert completion(server, CONTEXT + TARGET, prompt_logprobs=0)["choices"][0]["prompt_logprobs"] == entries


def test_drawn_tokens_their_scores_and_chosen_ids(server: FaultServer):
    ids = LANGUAGE.encode(CONTEXT)
    row = LANGUAGE.rows(ids)[-1]
    choice = completion(server, logprobs=3, temperature=0, return_token_ids=True)["choices"][0]
    assert choice["token_ids"] == [int(row.argmax())]
    assert choice["prompt_token_ids"] == ids
    assert sorted(choice["logprobs"]["top_logprobs"][0].values())[-3:] == sorted(row)[-3:]
    wanted = [LANGUAGE.encode(label)[0] for label in (" yes", " no")]
    named = completion(server, logprobs=0, logprob_token_ids=wanted, return_tokens_as_token_ids=True)["choices"][0]
    assert {f"token_id:{i}": row[i] for i in wanted}.items() <= named["logprobs"]["top_logprobs"][0].items()
    drawn = {"temperature": 1.0, "seed": 5, "n": 100, "return_token_ids": True}
    only = completion(server, allowed_token_ids=wanted, **drawn)["choices"]
    assert {choice["token_ids"][0] for choice in only} == set(wanted)
    assert [choice["index"] for choice in only] == list(range(100))


def test_seeds_stop_strings_and_lengths(server: FaultServer):
    several = {"temperature": 1.0, "max_tokens": 6, "n": 3}
    same = [[c["text"] for c in completion(server, seed=5, **several)["choices"]] for _ in range(2)]
    assert same[0] == same[1]
    assert len({completion(server, **several, top_p=1.0)["choices"][0]["text"] for _ in range(12)}) > 1
    stopped = LANGUAGE.draw(LANGUAGE.encode("yes"), Sampling(temperature=1.0, max_tokens=50, stop=(" ",)), 3)
    assert " " not in stopped.text
    assert stopped.reason == "stop" or len(stopped.ids) == 50
    assert completion(server, max_tokens=3, temperature=0)["usage"]["completion_tokens"] <= 3


def test_chat_tokenize_models(server: FaultServer):
    said = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "logprobs": True, "top_logprobs": 2}
    status, reply = ask(server, "/v1/chat/completions", {**said, "max_tokens": 2, "temperature": 0})
    assert status == 200
    row = LANGUAGE.rows(LANGUAGE.encode("<|user|>hello<|assistant|>"))[-1]
    assert reply["choices"][0]["logprobs"]["content"][0]["logprob"] == row.max()
    status, tokens = ask(server, "/tokenize", {"model": "tiny", "prompt": TARGET})
    assert (status, tokens["tokens"], tokens["count"]) == (200, LANGUAGE.encode(TARGET), 2)
    assert ask(server, "/detokenize", {"model": "tiny", "tokens": tokens["tokens"]}) == (200, {"prompt": TARGET})
    assert ask(server, "/v1/models")[1]["data"][0]["id"] == "tiny"


@pytest.mark.parametrize(
    ("manners", "body", "status", "words"),
    [
        (Manners(context_length=10), {}, 400, "maximum context length is 10"),
        (Manners(prompt_log_probs="refused"), {"prompt_logprobs": 0}, 400, "prompt_logprobs is not supported"),
        (Manners(echo="refused"), {"echo": True}, 400, "echo is not supported"),
        (Manners(token_ids=False), {"prompt": [1, 2]}, 400, "must be a string"),
        (Manners(top_log_probs=5), {"logprobs": 6}, 400, "the most is 5"),
        (Manners(model="other"), {}, 404, "does not exist"),
        (Manners(completions=False), {}, 404, "Not Found"),
        (Manners(key="secret"), {}, 401, "API key"),
    ],
)
def test_what_is_not_offered_is_refused(manners: Manners, body: dict[str, Any], status: int, words: str):
    with FaultServer(manners) as server:
        got, reply = ask(server, body={"model": "tiny", "prompt": CONTEXT, "max_tokens": 1, **body})
    assert got == status
    assert words in reply["error"]["message"]


@pytest.mark.parametrize(
    ("manners", "body"),
    [
        (Manners(echo="ignored"), {"echo": True, "logprobs": 0}),
        (Manners(prompt_log_probs="ignored"), {"prompt_logprobs": 0}),
        (Manners(top_log_probs=0), {"logprobs": 1}),
    ],
)
def test_what_is_ignored_leaves_no_trace(manners: Manners, body: dict[str, Any]):
    with FaultServer(manners) as server:
        choice = completion(server, temperature=0, **body)["choices"][0]
    plain = LANGUAGE.draw(LANGUAGE.encode(CONTEXT), Sampling(max_tokens=1), 0)
    assert choice["text"] == plain.text
    assert choice["prompt_logprobs"] is None
    assert choice["logprobs"] is None or len(choice["logprobs"]["tokens"]) == 1
