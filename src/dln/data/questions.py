"""The bundled task "questions": what kind of answer does a question ask for?

608 questions in eight classes, written for this project by `tools/make_questions.py`; any model can
be tried on it without a download.
"""

from __future__ import annotations

import json
from importlib import resources
from itertools import accumulate, pairwise
from typing import cast

from dln.data.dataset import Dataset, Example
from dln.data.metrics import ExactMatch
from dln.data.task import Task
from dln.errors import CorruptDataError

__all__ = ["QUESTION_LABELS", "QUESTION_SPLITS", "questions_task"]

QUESTION_LABELS = ("definition", "method", "number", "object", "person", "place", "reason", "time")
"""What a question can ask for."""

QUESTION_SPLITS = (304, 120, 184)
"""Train, dev and test are consecutive blocks of the file, each with as many examples of every class."""

_INSTRUCTION = (
    "Read the following question, then choose whether it asks for a definition, method, number, object, person, "
    "place, reason or time."
)


def questions_task() -> Task:
    """The bundled task, always with the same splits.

    Raises:
        CorruptDataError: the packaged file is damaged.
    """
    source = resources.files("dln.data") / "bundled" / "questions.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()
    if len(lines) != sum(QUESTION_SPLITS):
        raise CorruptDataError(
            "the bundled task is damaged",
            where=source,
            got=f"{len(lines)} lines",
            expected=sum(QUESTION_SPLITS),
            fix="reinstall the package",
        )
    records = [cast(dict[str, str], json.loads(line)) for line in lines]
    examples = [Example(r["input"], r["target"], f"questions:{i}") for i, r in enumerate(records, start=1)]
    bounds = [0, *accumulate(QUESTION_SPLITS)]
    train, dev, test = (
        Dataset(tuple(examples[a:b]), QUESTION_LABELS, name=f"questions.{part}")
        for part, (a, b) in zip(("train", "dev", "test"), pairwise(bounds), strict=True)
    )
    return Task(
        name="questions",
        instruction=_INSTRUCTION,
        labels=QUESTION_LABELS,
        train=train,
        dev=dev,
        test=test,
        metric=ExactMatch(QUESTION_LABELS),
        notes=("generated questions with a fixed split; no two questions share more than 60 % of their words",),
        input_name="question",
    )
