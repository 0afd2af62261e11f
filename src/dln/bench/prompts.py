"""Candidate prompts of a benchmark: shaped as the proposals of a training step are.

Plain instructions have about 40 tokens and differ from their first word on, as rewritten prompts do.
The default preset's candidates are three parts instruction with demonstrations and one part rewritten.
"""

from __future__ import annotations

from dln.bench.subject import Subject
from dln.errors import InputError
from dln.infer.demonstrations import DemonstrationProposal
from dln.infer.feedback import Feedback
from dln.keys import Key
from dln.nn import Demonstration, Prompt
from dln.nn.sequential import AnyLayer
from dln.train import resolve_options

__all__ = ["default_prompts", "instructions"]

OPENINGS = (
    "You are a careful annotator who has read thousands of texts.",
    "Work slowly and look at every word before you decide.",
    "Think about who wrote this and for which kind of reader.",
    "In this task there is always exactly one right answer.",
    "Decide as an expert would, without being misled by tone.",
    "Below you see one short text taken from a larger collection.",
    "First find the words that carry the meaning of the text.",
    "Ignore spelling and punctuation and keep to what is said.",
    "Imagine that a colleague has to agree with your decision.",
    "Consider the whole text and not only how it begins.",
)
ENDINGS = (
    "Use only the words of the text and give nothing but the answer.",
    "If two answers seem possible, take the one that fits most words.",
    "Do not explain your choice and do not repeat the text.",
    "Short texts count as much as long ones, so judge both alike.",
    "What the text is about matters less than how it says it.",
    "Names and numbers in the text are often a good hint.",
    "Prefer the simplest reading, and answer with a single word.",
    "Judge the text by itself, without any knowledge of its source.",
    "Both answers are equally likely before you have read the text.",
    "Write the answer in lower case and without a full stop.",
)


def instructions(base: str, count: int) -> list[Prompt]:
    """`count` distinct instructions of about 40 tokens around `base`.

    Raises:
        InputError: more are wanted than there are.
    """
    if count > len(OPENINGS) * len(ENDINGS):
        raise InputError("too many prompts", where="prompts", got=count, expected=len(OPENINGS) * len(ENDINGS))
    return [
        Prompt(f"{OPENINGS[i % len(OPENINGS)]} {base} {ENDINGS[(i + i // len(OPENINGS)) % len(ENDINGS)]}")
        for i in range(count)
    ]


def default_prompts(layer: AnyLayer, subject: Subject, batch: int, count: int) -> list[Prompt]:
    """`count` candidates of an output layer in the proportions of the default preset, the layer's own prompt first.

    Demonstrations are real examples outside the batch.
    """
    options = resolve_options("default").inference
    shares = options.prompt_proposals
    shown = round((count - 1) * shares["demonstrations"] / sum(shares.values()))
    pool = tuple(Demonstration(e.input, e.input, e.target) for e in subject.others(batch))
    feedback = Feedback((), (), (), (), pool)
    drawn = DemonstrationProposal(options.demonstrations)(Key(0), layer, feedback, shown)
    rewritten = instructions(layer.prompt.instruction, count - 1 - len(drawn))
    return [layer.prompt, *(proposal.prompt for proposal in drawn), *rewritten]
