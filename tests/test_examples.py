"""Examples run as scripts; each `your_own_*` trains a run that resumes with an equal result."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dln
from dln.train.events import Interrupted, Resumed
from dln.train.run import current, parse_line, read_meta

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WITH_MODEL = {"quickstart.py"}
ELSEWHERE = {"demo.py"}
"""`make demo`: minutes long."""
OWN = sorted(e.stem for e in EXAMPLES if e.name.startswith("your_own_") and e.name != "your_own_csv.py")
QUICK = {"your_own_layer", "your_own_engine"}
KILLED = ("your_own_layer", "your_own_objective")
ENDS = {"your_own_callback_and_stopper": "stopper"}


def run(example: Path, folder: Path, *words: str) -> str:
    """Run an example in a process of its own and return what it prints."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(example), *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=290, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows something"
    return done.stdout


def script(example: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run an example as a script in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(example), *words])
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.name not in WITH_MODEL | ELSEWHERE], ids=lambda path: path.name
)
def test_example_in_a_process_of_its_own(example: Path, tmp_path: Path):
    run(example, tmp_path)


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(e, id=e.name, marks=pytest.mark.slow if e.name == "three_layers.py" else ())
        for e in EXAMPLES
        if e.name not in WITH_MODEL | ELSEWHERE and e.stem not in OWN
    ],
)
def test_example(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    script(example, tmp_path, monkeypatch)
    assert capsys.readouterr().out.strip(), "an example shows something"
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


def main_of(name: str) -> Callable[..., dln.FitResult]:
    return importlib.import_module(f"examples.{name}").main


def outcome(folder: Path, name: str) -> tuple[Any, list[dict[str, Any]]]:
    """All that an interruption must not change: the trained network, and every event that counts, without times."""

    def read(file: str) -> str:
        # a script's own classes belong to __main__
        return (folder / file).read_text(encoding="utf-8").replace("__main__", f"examples.{name}")

    network = json.loads(read("network.json"))
    layers = network.get("members") or network["layers"]
    events = current([parse_line(line, "events.jsonl") for line in read("events.jsonl").splitlines()])
    events = [event for event in events if not isinstance(event, Interrupted | Resumed)]
    return layers, [event.model_dump(mode="json", exclude={"time", "seconds", "run"}) for event in events]


def interrupt(event: dln.Event) -> None:
    if isinstance(event, dln.StepDone) and event.step == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OWN]
)
def test_an_own_part_trains_and_validates_a_run_that_resumes_with_an_equal_result(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script(ROOT / "examples" / f"{name}.py", tmp_path, monkeypatch, "whole")
    with pytest.raises(KeyboardInterrupt):
        main_of(name)(tmp_path / "run", callbacks=[interrupt])
    assert not (tmp_path / "run" / "network.json").exists()
    resumed = main_of(name)(tmp_path / "run")
    assert resumed.reason == ENDS.get(name, "steps")
    assert sum(row["dev_score"] is not None for row in resumed.history) > 1
    assert outcome(tmp_path / "run", name) == outcome(tmp_path / "whole", name)


KILL = """
import os, signal, sys
from pathlib import Path
import dln
from examples.{name} import main

def kill(event):
    if isinstance(event, dln.StepDone) and event.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

main(Path(sys.argv[1]), callbacks=[kill])
"""


@pytest.mark.parametrize("name", [KILLED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in KILLED[1:])])
def test_a_run_with_an_own_part_survives_a_kill(name: str, tmp_path: Path):
    command = [sys.executable, "-c", KILL.format(name=name), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": python_path()}, check=False, timeout=290)
    assert done.returncode == -signal.SIGKILL
    main_of(name)(tmp_path / "run")
    main_of(name)(tmp_path / "whole")
    assert outcome(tmp_path / "run", name) == outcome(tmp_path / "whole", name)


def python_path(*more: Path) -> str:
    return os.pathsep.join([str(ROOT), str(Path(dln.__file__).parents[1]), *map(str, more)])


POINTS = """[dln]
objective.worst_class = your_own_objective:WorstClass
engine.letters = your_own_engine:SharedLetters
task.sums = your_own_task:task
"""


def test_a_separate_package_is_found_by_its_entry_points(tmp_path: Path):
    package = tmp_path / "site"
    info = package / "own_parts-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(POINTS, encoding="utf-8")
    for name in ("your_own_objective", "your_own_engine", "your_own_task"):
        shutil.copy(ROOT / "examples" / f"{name}.py", package)

    def shell(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from dln.cli.main import main; main()", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": python_path(package)},
            capture_output=True,
            text=True,
            check=False,
            timeout=290,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    settings = (
        "inference.output_objective=worst_class",
        "inference.prompt_proposals={demonstrations: 1}",
        "batch_size=5",
    )
    options = [word for setting in settings for word in ("--set", setting)]
    shell("train", "--task", "sums", "--lm", "letters/x", "--steps", "1", "--run-dir", "run", "--no-test", *options)
    assert read_meta(tmp_path / "run")["options"]["inference"]["output_objective"] == "worst_class"
    assert list(read_meta(tmp_path / "run")["models"]) == ["letters/x"]
    found = shell("doctor", "--lm", "letters/x")
    assert "objective worst_class: your_own_objective:WorstClass, registered by own-parts 1.0" in found
    assert "letters/x: texts: cannot be scored" in found
