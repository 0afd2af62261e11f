"""What machine this is.

Where and when a cell was made: what a reader must know before he compares its seconds with his own.

One cell of the table: a method on a task under a seed, and what came out. A cell is a file.

Cells are written as a whole or not at all, so that a bench which is stopped anywhere goes on with the cells
that are missing.

What came out of a cell: its predictions against the test examples.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dln.data import Task
from dln.errors import CorruptDataError, InputError
from dln.experiments.method import Learnt, changed_settings
from dln.nn import Prediction
from dln.train.evaluate import judge

__all__ = ["Cell", "CellResult", "Cells", "Made", "Spent", "made_here", "outcome", "processor"]


def processor() -> str:
    """The processor's name, where the system tells."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Made(BaseModel):
    """The circumstances of a measurement.

    Attributes:
        date: day, in UTC.
        machine: the processor.
        threads: of the engine in this process, where one is loaded; else of the machine.
        version: of this package.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    machine: str
    threads: int
    version: str

    @property
    def place(self) -> str:
        """Machine and threads, to be read by people."""
        return f"{self.machine}, {self.threads} thread{'' if self.threads == 1 else 's'}"


def made_here() -> Made:
    """Now, on this machine, in this process."""
    return Made(
        date=datetime.now(UTC).strftime("%Y-%m-%d"), machine=processor(), threads=_threads(), version=version("dln")
    )


def _threads() -> int:
    """Of torch, if an engine has loaded it: it is not loaded for the sake of a number."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Cell:
    """Which experiment."""

    task: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task} · {self.method} · seed {self.seed}"


class Record(BaseModel):
    """Frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spent(Record):
    """What a part of a cell used, as the meter counts it (see `dln.lm.meter.Usage`)."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and drawn."""
        return self.prompt_tokens + self.completion_tokens


class CellResult(Record):
    """What a cell gave.

    Attributes:
        task: name of the task.
        method: name of the method.
        seed: of everything random.
        correct: per test example, in the order of the test set: whether the answer was right.
        accuracy: their mean.
        balanced_accuracy: mean of the per-class accuracies.
        log_likelihood: mean log p(y|x) of the scored test examples, in nats; None where there are no
            probabilities, or one of the right labels is given none at all.
        log_probs: log p(y|x) per test example, in nats; None of an example without a usable score.
        tested: what each test example is: a short hash of its input, so that the same ones are compared.
        unscored: test examples without a usable score; they count as wrong.
        train: what was spent to find the prompts.
        test: what was spent to answer the test examples.
        prompts: the prompts of the network that was tested, or what stands for them.
        dev_score: by which the method chose, where it chose.
        notes: what a reader should know.
        recipe: the settings that the method had (see `dln.experiments.method`).
        made: where and when.
    """

    task: str
    method: str
    seed: int
    correct: list[bool]
    accuracy: float
    balanced_accuracy: float | None
    log_likelihood: float | None = None
    log_probs: list[float | None] | None = None
    tested: list[str] = []
    unscored: int
    train: Spent
    test: Spent
    prompts: list[str] = []
    dev_score: float | None = None
    notes: list[str] = []
    recipe: dict[str, Any] | None = None
    made: Made | None = None


class Cells:
    """The cells of one bench, in a directory that also says under which protocol they were made.

    Args:
        directory: made if it does not exist.
        protocol: everything that all cells share; cells made under another protocol are not mixed in.

    Raises:
        InputError: the directory holds cells of another protocol, or is not writable.
    """

    def __init__(self, directory: Path, protocol: Mapping[str, Any]) -> None:
        self.directory = directory
        self._cells = directory / "cells"
        try:
            self._cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("the bench directory cannot be written", where=directory, got=error.strerror) from error
        text = json.dumps(dict(protocol), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        path = directory / "protocol.json"
        if not path.exists():
            _write(path, text)
        elif path.read_text(encoding="utf-8") != text:
            before = _object(path)
            changed = sorted(k for k in {*before, *protocol} if before.get(k) != json.loads(text).get(k))
            raise InputError(
                "this directory holds cells that were made under another protocol",
                where=directory,
                got=f"another {', '.join(changed)}",
                fix="take another --out, or the same settings as before",
            )

    def path(self, cell: Cell) -> Path:
        """Where a cell's result is or will be."""
        return self._cells / f"{cell.task}.{cell.method}.{cell.seed}.json"

    def network(self, cell: Cell) -> Path:
        """Where the network that a cell found is kept, if it found one."""
        return self._cells / f"{cell.task}.{cell.method}.{cell.seed}.network.json"

    def workspace(self, cell: Cell) -> Path:
        """An empty directory for what a cell writes while it is made: a cell begun anew begins at the beginning."""
        path = self.directory / "work" / f"{cell.task}.{cell.method}.{cell.seed}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def load(self, cell: Cell, recipe: Mapping[str, Any] | None = None) -> CellResult | None:
        """The result of a cell, None where it is still to be made.

        Raises:
            CorruptDataError: the file is damaged.
            InputError: it was made with other settings than those of `recipe`.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        document = _object(path)
        body = document.get("result")
        try:
            if document.get("sha256") != _digest(body):
                raise CorruptDataError("this cell is damaged", where=path, fix="delete it; it will be made again")
            result = CellResult.model_validate(body)
        except ValidationError as error:
            raise CorruptDataError("this cell is damaged", where=path, got=str(error).splitlines()[0]) from error
        changed = changed_settings(result.recipe or {}, recipe or {})
        if changed:
            raise InputError(
                f"{cell.method} has other settings now than when this cell was made",
                where=path,
                got=f"another {', '.join(changed)}",
                fix="take another --out, or delete the cell, and it will be made again",
            )
        return result

    def save(self, result: CellResult) -> None:
        """Write a result, atomically."""
        body = result.model_dump(mode="json")
        document = {"sha256": _digest(body), "result": body}
        path = self.path(Cell(result.task, result.method, result.seed))
        _write(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")


def _object(path: Path) -> dict[str, Any]:
    try:
        document: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptDataError("this file cannot be read", where=path, got=str(error), fix="delete it") from error
    if not isinstance(document, dict):
        raise CorruptDataError("this file is not a JSON object", where=path, fix="delete it")
    return document  # pyright: ignore[reportUnknownVariableType] - JSON objects have string keys


def _digest(body: object) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def outcome(
    cell: Cell,
    task: Task,
    found: Learnt,
    predictions: Sequence[Prediction],
    spent: tuple[Spent, Spent],
    recipe: Mapping[str, Any],
) -> CellResult:
    """The result of a cell.

    Args:
        cell: which one.
        task: whose test examples were answered.
        found: what the method learnt.
        predictions: one per test example.
        spent: for training, and for the test.
        recipe: the method's settings.
    """
    right = judge(task.metric, task.label_names)
    correct = [right(p.label, e.target) >= 0.5 for p, e in zip(predictions, task.test, strict=True)]
    by_class: dict[str, list[bool]] = {}
    for example, answer in zip(task.test, correct, strict=True):
        by_class.setdefault(example.target, []).append(answer)
    log_probs = _log_probs(task, predictions)
    scored = [value for value in log_probs or () if value is not None]
    return CellResult(
        task=cell.task,
        method=cell.method,
        seed=cell.seed,
        correct=correct,
        accuracy=sum(correct) / len(correct),
        balanced_accuracy=sum(sum(row) / len(row) for row in by_class.values()) / len(by_class),
        log_likelihood=math.fsum(scored) / len(scored) if scored else None,
        log_probs=log_probs,
        tested=[hashlib.sha256(e.input.encode()).hexdigest()[:12] for e in task.test],
        unscored=sum(not p.scored for p in predictions),
        train=spent[0],
        test=spent[1],
        prompts=list(found.prompts),
        dev_score=found.dev_score,
        notes=list(found.notes),
        recipe=dict(recipe),
        made=made_here(),
    )


def _log_probs(task: Task, predictions: Sequence[Prediction]) -> list[float | None] | None:
    """log p(y|x) of each test example, None where it has no score.

    None as a whole where there are no labels, and for a method that gives a right label no probability at all: its
    likelihood is zero whatever else it says, and no number stands for that.
    """
    if task.label_names is None:
        return None
    found: list[float | None] = []
    for prediction, example in zip(predictions, task.test, strict=True):
        if not prediction.scored:
            found.append(None)
            continue
        p = prediction.probabilities.get(example.target, 0.0)
        if not p > 0.0:
            return None
        found.append(round(math.log(p), 6))
    return found
