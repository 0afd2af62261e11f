"""The bundled task "corrected": somebody asks for something, changes their mind, and what holds in the end?

552 inputs in six classes, written for this project by `tools/make_corrected.py`.

Why depth: the kind of the last request is the answer, and a request of another kind stands before it. A network of
one layer has to find out what still holds and what kind it is at once, with the words of both before it. In
two steps each is easy: copy the last request (no knowledge of kinds is needed), then say its kind (no knowledge of
corrections is needed, since nothing else is left of the input).
"""

from __future__ import annotations

from dln.data.packaged import Packaged

__all__ = ["CORRECTED_LABELS", "CORRECTED_SPLITS", "corrected_task"]

CORRECTED_LABELS = ("booking", "cancellation", "complaint", "directions", "payment", "repair")
"""What a request can be."""

CORRECTED_SPLITS = (288, 120, 144)
"""Train, dev and test are consecutive blocks of the file, each with as many examples of every class."""

_KINDS = "a booking, cancellation, complaint, directions, payment or repair"

corrected_task = Packaged(
    name="corrected",
    instruction=(
        "The following request is taken back and replaced. Find the last request, the one that holds, then "
        f"choose whether it is {_KINDS}.\n\nFor example, here the last request is: Mend my umbrella.\n\n"
        "Input: Your gardener is rude. No, wait: Mend my umbrella.\n"
        "Label: repair"
    ),
    labels=CORRECTED_LABELS,
    splits=CORRECTED_SPLITS,
    notes=(
        "generated requests with a fixed split; no request of one split stands in another",
        "depth: what holds must be found before its kind can be told; the request before it is of another kind",
    ),
    stages=(
        "A request is taken back and replaced. Write down the last request, the one that holds.\n\n"
        "Input: Your gardener is rude. No, wait: Mend my umbrella.\n"
        "Output: Mend my umbrella.",
        f"Read the following request, then choose whether it is {_KINDS}.",
    ),
    input_name="request",
)
"""The task, always with the same splits."""
