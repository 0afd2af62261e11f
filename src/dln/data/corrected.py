"""The bundled task "corrected": somebody asks for something, changes their mind, and what holds in the end?

552 inputs in six classes, written for this project by `tools/make_corrected.py`.

Why depth: the kind of the last request is the answer, and a request of another kind stands before it. A network of
one layer has to find out what still holds and what kind it is at once, with the words of both before it. In
two steps each is easy: copy the last request (no knowledge of kinds is needed), then say its kind (no knowledge of
corrections is needed, since nothing else is left of the input).
"""

from __future__ import annotations

from dln.data.packaged import Packaged
from dln.data.two_steps import Worked, find_step, in_one_step

__all__ = ["CORRECTED_LABELS", "CORRECTED_SPLITS", "corrected_task"]

CORRECTED_LABELS = ("booking", "cancellation", "complaint", "directions", "payment", "repair")
"""What a request can be."""

CORRECTED_SPLITS = (288, 120, 144)
"""Train, dev and test are consecutive blocks of the file, each with as many examples of every class."""

_KINDS = "a booking, cancellation, complaint, directions, payment or repair"

_EXAMPLES = (
    Worked("Your gardener is rude. No, wait: Mend my umbrella.", "Mend my umbrella.", "repair"),
    Worked("Mend the kettle. Scrap that. Save me two seats.", "Save me two seats.", "booking"),
    Worked("Reserve a pony. Forget that. Which way is the mill?", "Which way is the mill?", "directions"),
    Worked("Where is the lift? Actually, no: Call off the picnic.", "Call off the picnic.", "cancellation"),
    Worked("Drop my order of milk. Sorry, I meant: Charge it to my card.", "Charge it to my card.", "payment"),
    Worked("I will pay in coins. Strike that. The soup was cold again.", "The soup was cold again.", "complaint"),
)

corrected_task = Packaged(
    name="corrected",
    instruction=in_one_step(
        "The following request is taken back and replaced. Find the last request, the one that holds, then choose "
        f"whether it is {_KINDS}.",
        "the last request",
        _EXAMPLES,
    ),
    labels=CORRECTED_LABELS,
    splits=CORRECTED_SPLITS,
    notes=(
        "generated requests with a fixed split; no request of one split stands in another",
        "depth: what holds must be found before its kind can be told; the request before it is of another kind",
    ),
    stages=(
        find_step("A request is taken back and replaced. Write down the last request, the one that holds.", _EXAMPLES),
        f"Read the following request, then choose whether it is {_KINDS}.",
    ),
    input_name="request",
)
"""The task, always with the same splits."""
