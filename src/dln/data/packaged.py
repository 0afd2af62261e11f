"""Tasks that come with the package: JSON lines written by this project's own tools, with fixed splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate, pairwise
from typing import cast

from dln.data.dataset import Dataset, Example
from dln.data.metrics import ExactMatch
from dln.data.task import Task
from dln.errors import CorruptDataError

__all__ = ["Packaged"]


@dataclass(frozen=True, slots=True)
class Packaged:
    """What is said of a packaged task beside its examples; calling it reads those from `bundled/<name>.jsonl`.

    Attributes:
        name: of the task and its file.
        instruction: the initial prompt of the output layer.
        labels: the classes.
        splits: lines of train, dev and test, which are consecutive blocks of the file with every class equally often.
        notes: what a reader of the results should know.
        stages: see `Task`.
        input_name: what an input is, in one word.
    """

    name: str
    instruction: str
    labels: tuple[str, ...]
    splits: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    input_name: str = "input"

    def __call__(self) -> Task:
        """The task, always with the same splits.

        Raises:
            CorruptDataError: the packaged file is damaged.
        """
        source = resources.files("dln.data") / "bundled" / f"{self.name}.jsonl"
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
            records = [cast(dict[str, str], json.loads(line)) for line in lines]
            examples = [Example(r["input"], r["target"], f"{self.name}:{i}") for i, r in enumerate(records, start=1)]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(source, repr(error)) from error
        if len(examples) != sum(self.splits):
            raise _damaged(source, f"{len(examples)} examples instead of {sum(self.splits)}")
        train, dev, test = (
            Dataset(tuple(examples[a:b]), self.labels, name=f"{self.name}.{part}")
            for part, (a, b) in zip(("train", "dev", "test"), pairwise([0, *accumulate(self.splits)]), strict=True)
        )
        return Task(
            name=self.name,
            instruction=self.instruction,
            labels=self.labels,
            train=train,
            dev=dev,
            test=test,
            metric=ExactMatch(self.labels),
            notes=self.notes,
            input_name=self.input_name,
            stages=self.stages,
        )


def _damaged(source: object, got: str) -> CorruptDataError:
    return CorruptDataError("the bundled task is damaged", where=source, got=got, fix="reinstall the package")
