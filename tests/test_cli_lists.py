"""Flags with several values: what is no value is said once, before anything is asked of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_shell import Shell
from dln.cli.flags import names_of, seeds_of
from dln.errors import InputError


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


@given(st.lists(st.integers(), min_size=1, unique=True))
def test_seeds_are_read_as_they_are_written_and_none_twice(seeds: list[int]):
    assert seeds_of(",".join(map(str, seeds))) == tuple(seeds)
    assert seeds_of(" , ".join(map(str, seeds)) + ",") == tuple(seeds)
    with pytest.raises(InputError, match="given twice"):
        seeds_of(",".join(map(str, [*seeds, seeds[0]])))


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_nothing_is_named_as_such_with_the_flag(text: str):
    with pytest.raises(InputError, match=r"--tasks: no name given"):
        names_of(text, "--tasks")
    with pytest.raises(InputError, match=r"--seeds: not a list of seeds"):
        seeds_of(text)


@pytest.mark.parametrize("command", [("tune", "--task", "questions"), ("bench", "paper", "--tasks", "questions")])
@pytest.mark.parametrize("seeds", ["13,x2", "1.5", "13;42", ","])
def test_a_bad_seed_is_one_message_about_the_flag(cli: Shell, command: tuple[str, ...], seeds: str):
    # a model that must not be loaded
    done = cli(*command, "--lm", "fake/broken", "--seeds", seeds, "--run-dir", "made")
    assert done.code == 2
    assert done.err.count("error:") == 1
    assert "--seeds" in done.err
    assert repr(seeds) in done.err
    assert "bug" not in done.err
    assert not done.out
    assert not (cli.folder / "made").exists()
