"""Several runs of one task, with different seeds: mean and interval over the runs, and the best run by dev score.

For R runs with equal options and different seeds, the 95 % interval of the result of another seed is

    mean ± t_{0.975, R−1} · s / √R          s: standard deviation over the runs

It describes the variation between seeds, not that of a finite test set, which each run reports on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dln.errors import InputError
from dln.train.evaluate import Interval, over_runs
from dln.train.run import read_events, read_meta
from dln.view.summary import RunSummary, summarize

__all__ = ["OneRun", "Together", "read_together"]


@dataclass(frozen=True)
class OneRun:
    """A run directory with its seed and summary."""

    path: Path
    seed: int
    summary: RunSummary

    @property
    def finished(self) -> bool:
        """Whether the run ended regularly and not by its budget."""
        return self.summary.state == "finished" and self.summary.reason != "budget"


@dataclass(frozen=True)
class Together:
    """Runs of one task with different seeds.

    Attributes:
        task: name of the task.
        runs: all runs, by seed; all other fields leave unfinished ones out.
        select_by: name of the dev score; None if the runs differ in it or have none.
        dev: dev score over the finished runs; None without one.
        test: test accuracy over the finished runs; None if a run has none.
        best: the finished run with the highest dev score, of equals the smallest seed; None without dev scores.
        differences: dotted names of the options, except the seed, that differ between runs.
    """

    task: str
    runs: tuple[OneRun, ...]
    select_by: str | None
    dev: Interval | None
    test: Interval | None
    best: OneRun | None
    differences: tuple[str, ...]

    @property
    def finished(self) -> tuple[OneRun, ...]:
        """The finished runs."""
        return tuple(run for run in self.runs if run.finished)

    def to_record(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "kind": "together",
            "task": self.task,
            "runs": [
                {
                    "run_dir": str(run.path),
                    "seed": run.seed,
                    "state": run.summary.state,
                    "dev_score": run.summary.best_score,
                    "test_accuracy": None if run.summary.test is None else run.summary.test.accuracy,
                }
                for run in self.runs
            ],
            "finished": len(self.finished),
            "select_by": self.select_by,
            "dev": _numbers(self.dev),
            "test": _numbers(self.test),
            "best": None if self.best is None else str(self.best.path),
            "differences": list(self.differences),
        }


def read_together(paths: Sequence[Path]) -> Together:
    """Read several runs of one task.

    Args:
        paths: run directories, or folders of run directories.

    Raises:
        InputError: a path contains no run, a run is named twice, or the tasks differ.
    """
    places = [place for path in paths for place in _run_directories(path)]
    twice = sorted({str(place) for place in places if [p.resolve() for p in places].count(place.resolve()) > 1})
    if twice:
        raise InputError("a run is named twice", where="runs", got=", ".join(twice), expected="each run once")
    metas = [read_meta(place) for place in places]
    runs = [
        OneRun(place, int(meta["options"]["seed"]), summarize(read_events(place / "events.jsonl")))
        for place, meta in zip(places, metas, strict=True)
    ]
    tasks = {run.summary.task for run in runs}
    if len(tasks) != 1:
        raise InputError(
            "cannot average runs of different tasks",
            where="runs",
            got=", ".join(f"{run.path}: {run.summary.task}" for run in runs),
            expected="runs of one task",
        )
    runs.sort(key=lambda run: (run.seed, str(run.path)))
    done = [run for run in runs if run.finished]
    kinds = {run.summary.select_by for run in done}
    select_by = kinds.pop() if len(kinds) == 1 else None
    scored = [run for run in done if run.summary.best_score is not None] if select_by else []
    tests = [run.summary.test.accuracy for run in done if run.summary.test is not None]
    return Together(
        task=tasks.pop(),
        runs=tuple(runs),
        select_by=select_by,
        dev=over_runs([cast(float, run.summary.best_score) for run in scored]) if scored else None,
        test=over_runs(tests) if tests and len(tests) == len(done) else None,
        best=max(scored, key=lambda run: (cast(float, run.summary.best_score), -run.seed), default=None),
        differences=_differences([_leaves(meta["options"]) for meta in metas]),
    )


def _run_directories(path: Path) -> list[Path]:
    if (path / "run.yaml").exists():
        return [path]
    found = sorted(file.parent for file in path.glob("*/run.yaml"))
    if not found:
        raise InputError("there is no run here", where=path, expected="a run directory, or a folder of run directories")
    return found


def _leaves(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        inner = name == "inference" and isinstance(value, Mapping)
        found |= _leaves(cast(Mapping[str, Any], value), "inference.") if inner else {prefix + name: value}
    return found


def _differences(options: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in options for name in row if name != "seed")
    return tuple(name for name in names if any(row.get(name) != options[0].get(name) for row in options))


def _numbers(value: Interval | None) -> dict[str, float | None] | None:
    if value is None:
        return None
    several = value.low == value.low  # NaN: one run has no interval
    return {"mean": value.mean, "low": value.low if several else None, "high": value.high if several else None}
