"""Shell completion of names: tasks, presets, templates, models, runs and training options.

Every command imports this module: what it completes from is imported when the shell asks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

__all__ = [
    "hidden_starts",
    "key_variables",
    "model_options",
    "models",
    "presets",
    "runs",
    "settings",
    "tasks",
    "templates",
]

OPTIONS = ("timeout", "max_concurrency", "chat", "device", "dtype")
"""Options of engines that are asked for most."""


def tasks(incomplete: str) -> list[str]:
    """Known tasks, and the example files that are here."""
    from dln.data import task_names

    files = [str(path) for kind in ("*.csv", "*.tsv", "*.jsonl") for path in sorted(Path().glob(kind))]
    return _matching([*task_names(), *files], incomplete)


def presets(incomplete: str) -> list[str]:
    """Named sets of options."""
    from dln.train.options import PRESETS

    return _matching(list(PRESETS), incomplete)


def hidden_starts(incomplete: str) -> list[str]:
    """What hidden layers can begin as."""
    from dln.train.layout import Hidden

    return _matching(list(get_args(Hidden)), incomplete)


def templates(incomplete: str) -> list[str]:
    """Templates of layers."""
    from dln.nn import template_names

    return _matching(template_names("forward"), incomplete)


def models(incomplete: str) -> list[str]:
    """Forms of model names, as far as they are fixed."""
    from dln.lm.load import ENGINES

    return _matching([engine.form.partition("<")[0] for engine in ENGINES.values()], incomplete)


def key_variables(incomplete: str) -> list[str]:
    """Environment variables that are set and whose names say that they hold a key; names only."""
    return _matching(sorted(name for name in os.environ if name.endswith(("_KEY", "_TOKEN"))), incomplete)


def model_options(incomplete: str) -> list[str]:
    """Options of engines, as `--lm-option` takes them."""
    return _matching([f"{name}=" for name in OPTIONS], incomplete)


def runs(incomplete: str) -> list[str]:
    """Run directories below `runs/` and beside what is typed."""
    folders = {Path("runs"), Path(incomplete).parent, Path(incomplete)}
    found = {str(path.parent) for folder in folders if folder.is_dir() for path in folder.glob("*/run.yaml")}
    return _matching(sorted(found), incomplete)


def settings(incomplete: str) -> list[str]:
    """Training options, as `--set` takes them."""
    from dln.train.options import InferenceOptions, Options

    names = [name for name in Options.model_fields if name != "inference"]
    names += [f"inference.{name}" for name in InferenceOptions.model_fields]
    return _matching([f"{name}=" for name in names], incomplete)


def _matching(words: list[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
