"""Stopping and going on: signals, kills at any moment, and the same result as without them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cli_shell import Shell, mail_csv
from dln.train.events import Evaluated, Finished, Interrupted, StepDone, Validated
from dln.train.run import Run, current, of_kind, read_events

STEPS = 3
WORDS = [
    *("train", "--csv", "mail.csv", "--lm", "fake/1/slow", "--layers", 2, "--steps", STEPS),
    *("--dev-size", 4, "--test-size", 4, "--set", "batch_size=4", "--set", "val_every=1"),
    *("--set", "inference.num_prompts=2", "--set", "inference.num_hidden=2", "--set", "inference.demonstrations=[2]"),
]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    return Shell(monkeypatch, tmp_path, capsys)


def outcome(run: Path) -> tuple[Any, ...]:
    """Everything that two equal runs must agree on."""
    events = current(read_events(run / "events.jsonl"))
    network = json.loads((run / "network.json").read_text("utf-8"))
    steps = {event.step: (event.elbo, event.accuracy, event.parameters) for event in of_kind(events, StepDone)}
    validations = {event.step: (event.score, event.best) for event in of_kind(events, Validated)}
    finished, evaluated = of_kind(events, Finished)[-1], of_kind(events, Evaluated)[-1]
    return (
        network["layers"],
        steps,
        validations,
        (finished.step, finished.best_step, finished.score, finished.reason),
        (evaluated.before, evaluated.after, evaluated.p_value, evaluated.fixed, evaluated.broken),
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    log = run / "events.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and f'"kind":"step","step":{step},' in log.read_text("utf-8", errors="replace"):
            return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached: {process.poll()}")


def cut_after_step(run: Path, step: int) -> None:
    """Leave of a finished run what a kill after a step leaves."""
    lines = (run / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
    last = next(i for i, line in enumerate(lines) if f'"kind":"step","step":{step},' in line)
    (run / "events.jsonl").write_text("".join(lines[: last + 1]), "utf-8")
    for name in ("network.json", "checkpoint.json"):
        (run / name).unlink()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_a_run_that_goes_on_to_the_same_end(cli: Shell, number: signal.Signals, code: int):
    cli.trained(*WORDS, run_dir="runs/whole")
    process = cli.process(*WORDS, "--run-dir", "runs/cut")
    wait_for_step(cli.folder / "runs/cut", 2, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    events = read_events(cli.folder / "runs/cut/events.jsonl")
    done = of_kind(events, StepDone)[-1].step
    assert said.strip().splitlines()[-1] == f"interrupted after step {done}; resume with: dln resume runs/cut"
    assert of_kind(events, Interrupted)
    states = {row["run"]: row["state"] for row in cli("runs", "--json").records}
    assert states["cut"].startswith("interrupted")
    assert cli("resume", "runs/cut").code == 0
    assert outcome(cli.folder / "runs/cut") == outcome(cli.folder / "runs/whole")


@pytest.mark.slow
def test_two_signals_in_a_row_end_the_process_too(cli: Shell):
    process = cli.process(*WORDS, "--run-dir", "runs/a")
    wait_for_step(cli.folder / "runs/a", 1, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(1, id="one kill"),
        pytest.param(2, id="two kills", marks=pytest.mark.slow),
        pytest.param(10, id="ten kills", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_the_result_is_the_same(cli: Shell, kills: int):
    rng = random.Random(kills)  # noqa: S311 - moments, not secrets
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    train = [*WORDS, "--steps", kills + 2] if kills + 2 > STEPS else WORDS
    cli.trained(*train, run_dir="runs/whole")
    run, done = cli.folder / "runs/cut", 0
    log = run / "events.jsonl"

    def lines() -> int:
        return log.read_bytes().count(b"\n") if log.exists() else 0

    while done < kills:
        going_on = (run / "run.yaml").exists()
        wanted = lines() + rng.choice((1, 1, 2, 3))
        process = cli.process(*(["resume", "runs/cut"] if going_on else [*train, "--run-dir", "runs/cut"]), **quiet)
        while lines() < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        if process.wait(60) == 0:
            break  # it was faster
        done += 1
    assert done
    assert cli("resume", "runs/cut").code == 0
    assert outcome(run) == outcome(cli.folder / "runs/whole")
    assert (run / "report.html").is_file()


def test_a_finished_run_says_so(cli: Shell):
    cli.trained(*WORDS, run_dir="runs/a")
    before = (cli.folder / "runs/a/events.jsonl").read_bytes()
    done = cli("resume", "runs/a")
    assert done.code == 0
    assert "finished" in done.err
    assert (cli.folder / "runs/a/events.jsonl").read_bytes() == before


def test_a_test_evaluation_that_was_not_done_is_done_by_resume(cli: Shell):
    cli.trained(*WORDS, run_dir="runs/a")
    run = cli.folder / "runs/a"
    expected = outcome(run)
    lines = (run / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40], encoding="utf-8")
    (run / "report.html").unlink()
    done = cli("resume", "runs/a")
    assert done.code == 0
    assert "test accuracy" in done.out
    assert outcome(run) == expected
    assert (run / "report.html").is_file()


def test_a_run_at_work_is_not_resumed(cli: Shell):
    run = cli.trained(*WORDS, run_dir="runs/a")
    cut_after_step(run, 1)
    with Run.open(run):
        assert cli("runs", "--json").records[0]["state"] == "running"
        done = cli("resume", "runs/a")
    assert done.code == 2
    assert "another process works on this run" in done.err
    assert cli("runs", "--json").records[0]["state"] == "killed"


@pytest.mark.slow
def test_a_second_process_on_the_same_run_is_refused(cli: Shell):
    process = cli.process(*WORDS, "--run-dir", "runs/a")
    wait_for_step(cli.folder / "runs/a", 1, process)
    assert cli("runs", "--json").records[0]["state"] == "running"
    done = cli("resume", "runs/a")
    assert done.code == 2
    assert "another process works on this run" in done.err
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert cli("runs", "--json").records[0]["state"] == "finished"


def test_a_run_whose_data_has_changed_is_not_resumed(cli: Shell):
    assert cli(*WORDS, "--run-dir", "runs/a").code == 0
    cut_after_step(cli.folder / "runs/a", 1)
    assert cli("runs", "--json").records[0]["state"] == "killed"
    mail_csv(cli.folder / "mail.csv", rows=61)
    done = cli("resume", "runs/a")
    assert done.code == 2
    assert "data hash has changed" in done.err


def test_a_network_that_was_lost_is_written_again(cli: Shell):
    cli.trained(*WORDS, run_dir="runs/a")
    network = cli.folder / "runs/a/network.json"
    before = json.loads(network.read_text("utf-8"))
    network.unlink()
    assert "dln resume" in cli("predict", "runs/a", "hello").err
    assert cli("resume", "runs/a").code == 0
    assert json.loads(network.read_text("utf-8"))["layers"] == before["layers"]


@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_binary_run_file_is_corrupt_data_not_a_bug(cli: Shell, command: str):
    (cli.folder / "runs/a").mkdir(parents=True)
    (cli.folder / "runs/a/run.yaml").write_bytes(b"\xff\xfe\x00options: {}")
    done = cli(command, "runs/a")
    assert done.code == 5
    assert "run.yaml: this file of the run is damaged" in done.err
