"""Tasks by name: every command finds them alike, and says alike what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_shell import Shell
from dln.cli.build import known_task
from dln.data import load_task

BENCH = ("bench", "paper", "--methods", "majority", "--seeds", 1, "--lm", "fake/1")
TRAIN = ("train", "--lm", "fake/1", "--dry-run")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


def test_the_bundled_task_is_the_same_whatever_the_directory_and_however_it_is_spelt():
    wanted = load_task("questions").content_hash()
    for name in ("questions", "Questions", " QUESTIONS "):
        assert known_task(name, "no/such/directory").content_hash() == wanted
        assert known_task(name, None).content_hash() == wanted


@pytest.mark.parametrize("words", [(*BENCH, "--tasks", "Questions"), (*TRAIN, "--task", "Questions")])
def test_a_directory_of_data_that_the_bundled_task_does_not_need_is_no_mistake(cli: Shell, words: tuple[object, ...]):
    done = cli(*words, "--data", "no/such/directory")
    assert done.code == 0, done.err


@pytest.mark.parametrize("words", [(*BENCH, "--tasks", "subj"), (*TRAIN, "--task", "subj")])
def test_data_that_is_missing_is_asked_for_by_its_flag(cli: Shell, words: tuple[object, ...]):
    done = cli(*words)
    assert done.code == 2
    assert "is not bundled with dln" in done.err
    assert "--data path/to/data" in done.err
