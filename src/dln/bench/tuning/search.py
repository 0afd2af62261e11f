"""The search: each trial trains a network under one setting and is judged on the dev set alone.

The study is a file, one line per change, so that a search that is stopped goes on where it was. The grid of the
space is searched in random order; with more than a few dozen settings Optuna's tree-structured Parzen estimator
proposes the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dln.bench.tuning.space import Space, nested, size
from dln.errors import BudgetReached, InputError

__all__ = ["Trial", "search"]

GRID_LIMIT = 48
"""Larger spaces are sampled instead of enumerated."""


@dataclass(frozen=True)
class Trial:
    """One setting and what it gave.

    Attributes:
        number: 0-based.
        settings: option → value.
        score: on the dev set; higher is better.
    """

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
    """Try up to `trials` settings; all trials of the study, the best first.

    Args:
        train: nested options → dev score, higher is better.
        space: what is searched.
        trials: altogether, those of earlier calls with the same journal included.
        seed: of the order of settings.
        journal: the file of the study; None keeps nothing.
        progress: called after each trial.

    Raises:
        InputError: Optuna is missing, or the journal belongs to another space.
        BudgetReached: passed on; finished trials are kept.
    """
    optuna = _optuna()
    names = {name: [_key(value) for value in values] for name, values in space.items()}
    values = {name: dict(zip(names[name], values, strict=True)) for name, values in space.items()}
    few = size(space) <= GRID_LIMIT
    sampler = optuna.samplers.GridSampler(names, seed=seed) if few else optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(
        storage=None if journal is None else _storage(optuna, journal),
        study_name="dln",
        load_if_exists=True,
        sampler=sampler,
        direction="maximize",
    )
    if study.user_attrs.get("space", names) != names:
        raise InputError(
            "this study is of another search space", where=journal, fix="another --out, or delete the file"
        )
    study.set_user_attr("space", names)

    def settings(trial: Any) -> dict[str, Any]:
        return {name: values[name][trial.params[name]] for name in space}

    def objective(trial: Any) -> float:
        for name, keys in names.items():
            trial.suggest_categorical(name, keys)
        return train(nested(settings(trial)))

    def after(_study: Any, trial: Any) -> None:
        if trial.value is not None:
            progress(Trial(trial.number, settings(trial), float(trial.value)))

    complete = optuna.trial.TrialState.COMPLETE
    done = len(study.get_trials(states=[complete]))
    wanted = min(trials, size(space)) if few else trials
    if wanted > done:
        study.optimize(objective, n_trials=wanted - done, callbacks=[after], catch=(), gc_after_trial=False)
    found = [Trial(t.number, settings(t), float(t.value)) for t in study.get_trials(states=[complete])]
    if not found:
        raise BudgetReached("no trial was finished", where="search", fix="raise the budget, or ask for shorter runs")
    return sorted(found, key=lambda trial: (-trial.score, trial.number))


def _key(value: Any) -> str:
    """Optuna's categories are plain values; lists and nulls go by their text."""
    return repr(value)


def _optuna() -> Any:
    try:
        optuna: Any = import_module("optuna")
    except ImportError as error:
        raise InputError(
            "the search needs the package optuna", where="dln tune", fix="pip install 'dln[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(optuna: Any, journal: Path) -> Any:
    journal.parent.mkdir(parents=True, exist_ok=True)
    storages = optuna.storages
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(journal)))
