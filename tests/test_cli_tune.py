"""`dln tune`: what is tried is what the written file trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cli_shell import Done, Shell, mail_csv
from dln.train.options import resolve_options


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


def tuned(cli: Shell, space: dict[str, list[object]], *words: object) -> Done:
    """A search among `space` on a small file."""
    mail_csv(cli.folder / "mail.csv", rows=24)
    (cli.folder / "space.yaml").write_text(yaml.safe_dump(space), encoding="utf-8")
    small = ("--set", "steps=1", "--set", "batch_size=4", "--set", "inference.num_prompts=2")
    files = ("--csv", "mail.csv", "--space", "space.yaml", "--run-dir", "study")
    return cli("tune", *files, "--lm", "fake/1", "--seeds", "13", "--json", *small, *words)


def test_shares_of_proposals_replace_one_another_in_the_written_file_as_they_did_in_the_trial(cli: Shell):
    given = {"inference": {"prompt_proposals": {"rewrite": 1.0}}}
    space = {"inference.prompt_proposals": [{"demonstrations": 1.0}]}
    done = tuned(cli, space, "--trials", 1, "--set", "inference.prompt_proposals={rewrite: 1.0}")
    assert done.code == 0, done.err
    written = yaml.safe_load((cli.folder / "study/best.yaml").read_text(encoding="utf-8"))["options"]
    tried = resolve_options("default", given, {"inference": {"prompt_proposals": {"demonstrations": 1.0}}})
    assert resolve_options("default", written).inference.prompt_proposals == tried.inference.prompt_proposals
    assert written["inference"]["num_prompts"] == 2  # what was given besides stays


def test_the_best_of_the_trials_is_trained_anew_and_written(cli: Shell):
    done = tuned(cli, {"inference.num_hidden": [2, 3], "memory": [0]}, "--trials", 5)
    assert done.code == 0, done.err
    *trials, best = done.records
    assert [record["kind"] for record in trials] == ["trial", "trial"]
    assert best["score"] == max(record["score"] for record in trials)
    assert [row["seed"] for row in best["test"]] == [13]
    written = yaml.safe_load((cli.folder / "study/best.yaml").read_text(encoding="utf-8"))["options"]
    assert written["inference"]["num_hidden"] == best["settings"]["inference.num_hidden"]
    assert cli("train", "--config", "study/best.yaml", "--dry-run").code == 0
