"""Every example runs to its end, in a process of its own and an empty directory, as a reader would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WITH_MODEL = {"quickstart.py"}
ELSEWHERE = {"demo.py"}
"""`make demo`: minutes long."""


def run(example: Path, folder: Path) -> str:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(example)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=290, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows something"
    return done.stdout


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.name not in WITH_MODEL | ELSEWHERE], ids=lambda path: path.name
)
def test_example(example: Path, tmp_path: Path):
    run(example, tmp_path)
    assert not list(tmp_path.iterdir()), "an example leaves nothing in the reader's directory"


@pytest.mark.model
@pytest.mark.slow  # the tutorial's blocks make the same calls
@pytest.mark.parametrize("name", sorted(WITH_MODEL))
@pytest.mark.usefixtures("smollm2")
def test_example_with_the_embedded_model(name: str, tmp_path: Path):
    assert "after:" in run(ROOT / "examples" / name, tmp_path)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.name not in ELSEWHERE], ids=lambda path: path.name)
def test_example_is_short_and_says_what_it_shows(example: Path):
    lines = [line for line in example.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert lines[0].startswith('"""')
    assert len(lines) <= 40
