"""`--workers`, `--dask` and `--ray`: the same results, shown by `dln doctor`, and what excludes one another."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli_shell import Shell, mail_csv
from dln.cli import workers


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Worker threads in place of processes, which do not know the instant model of these tests."""
    workers._executor.cache_clear()
    monkeypatch.setattr(workers, "Processes", ThreadPoolExecutor)
    yield
    workers._executor.cache_clear()


@pytest.mark.usefixtures("threads")
def test_a_run_with_workers_is_the_same_run(cli: Shell) -> None:
    mail_csv(cli.folder / "mail.csv", 24)
    words = ["--csv", "mail.csv", "--lm", "fake/1", "--steps", 0, "--no-cache", "--dev-size", 8]
    assert cli("train", *words, "--run-dir", "one").code == 0
    assert cli("train", *words, "--run-dir", "two", "--workers", 2).code == 0
    one, two = (json.loads((cli.folder / name / "network.json").read_text("utf-8")) for name in ("one", "two"))
    assert one["layers"] == two["layers"]
    assert one["provenance"]["dev_score"] == two["provenance"]["dev_score"]


@pytest.mark.usefixtures("threads")
def test_the_doctor_names_the_workers(cli: Shell) -> None:
    shown = cli("doctor", "--lm", "fake/1", "--workers", 3)
    assert "workers: 3 of this machine, 1 thread each" in shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", 2, "--dask", "tcp://x:1"], "a Dask cluster has its own workers"),
        (["--ray", "auto", "--dask", "tcp://x:1"], "a Dask cluster has its own workers"),
        (["--workers", 2, "--lm", "vllm/x", "--base-url", "http://x/v1"], "is not computed by workers"),
        (["--workers", 0], "--workers"),
    ],
)
def test_what_cannot_be(cli: Shell, words: list[Any], message: str) -> None:
    shown = cli("doctor", *words)
    assert shown.code == 2
    assert message in shown.err
