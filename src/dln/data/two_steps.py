"""First prompts of tasks done in two steps, with the same worked examples for one layer and for two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Worked", "find_step", "in_one_step"]


class Worked(NamedTuple):
    """An example written by hand: the input, the text in it that is meant, and the label of that."""

    input: str
    meant: str
    label: str


def in_one_step(task: str, meant: str, examples: Sequence[Worked]) -> str:
    """The prompt of a network of one layer: what to do, which texts are meant in the examples, and the examples."""
    named = " ".join(f"{number}. {example.meant}" for number, example in enumerate(examples, start=1))
    shown = "\n\n".join(f"Input: {example.input}\nLabel: {example.label}" for example in examples)
    return f"{task}\n\nIn these examples {meant} is: {named}\n\n{shown}"


def find_step(task: str, examples: Sequence[Worked]) -> str:
    """The first layer's prompt in a network of two: what to find, and the examples."""
    shown = "\n\n".join(f"Input: {example.input}\nOutput: {example.meant}" for example in examples)
    return f"{task}\n\n{shown}"
