"""What came out of a cell: its predictions against the test examples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dln.bench.paper.cell import Cell, CellResult, Spent
from dln.bench.paper.made import made_here
from dln.bench.paper.method import Learnt
from dln.data import Task
from dln.nn import Prediction
from dln.train.evaluate import judge

__all__ = ["outcome"]


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
