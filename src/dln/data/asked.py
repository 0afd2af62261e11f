"""The bundled task "asked": two people ask something, and what kind of answer does the last one want?

608 talks with the classes of the task "questions", whose questions they are made of, written for this project by
`tools/make_asked.py`.

Why depth: the last speaker's question is meant, and one of another kind stands before it. A network of one layer
has to find the question and its kind at once, with the question words of both in sight. In two steps each is
easy: copy the last question (no knowledge of kinds is needed), then say its kind (which is the task "questions",
since nothing else is left of the input).
"""

from __future__ import annotations

from dln.data.packaged import Packaged
from dln.data.questions import QUESTION_LABELS
from dln.data.two_steps import Worked, find_step, in_one_step

__all__ = ["ASKED_SPLITS", "asked_task"]

ASKED_SPLITS = (304, 120, 184)
"""Train, dev and test are consecutive blocks of the file, each with as many examples of every class."""

_KINDS = "it asks for a definition, method, number, object, person, place, reason or time"

_EXAMPLES = (
    Worked("Ruth: Who is your boss?\nMax: What does a stamp cost?", "What does a stamp cost?", "number"),
    Worked("Max: How old is the oak?\nIda: Where do you keep the keys?", "Where do you keep the keys?", "place"),
    Worked("Ida: When is lunch?\nPeter: What does brisk mean?", "What does brisk mean?", "definition"),
    Worked("Peter: Where is the exit?\nRuth: Why are you late?", "Why are you late?", "reason"),
    Worked("Ruth: What is a canoe?\nIda: Which tool cuts wire?", "Which tool cuts wire?", "object"),
    Worked("Max: Why is the shop shut?\nRuth: Who sang that song?", "Who sang that song?", "person"),
    Worked("Ida: What do bees make?\nMax: How do I fold a napkin?", "How do I fold a napkin?", "method"),
    Worked("Peter: How do you spell rhythm?\nIda: When did the bus leave?", "When did the bus leave?", "time"),
)

asked_task = Packaged(
    name="asked",
    instruction=in_one_step(
        f"Two people ask something. Find the question of the last one, then choose whether {_KINDS}.",
        "the last question",
        _EXAMPLES,
    ),
    labels=QUESTION_LABELS,
    splits=ASKED_SPLITS,
    notes=(
        "generated talks with a fixed split; no question of one split stands in another",
        "depth: the question that is meant must be found before its kind can be told; the one before it is of "
        "another kind",
    ),
    stages=(
        find_step("Two people ask something. Write down the question of the last one.", _EXAMPLES),
        f"Read the following question, then choose whether {_KINDS}.",
    ),
    input_name="talk",
)
"""The task, always with the same splits."""
