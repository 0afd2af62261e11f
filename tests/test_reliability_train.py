"""Whole training runs in bad weather: the same result, or a typed error and a run that goes on to the same result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cli_shell import Shell
from dln.train.event_log import of_kind, read_events
from dln.train.events import Finished, Interrupted
from fault_scripts import after, every
from fault_server import FaultServer
from fault_training import agreed, shell, steps_of, train, usage_of


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return shell(monkeypatch, tmp_path, capsys)


WEATHER = {
    "503": 11,
    "429 without Retry-After": 13,
    "reset in the body": 17,
    "truncated JSON": 19,
    "empty choices": 23,
    "HTML with status 200": 29,
    "reset before the reply": 31,
}


def test_a_run_through_bad_weather_is_the_undisturbed_run(cli: Shell):
    with FaultServer() as server:
        assert train(cli, server.base_url, "calm").code == 0
        calm = len(server.asked())
        for name, k in WEATHER.items():
            server.play(name, every(k))
        done = train(cli, server.base_url, "stormy")
        sent = server.asked()[calm:]
    assert done.code == 0, done.err
    assert {seen.fault for seen in sent} >= set(WEATHER)  # it was bad weather
    failed = sum(bool(seen.fault) for seen in sent)
    assert len(sent) == calm + failed  # what failed was sent again, and nothing else
    assert agreed(cli.folder / "runs/stormy") == agreed(cli.folder / "runs/calm")
    assert usage_of(cli.folder / "runs/stormy") == usage_of(cli.folder / "runs/calm")


ENDS = {
    "401": "the server does not accept the key",
    "429 quota exhausted": "the account's quota is used up",
    "404": "no model 'tiny'",
    "malformed JSON": "the answer cannot be read",
    "another model answers": "another model answers than before",
    "500": "the server fails",
}


@pytest.mark.parametrize("fault", ENDS)
def test_a_run_that_ends_in_an_error_goes_on_to_the_result_of_an_undisturbed_one(cli: Shell, fault: str):
    run = cli.folder / "runs/cut"
    with FaultServer() as server:
        assert train(cli, server.base_url, "calm").code == 0
        server.play(fault, after(len(server.asked()) * 2 // 3))
        done = train(cli, server.base_url, "cut")
        assert done.code == 3
        assert f"error: {done.err.partition('error: ')[2]}" in done.err
        assert ENDS[fault] in done.err
        assert "Traceback" not in done.err
        reasons = [event.reason for event in of_kind(read_events(run / "events.jsonl"), Interrupted)]
        assert len(reasons) == 1
        assert ENDS[fault] in reasons[0]
        states = {row["run"]: row["state"] for row in cli("runs", "--json").records}
        assert states["cut"].startswith("interrupted")
        assert cli("report", "runs/cut").code == 0
        server.calm()
        before = len(server.asked())
        resumed = cli("resume", "runs/cut")
        again = len(server.asked()) - before
    assert resumed.code == 0, resumed.err
    assert agreed(run) == agreed(cli.folder / "runs/calm")
    assert 0 < again < before / 2  # what was answered before is not asked again


def test_a_server_that_dies_in_the_middle_and_comes_back(cli: Shell):
    run = cli.folder / "runs/cut"
    with FaultServer(keep_alive=False) as server:
        assert train(cli, server.base_url, "calm").code == 0
        before = len(server.asked())
        server.play("reset before the reply", after(before // 2))
        done = train(cli, server.base_url, "cut")
        assert done.code == 3
        assert "Traceback" not in done.err
        server.stop_listening()
        refused = cli("resume", "runs/cut")
        assert refused.code == 3
        assert "no connection" in refused.err
        server.listen_again()
        server.calm()
        assert cli("resume", "runs/cut").code == 0
    assert agreed(run) == agreed(cli.folder / "runs/calm")


@pytest.mark.parametrize("fault", ["log-probs NaN", "log-probs -9999", "log-probs positive", "log-probs +inf"])
def test_values_that_are_none_are_left_out_and_counted(cli: Shell, fault: str):
    with FaultServer() as server:
        assert train(cli, server.base_url, "calm").code == 0
        half = len(server.asked()) // 3
        server.play(fault, lambda exchange: exchange.number > half and exchange.number % 4 == 0)
        done = train(cli, server.base_url, "holes")
        assert any(seen.fault for seen in server.asked())
    assert done.code == 0, done.err
    run = cli.folder / "runs/holes"
    assert of_kind(read_events(run / "events.jsonl"), Finished)
    steps = steps_of(run)
    assert sum(step.excluded for step in steps) > 0
    for step in steps:
        assert step.elbo is None or (math.isfinite(step.elbo) and step.elbo <= 0)
    for line in (run / "events.jsonl").read_text("utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the events"))
    assert (run / "report.html").is_file()
