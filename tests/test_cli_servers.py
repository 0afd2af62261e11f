"""Servers, keys, prices and budgets on the command line: what is sent where, recorded, estimated and limited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli_shell import Shell, mail_csv
from dln.cli.config import RunConfig, command_of, parse_config, shown_url
from dln.cli.models import moved, wanted_models, with_secrets
from dln.cli.sources import load_config
from dln.errors import InputError
from dln.train.events import Started
from dln.train.run import of_kind, read_events
from fault_server import FaultServer

CANARY = "sk-canary-5c1"
QUICK = ["--set", "batch_size=4", "--set", "inference.num_prompts=2", "--set", "val_every=9"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "VLLM_API_KEY", "VLLM_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return Shell(monkeypatch, tmp_path, capsys)


def lm(**settings: Any) -> RunConfig:
    return parse_config({"lm": settings}, "test")


def test_the_record_of_an_earlier_run_still_loads():
    old = lm(spec="smollm2", prompt_lm="hf/org/name", hidden_lm=None, batch_tokens=None, cache=True, cache_path=None)
    assert old.lm.prompt_lm is not None
    assert old.lm.prompt_lm.spec == "hf/org/name"
    assert parse_config(json.loads(old.model_dump_json()), "again") == old


@given(st.text("abz09-._", min_size=1, max_size=12), st.text("abz09-._~%", min_size=1, max_size=12))
def test_credentials_never_leave_the_configuration(user: str, secret: str):
    secret = f"{CANARY}{secret}"
    config = lm(
        spec="openai-compatible/x",
        base_url=f"https://{user}:{secret}@host:8000/v1?api-version=3&sig={secret}",
        api_key=secret,
        options={"headers": {"X": secret}, "timeout": 3},
        prompt_lm={"spec": "vllm/y", "base_url": [f"http://{secret}@other/v1"], "api_key": secret},
    )
    for written in (
        config.model_dump_json(),
        str(config.model_dump()),
        command_of(config),
        str(wanted_models(config.lm)),
    ):
        assert CANARY not in written
    again = parse_config(json.loads(config.model_dump_json()), "again")
    assert again.lm.base_url == ("https://host:8000/v1?api-version=3",)
    assert again.lm.options == {"timeout": 3}
    back = with_secrets(again.lm, config.lm)
    assert back.base_url == config.lm.base_url
    assert back.api_key == config.lm.api_key


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": [CANARY]},
        {"api_key_env": CANARY},
        {"base_url": CANARY},
        {"base_url": f"http://[{CANARY}"},
        {"base_url": {"x": CANARY}},
        {"options": CANARY},
        {"options": {"api_key": CANARY}},
        {"prompt_lm": [CANARY]},
        {"prompt_lm": {"api_key": {"x": CANARY}}},
        CANARY,
    ],
    ids=str,
)
def test_an_error_about_a_key_does_not_repeat_it(cli: Shell, settings: object):
    (cli.folder / "dln.yaml").write_text(yaml.safe_dump({"lm": settings}), encoding="utf-8")
    done = cli("--debug", "train", "--task", "questions")
    assert done.code == 2
    assert "Traceback" in done.err
    assert CANARY not in done.out + done.err


def test_a_broken_file_is_not_quoted(cli: Shell):
    (cli.folder / "dln.yaml").write_text(f"lm:\n  api_key: {CANARY}: [\n", encoding="utf-8")
    done = cli("--debug", "train", "--task", "questions")
    assert done.code == 2
    assert "dln.yaml, line" in done.err
    assert CANARY not in done.err


def test_a_model_beside_has_the_layers_server_only_if_it_is_of_the_same_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY_A", "a")
    monkeypatch.setenv("KEY_B", "b")
    server = {"spec": "vllm/x", "base_url": "http://a/v1", "api_key_env": "KEY_A"}

    def options(**side: Any) -> dict[str, Any]:
        return wanted_models(lm(**server, prompt_lm=side).lm)[1].options

    assert options(spec="vllm/y") == {"base_url": ["http://a/v1"], "api_key": "a"}
    assert options(spec="openai/y") == {}
    assert options(spec="smollm2") == {}
    assert options(spec="vllm/y", base_url="http://b/v1") == {"base_url": ["http://b/v1"]}
    assert options(spec="openai/y", api_key_env="KEY_B") == {"api_key": "b"}


def test_a_key_goes_to_no_other_address(cli: Shell):
    server = {"spec": "vllm/x", "base_url": "http://a/v1", "api_key": CANARY}
    (cli.folder / "dln.yaml").write_text(yaml.safe_dump({"lm": server}), encoding="utf-8")
    assert wanted_models(load_config({}).lm)[0].options["api_key"] == CANARY
    assert wanted_models(load_config({"lm": {"spec": "vllm/y"}}).lm)[0].options["api_key"] == CANARY
    for change in ({"base_url": ["http://b/v1"]}, {"spec": "openai/x"}, {"spec": "smollm2"}):
        (layers,) = wanted_models(load_config({"lm": change}).lm)
        assert "api_key" not in layers.options
    recorded = parse_config(json.loads(load_config({}).model_dump_json()), "run.yaml").lm
    assert with_secrets(recorded, load_config({"lm": {"base_url": ["http://b/v1"]}}).lm).api_key is None
    assert moved(recorded, {"base_url": ["http://c/v1"]}).base_url == ("http://c/v1",)
    with pytest.raises(InputError, match="--base-url"):
        moved(recorded, {"base_url": [f"{CANARY}"]})


def test_shown_addresses_keep_what_is_no_secret():
    assert shown_url("http://127.0.0.1:8000/v1") == "http://127.0.0.1:8000/v1"
    assert shown_url("https://u:p@h/v1?api-version=2024-10-21&api_key=x#y") == "https://h/v1?api-version=2024-10-21"


def test_a_dry_run_asks_a_server_nothing(cli: Shell):
    with FaultServer() as server:
        words = ["--csv", "mail.csv", "--lm", "vllm/tiny", "--base-url", server.base_url, "--layers", 2, "--dry-run"]
        plain, records = cli("train", *words), cli("train", *words, "--json").records
        assert not server.seen
    assert plain.code == 0, plain.err
    assert "4 characters a token" in plain.err
    assert records[0]["usd"] == 0
    assert records[0]["seconds"] > 0
    assert not (cli.folder / "runs").exists()


def test_a_dry_run_prices_the_phases(cli: Shell):
    words = ["train", "--csv", "mail.csv", "--lm", "fake/1", "--dry-run", "--json"]
    record = cli(*words, "--price", "fake/1=2/4").records[0]
    total = record["phases"]["total"]
    assert total["usd"] == pytest.approx((2 * total["prompt_tokens"] + 4 * total["completion_tokens"]) / 1e6, rel=1e-3)
    assert (
        cli("train", "--csv", "mail.csv", "--lm", "openai/unheard-of", "--dry-run", "--json").records[0]["usd"] is None
    )
    done = cli("train", "--csv", "mail.csv", "--lm", "openai/unheard-of", "--dry-run", "--max-usd", 1)
    assert done.code == 2
    assert "--price openai/unheard-of=" in done.err


def test_money_is_a_hard_limit_and_a_run_goes_on_with_more(cli: Shell):
    words = ["train", "--csv", "mail.csv", "--lm", "fake/1", "--steps", 8, "--run-dir", "runs/a", *QUICK]
    done = cli(*words, "--price", "fake/1=10/10", "--max-usd", 0.04, "--json")
    assert done.code == 4, done.err
    result = done.records[-1]
    assert 0 < result["usd"] <= 0.04
    assert result["usd"] == pytest.approx(result["tokens"] * 10 / 1e6)
    assert cli("resume", "runs/a").code == 4
    again = cli("resume", "runs/a", "--max-usd", 1000, "--json")
    assert again.code == 0, again.err
    assert again.records[-1]["usd"] > result["usd"]
    assert again.records[-1]["usd"] == pytest.approx(again.records[-1]["tokens"] * 10 / 1e6)


def test_estimate_and_what_the_probe_found_are_in_the_record_and_the_report(cli: Shell):
    with FaultServer() as server:
        words = ["--csv", "mail.csv", "--lm", "vllm/tiny", "--base-url", server.base_url, "--steps", 1]
        done = cli("train", *words, "--dev-size", 6, "--test-size", 6, "--run-dir", "runs/a", *QUICK)
        assert done.code == 0, done.err
    run = cli.folder / "runs/a"
    started = of_kind(read_events(run / "events.jsonl"), Started)[0]
    meta = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    assert started.estimate is not None
    assert started.estimate.model_dump() == meta["estimate"]
    assert started.estimate.calls > 0
    assert meta["engines"]["vllm/tiny"]["label_scoring"] == started.engines["vllm/tiny"]["label_scoring"]
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "estimated maximum" in report
    assert "vllm/tiny" in report
    # a server that runs on: the network is asked where it was trained, without a flag
    with FaultServer(port=int(server.base_url.rsplit(":", 1)[1].split("/")[0])):
        assert cli("predict", "runs/a", "please send me 3 boxes", "--no-cache").code == 0


def test_predict_names_the_line_that_is_too_long(cli: Shell):
    with FaultServer() as server:
        words = ["--csv", "mail.csv", "--lm", "vllm/tiny", "--base-url", server.base_url, "--steps", 0, "--no-test"]
        assert cli("train", *words, "--run-dir", "runs/a", *QUICK).code == 0
        (cli.folder / "in.txt").write_text("short\n\n" + "word " * 6000 + "\n", encoding="utf-8")
        done = cli("predict", "runs/a", "--file", "in.txt")
    assert done.code == 0
    assert "in.txt, line 3: this input is too long for the model's context" in " ".join(done.out.split())
    assert "2 of 3 rows have no prediction" in done.err
