"""Several seeds: one run each under one folder, resumed as a whole, read together."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from cli_shell import Shell, mail_csv
from dln.errors import InputError
from dln.train.evaluate import over_runs
from dln.train.events import Evaluated, StepDone, Validated
from dln.train.run import current, of_kind, read_events
from dln.view.seeds import read_together
from test_cli_resume import outcome, wait_for_step

SEEDS = (13, 42, 25)
WORDS = [
    *("train", "--csv", "mail.csv", "--lm", "fake/1", "--layers", 1, "--steps", 2, "--dev-size", 8, "--test-size", 8),
    *("--set", "batch_size=4", "--set", "val_every=1", "--set", "inference.num_prompts=2"),
    *("--set", "inference.demonstrations=[2]"),
]
SERIES = [*WORDS, "--seeds", "13,42,25"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    return Shell(monkeypatch, tmp_path, capsys)


def test_each_seed_is_the_run_that_its_seed_gives_alone(cli: Shell):
    done = cli(*SERIES, "--run-dir", "runs/all")
    assert done.code == 0, done.err
    assert cli(*WORDS, "--seed", 42, "--run-dir", "runs/alone").code == 0
    assert outcome(cli.folder / "runs/all/seed-42") == outcome(cli.folder / "runs/alone")
    assert [path.name for path in sorted((cli.folder / "runs/all").glob("seed-*"))] == ["seed-13", "seed-25", "seed-42"]
    for seed in SEEDS:
        meta = yaml.safe_load((cli.folder / f"runs/all/seed-{seed}/run.yaml").read_text("utf-8"))
        assert meta["options"]["seed"] == seed
    listed = {row["run_dir"] for row in cli("runs", "--json").records}
    assert {f"runs/all/seed-{seed}" for seed in SEEDS} < listed


def test_the_table_is_what_the_runs_say(cli: Shell):
    assert cli(*SERIES, "--run-dir", "runs/all", "--json").records[-1]["kind"] == "together"
    (record,) = cli("compare", "runs/all", "--json").records
    dev, test = {}, {}
    for seed in SEEDS:
        events = current(read_events(cli.folder / f"runs/all/seed-{seed}/events.jsonl"))
        dev[seed] = max(event.score for event in of_kind(events, Validated))
        test[seed] = of_kind(events, Evaluated)[-1].after.accuracy
    assert {run["seed"]: run["dev_score"] for run in record["runs"]} == dev
    assert {run["seed"]: run["test_accuracy"] for run in record["runs"]} == test
    for name, values in (("dev", list(dev.values())), ("test", list(test.values()))):
        half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
        assert record[name] == pytest.approx(
            {"mean": np.mean(values), "low": np.mean(values) - half, "high": np.mean(values) + half}
        )
    best = max(dev, key=lambda seed: (dev[seed], -seed))
    assert record["best"] == f"runs/all/seed-{best}"
    assert record["differences"] == []
    shown = cli("compare", *(f"runs/all/seed-{seed}" for seed in SEEDS)).out
    assert f"{100 * np.mean(list(test.values())):.1f} ± " in shown
    assert "3 runs" in shown
    assert f"best by dev score: runs/all/seed-{best}" in shown


@pytest.mark.slow
def test_a_stopped_series_goes_on_to_the_same_end(cli: Shell):
    assert cli(*SERIES, "--run-dir", "runs/whole", "--cache", "whole.sqlite").code == 0
    slow = ["fake/1/slow" if word == "fake/1" else word for word in SERIES]
    process = cli.process(*slow, "--run-dir", "runs/cut")
    wait_for_step(cli.folder / "runs/cut/seed-42", 1, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "resume all seeds: dln resume runs/cut"
    assert not (cli.folder / "runs/cut/seed-25").exists()
    first = (cli.folder / "runs/cut/seed-13/events.jsonl").read_bytes()
    resumed = cli("resume", "runs/cut", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.records[-1]["finished"] == 3
    assert (cli.folder / "runs/cut/seed-13/events.jsonl").read_bytes() == first
    for seed in SEEDS:
        steps = [
            [
                e.parameters
                for e in of_kind(current(read_events(cli.folder / f"runs/{run}/seed-{seed}/events.jsonl")), StepDone)
            ]
            for run in ("whole", "cut")
        ]
        assert len(steps[0]) == 2
        assert steps[0] == steps[1]
    again = cli("resume", "runs/cut")
    assert again.code == 0
    assert again.err.count("this run is finished") == 3


@pytest.mark.slow
def test_unfinished_and_unlike_runs_are_said_to_be_so(cli: Shell):
    assert cli(*WORDS, "--seed", 1, "--run-dir", "runs/a").code == 0
    assert cli(*WORDS, "--seed", 2, "--set", "batch_size=5", "--run-dir", "runs/b").code == 0
    assert cli(*WORDS, "--seed", 3, "--run-dir", "runs/c").code == 0
    log = cli.folder / "runs/c/events.jsonl"
    lines = log.read_text("utf-8").splitlines(keepends=True)
    log.write_text("".join(line for line in lines if '"kind":"finished"' not in line), "utf-8")
    done = cli("compare", "runs")
    assert "differ in more than their seed: batch_size" in done.err
    assert "1 of 3 runs are not finished" in done.err
    (record,) = cli("compare", "runs", "--json").records
    assert record["finished"] == 2
    assert record["test"]["mean"] == pytest.approx(np.mean([run["test_accuracy"] for run in record["runs"][:2]]))
    (alone,) = cli("compare", "runs/a", "--json").records
    assert alone["test"] == {"mean": record["runs"][0]["test_accuracy"], "low": None, "high": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "13,x"], "not a list of seeds"),
        (["--seeds", ""], "not a list of seeds"),
        (["--seeds", "13,42,13"], "a seed is given twice"),
        (["--seeds", "1,2", "--seed", "3"], "seeds are given twice"),
    ],
)
def test_impossible_seeds_are_refused_before_anything_is_made(cli: Shell, words: list[str], said: str):
    done = cli(*WORDS, *words, "--run-dir", "runs/none")
    assert done.code == 2
    assert said in done.err
    assert not (cli.folder / "runs").exists()


def test_a_folder_in_use_and_a_damaged_record_are_clear_errors(cli: Shell):
    folder = cli.folder / "runs/all"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine", "utf-8")
    done = cli(*SERIES, "--run-dir", "runs/all")
    assert (done.code, "this folder is not empty" in done.err) == (2, True)
    (folder / "seeds.yaml").write_text("seeds: 3\n", "utf-8")
    assert "dln resume runs/all" in cli(*SERIES, "--run-dir", "runs/all").err
    assert cli("resume", "runs/all").code == 5
    assert cli("compare", "runs/all").code == 2
    assert "there is no run here" in cli("compare", "nowhere").err


def test_a_run_cannot_count_twice_nor_with_one_of_another_task(cli: Shell):
    assert cli(*WORDS, "--run-dir", "runs/a").code == 0
    assert "named twice" in cli("compare", "runs", "runs/a").err
    mail_csv(cli.folder / "other.csv")
    other = ["other.csv" if word == "mail.csv" else word for word in WORDS]
    assert cli(*other, "--run-dir", "runs/b").code == 0
    assert "different tasks" in cli("compare", "runs").err


def test_no_key_is_written_into_the_folder(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-value")
    cli(*WORDS, "--seeds", "1", "--api-key-env", "MY_KEY", "--run-dir", "runs/all")
    assert not any("sk-secret-value" in file.read_text("utf-8") for file in cli.folder.rglob("*.yaml"))


def test_the_interval_over_runs_is_students():
    values = [0.0, 1.0, 1.0]
    found = over_runs(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((2 / 3, low, high))
    assert np.isnan([over_runs([0.5]).low, over_runs([0.5]).high]).all()
    with pytest.raises(InputError, match="one run or more"):
        over_runs([])


def test_a_dry_run_says_that_it_is_of_one_run(cli: Shell):
    done = cli(*SERIES, "--dry-run")
    assert done.code == 0
    assert "3 seeds take 3 times as much" in done.err
    assert not (cli.folder / "runs").exists()


def test_reading_runs_needs_runs(tmp_path: Path):
    with pytest.raises(InputError, match="there is no run here"):
        read_together([tmp_path])
