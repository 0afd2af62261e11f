"""`dln label`: from a file of inputs to a run that is trained with the labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from cli_shell import Shell, mail_csv
from dln.cli.label import keys_of
from dln.train.labels import LABELS, Waiting, given_labels, write_waiting

TRAIN = [
    *("train", "--csv", "mail.csv", "--lm", "fake/1", "--steps", 1, "--dev-size", 6, "--test-size", 6),
    *("--set", "batch_size=4", "--set", "inference.num_prompts=2"),
]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    return Shell(monkeypatch, tmp_path, capsys)


def test_every_label_up_to_the_last_free_key_has_its_own():
    names = [str(i) for i in range(50)]
    keys = keys_of(names)
    assert list(keys.values()) == names[: len(keys)]
    assert not set("usq") & set(keys)


def test_keys_and_names_label_and_the_last_one_is_taken_back(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    run = cli.folder / "run"
    run.mkdir()
    (run / "run.yaml").write_text("schema: 1\nconfig: {task: {csv: mail.csv}}\n")
    write_waiting(run, [Waiting(x=x, probabilities={"return": 0.5, "order": 0.5}) for x in "abc"])
    monkeypatch.setattr("sys.stdin", io.StringIO("1\nu\n2\nnonsense\ns\nreturn\n"))
    done = cli("label", "run")
    assert done.code == 0, done.err
    assert "no label has the key 'nonsense'" in done.err
    given = given_labels(run / LABELS)
    assert list(given) == ["a", "c"]
    assert given["c"] == "return"
    assert len((run / LABELS).read_text().splitlines()) == 4  # given, taken back, given, given
    monkeypatch.setattr("sys.stdin", io.StringIO("u\n"))
    assert "nothing to take back" in cli("label", "run").err
    assert given_labels(run / LABELS) == given


@pytest.mark.slow  # two trainings
def test_the_inputs_of_a_file_are_ranked_labelled_and_train_the_next_run(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    run = cli.trained(*TRAIN, run_dir="runs/mail")
    known = (cli.folder / "mail.csv").read_text("utf-8").splitlines()[1].rpartition(",")[0].strip('"')
    (cli.folder / "new.txt").write_text("\n".join([known, "please send tiles", "a box broke", "send box 3"]) + "\n")
    ranked = cli("label", "runs/mail", "new.txt", "--json")
    assert ranked.code == 0, ranked.err
    assert "1 inputs are in the data of the run already" in ranked.err
    entropies = [record["entropy"] for record in ranked.records]
    assert len(entropies) == 3
    assert entropies == sorted(entropies, reverse=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n2\n"))
    assert cli("label", "runs/mail").code == 0
    assert list(given_labels(run / LABELS)) == [record["x"] for record in ranked.records[:2]]
    again = cli(*TRAIN, "--labelled", "runs/mail", "--run-dir", "runs/more")
    assert again.code == 0, again.err
    sizes = [
        json.loads((cli.folder / f"runs/{name}/events.jsonl").read_text().splitlines()[0])["train_size"]
        for name in ("mail", "more")
    ]
    assert sizes[1] == sizes[0] + 2


def test_a_run_without_labels_cannot_be_trained_with(cli: Shell):
    done = cli(*TRAIN, "--labelled", "runs/nothing")
    assert (done.code, "there are no labels here" in done.err) == (2, True)
