"""Run directories, results of the original code, and requests for the tests of the dashboard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dln.train.events import Event
from dln.train.run import to_line
from dln.view.folder import run_id
from report_events import synthetic_run

__all__ = ["TOKEN", "add_events", "original_results", "paths_of", "write_long_run", "write_original", "write_run"]

TOKEN = "a-token-for-the-tests"  # noqa: S105 - no secret


def write_run(folder: Path, events: Sequence[Event]) -> Path:
    """A run directory with these events, as a training leaves it."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("schema: 1\noptions: {seed: 13}\n")
    (folder / "events.jsonl").touch()
    add_events(folder, events)
    return folder


def add_events(folder: Path, events: Sequence[Event]) -> None:
    """Append events, as a training does."""
    with (folder / "events.jsonl").open("a", encoding="utf-8", errors="surrogateescape") as log:
        log.writelines(map(to_line, events))


def write_long_run(folder: Path, steps: int = 1000, candidates: int = 20, examples: int = 250) -> Path:
    """A run without its end; ten different steps in turn, because to make them all takes minutes."""
    kinds = 10
    events = synthetic_run(2, kinds, dev=False, test=False, finished=False, candidates=candidates, batch=examples)
    write_run(folder, events[:1])
    lines = [to_line(event) for event in events[1:]]
    with (folder / "events.jsonl").open("a", encoding="utf-8") as log:
        for number in range(1, steps + 1):
            kind = (number - 1) % kinds
            log.write(lines[kind].replace(f'"step":{kind + 1},', f'"step":{number},', 1))
    return folder


def original_results(steps: int = 3) -> dict[str, Any]:
    """Two experiments as the original code writes them, of one layer and of two."""

    def experiment(depth: int) -> dict[str, Any]:
        texts = [[f"step {s} layer {layer}" for layer in range(depth)] for s in range(steps + 1)]
        training = [{"step": 0, "layers": texts[0], "metrics": {"dev_acc": 0.5}, "candidates": [[], []]}]
        for s in range(1, steps + 1):
            metrics = {"elbo": -1.0 / s, "acc": 0.5, "run_acc": 0.5, "run_elbo": -1.0, "dev_acc": 0.5 + 0.1 * s}
            candidates = [
                [{"layer": old, "score": -2.0}, {"layer": "another", "score": -3.0}, {"layer": new, "score": -1.0}]
                for old, new in zip(texts[s - 1], texts[s], strict=True)
            ]
            training.append({"step": s, "layers": texts[s], "metrics": metrics, "candidates": candidates})
        trace = [
            {"step": s, "hiddens": [f"thought {s}"] * (depth - 1), "output": "B) no" if s < 2 else "(A)"}
            for s in range(steps + 1)
        ]
        return {"training": training, "examples": [{"input": "Which one?", "label": "(A)", "trace": trace}]}

    return {"one": experiment(1), "two": experiment(2)}


def write_original(file: Path) -> Path:
    """Such results in a file."""
    file.write_text(json.dumps(original_results()), encoding="utf-8")
    return file


def paths_of(name: str) -> list[tuple[str, str]]:
    """Method and path of everything that the server answers for a run, and of the rest."""
    run = f"/api/runs/{run_id(name)}"
    reads = ["/", "/static/app.js", "/static/report.css", "/api/runs", run, f"{run}/steps/1", f"{run}/examples"]
    return [
        *(("GET", path) for path in (*reads, f"{run}/files/steps.csv", f"{run}/events?after=0")),
        ("GET", f"{run}/labels"),
        ("POST", f"{run}/control"),
        ("POST", f"{run}/labels"),
        *(("OPTIONS", path) for path in (*reads, f"{run}/control")),
        ("DELETE", run),
        ("PUT", f"{run}/control"),
        ("HEAD", "/"),
        ("GET", "/nothing"),
    ]
