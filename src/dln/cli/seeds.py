"""A series: one run per seed under one folder, each an ordinary run, resumable as a whole.

The folder holds `seeds.yaml`, with the seeds and the configuration that all runs share, and the run directories
`seed-13`, `seed-42`, … A run that was not begun when the series was stopped begins from `seeds.yaml`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import typer
import yaml

from dln.cli.compare import tell_together
from dln.cli.config import RunConfig, parse_config
from dln.cli.output import err, safe
from dln.errors import CorruptDataError, InputError
from dln.view.seeds import read_together

__all__ = ["begin_series", "is_series", "parse_seeds", "read_series", "run_series", "seed_directory", "with_seed"]

FILE = "seeds.yaml"


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of `13,42,25`.

    Raises:
        InputError: one is no whole number, or is given twice.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError("not a list of seeds", where="--seeds", got=text, expected="13,42,25") from error
    if len(set(seeds)) != len(seeds):
        raise InputError("a seed is given twice", where="--seeds", got=text, expected="different seeds")
    return seeds


def begin_series(directory: Path, config: RunConfig, seeds: tuple[int, ...]) -> None:
    """Write `seeds.yaml` into a folder that holds nothing yet.

    Raises:
        InputError: the folder is in use, or cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(
            "this folder is in use",
            where=directory,
            expected="a folder that is empty or not there",
            fix=f"dln resume {shlex.quote(str(directory))}" if is_series(directory) else "another --run-dir",
        )
    content = {"schema": 1, "seeds": list(seeds), "config": config.model_dump(mode="json")}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draft = directory / f".{FILE}.tmp"
        draft.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
        draft.replace(directory / FILE)
    except OSError as error:
        raise InputError("the folder of the runs cannot be written", where=directory, got=error.strerror) from error


def is_series(directory: Path) -> bool:
    """Whether the folder holds one run per seed."""
    return (directory / FILE).is_file()


def read_series(directory: Path) -> tuple[RunConfig, tuple[int, ...]]:
    """The configuration that all runs share, and the seeds.

    Raises:
        CorruptDataError: `seeds.yaml` is damaged.
    """
    file = directory / FILE
    try:
        data = cast(Mapping[str, Any], yaml.safe_load(file.read_text(encoding="utf-8")))
        seeds = tuple(int(seed) for seed in data["seeds"])
        recorded = cast(Mapping[str, Any], data["config"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CorruptDataError("this file is damaged", where=file, got=str(error)) from error
    return parse_config(recorded, str(file)), seeds


def seed_directory(directory: Path, seed: int) -> Path:
    """Where the run of a seed is."""
    return directory / f"seed-{seed}"


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The configuration of one run."""
    return config.model_copy(update={"options": {**config.options, "seed": seed}})


def run_series(directory: Path, seeds: tuple[int, ...], one: Callable[[int, Path], None], *, as_json: bool) -> None:
    """Run every seed after the other, and read the runs together at the end.

    Args:
        directory: the folder of the runs.
        seeds: in the order they are run.
        one: trains (or goes on with) the run of a seed.
        as_json: records on standard output, and nothing else there.

    Raises:
        typer.Exit: a run was interrupted or its budget is spent; the series can be resumed.
    """
    for number, seed in enumerate(seeds, 1):
        err().print(safe(f"seed {seed} ({number} of {len(seeds)})"))
        try:
            one(seed, seed_directory(directory, seed))
        except typer.Exit as leaving:
            if leaving.exit_code:
                err().print(safe(f"go on with all seeds: dln resume {shlex.quote(str(directory))}"), soft_wrap=True)
            raise
    tell_together(read_together([seed_directory(directory, seed) for seed in seeds]), as_json=as_json)
