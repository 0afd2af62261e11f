"""Constraints on prompts: what a candidate must keep, how far it may go, and what it must not show.

A constraint screens the candidates of a layer before they are scored. It says in a few words why a candidate is
dropped, which the record of the step counts; the present prompt always stays a candidate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dln.nn.layers import LayerInput, PromptedLayer
from dln.nn.prompt import Prompt

__all__ = [
    "Constraint",
    "KeepLines",
    "MaxEdits",
    "MaxTokens",
    "Private",
    "copied_ngrams",
    "edit_distance",
    "whole_tokens",
]

_WORD = re.compile(r"\w+")


class Constraint(Protocol):
    """What a candidate may be."""

    def __call__(self, layer: PromptedLayer, prompt: Prompt, row: int) -> str | None:
        """Why `prompt` may not take the place of the layer's own, or None.

        Args:
            layer: the present layer.
            prompt: a candidate.
            row: the number of layers before this one, those side by side counted one by one.
        """
        ...


@dataclass(frozen=True)
class KeepLines:
    """Lines that stay word for word in the instruction of every layer that has them now.

    Args:
        lines: without the white space at their ends.
    """

    lines: tuple[str, ...]

    def __call__(self, layer: PromptedLayer, prompt: Prompt, row: int) -> str | None:
        """Dropped if a line of the present instruction is missing or changed."""
        before, after = _lines(layer.prompt.instruction), _lines(prompt.instruction)
        lost = any(line.strip() in before and line.strip() not in after for line in self.lines)
        return "changes a fixed line" if lost else None


@dataclass(frozen=True)
class MaxEdits:
    """At most `limit` words of the initial instruction inserted, deleted or exchanged (Levenshtein's distance).

    Args:
        limit: in words.
        origins: the initial instructions, by row.
    """

    limit: int
    origins: tuple[str, ...]

    def __call__(self, layer: PromptedLayer, prompt: Prompt, row: int) -> str | None:
        """Dropped if it is farther from the initial instruction."""
        distance = edit_distance(self.origins[row].split(), prompt.instruction.split())
        return "too far from the initial wording" if distance > self.limit else None


@dataclass(frozen=True)
class MaxTokens:
    """At most `limit` tokens of everything but the input: instruction, demonstrations and template."""

    limit: int

    def __call__(self, layer: PromptedLayer, prompt: Prompt, row: int) -> str | None:
        """Dropped if the whole prompt is longer."""
        return "longer than allowed" if whole_tokens(layer.with_prompt(prompt)) > self.limit else None


@dataclass(frozen=True)
class Private:
    """No training example in a prompt: no demonstrations, and no input of the train set within an instruction.

    Inputs are compared by their words, so that case, punctuation and white space do not hide a copy.

    Args:
        inputs: the training inputs.
    """

    inputs: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, inputs: Iterable[str]) -> Private:
        """For these inputs; those without a word are left out."""
        return cls(frozenset(words for words in map(_words, inputs) if words))

    def __call__(self, layer: PromptedLayer, prompt: Prompt, row: int) -> str | None:
        """Dropped if it shows an example."""
        if prompt.demonstrations:
            return "shows an example"
        said = _words(prompt.instruction)
        lengths = {len(words) for words in self.inputs}
        grams = {said[i : i + n] for n in lengths for i in range(len(said) - n + 1)}
        return "copies an example" if grams & self.inputs else None


def whole_tokens(layer: PromptedLayer) -> int:
    """Tokens of a layer's context without its input."""
    (context,) = layer.contexts([LayerInput("", "")])
    return layer.lm.count_tokens(context)


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and exchanges that make `b` of `a`.

    >>> edit_distance("name the last request".split(), "name that request".split())
    2
    """
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def copied_ngrams(prompts: Iterable[str], inputs: Iterable[str], n: int = 5) -> list[str]:
    """The runs of n words that a prompt shares with an input, in the order of the prompts, each once.

    >>> copied_ngrams(["Say: the mill is on the left."], ["So the mill is on the hill?"])
    ['the mill is on the']
    """
    known = {words[i : i + n] for words in map(_words, inputs) for i in range(len(words) - n + 1)}
    found = [
        " ".join(gram)
        for words in map(_words, prompts)
        for i in range(len(words) - n + 1)
        if (gram := words[i : i + n]) in known
    ]
    return list(dict.fromkeys(found))


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines()}
