"""The structure of the package stays as designed: `tools/structure.py` runs from a checkout, and its limits hold."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "structure.py"
MAX_FILES = 195
MAX_LINES = 56_000
MAX_STEP_FILES = 60


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return json.loads(json.dumps(runpy.run_path(str(TOOL))["measured"]()))


@pytest.mark.slow
def test_the_tool_prints_what_it_measures(numbers: dict[str, Any]) -> None:
    command = [sys.executable, str(TOOL), "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    # a process of its own imports what it needs during the step, and those files count
    for depth, files in printed.pop("step_files").items():
        assert set(files) >= set(numbers["step_files"][depth])
        assert len(files) <= MAX_STEP_FILES
    assert printed == {name: value for name, value in numbers.items() if name != "step_files"}


def test_there_are_no_import_circles(numbers: dict[str, Any]) -> None:
    assert numbers["circles"] == []


def test_the_package_stays_small(numbers: dict[str, Any]) -> None:
    assert numbers["files"] == sum(part["files"] for part in numbers["parts"].values())
    assert 50 < numbers["files"] <= MAX_FILES
    assert numbers["lines"] <= MAX_LINES


def test_a_training_step_touches_few_files(numbers: dict[str, Any]) -> None:
    for files in numbers["step_files"].values():
        assert "dln/infer/vi.py" in files
        assert len(files) <= MAX_STEP_FILES


def test_circles_and_long_functions_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The counts can fail: a small package with a lazy circle and a function of 61 lines."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import structure

    package = tmp_path / "src" / "dln"
    package.mkdir(parents=True)
    (package / "a.py").write_text("def f():\n    import dln.b\n" + "    f()\n" * 59)
    (package / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dln.a import f\n")
    (package / "c.py").write_text("from dln import b\n")
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    monkeypatch.setattr(structure, "SRC", tmp_path / "src")
    known = structure.modules()
    edges = structure.graph(known)
    assert edges == {"dln.a": {"dln.b"}, "dln.b": {"dln.a"}, "dln.c": {"dln.b"}}
    assert structure.circles(edges) == [["dln.a", "dln.b"]]
    assert [(lines, place.split()[-1]) for lines, place in structure.long_functions(known)] == [(61, "f")]
