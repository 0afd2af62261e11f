"""Wording proposals: the present prompt with other names for input and output.

Whether a model reads "Input: … Label:" or "Review: … Sentiment:" can matter more to a small one than any
instruction. The names are a discrete parameter of the prompt like the rest, chosen by the same objective.
"""

from __future__ import annotations

from dataclasses import dataclass

from dln.errors import InputError
from dln.infer.feedback import Feedback
from dln.infer.prompts import Proposal
from dln.keys import Key
from dln.nn.sequential import AnyLayer

__all__ = ["WORDINGS", "WordingProposal", "read_wording"]

WORDINGS: tuple[tuple[str, str], ...] = (
    ("Input", "Label"),
    ("Text", "Category"),
    ("Review", "Sentiment"),
    ("Sentence", "Type"),
    ("Question", "Type"),
    ("Question", "Answer"),
    ("Message", "Topic"),
    ("Statement", "Class"),
)
"""Names of input and output that are common in texts which models have read."""


@dataclass(frozen=True)
class WordingProposal:
    """The present instruction and demonstrations in other wordings, each wording at most once.

    Args:
        wordings: (name of the input, name of the output).
    """

    wordings: tuple[tuple[str, str], ...] = WORDINGS

    def __call__(self, key: Key, layer: AnyLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """At most `num` candidates in random order; none for a layer whose template has no names to choose."""
        usual = layer.template.wording
        if usual is None:
            return []
        present = layer.prompt.wording or usual
        others = [wording for wording in dict.fromkeys((usual, *self.wordings)) if wording != present]
        order = key.child("wordings").generator().permutation(len(others))
        return [
            Proposal(
                layer.prompt.with_wording(None if wording == usual else wording),
                "wording",
                f"{wording[0]} → {wording[1]}",
            )
            for wording in (others[int(i)] for i in order[:num])
        ]


def read_wording(text: str) -> tuple[str, str]:
    """("Review", "Sentiment") from "Review → Sentiment" or "Review/Sentiment".

    Raises:
        InputError: there are not two names.
    """
    names = [name.strip() for name in text.replace("→", "/").split("/")]
    if len(names) != 2 or not all(names):
        raise InputError(
            "a wording is two names, of the input and of the output",
            where="wordings",
            got=text,
            fix='"Review/Sentiment"',
        )
    return names[0], names[1]
