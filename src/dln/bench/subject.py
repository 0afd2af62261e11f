"""What the workloads are made of: the paper's subj and trec where they are, the bundled questions elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dln.data import Example, load_task
from dln.errors import InputError

__all__ = ["Subject", "choose_subject", "find_data"]

PAPER_TASKS = {2: "subj", 6: "trec"}
"""Which of the paper's tasks has so many classes."""


@dataclass(frozen=True)
class Subject:
    """A classification task cut to what a benchmark needs.

    Attributes:
        name: what the output calls it.
        instruction: the initial prompt of the output layer.
        labels: C label names.
        examples: real labelled inputs, the classes taking turns.
    """

    name: str
    instruction: str
    labels: tuple[str, ...]
    examples: tuple[Example, ...]

    def batch(self, size: int) -> tuple[Example, ...]:
        """The first `size` examples.

        Raises:
            InputError: there are not so many.
        """
        if size > len(self.examples):
            raise InputError("the task has fewer examples", where=self.name, got=size, expected=len(self.examples))
        return self.examples[:size]

    def others(self, size: int) -> tuple[Example, ...]:
        """All examples but the first `size`: what demonstrations are drawn from."""
        return self.examples[size:]


def choose_subject(classes: int, data: Path | None) -> Subject:
    """The task with `classes` labels: the paper's from `data`, or the bundled one restricted to as many classes.

    Raises:
        InputError: neither has so many, or the data cannot be read.
    """
    if data is not None and classes in PAPER_TASKS:
        task = load_task(PAPER_TASKS[classes], data)
        labels = task.label_names or ()
        return Subject(task.name, task.instruction, labels, _in_turns(task.train.examples, labels))
    task = load_task("questions")
    names = tuple(task.label_names or ())
    if not 2 <= classes <= len(names):
        raise InputError("no task has so many classes", where="classes", got=classes, expected=f"2 … {len(names)}")
    labels = names[:classes]
    *most, last = labels
    listed = f"{', '.join(most)} or {last}"
    return Subject(
        name=f"questions ({classes} of {len(names)} classes)",
        instruction=f"Read the following question, then choose whether it asks for a {listed}.",
        labels=labels,
        examples=_in_turns(task.train.examples, labels),
    )


def find_data(given: Path | None) -> Path | None:
    """The directory of the paper's data: as given, DLN_PAPER_DATA, or `../shared/data`; None where there is none.

    Raises:
        InputError: a directory was named, and it is not there.
    """
    named = given or (Path(os.environ["DLN_PAPER_DATA"]) if os.environ.get("DLN_PAPER_DATA") else None)
    if named is not None and not named.is_dir():
        raise InputError("there is no such directory", where="data", got=named, fix="leave --data out for bundled data")
    usual = Path("..") / "shared" / "data"
    return named or (usual if usual.is_dir() else None)


def _in_turns(examples: tuple[Example, ...], labels: tuple[str, ...]) -> tuple[Example, ...]:
    groups = [[example for example in examples if example.target == label] for label in labels]
    return tuple(example for row in zip(*groups, strict=False) for example in row)
