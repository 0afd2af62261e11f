"""Reasoning models and models with demands of their own, simulated: what the probe finds, and what a draw is then."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cli_shell import Shell, mail_csv
from dln.errors import DlnError
from dln.lm.base import Sampling
from dln.lm.meter import Budget, Metered
from dln.lm.remote.call import BadRequest, Call, plain
from dln.lm.remote.dialects import DIALECTS
from dln.lm.remote.engine import RemoteLM
from dln.lm.remote.read import without_thoughts
from dln.lm.table import TableLM
from remote_forms import NO_IDS
from remote_simulator import TEXTS, Simulator, chat_text

TABLE = TableLM.random(TEXTS, 3)
STYLES = ("tags", "closing tag", "reasoning_content", "reasoning", "hidden")
OPENAI = NO_IDS | {"echo", "/completions", "logprobs"}


@dataclass
class Reasoner(Simulator):
    """A chat that thinks before it answers, and refuses what its kind refuses.

    Args:
        style: how the thoughts are shown.
        thoughts: tokens that they take; 0 for a model that does not reason.
        tokens_field: the only name of the length limit that is taken.
        fixed_temperature: whether another temperature than 1 is refused.
        min_tokens: the smallest length limit.
    """

    style: str = "tags"
    thoughts: int = 40
    tokens_field: str = "max_tokens"
    fixed_temperature: bool = False
    min_tokens: int = 1

    def answer(self, call: Call) -> Any:
        if call.path == "/chat/completions":
            body = dict(call.body or {})
            self._refuse_what_this_model_does_not_take(body)
        return super().answer(call)

    def _refuse_what_this_model_does_not_take(self, body: dict[str, Any]) -> None:
        other = "max_tokens" if self.tokens_field == "max_completion_tokens" else "max_completion_tokens"
        words = None
        if other in body:
            words = f"Unsupported parameter: '{other}' is not supported with this model. Use '{self.tokens_field}'."
        elif body[self.tokens_field] < self.min_tokens:
            words = f"Invalid '{self.tokens_field}': integer below minimum value. Expected a value >= {self.min_tokens}"
            words += ", but got fewer tokens instead."
        elif self.fixed_temperature and (body.get("temperature", 1) != 1 or body.get("top_p", 1) != 1):
            words = "Unsupported value: 'temperature' does not support 0. Only the default (1) value is supported."
        if words is not None:
            raise BadRequest("the server does not take the request", where="server", got=f"400: {words}")

    def _chat(self, body: dict[str, Any]) -> Any:
        most = body[self.tokens_field]
        left = most - self.thoughts
        if not self.thoughts:
            return super()._chat(body)
        thought = " so" * min(most, self.thoughts)
        reply = super()._chat({**body, self.tokens_field: max(1, left), "max_tokens": max(1, left)})
        choice = reply["choices"][0]
        answer = choice["message"]["content"] if left > 0 else None
        if left <= 0:
            choice["finish_reason"] = "length"
        if self.style == "tags":
            content = f"<think>{thought}" if answer is None else f"<think>{thought}</think>\n\n{answer}"
        elif self.style == "closing tag":
            content = thought if answer is None else f"{thought}\n</think>\n\n{answer}"
        else:
            content = answer
        choice["message"]["content"] = content
        if self.style.startswith("reasoning"):
            choice["message"][self.style] = thought
        reply["usage"] = {"prompt_tokens": 5, "completion_tokens": min(most, self.thoughts) + max(0, left)}
        return reply


def opened(kind: str = "openai", **options: Any) -> tuple[RemoteLM, Reasoner]:
    options = {"refused": OPENAI, "context_length": None, **options}
    server = Reasoner(TABLE, **options)
    return RemoteLM(DIALECTS[kind]("table"), server, name=f"{kind}/table", chat=True), server


@pytest.mark.parametrize("kind", ["openai", "vllm", "sglang", "ollama"])
@pytest.mark.parametrize("style", STYLES)
def test_a_reasoning_model_is_recognised_and_its_answers_are_read_after_its_thoughts(style: str, kind: str):
    field = "max_completion_tokens" if kind == "openai" else "max_tokens"
    lm, _ = opened(kind, style=style, tokens_field=field)
    assert lm.report.thinking_tokens == 1024
    assert lm.capabilities.thinking_tokens == 1024
    assert (lm.report.label_scoring, lm.report.text_scoring) == ("Monte-Carlo", "accuracy")
    assert lm.report.next_tokens == "none"
    assert any("reasoning model" in line for line in lm.report.requests)
    seen = {draw.text.strip() for draw in lm.sample([f"Q{i}:" for i in range(20)], Sampling(max_tokens=8), range(20))}
    assert seen <= {text.strip() for text in TEXTS}
    assert len(seen) > 1
    draw = lm.sample(["Q:"], Sampling(max_tokens=8, temperature=0.0), [0])[0]
    assert (draw.token_ids, draw.log_probs, draw.sampling_log_probs) == (None, None, None)


def test_labels_of_a_reasoning_model_are_counted_among_its_answers():
    table = TableLM.random([" yes", " no"], 3)
    server = Reasoner(table, refused=OPENAI, context_length=None, tokens_field="max_completion_tokens")
    lm = RemoteLM(DIALECTS["openai"]("table"), server, name="openai/table", chat=True)
    contexts = [f"Q{i}:" for i in range(40)]
    counted = lm.choice_log_probs(contexts, [" yes", " no"])
    truth = table.choice_log_probs([chat_text(context) for context in contexts], [" yes", " no"])
    clear = np.abs(truth[:, 0] - truth[:, 1]) > 1.5
    assert clear.sum() > 10
    assert ((counted[:, 0] > counted[:, 1]) == (truth[:, 0] > truth[:, 1]))[clear].all()


def test_longer_thoughts_get_more_room_and_the_user_may_set_it():
    lm, _ = opened(thoughts=2000, tokens_field="max_completion_tokens")
    assert lm.report.thinking_tokens == 4096
    server = Reasoner(TABLE, thoughts=40, refused=OPENAI, context_length=None, tokens_field="max_completion_tokens")
    own = RemoteLM(DIALECTS["openai"]("table"), server, name="openai/table", chat=True, thinking_tokens=64)
    assert own.report.thinking_tokens == 64
    assert own.fingerprint() != lm.fingerprint()


# thoughts without an opening mark cannot be told from an answer
@pytest.mark.parametrize("style", [style for style in STYLES if style != "closing tag"])
def test_thoughts_that_do_not_end_leave_an_empty_text_and_no_error(style: str):
    server = Reasoner(TABLE, style=style, thoughts=900, refused=OPENAI, context_length=None, tokens_field="max_tokens")
    lm = RemoteLM(DIALECTS["ollama"]("table"), server, name="ollama/table", chat=True, thinking_tokens=64)
    draw = lm.sample(["Q:"], Sampling(max_tokens=8), [0])[0]
    assert (draw.text, draw.finish_reason) == ("", "length")


@pytest.mark.parametrize("kind", ["openai", "openai-compatible", "azure", "vllm"])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_either_name_of_the_length_limit_is_found(kind: str, field: str):
    lm, server = opened(kind, thoughts=0, tokens_field=field)
    assert lm.report.tokens_field == field
    before = len(server.calls)
    lm.sample(["Q:"], Sampling(max_tokens=3), [0])
    assert dict(server.calls[before].body or {})[field] == 3


def test_a_fixed_temperature_is_found_said_and_not_sent():
    lm, server = opened(thoughts=0, tokens_field="max_completion_tokens", fixed_temperature=True)
    assert lm.report.fixed_temperature
    assert any("temperature" in line for line in lm.report.requests)
    before = len(server.calls)
    lm.sample(["Q:"] * 12, Sampling(temperature=0.0, max_tokens=8), range(12))
    assert len({(call.body or {}).get("seed") for call in server.calls[before:]}) == 12, "each is a draw of its own"
    for call in server.calls[before:]:
        assert not {"temperature", "top_p"} & set(call.body or {})
        assert "seed" in (call.body or {})


def test_a_smallest_length_limit_is_found_and_longer_draws_are_cut():
    table = TableLM.random([" a b c d e f g h"], 1)
    server = Reasoner(table, thoughts=0, min_tokens=16, refused=NO_IDS | {"echo", "/completions"})
    lm = RemoteLM(DIALECTS["ollama"]("table"), server, name="ollama/table", chat=True)
    assert lm.report.min_tokens == 16
    draw = lm.sample(["Q:"], Sampling(max_tokens=3), [0])[0]
    assert (draw.text, draw.finish_reason) == (" a b c", "length")
    masses = lm.choice_log_probs(["Q:"], [" a", " b"])
    assert masses[0, 0] > masses[0, 1]
    assert np.isfinite(masses).all()


@pytest.mark.parametrize("name", ["stop", "seed"])
def test_other_refused_fields_are_left_out(name: str):
    lm, server = opened("ollama", thoughts=0, refused=OPENAI | {name})
    assert lm.report.left_out == (name,)
    draws = lm.sample(["Q:"] * 12, Sampling(temperature=1.0, max_tokens=8, stop=(" sir",)), range(12))
    assert not any(" sir" in draw.text for draw in draws)
    if name == "seed":
        assert lm.report.seeds == "ignored"
        assert all(call.draws for call in server.calls[-12:]), "equal draws must not become one"


def test_all_demands_at_once_are_met():
    lm, _ = opened(
        style="hidden", tokens_field="max_completion_tokens", fixed_temperature=True, min_tokens=16,
        refused=OPENAI | {"stop", "seed"},
    )  # fmt: skip
    report = lm.report
    assert (report.thinking_tokens, report.fixed_temperature, report.min_tokens) == (1024, True, 16)
    assert len(report.requests) == 5
    assert report.to_dict()["requests"] == list(report.requests)
    assert all(draw.text for draw in lm.sample(["Q:"] * 3, Sampling(max_tokens=8, temperature=0.0), range(3)) if draw)


def test_a_model_that_does_not_reason_has_no_demands():
    lm, _ = opened("vllm", thoughts=0, refused=frozenset())
    assert lm.report.requests == ()
    assert lm.report.thinking_tokens == 0


def test_the_worst_case_of_a_budget_includes_thoughts():
    lm, _ = opened(tokens_field="max_completion_tokens")
    metered = Metered(lm, Budget(max_tokens=lm.report.thinking_tokens))
    with pytest.raises(DlnError, match="budget"):
        metered.sample(["Q:"], Sampling(max_tokens=8), [0])


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setattr("dln.lm.remote.engine.HttpSender", lambda endpoint: serving[0])
    return Shell(monkeypatch, tmp_path, capsys)


serving: list[Reasoner] = []


@pytest.mark.parametrize("thoughts", [40, 3000])
def test_a_run_with_a_reasoning_model_is_finished_and_says_what_it_is(cli: Shell, thoughts: int):
    """Also where thoughts fill the limit that the user has set, so that every proposal and answer is empty."""
    answers = TableLM.random([" order", " return"], 3)
    serving[:] = [Reasoner(answers, style="reasoning_content", thoughts=thoughts, refused=OPENAI, context_length=None)]
    options = ["--lm", "ollama/table", "--no-cache", "--lm-option", "label_draws=2"]
    if thoughts > 1000:
        options += ["--lm-option", "thinking_tokens=16"]
    checked = cli("doctor", "--json", *options[:2])
    assert checked.code == 0, checked.out
    assert any("reasoning model" in record["says"] for record in checked.records if record["name"] == "requests")
    done = cli(
        *("train", "--csv", mail_csv(cli.folder / "mail.csv", 40), *options, "--steps", 1, "--run-dir", "run"),
        *("--set", "batch_size=4", "--set", "inference.num_prompts=2"),
        *("--set", "inference.prompt_proposals={rewrite: 1}"),
        *("--dev-size", 8, "--test-size", 8),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "A reasoning model" in " ".join(done.err.split())
    engines = json.loads(json.dumps(yaml.safe_load((cli.folder / "run/run.yaml").read_text())))["engines"]
    assert engines["ollama/table"]["thinking_tokens"] == (16 if thoughts > 1000 else 1024)


@pytest.mark.parametrize(("chat", "path"), [(False, "/completions"), (True, "/chat/completions")])
def test_a_server_of_the_other_form_suggests_the_suffix(chat: bool, path: str):
    suffix = ":completion" if chat else ":chat"
    lm = RemoteLM(DIALECTS["vllm"]("table"), Simulator(TABLE, refused=frozenset({path})), name="vllm/table", chat=chat)
    with pytest.raises(DlnError) as caught:
        _ = lm.report
    assert caught.value.fix == f"--lm vllm/table{suffix}"


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("yes", "yes", False),
        ("<think>a\nb</think>\n\nyes", "yes", True),
        ("\n<think>\n\n</think>\n\nyes", "yes", True),
        ("<think>never ends", "", True),
        ("well, hm\n</think>\nyes", "yes", True),
        ("[THINK]a[/THINK]yes", "yes", True),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>yes", "yes", True),
        ("use the tag <think> and close it with </think>", "use the tag <think> and close it with </think>", False),
        ("I think so", "I think so", False),
        ("", "", False),
    ],
)
def test_thoughts_are_removed_and_nothing_else(text: str, answer: str, thought: bool):
    assert without_thoughts(text) == (answer, thought)


@pytest.mark.parametrize("key", ["a", "x", "no", "EMPTY", "test", "key"])
def test_a_short_key_does_not_garble_messages(key: str):
    said = "the latest emptyness was an exact match of a keyhole at x-axis, no tests"
    assert "[key]" not in plain(said.replace(" a ", " one ").replace(" no ", " "), [key]) or len(key) >= 3
    assert "l[key]" not in plain(said, [key])
    assert plain("message with a banana", [key]) == "message with a banana"


def test_longer_keys_are_hidden_even_within_words():
    assert plain("bad: xsk-12345678y", ["sk-12345678"]) == "bad: x[key]y"
    assert plain("key abcd.", ["abcd"]) == "key [key]."
