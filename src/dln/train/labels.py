"""Labels that a person gives to inputs: those that a network is least sure of first.

`to_label.json` in the run directory holds the inputs that wait, with what the network says of them. Each label is a
line of `labels.jsonl`, which is only ever appended to; a line without a label takes the one before it back. They are
examples of training only: what is in a dev or test set is neither asked for nor used.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, ValidationError

from dln.data import Dataset, Example, Task
from dln.data.dataset import text_key
from dln.errors import CorruptDataError, InputError
from dln.io import write_atomically
from dln.train.control import append_line
from dln.train.events import Record

__all__ = [
    "LABELS",
    "WAITING",
    "Label",
    "Waiting",
    "entropy",
    "give_label",
    "given_labels",
    "least_sure_first",
    "read_waiting",
    "seen_inputs",
    "with_given_labels",
    "write_waiting",
]

LABELS, WAITING = "labels.jsonl", "to_label.json"


class Label(Record):
    """A line of labels.jsonl.

    Attributes:
        x: the input.
        y: its label; None takes the label back.
        predicted: what the network said.
        time: seconds since 1970.
    """

    x: str
    y: str | None
    predicted: str = ""
    time: float = Field(default_factory=time.time)


class Waiting(Record):
    """An input to label.

    Attributes:
        x: the input.
        probabilities: of the labels, as the network sees it.
    """

    x: str
    probabilities: dict[str, float]

    @property
    def predicted(self) -> str:
        """The most probable label."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])


def entropy(probabilities: Iterable[float]) -> float:
    """−Σ p log p in nats: 0 where one label is sure, log C where all C are equally probable.

    >>> entropy([1.0, 0.0]), round(entropy([0.5, 0.5]), 4)
    (0.0, 0.6931)
    """
    return -sum(p * math.log(p) for p in probabilities if p > 0) + 0.0


def least_sure_first(rows: Iterable[Waiting]) -> list[Waiting]:
    """The inputs by falling entropy of their labels, each once; equals stay in order."""
    once: dict[str, Waiting] = {}
    for row in rows:
        once.setdefault(text_key(row.x), row)
    return sorted(once.values(), key=lambda row: -entropy(row.probabilities.values()))


def seen_inputs(task: Task) -> dict[str, str]:
    """The part of a task in which an input is: "test", "dev" or "train", by `text_key`."""
    parts = (("train", task.train), ("dev", task.dev), ("test", task.test))
    return {text_key(x): part for part, dataset in parts for x in dataset.inputs}


def write_waiting(run_dir: Path, rows: Sequence[Waiting]) -> None:
    """Replace the inputs that wait for a label in a run directory."""
    content = json.dumps([row.model_dump() for row in rows], ensure_ascii=True)
    try:
        write_atomically(run_dir / WAITING, content + "\n")
    except OSError as error:
        raise InputError("cannot write the file", where=run_dir / WAITING, got=error.strerror) from error


def read_waiting(run_dir: Path) -> list[Waiting]:
    """The inputs that wait for a label, also those that have one by now; empty before the first question.

    Raises:
        CorruptDataError: the file holds something else.
    """
    file = run_dir / WAITING
    if not file.exists():
        return []
    try:
        return [Waiting.model_validate(row) for row in json.loads(file.read_bytes())]
    except (ValueError, TypeError) as error:
        raise CorruptDataError("these are no inputs to label", where=file, fix="dln label RUN FILE") from error


def give_label(run_dir: Path, label: Label, labels: Collection[str]) -> None:
    """Append a label to the run's file; `y` None takes back what was given.

    Raises:
        InputError: there is no such label, or the file cannot be written.
    """
    if label.y is not None and label.y not in labels:
        raise InputError("there is no such label", got=repr(label.y), expected=f"one of {', '.join(labels)}")
    append_line(run_dir / LABELS, label.model_dump_json())


def given_labels(file: Path) -> dict[str, str]:
    """The labels that hold, by input, in the order in which they were given.

    Raises:
        InputError: there is no such file.
        CorruptDataError: a complete line is not a label.
    """
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError("there are no labels here", where=file, fix="dln label RUN FILE") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        try:
            label = Label.model_validate_json(line)
        except ValidationError as error:
            raise CorruptDataError("this line is no label", where=f"{file}:{number}") from error
        found.pop(label.x, None)
        if label.y is not None:
            found[label.x] = label.y
    return found


def with_given_labels(task: Task, given: Mapping[str, str], source: str) -> tuple[Task, int]:
    """The task with these examples in its training set, and how many are left out: those of its dev and test sets.

    An input that is in the training set already has the given label from then on.

    Raises:
        InputError: a label that the task does not have.
    """
    places = seen_inputs(task)
    held_out = {x for x in given if places.get(text_key(x)) in ("dev", "test")}
    used = {text_key(x): Example(x, y, id=source) for x, y in given.items() if x not in held_out}
    names = task.label_names
    wrong = next((e.target for e in used.values() if names is not None and e.target not in names), None)
    if wrong is not None:
        raise InputError("the task has no such label", where=source, got=repr(wrong), expected=", ".join(names or ()))
    kept = [replace(e, target=used.pop(key).target) if (key := text_key(e.input)) in used else e for e in task.train]
    train: Dataset = task.train.with_examples([*kept, *used.values()])
    return replace(task, train=train), len(held_out)
