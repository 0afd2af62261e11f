"""Search over options: each trial trains a network with one setting and is scored on the dev set only.

A small grid is searched in random order; in a larger space Optuna's tree-structured Parzen estimator proposes the
settings. The study is a journal file, so an interrupted search continues. The default space is the paper's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import yaml

from dln.errors import InputError
from dln.random import Key
from dln.train.options import nested, resolve_options

__all__ = ["PAPER_SPACE", "Space", "Trial", "paper_space", "read_space", "search", "size"]

Space = Mapping[str, Sequence[Any]]
"""Maps dotted options, such as `inference.held_out_half`, to the values to try."""

PAPER_SPACE: dict[int, Space] = {
    1: {
        "inference.backward_template": ["backward_student", "backward"],
        "tolerance": [None, 1, 2],
        "memory": [0, 2],
        "inference.held_out_half": [True, False],
    },
    2: {
        "inference.num_hidden": [5, 10],
        "inference.backward_template": ["backward_student", "backward"],
        "inference.exploration": [0.0, 0.5, 2.0],
        "inference.trust_factor": [0.0, 1.0, 5.0],
        "inference.posterior_temp": [1.0, 0.75],
    },
}
"""The paper's spaces (appendix) by depth: one layer, and two layers trained end to end."""


def paper_space(depth: int) -> Space:
    """Return the paper's space for `depth` layers; deeper networks use that of two layers."""
    return PAPER_SPACE[min(depth, 2)]


def read_space(path: Path) -> Space:
    """Read a space from a YAML mapping of options to lists of values.

    Raises:
        InputError: it is not such a mapping, or has an unknown option or an invalid value.
    """
    try:
        data: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("cannot read the search space", where=path, got=str(error)) from error
    if not isinstance(data, dict) or not data:
        raise InputError("the search space is not a mapping", where=path, expected="option: [value, value, …]")
    space = cast(dict[str, Any], data)
    for name, values in space.items():
        if not isinstance(values, list) or not values:
            raise InputError("a list of values is needed", where=f"{path}: {name}", got=str(cast(object, values)))
        for value in cast(list[Any], values):
            resolve_options("default", nested({name: value}))
    return space


def size(space: Space) -> int:
    """Return the number of settings."""
    return math.prod(map(len, space.values()))


GRID_LIMIT = 48
"""Larger spaces are sampled, not enumerated."""


@dataclass(frozen=True)
class Trial:
    """A trial: its number from 0, its settings by option, and its dev score (higher is better)."""

    number: int
    settings: dict[str, Any]
    score: float


def search(
    train: Callable[[dict[str, Any]], float],
    space: Space,
    trials: int,
    *,
    seed: int,
    journal: Path | None = None,
    progress: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Try up to `trials` settings and return all trials of the study, the best first.

    Args:
        train: nested options → dev score, higher is better.
        space: the search space.
        trials: total number of trials, including those in the journal.
        seed: determines the order of settings.
        journal: file of the study; None keeps nothing.
        progress: called after each trial.

    Raises:
        InputError: Optuna is missing, the journal belongs to another space, or there are no trials.
    """
    optuna = _optuna()
    names = {name: [_key(value) for value in values] for name, values in space.items()}
    values = {name: dict(zip(names[name], values, strict=True)) for name, values in space.items()}
    study = _study(optuna, names, seed, journal)
    complete = [optuna.trial.TrialState.COMPLETE]

    def finished() -> list[Trial]:
        rows = study.get_trials(states=complete)
        return [Trial(t.number, {n: values[n][t.params[n]] for n in space}, float(t.value)) for t in rows]

    few = size(space) <= GRID_LIMIT
    left = _untried(names, [trial.params for trial in study.get_trials(states=complete)], seed) if few else []
    wanted = trials - len(finished())
    for number in range(min(wanted, len(left)) if few else wanted):
        if few:
            study.enqueue_trial(left[number])
        trial = study.ask()
        settings = {name: values[name][trial.suggest_categorical(name, keys)] for name, keys in names.items()}
        try:
            score = train(nested(settings))
        except BaseException:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # to be tried again
            raise
        study.tell(trial, score)
        progress(Trial(trial.number, settings, score))
    found = finished()
    if not found:
        raise InputError("no trial has finished", where="search", got=f"trials={trials}")
    return sorted(found, key=lambda trial: (-trial.score, trial.number))


def _study(optuna: Any, names: dict[str, list[str]], seed: int, journal: Path | None) -> Any:
    """The study of the journal, or a fresh one.

    Raises:
        InputError: the journal belongs to another space.
    """
    study = optuna.create_study(
        storage=None if journal is None else _storage(optuna, journal),
        study_name="dln",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed),
        direction="maximize",
    )
    if study.user_attrs.get("space", names) != names:
        raise InputError(
            "this study belongs to another search space", where=journal, fix="use another --run-dir, or delete it"
        )
    study.set_user_attr("space", names)
    return study


def _untried(names: dict[str, list[str]], tried: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The settings of the grid without a result, in random order."""
    grid = [dict(zip(names, keys, strict=True)) for keys in itertools.product(*names.values())]
    order = Key(seed).child("grid").generator().permutation(len(grid))
    return [grid[int(i)] for i in order if grid[int(i)] not in tried]


def _key(value: Any) -> str:
    """Optuna's categories must be plain values: represent lists and nulls as text."""
    return repr(value)


def _optuna() -> Any:
    try:
        optuna: Any = import_module("optuna")
    except ImportError as error:
        raise InputError("the search needs optuna", where="dln tune", fix="pip install 'dln[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _storage(optuna: Any, journal: Path) -> Any:
    journal.parent.mkdir(parents=True, exist_ok=True)
    storages = optuna.storages
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(journal)))
