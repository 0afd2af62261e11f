"""A place to try the command line in: an empty folder, no settings from outside, and the instant model."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cli_fake_engine
from dln.cli.main import run

__all__ = ["Done", "Shell", "mail_csv"]

ENGINE = Path(__file__).with_name("cli_fake_engine.py")
_KEPT = tempfile.TemporaryDirectory(prefix="dln-runs-")
atexit.register(_KEPT.cleanup)
_FINISHED: dict[tuple[str, ...], Path] = {}


@dataclass(frozen=True)
class Done:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Standard output as JSON records; fails if there is anything else."""
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Runs command lines in this process, or in one of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in [name for name in os.environ if name.startswith("DLN_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("DLN_CACHE_DIR", str(folder / "cache"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.chdir(folder)
        cli_fake_engine.install()
        self._capsys = capsys
        self.folder = folder

    def __call__(self, *words: object) -> Done:
        """`dln words…` in this process."""
        self._capsys.readouterr()
        code = run([str(word) for word in words])
        captured = self._capsys.readouterr()
        return Done(code, captured.out, captured.err)

    def trained(self, *words: object, run_dir: str) -> Path:
        """The directory of the finished run of `dln train …`: trained once per process, and copied from then on."""
        key = (*map(str, words), run_dir)
        if key not in _FINISHED:
            done = self(*words, "--run-dir", run_dir, "--no-cache")
            assert done.code == 0, done.err
            _FINISHED[key] = Path(tempfile.mkdtemp(dir=_KEPT.name))
            shutil.copytree(self.folder / run_dir, _FINISHED[key], dirs_exist_ok=True)
        else:
            shutil.copytree(_FINISHED[key], self.folder / run_dir)
        return self.folder / run_dir

    def process(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """The same as a process."""
        command = [sys.executable, str(ENGINE), *map(str, words)]
        given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen(command, cwd=self.folder, **given)


def mail_csv(path: Path, rows: int = 60) -> Path:
    """A small file of two classes."""
    order, broken = '"please send me {} boxes, number {}",order', "the {} tiles of box {} broke,return"
    lines = [(order if i % 2 else broken).format(i, i * 7 % 31) for i in range(rows)]
    lines.insert(0, "message,kind")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
