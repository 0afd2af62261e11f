"""`dln doctor`: one line per check, the fix beside what failed, and exit code 3 only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli_shell import Done, Shell
from fault_replies import Manners
from fault_server import FaultServer

CANARY = "sk-canary-9f2"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "VLLM_API_KEY", "VLLM_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return Shell(monkeypatch, tmp_path, capsys)


def doctor(cli: Shell, *words: object) -> Done:
    return cli("doctor", "--json", *words)


def of(done: Done, model: str) -> dict[str, dict[str, Any]]:
    """The checks of a model by name; several of one name: the last."""
    return {record["name"]: record for record in done.records if record["of"] == model}


def test_the_environment_and_a_model_in_this_process(cli: Shell):
    done = doctor(cli, "--lm", "fake/1")
    assert done.code == 0, done.out
    assert {record["name"] for record in done.records if not record["of"]} == {
        *("python", "torch", "cache", "disk", "embedded model")
    }
    checks = of(done, "fake/1")
    assert checks["self-test"]["state"] == "ok"
    assert checks["price"]["says"].startswith("free")
    assert "tokens/s" in checks["speed"]["says"]


def test_plain_lines_say_the_same(cli: Shell):
    done = cli("doctor", "--lm", "fake/1")
    assert done.code == 0
    lines = done.out.splitlines()
    assert any(line.startswith("ok") and "fake/1: self-test" in line for line in lines)
    assert lines[-1].startswith("all checks passed")


def test_a_self_test_that_fails_is_said(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    import cli_fake_engine

    plain = cli_fake_engine.FakeLM.log_prob

    def shifted(self: Any, contexts: Any, targets: Any) -> Any:
        scores = plain(self, contexts, targets)
        for row in scores:
            row.values[...] -= 0.5
        return scores

    monkeypatch.setattr(cli_fake_engine.FakeLM, "log_prob", shifted)
    done = doctor(cli, "--lm", "fake/1")
    assert done.code == 3
    assert of(done, "fake/1")["self-test"]["state"] == "failed"


def test_a_cache_directory_that_cannot_be_written(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    (cli.folder / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("DLN_CACHE_DIR", str(cli.folder / "file/below"))
    done = doctor(cli, "--lm", "fake/1")
    assert done.code == 3
    (cache,) = (record for record in done.records if record["name"] == "cache")
    assert (cache["state"], cache["fix"]) == ("failed", "set DLN_CACHE_DIR")


def test_a_server_that_can_do_everything(cli: Shell):
    with FaultServer() as server:
        done = doctor(cli, "--lm", "vllm/tiny", "--base-url", server.base_url)
    assert done.code == 0, done.out
    checks = of(done, "vllm/tiny")
    names = {"endpoint", "key", "model", "context length", "tokenizer", "labels", "texts", "seeds", "speed", "price"}
    assert names <= set(checks)
    assert {name for name in names if checks[name]["state"] != "ok"} == set()
    assert "4096 tokens" in checks["context length"]["says"]


def test_without_prompt_log_probs_it_says_what_still_works_and_what_to_use_instead(cli: Shell):
    poor = Manners(prompt_log_probs="ignored", echo="ignored", tokenizer=False, token_ids=False, chosen_ids=False)
    with FaultServer(poor) as server:
        done = doctor(cli, "--lm", "openai-compatible/tiny", "--base-url", server.base_url)
    assert done.code == 0, "less is possible, but nothing is broken"
    checks = of(done, "openai-compatible/tiny")
    assert checks["texts"]["state"] == "warning"
    assert "vllm/" in checks["texts"]["fix"]
    assert checks["what still works"]["says"]
    assert checks["price"]["state"] == "warning"


@pytest.mark.parametrize(
    ("manners", "words", "name"),
    [
        (Manners(key="right"), ["--api-key-env", "SOME_KEY"], "key"),
        (Manners(model="other"), [], "model"),
    ],
    ids=["wrong key", "no such model"],
)
def test_what_is_wrong_is_named_with_its_fix_and_without_the_key(
    cli: Shell, monkeypatch: pytest.MonkeyPatch, manners: Manners, words: list[str], name: str
):
    monkeypatch.setenv("SOME_KEY", CANARY)
    with FaultServer(manners) as server:
        done = cli("--debug", "doctor", "--json", "--lm", "vllm/tiny", "--base-url", server.base_url, *words)
    assert done.code == 3
    failed = [record for record in done.records if record["state"] == "failed"]
    assert [record["name"] for record in failed] == [name]
    assert failed[0]["fix"]
    assert CANARY not in done.out + done.err


def test_a_server_that_is_not_there(cli: Shell):
    done = doctor(cli, "--lm", "vllm/tiny", "--base-url", "http://127.0.0.1:9/v1", "--lm-option", "max_retries=0")
    assert done.code == 3
    assert of(done, "vllm/tiny")["endpoint"]["state"] == "failed"


def test_prices_come_from_flags_and_files(cli: Shell):
    (cli.folder / "p.yaml").write_text("date: 2026-01-02\nmodels: {fake/*: {input: 2, output: 3}}\n", "utf-8")
    said = of(doctor(cli, "--lm", "fake/1", "--prices", "p.yaml"), "fake/1")["price"]["says"]
    assert "$2 input, $3 output" in said
    assert "2026-01-02" in said
    said = of(doctor(cli, "--lm", "fake/1", "--prices", "p.yaml", "--price", "fake/1=4/5"), "fake/1")["price"]["says"]
    assert "$4 input, $5 output" in said
