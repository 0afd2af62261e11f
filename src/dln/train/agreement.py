"""What must agree before training begins: the data with the network, and a resumed run with its beginning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dln.data import Dataset
from dln.errors import InputError
from dln.nn import Sequential
from dln.train.run import Run

__all__ = ["check_data", "check_unchanged"]


def check_data(network: Sequential, train: Dataset, dev: Dataset | None) -> None:
    """Refuse data that is empty, or whose targets the network does not know.

    Raises:
        InputError: naming the part of the data.
    """
    for name, dataset in (("train", train), ("dev", dev)):
        if dataset is None:
            continue
        if not len(dataset):
            raise InputError(
                "there are no examples",
                where=name,
                got="an empty dataset",
                expected="one example or more",
                fix='dln.Dataset.from_pairs([("an input", "its target"), …])',
            )
        unknown = sorted(set(dataset.targets) - set(network.labels or dataset.targets))
        if unknown:
            raise InputError(
                "the data has targets that the network does not know",
                where=name,
                got=unknown[:10],
                expected=list(network.labels or ()),
                fix="name the labels the same, or map them: dataset.with_labels({…})",
            )


def check_unchanged(run: Run, meta: Mapping[str, Any]) -> None:
    """A resumed run must compute with what it began with.

    Raises:
        InputError: naming what has changed.
    """
    before = run.meta
    for name in ("options", "data_hash", "network", "models"):
        if before.get(name) != meta[name]:
            raise InputError(
                f"the run cannot be resumed: its {name.replace('_', ' ')} has changed",
                where=run.path,
                got=meta[name] if name in {"data_hash", "models"} else "another value than in run.yaml",
                expected=before.get(name) if name in {"data_hash", "models"} else None,
                fix="restore what it was, or start a new run",
            )
