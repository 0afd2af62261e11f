"""Whole training runs in bad weather: the same result, or a typed error and a run that goes on to the same result."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli_shell import Shell
from dln.train.events import Finished, Interrupted
from dln.train.run import of_kind, read_events
from fault_scripts import after, every
from fault_server import FaultServer
from fault_training import agreed, shell, steps_of, train, usage_of


@dataclass(frozen=True)
class Calm:
    """An undisturbed run: what it came to, what it used, and how many requests it took."""

    result: tuple[Any, ...]
    usage: dict[str, float]
    requests: int


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return shell(monkeypatch, tmp_path, capsys)


_calm: list[Calm] = []


@pytest.fixture
def calm(cli: Shell) -> Calm:
    """The undisturbed run, made once."""
    if not _calm:
        with FaultServer() as server:
            done = train(cli, server.base_url, "calm")
            assert done.code == 0, done.err
            run = cli.folder / "runs/calm"
            _calm.append(Calm(agreed(run), usage_of(run), len(server.asked())))
    return _calm[0]


WEATHER = {
    "503": 11,
    "429 without Retry-After": 13,
    "reset in the body": 17,
    "truncated JSON": 19,
    "empty choices": 23,
    "HTML with status 200": 29,
    "reset before the reply": 31,
}


@pytest.mark.slow
def test_a_run_through_bad_weather_is_the_undisturbed_run(cli: Shell, calm: Calm):
    with FaultServer() as server:
        for name, k in WEATHER.items():
            server.play(name, every(k))
        done = train(cli, server.base_url, "stormy", "--lm-option", "max_retries=8")
        sent = server.asked()
    assert done.code == 0, done.err
    assert {seen.fault for seen in sent} >= set(WEATHER)  # it was bad weather
    failed = sum(bool(seen.fault) for seen in sent)
    assert len(sent) - failed <= 1.15 * calm.requests  # what failed was sent again; equal ones in flight are merged
    assert agreed(cli.folder / "runs/stormy") == calm.result
    assert usage_of(cli.folder / "runs/stormy") == calm.usage  # what was asked again is counted once


ENDS = {
    "401": "the server does not accept the key",
    "429 quota exhausted": "the account's quota is used up",
    "404": "no model 'tiny'",
    "malformed JSON": "the answer cannot be read",
    "another model answers": "another model answers than before",
    "500": "the server fails",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=() if fault == "500" else pytest.mark.slow) for fault in ENDS]
)
def test_a_run_that_ends_in_an_error_goes_on_to_the_result_of_an_undisturbed_one(cli: Shell, calm: Calm, fault: str):
    run = cli.folder / "runs/cut"
    with FaultServer() as server:
        server.play(fault, after(calm.requests * 2 // 3))
        done = train(cli, server.base_url, "cut")
        assert done.code == 3
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
    assert agreed(run) == calm.result
    # a third was left; then there are the probe, and what was asked together with the request that failed
    assert 0 < again < 0.8 * calm.requests


def test_a_server_that_dies_in_the_middle_and_comes_back(cli: Shell, calm: Calm):
    run = cli.folder / "runs/cut"
    with FaultServer(keep_alive=False) as server:
        server.play("reset before the reply", after(calm.requests // 2))
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
    assert agreed(run) == calm.result


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        "log-probs NaN",
        *(pytest.param(f"log-probs {value}", marks=pytest.mark.slow) for value in ("-9999", "positive", "+inf")),
    ],
)
def test_values_that_are_none_are_left_out_and_counted(cli: Shell, calm: Calm, fault: str):
    with FaultServer() as server:
        third = calm.requests // 3
        server.play(fault, lambda exchange: exchange.number > third and exchange.number % 9 == 0)
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
