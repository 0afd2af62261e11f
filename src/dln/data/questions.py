"""The bundled task "questions": what kind of answer does a question ask for?

608 questions in eight classes, written for this project by `tools/make_questions.py`; any model can
be tried on it without a download.
"""

from __future__ import annotations

from dln.data.packaged import Packaged

__all__ = ["QUESTION_LABELS", "QUESTION_SPLITS", "questions_task"]

QUESTION_LABELS = ("definition", "method", "number", "object", "person", "place", "reason", "time")
"""What a question can ask for."""

QUESTION_SPLITS = (304, 120, 184)
"""Train, dev and test are consecutive blocks of the file, each with as many examples of every class."""

questions_task = Packaged(
    name="questions",
    instruction=(
        "Read the following question, then choose whether it asks for a definition, method, number, object, person, "
        "place, reason or time."
    ),
    labels=QUESTION_LABELS,
    splits=QUESTION_SPLITS,
    notes=("generated questions with a fixed split; no two questions share more than 60 % of their words",),
    input_name="question",
)
"""The task, always with the same splits."""
