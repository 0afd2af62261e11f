"""The probe: what a server claims is believed only where two ways of asking agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import pytest

from dln.errors import DlnError, InputError, ProviderError
from dln.lm.base import Sampling, ScoringMode
from dln.lm.load import load_lm
from dln.lm.remote.call import AuthenticationFailed, Call, RateLimited, ServerUnreachable
from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialects import DIALECTS, VLLM, SGLang
from dln.lm.remote.engine import OPTIONS, RemoteLM, open_remote
from dln.lm.remote.probe import SCORING_MODES, Probed, probe
from dln.lm.remote.session import Session
from dln.lm.table import TableLM
from remote_forms import FORMS, NO_IDS, Form, SGLangServer
from remote_simulator import TEXTS, Simulator

T = TypeVar("T")
TABLE = TableLM.random(TEXTS, 3)


def probed(
    kind: type[Dialect] = VLLM, *, chat: bool = False, best: ScoringMode = "target scoring", **options: Any
) -> Probed:
    server = SGLangServer if kind is SGLang else Simulator
    return probe(Session(kind("table"), server(TABLE, **options), chat=chat), best=best)


def reasons(found: Probed, purpose: str = "texts") -> dict[str, str]:
    return {t.mode: t.reason for t in found.report.trials if t.purpose == purpose and not t.works}


def defect(*names: str) -> dict[str, Any]:
    return {"defects": frozenset(names)}


def test_an_honest_server_is_taken_at_its_best():
    report = probed().report
    assert (report.label_scoring, report.text_scoring) == ("target scoring", "target scoring")
    assert report.seeds == "honoured"
    assert report.densities == "model"
    assert report.context_length == 256
    assert report.token_ids
    assert report.root == "tables/one"
    assert "agrees" in report.tokenizer
    assert report.stays == ()
    assert all(trial.works for trial in report.trials)


@pytest.mark.parametrize("name", ["made up", "shifted"])
def test_numbers_that_contradict_the_draws_are_not_believed(name: str):
    found = probed(**defect(name))
    assert found.report.text_scoring == "forced decoding"
    assert set(reasons(found)) == {"target scoring", "prompt log-probs"}
    if name == "made up":
        assert "where a draw's are" in reasons(found)["target scoring"]


def test_a_server_that_ignores_echo_falls_further():
    refused = NO_IDS
    honest = probed(Dialect, refused=refused)
    assert honest.report.text_scoring == "prompt log-probs"
    found = probed(Dialect, refused=refused, **defect("ignores echo"))
    assert found.report.text_scoring == "accuracy"
    assert found.targets is None
    assert found.report.label_scoring == "top-k"
    assert "not those of the prompt" in reasons(found)["prompt log-probs"]
    assert any("cannot be scored" in line for line in found.report.stays)


@pytest.mark.parametrize("name", ["made up", "shifted"])
def test_echoed_texts_are_checked_too(name: str):
    found = probed(Dialect, refused=NO_IDS, **defect(name))
    assert found.report.text_scoring == "accuracy"
    assert "prompt log-probs" in reasons(found)


def test_a_shifted_native_score_is_found_by_its_ids():
    assert probed(SGLang).report.text_scoring == "target scoring"
    found = probed(SGLang, **defect("shifted"))
    assert found.report.text_scoring != "target scoring"
    assert "other tokens" in reasons(found)["target scoring"]


def test_a_server_that_ignores_the_wanted_tokens_is_scored_by_texts():
    found = probed(tops=1, **defect("ignores wanted"))
    assert found.report.text_scoring == found.report.label_scoring == "target scoring"
    assert "missing" in reasons(found, "labels")["target scoring"]
    np.testing.assert_allclose(
        found.labels.log_masses(["Q:"], [" yes", " no"]), TABLE.choice_log_probs(["Q:"], [" yes", " no"])
    )


def test_without_any_log_probabilities_draws_are_counted():
    found = probed(**defect("no log-probs"))
    assert (found.report.label_scoring, found.report.text_scoring) == ("Monte-Carlo", "accuracy")
    assert found.report.densities == "none"
    assert found.report.top_log_probs == 0
    assert not found.keeps_log_probs


def test_ignored_seeds_are_said():
    report = probed(**defect("ignores seeds")).report
    assert report.seeds == "ignored"
    assert any("seeds" in line for line in report.stays)


def test_log_probs_of_what_was_drawn_from_are_told_from_the_models():
    dialect, table = VLLM("table"), TableLM.random([" a b", " c d", " e f", " g"], 1)
    lm = RemoteLM(dialect, Simulator(table, **defect("sampling values")), name="vllm/table")
    assert lm.report.densities == "sampling"
    hot = lm.sample(["Q:"], Sampling(temperature=2.0, max_tokens=3), [1])[0]
    assert hot.log_probs is None, "what it would be at temperature 1 is not told"
    assert hot.sampling_log_probs is not None
    plain = lm.sample(["Q:"], Sampling(temperature=1.0, max_tokens=3), [1])[0]
    assert plain.log_probs == plain.sampling_log_probs


@pytest.mark.parametrize("best", SCORING_MODES)
def test_no_better_scoring_mode_than_the_wanted_one_is_used(best: ScoringMode):
    report = probed(best=best).report
    assert SCORING_MODES.index(report.label_scoring) >= SCORING_MODES.index(best)
    assert SCORING_MODES.index(report.text_scoring) >= SCORING_MODES.index(best)
    if best in ("top-k", "Monte-Carlo", "accuracy"):
        assert report.label_scoring == best


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_probing_twice_gives_the_same(form: Form):
    def report() -> object:
        dialect, server = form(TABLE)
        return probe(Session(dialect, server, chat=form.chat)).report

    assert report() == report()


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_reports_are_plain_values_and_readable(form: Form):
    dialect, server = form(TABLE)
    report = probe(Session(dialect, server, chat=form.chat)).report
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["label_scoring"] == form.labels
    assert len(record["trials"]) == len(report.trials)
    assert form.labels in str(report)
    assert len(server.calls) < 70, "a probe is a handful of calls"
    assert report.calls_per_second > 0


class Down(Simulator):
    """A server whose every answer, or every one but the first few, is an error."""

    error: type[ProviderError] = AuthenticationFailed
    after: int = 0

    def answer(self, call: Call) -> Any:
        if len(self.calls) > self.after:
            raise self.error("no", where="server", fix="a valid key")
        return super().answer(call)


@pytest.mark.parametrize("error", [AuthenticationFailed, ServerUnreachable, RateLimited])
@pytest.mark.parametrize("after", [0, 2, 10, 16])
def test_what_no_scoring_mode_can_help_is_raised_at_once(error: type[ProviderError], after: int):
    server = Down(TABLE)
    server.error, server.after = error, after
    with pytest.raises(error):
        probe(Session(VLLM("table"), server, chat=False))
    assert len(server.calls) == after + 1


def test_a_server_that_refuses_the_additions_gets_the_plain_form():
    found = probed(refused=frozenset({"return_token_ids"}))
    assert not found.report.token_ids
    assert found.report.text_scoring == "target scoring", "texts are scored on ids all the same"


def test_a_tokenizer_of_another_model_is_not_used():
    class Strange(Simulator):
        def reply(self, path: str, body: dict[str, Any]) -> Any:
            if path == "//tokenize":
                body = {**body, "prompt": body["prompt"][::-1]}
            return super().reply(path, body)

    report = probe(Session(VLLM("table"), Strange(TABLE), chat=False)).report
    assert "disagrees" in report.tokenizer
    assert not report.token_ids
    assert report.text_scoring == "prompt log-probs"


def test_the_engine_probes_once_and_at_first_use():
    class Counting(Simulator):
        def send(
            self,
            calls: Sequence[Call],
            read: Callable[[Call, Any], T],
            *,
            on_reply: Callable[[int, T], None] | None = None,
        ) -> list[T]:
            self.model_lists = getattr(self, "model_lists", 0) + sum(call.path == "/models" for call in calls)
            return super().send(calls, read, on_reply=on_reply)

    server = Counting(TABLE)
    lm = RemoteLM(VLLM("table"), server, name="vllm/table")
    assert server.calls == []
    for _ in range(3):
        assert lm.capabilities.scores_labels
        assert lm.fingerprint()
        lm.sample(["Q:"], Sampling(), [0])
    assert server.model_lists == 1


# -- model strings -------------------------------------------------------------------------------------


def opened(spec: str, environment: dict[str, str] | None = None, **options: Any) -> RemoteLM:
    kind, _, rest = spec.partition("/")
    return open_remote(kind, rest, spec, options, environment or {})


@pytest.mark.parametrize("kind", sorted(DIALECTS))
def test_every_kind_can_be_loaded_without_a_word_to_the_server(kind: str):
    lm = load_lm(f"{kind}/org/name", base_url="http://127.0.0.1:9/v1", api_key="k")
    assert lm.name == f"{kind}/org/name"
    again = load_lm(lm.name, base_url=["http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1"], api_key="k")
    assert cast("RemoteLM", again).chat == cast("RemoteLM", lm).chat == DIALECTS[kind].chat_by_default


@pytest.mark.parametrize(
    ("spec", "chat", "option", "expected"),
    [
        ("vllm/a", False, None, "vllm/a"),
        ("vllm/a:chat", True, None, "vllm/a:chat"),
        ("vllm/a", True, True, "vllm/a:chat"),
        ("openai/gpt", True, None, "openai/gpt"),
        ("openai/gpt", False, False, "openai/gpt:completion"),
        ("openai/gpt:completion", False, None, "openai/gpt:completion"),
        ("ollama/llama3:8b", True, None, "ollama/llama3:8b"),
    ],
)
def test_chat_or_completion_is_part_of_the_name(spec: str, chat: bool, option: bool | None, expected: str):
    options = {} if option is None else {"chat": option}
    lm = opened(spec, base_url="http://h:1/v1", api_key="k", **options)
    assert (lm.chat, lm.name) == (chat, expected)
    assert opened(lm.name, base_url="http://h:1/v1", api_key="k").chat == chat


@pytest.mark.parametrize("kind", ["vllm", "sglang", "openai-compatible", "azure"])
def test_without_an_address_the_error_shows_one(kind: str):
    with pytest.raises(InputError, match="--base-url http") as caught:
        opened(f"{kind}/name", api_key="k")
    assert f"{kind}/name" in str(caught.value)


def test_addresses_and_keys_come_from_the_environment():
    lm = opened("vllm/m", {"VLLM_BASE_URL": "http://a:1/v1, http://b:2/v1", "VLLM_API_KEY": "sk"})
    endpoint = cast("Any", lm.sender).endpoint
    assert endpoint.base_urls == ("http://a:1/v1", "http://b:2/v1")
    assert endpoint.key.get_secret_value() == "sk"
    assert "sk" not in repr(endpoint)


def test_the_hosted_key_goes_to_no_other_server():
    environment = {"OPENAI_API_KEY": "sk-openai"}
    lm = opened("vllm/m", environment, base_url="http://somewhere:1/v1")
    assert cast("Any", lm.sender).endpoint.key is None
    lm = opened("vllm/m", {**environment, "OPENAI_BASE_URL": "http://proxy:1/v1"})
    assert cast("Any", lm.sender).endpoint.key.get_secret_value() == "sk-openai", "they belong together"


def test_a_hosted_model_needs_a_key_and_a_proxy_does_not():
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        opened("openai/gpt")
    assert opened("openai/gpt", base_url="http://localhost:4000").chat


def test_azure_goes_by_deployment_unless_its_address_is_of_the_newer_form():
    old = opened("azure/dep", base_url="https://r.openai.azure.com", api_key="k", api_version="2024-06-01")
    assert cast("Any", old.sender).endpoint.azure.deployment == "dep"
    assert cast("Any", old.sender).endpoint.azure.api_version == "2024-06-01"
    new = opened("azure/dep", base_url="https://r.openai.azure.com/openai/v1", api_key="k")
    assert cast("Any", new.sender).endpoint.azure is None


@pytest.mark.parametrize(
    "options",
    [{"bogus": 1}, {"best_scoring_mode": "magic"}, {"label_draws": -1}, {"timeout": 0}, {"max_concurrency": 0}],
)
def test_options_that_cannot_be_used_are_named(options: dict[str, Any]):
    with pytest.raises(DlnError) as caught:
        opened("vllm/m", base_url="http://h:1/v1", **options)
    assert isinstance(caught.value, InputError)
    if "bogus" in options:
        assert all(name in str(caught.value) for name in OPTIONS)


def test_credentials_in_an_address_are_in_no_name_nor_fingerprint():
    lm = opened("vllm/m", base_url="http://user:hunter2@h:1/v1", revision="r1")
    assert "hunter2" not in lm.name
    assert "hunter2" not in repr(cast("Any", lm)._source)
