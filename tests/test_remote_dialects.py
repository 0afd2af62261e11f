"""Dialects and readers: what is sent, in the form that each server documents, and what replies are read as."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.lm.base import Sampling
from dln.lm.remote.call import Call, MalformedReply
from dln.lm.remote.dialect import Dialect, Drawn, Prompt
from dln.lm.remote.dialects import DIALECTS, VLLM, Fireworks, OpenAI, SGLang, Together
from dln.lm.remote.read import ScoredToken, TokenRow, choices_of, lay_along, number, token_row

IDS = (1, 15043, 29901, 4874)
PROMPT = Prompt("Hello: yes", IDS)


def body_of(call: Call) -> dict[str, Any]:
    assert call.body is not None
    return json.loads(json.dumps(dict(call.body)))


def values(tokens: tuple[ScoredToken, ...]) -> list[float]:
    return [token.log_prob for token in tokens]


# -- single numbers ------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False, min_value=-9998, max_value=1e6))
def test_numbers_are_kept_as_they_are(value: float):
    assert number(value, "x") == value


@pytest.mark.parametrize("sent", [-9999.0, -9999, -1e9, -math.inf, "-inf", "-Infinity"])
def test_the_stand_in_for_minus_infinity_is_read(sent: object):
    assert number(sent, "x") == -math.inf


@pytest.mark.parametrize("sent", [None, math.nan, "NaN"])
def test_what_is_no_number_is_nan(sent: object):
    assert math.isnan(number(sent, "x"))


def test_positive_and_infinite_values_are_not_touched():
    assert number(0.5, "x") == 0.5
    assert number(math.inf, "x") == math.inf


@pytest.mark.parametrize("sent", [True, "0.5", [], {}])
def test_other_things_are_no_numbers(sent: object):
    with pytest.raises(MalformedReply):
        number(sent, "x")


# -- choices -------------------------------------------------------------------------------------------


@given(st.permutations(range(5)))
def test_choices_are_sorted_by_their_index(order: list[int]):
    reply = {"choices": [{"index": i, "text": str(i)} for i in order]}
    assert [choice["text"] for choice in choices_of(reply, 5)] == list("01234")


@pytest.mark.parametrize(
    "reply",
    [
        None,
        [],
        "text",
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [{"index": 0}]},
        {"choices": [{"index": 0}, {"index": 0}]},
        {"choices": [{"index": 0}, {}]},
        {"choices": [{"index": 1}, {"index": 2}]},
        {"choices": [{"index": 0}, {"index": 1}, {"index": 2}]},
        {"choices": [None, None]},
    ],
)
def test_choices_that_are_not_those_asked_for_are_malformed(reply: object):
    with pytest.raises(MalformedReply):
        choices_of(reply, 2)


# -- token rows ----------------------------------------------------------------------------------------


def test_lists_and_entries_are_the_same_row():
    lists = {
        "tokens": [" a", "token_id:7"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"token_id:7": -0.5, " b": -2.0}],
        "text_offset": [0, 2],
    }
    entries = {
        "content": [
            {"token": " a", "logprob": None, "text_offset": 0, "top_logprobs": []},
            {
                "token": "token_id:7",
                "logprob": -0.5,
                "text_offset": 2,
                "top_logprobs": [{"token": "token_id:7", "logprob": -0.5}, {"token": " b", "logprob": -2.0}],
            },
        ]
    }
    one, two = token_row(lists), token_row(entries)
    assert one.tokens[1:] == two.tokens[1:] == (ScoredToken(7, None, -0.5),)
    assert one.tokens[0].text == two.tokens[0].text == " a"
    assert one.tops == two.tops
    assert one.offsets == two.offsets == (0, 2)


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": ["a", "b"], "token_logprobs": [-1.0]},
        {"tokens": ["a"], "token_logprobs": None},
        {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{}, {}]},
        {"tokens": [None], "token_logprobs": [-1.0]},
        {"content": [{"token": "a"}, None]},
        {"content": [{"logprob": -1.0}]},
    ],
)
def test_rows_that_do_not_fit_together_are_malformed(row: object):
    with pytest.raises(MalformedReply):
        token_row(row)


# -- echoed texts --------------------------------------------------------------------------------------

WORDS = st.lists(st.text("ab é", min_size=1, max_size=3), min_size=1, max_size=6)


@given(WORDS, st.booleans(), st.integers(0, 1))
def test_tokens_are_found_along_the_prompt(words: list[str], opened: bool, drawn: int):
    prompt = "".join(words)
    shown = [*(["<s>"] if opened else []), *words, *(["zz"] if drawn else [])]
    row = TokenRow(tuple(ScoredToken(None, word, -float(i)) for i, word in enumerate(shown)))
    echo = lay_along(row, prompt, 1)
    assert len(echo.tokens) == len(words) + opened
    for k in range(len(words)):
        after = echo.after(len("".join(words[:k])))
        assert after is not None
        if k or not opened:
            assert [token.text for token in after] == words[k:]
    assert echo.after(len(words[0]) - 1) is None or len(words[0]) == 1, "a token that reaches across is not cut"


@given(WORDS, st.integers(1, 6), st.integers(0, 1))
def test_the_end_of_a_prompt_is_found_however_often_its_words_come(words: list[str], last: int, drawn: int):
    prompt = "".join(words)
    shown = words[-last:] + words[-1:] * drawn  # what was drawn looks just like the prompt's end
    row = TokenRow(tuple(ScoredToken(None, word, -float(i)) for i, word in enumerate(shown)))
    echo = lay_along(row, prompt, 1, last=last)
    if len(words) >= last:
        assert values(echo.tokens) == [-float(i) for i in range(last)]


def test_illegible_tokens_are_placed_by_offsets_or_not_at_all():
    texts = ["A", "\ufffd", "\ufffd", " no"]
    tokens = tuple(ScoredToken(None, text, -1.0) for text in texts)
    placed = lay_along(TokenRow(tokens, (), (0, 1, 1, 2)), "Aé no", 1)
    assert [t.text for t in placed.after(2) or ()] == [" no"]
    assert lay_along(TokenRow(tokens), "Aé no", 1).after(2) is None
    assert lay_along(TokenRow(tokens, (), (0, 1, 1, 3)), "Aé no", 1).after(2) is None, "offsets that cannot be right"


@pytest.mark.parametrize("texts", [["b"], ["a", "x"], ["a", "b", "c", "d", "e"], []])
def test_other_tokens_than_the_prompts_are_malformed(texts: list[str]):
    row = TokenRow(tuple(ScoredToken(None, text, -1.0) for text in texts))
    with pytest.raises(MalformedReply):
        lay_along(row, "abc", 1)


# -- vLLM ----------------------------------------------------------------------------------------------


def scores(*entries: object) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "text": "x", "prompt_logprobs": list(entries)}]}


def entry(token: int, log_prob: object) -> dict[str, Any]:
    return {str(token): {"logprob": log_prob, "rank": 3, "decoded_token": "?"}}


def test_vllm_scores_ids_and_reads_entries_keyed_by_id():
    dialect = VLLM("m")
    call = dialect.score(PROMPT, 2)
    body = body_of(call)
    assert (call.path, body["prompt"], body["prompt_logprobs"], body["max_tokens"]) == ("/completions", list(IDS), 0, 1)
    both = {**entry(4874, -0.25), "9": {"logprob": -0.1, "rank": 1}}  # the likeliest one stands beside the sent one
    read = dialect.read_score(call, scores(None, entry(15043, -1.5), entry(29901, -9999.0), both))
    assert [token.id for token in read] == list(IDS)
    assert values(read)[1:] == [-1.5, -math.inf, -0.25]


@pytest.mark.parametrize(
    "reply",
    [
        scores(),
        scores(None, entry(15043, -1.0), entry(29901, -1.0)),
        scores(None, entry(29901, -1.0), entry(4874, -1.0), entry(4874, -1.0)),
        scores(entry(15043, -1.0), entry(29901, -1.0), entry(4874, -1.0), None),
        {"choices": [{"index": 0, "text": "x"}]},
        {"choices": [{"index": 0, "text": "x", "prompt_logprobs": None}]},
        {"choices": []},
    ],
    ids=["empty", "too few", "other ids", "shifted", "missing", "null", "no choices"],
)
def test_vllm_scores_that_are_not_of_what_was_sent_are_malformed(reply: dict[str, Any]):
    dialect = VLLM("m")
    with pytest.raises(MalformedReply):
        dialect.read_score(dialect.score(PROMPT, 2), reply)


def test_vllm_reads_null_as_nan_and_a_positive_value_as_it_is():
    dialect = VLLM("m")
    read = dialect.read_score(dialect.score(PROMPT, 2), scores(None, None, entry(29901, 0.7), entry(4874, None)))
    assert math.isnan(read[1].log_prob)
    assert read[2].log_prob == 0.7
    assert math.isnan(read[3].log_prob)


def test_vllm_asks_for_the_labels_own_tokens():
    dialect = VLLM("m")
    call = dialect.next_tokens(PROMPT, 1, (5, 6))
    body = body_of(call)
    assert body["logprob_token_ids"] == [5, 6]
    assert body["logprobs"] == 1, "vLLM wants it beside the ids"
    assert body["return_tokens_as_token_ids"] is True
    assert body["max_tokens"] == 1
    row = {
        "tokens": ["token_id:9"],
        "token_logprobs": [-0.1],
        "top_logprobs": [{"token_id:9": -0.1, "token_id:6": -9999.0, "token_id:5": -2.0}],
        "text_offset": [0],
    }
    read = dialect.read_next(call, {"choices": [{"index": 0, "text": "!", "logprobs": row}]})
    assert {token.id: token.log_prob for token in read.tops[0]} == {9: -0.1, 5: -2.0, 6: -math.inf}
    row["top_logprobs"] = [{"token_id:9": -0.1, "token_id:6": -3.0}]
    with pytest.raises(MalformedReply, match="missing"):
        dialect.read_next(call, {"choices": [{"index": 0, "text": "!", "logprobs": row}]})


@pytest.mark.parametrize("extra", [0, 1])
def test_echo_of_nothing_may_be_echo_and_one_token_more(extra: int):
    dialect = VLLM("m")
    call = dialect.echo(PROMPT, " yes", 0)
    assert body_of(call)["echo"] is True
    assert body_of(call)["max_tokens"] == 0
    names = [f"token_id:{i}" for i in (*IDS, *(77,) * extra)]
    row = {"tokens": names, "token_logprobs": [None, -1.0, -2.0, -3.0, *(-4.0,) * extra]}
    read = dialect.read_echo(call, {"choices": [{"index": 0, "text": "Hello: yes", "logprobs": row}]})
    assert [token.id for token in read.tokens] == list(IDS)
    assert values(read.tokens)[1:] == [-1.0, -2.0, -3.0]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ([9], [-1.0]),
        ([1, 15043, 29901], [None, -1.0, -2.0]),
        ([1, 29901, 15043, 4874], [None, -1.0, -2.0, -3.0]),
        (IDS, [-1.0, -2.0, -3.0, None]),
        (IDS, [None, -1.0]),
    ],
    ids=["echo ignored", "too few", "other ids", "shifted", "lists differ"],
)
def test_echoes_of_something_else_are_malformed(names: list[int], numbers: list[float | None]):
    dialect = VLLM("m")
    row = {"tokens": [f"token_id:{i}" for i in names], "token_logprobs": numbers}
    with pytest.raises(MalformedReply):
        dialect.read_echo(dialect.echo(PROMPT, "", 0), {"choices": [{"index": 0, "text": "", "logprobs": row}]})


def test_an_echo_that_is_no_echo_is_malformed_in_text_too():
    dialect = Dialect("m")
    call = dialect.echo(Prompt("Q: yes"), " yes", 1)
    row = {"tokens": [" of", " course"], "token_logprobs": [-1.0, -2.0], "text_offset": [0, 3]}
    with pytest.raises(MalformedReply, match="not those of the prompt"):
        dialect.read_echo(call, {"choices": [{"index": 0, "text": " of course", "logprobs": row}]})
    with pytest.raises(MalformedReply, match="no log-probabilities"):
        dialect.read_echo(call, {"choices": [{"index": 0, "text": "Q: yes", "logprobs": None}]})


def test_vllm_tokenizes_at_the_root():
    dialect = VLLM("m")
    alone = dialect.encode(" yes", chat=False, alone=True)
    assert alone.path == "//tokenize"
    assert body_of(alone)["prompt"] == " yes"
    assert body_of(alone)["add_special_tokens"] is False
    turn = body_of(dialect.encode("Hi", chat=True, alone=False))
    assert turn["messages"] == [{"role": "user", "content": "Hi"}]
    assert turn["add_generation_prompt"] is True
    assert "prompt" not in turn
    reply = {"count": 2, "max_model_len": 4096, "tokens": [5, 6], "token_strs": None}
    assert dialect.read_ids(alone, reply) == ((5, 6), 4096)
    with pytest.raises(MalformedReply):
        dialect.read_ids(alone, {"tokens": ["a"]})


def test_vllm_draws_come_with_their_ids():
    dialect = VLLM("m")
    call = dialect.draw(PROMPT, Sampling(temperature=0.7, top_p=0.9, max_tokens=5, stop=("\n",)), 3, 1)
    body = body_of(call)
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["stop"], body["seed"]) == (
        0.7, 0.9, 5, ["\n"], 3,
    )  # fmt: skip
    assert body["return_token_ids"] is True
    assert not call.draws, "a seeded draw is what its seed makes of it: equal calls may be merged"
    assert dialect.draw(PROMPT, Sampling(temperature=0.7), None, 1).draws
    row = {"tokens": [" yes", "</s>"], "token_logprobs": [-0.5, -0.1]}
    choice = {"index": 0, "text": " yes", "finish_reason": "stop", "token_ids": [4874, 2], "logprobs": row}
    drawn = dialect.read_draw(call, {"choices": [choice]})
    assert (drawn.text, drawn.ids, drawn.finish, values(drawn.row.tokens)) == (" yes", (4874, 2), "stop", [-0.5, -0.1])
    with pytest.raises(MalformedReply):
        dialect.read_draw(call, {"choices": [{**choice, "token_ids": [1]}]})
    with pytest.raises(MalformedReply):
        dialect.read_draw(call, {"choices": [{**choice, "text": None}]})


def test_vllm_forces_a_token():
    dialect = VLLM("m")
    call = dialect.force(PROMPT, 5, "allowed_token_ids")
    assert body_of(call)["allowed_token_ids"] == [5]
    row = {"tokens": ["token_id:5"], "token_logprobs": [-7.5]}
    assert dialect.read_force(call, {"choices": [{"index": 0, "logprobs": row}]}).log_prob == -7.5
    row = {"tokens": ["token_id:6"], "token_logprobs": [-0.5]}
    with pytest.raises(MalformedReply, match="forced"):
        dialect.read_force(call, {"choices": [{"index": 0, "logprobs": row}]})


# -- chat ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openai", "azure"])
def test_openai_chat_sends_nothing_beyond_the_form(kind: str):
    dialect = DIALECTS[kind]("gpt")
    prompt = Prompt("Is it?", None, True)
    call = dialect.draw(prompt, Sampling(temperature=1.0, max_tokens=3, stop=tuple("abcde")), 5, 1)
    body = body_of(call)
    assert call.path == "/chat/completions"
    assert set(body) == {
        "model", "messages", "max_completion_tokens", "temperature", "top_p", "stop", "seed",
        "logprobs", "top_logprobs",
    }  # fmt: skip
    assert len(body["stop"]) == 4, "the form allows four; the engine cuts at the others"
    assert body_of(dialect.next_tokens(prompt, 20, ()))["top_logprobs"] == 20


def chat_reply(content: object, entries: object, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": finish,
        "logprobs": {"content": entries, "refusal": None},
    }
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-1", "choices": [choice]}


def test_openai_chat_replies_are_read():
    dialect = OpenAI("gpt")
    call = dialect.draw(Prompt("Is it?", None, True), Sampling(), None, 2)
    top = [{"token": "Yes", "logprob": -0.2, "bytes": [89]}, {"token": " yes", "logprob": -2.0, "bytes": None}]
    entries = [{"token": "Yes", "logprob": -0.2, "bytes": [89], "top_logprobs": top}]
    drawn = dialect.read_draw(call, chat_reply("Yes", entries, "length"))
    assert (drawn.text, drawn.ids, drawn.finish) == ("Yes", None, "length")
    assert drawn.row.tops == ((ScoredToken(None, "Yes", -0.2), ScoredToken(None, " yes", -2.0)),)
    for reply in (
        chat_reply(None, entries),
        chat_reply("Ye", entries, "content_filter"),
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
    ):
        with pytest.raises(MalformedReply):
            dialect.read_draw(call, reply)


def test_a_chat_without_log_probabilities_has_no_likeliest_tokens():
    dialect = OpenAI("gpt")
    call = dialect.next_tokens(Prompt("Is it?", None, True), 5, ())
    reply = chat_reply("Yes", [])
    del reply["choices"][0]["logprobs"]
    with pytest.raises(MalformedReply):
        dialect.read_next(call, reply)
    assert dialect.read_next(call, chat_reply("", [])) == TokenRow(), "an answer that ended before it began"


# -- the others ----------------------------------------------------------------------------------------


def test_sglang_scores_from_one_token_before_the_target():
    dialect = SGLang("m")
    call = dialect.score(PROMPT, 3)
    body = body_of(call)
    assert call.path == "//generate"
    assert body["input_ids"] == list(IDS)
    assert body["return_logprob"] is True
    assert body["logprob_start_len"] == 2
    meta = {"input_token_logprobs": [[None, 29901, None], [-0.75, 4874, None]], "prompt_tokens": 4}
    read = dialect.read_score(call, {"text": "", "meta_info": meta})
    assert read == (ScoredToken(4874, None, -0.75),)
    assert dialect.read_score(call, [{"text": "", "meta_info": meta}]) == read
    for entries in ([[-0.75, 4874, None]], [[None, 4874, None], [-0.5, 5, None]], [], None):
        with pytest.raises(MalformedReply):
            dialect.read_score(call, {"text": "", "meta_info": {"input_token_logprobs": entries}})


def test_sglang_draws_and_picks():
    dialect = SGLang("m")
    call = dialect.draw(PROMPT, Sampling(temperature=0.5, max_tokens=4, stop=("\n",)), 9, 2)
    parameters = body_of(call)["sampling_params"]
    assert parameters == {"max_new_tokens": 4, "temperature": 0.5, "top_p": 1.0, "stop": ["\n"], "sampling_seed": 9}
    meta = {
        "finish_reason": {"type": "length", "length": 4},
        "output_token_logprobs": [[-0.5, 7, " a"]],
        "output_top_logprobs": [[[-0.5, 7, " a"], [-1.5, 8, " b"]]],
    }
    drawn = dialect.read_draw(call, {"text": " a", "meta_info": meta})
    assert drawn == Drawn(
        " a",
        "length",
        TokenRow((ScoredToken(7, " a", -0.5),), ((ScoredToken(7, " a", -0.5), ScoredToken(8, " b", -1.5)),)),
        (7,),
    )
    picked = dialect.next_tokens(PROMPT, 1, (5, 6))
    assert body_of(picked)["token_ids_logprob"] == [5, 6]
    meta = {
        "output_token_logprobs": [[-0.1, 9, None]],
        "output_token_ids_logprobs": [[[-3.0, 5, None], [-4.0, 6, None]]],
    }
    row = dialect.read_next(picked, {"text": "x", "meta_info": meta})
    assert {token.id: token.log_prob for token in row.tops[0]} == {5: -3.0, 6: -4.0}
    meta["output_token_ids_logprobs"] = [[[-3.0, 5, None]]]
    with pytest.raises(MalformedReply):
        dialect.read_next(picked, {"text": "x", "meta_info": meta})


def test_together_echoes_beside_the_choices():
    dialect = Together("m")
    call = dialect.echo(Prompt("Q: yes"), " yes", 1)
    assert body_of(call)["echo"] is True
    row = {"tokens": ["<s>", "Q", ":", " yes"], "token_logprobs": [None, -9.0, -1.0, -0.5]}
    choice = {"index": 0, "text": " sir", "logprobs": {"tokens": [" sir"], "token_logprobs": [-2.0]}}
    echo = dialect.read_echo(call, {"prompt": [{"text": "Q: yes", "logprobs": row}], "choices": [choice]})
    assert values(echo.after(2) or ()) == [-0.5]
    with pytest.raises(MalformedReply, match="not echoed"):
        dialect.read_echo(call, {"prompt": [], "choices": [choice]})
    chat = body_of(dialect.next_tokens(Prompt("Q", None, True), 5, ()))
    assert chat["logprobs"] == 5, "a number in chat too"


def test_fireworks_echoes_the_end():
    dialect = Fireworks("m")
    call = dialect.echo(Prompt("Q: né"), " né", 0)
    assert body_of(call)["echo_last"] == len(" né".encode()) + 1
    content = [
        {"token": "Q", "token_id": 4, "logprob": None, "text_offset": 0},
        {"token": ":", "token_id": 5, "logprob": -1.0, "text_offset": 1},
        {"token": " né", "token_id": 6, "logprob": -0.5, "text_offset": 2, "sampling_logprob": None},
        {"token": "!", "token_id": 7, "logprob": -4.0, "text_offset": 5, "sampling_logprob": -4.0},
    ]
    for shown in (content, content[:3]):
        echo = dialect.read_echo(call, {"choices": [{"index": 0, "text": "Q: né!", "logprobs": {"content": shown}}]})
        assert values(echo.after(2) or ()) == [-0.5]


@pytest.mark.parametrize("kind", sorted(DIALECTS))
def test_every_dialect_sends_json_and_names_its_model(kind: str):
    dialect = DIALECTS[kind]("the-model")
    ids = Prompt("Q:", (1, 2))
    calls: list[Callable[[], Call]] = [
        lambda: dialect.draw(Prompt("Q:"), Sampling(), None, None),
        lambda: dialect.draw(Prompt("Q:", None, True), Sampling(), 1, 5),
        lambda: dialect.draw(ids, Sampling(), 1, 5),
        lambda: dialect.score(ids, 1),
        lambda: dialect.echo(Prompt("Q: a"), " a", 0),
        lambda: dialect.next_tokens(ids, 5, (1,)),
        lambda: dialect.force(ids, 3, "logit_bias"),
        lambda: dialect.encode("a", chat=False, alone=True),
    ]
    for make in calls:
        call = make()
        assert call == make()
        assert hash(call) == hash(make())
        body = body_of(call)
        assert call.path == "//generate" or body["model"] == "the-model"
        assert call.route
        assert call.path.startswith("/")
