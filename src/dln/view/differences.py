"""What changed between two prompts: a difference word by word, and demonstrations that came or went."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from dln.nn.prompt import Demonstration, Prompt

__all__ = ["PromptDifference", "Segment", "prompt_difference", "word_difference"]

# a word or a mark, each with the space after it; scripts that write without spaces are compared sign by sign
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGNS}]\s*|[^\W{_SIGNS}]+\s*|[^\w\s]\s*|\s+")

MOST_PAIRS = 20_000
"""Pairs of equal words in two texts, up to which they are compared word by word."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of words that is in both texts, in the new one alone, or in the old one alone."""

    kind: Literal["same", "insert", "delete"]
    text: str


@dataclass(frozen=True, slots=True)
class PromptDifference:
    """From one prompt to another.

    Attributes:
        segments: of the instruction, in reading order.
        added: demonstrations that are new.
        removed: demonstrations that are gone.
        kept: how many are in both.
        reordered: whether those that are in both stand in another order.
    """

    segments: tuple[Segment, ...]
    added: tuple[Demonstration, ...]
    removed: tuple[Demonstration, ...]
    kept: int
    reordered: bool

    @property
    def changed(self) -> bool:
        """Whether there is a difference at all."""
        words = any(segment.kind != "same" for segment in self.segments)
        return bool(words or self.added or self.removed or self.reordered)


def prompt_difference(old: Prompt, new: Prompt) -> PromptDifference:
    """What has to be done to `old` to get `new`."""
    added = _without(new.demonstrations, old.demonstrations)
    removed = _without(old.demonstrations, new.demonstrations)
    kept_before = _without(old.demonstrations, removed)
    kept_after = _without(new.demonstrations, added)
    return PromptDifference(
        segments=word_difference(old.instruction, new.instruction),
        added=added,
        removed=removed,
        kept=len(kept_after),
        reordered=kept_before != kept_after,
    )


def word_difference(old: str, new: str) -> tuple[Segment, ...]:
    """Same and deleted segments joined give `old`; same and inserted ones give `new`."""
    before, after = _WORD.findall(old), _WORD.findall(new)
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    gone, came = before[start : len(before) - end], after[start : len(after) - end]
    parts = [
        Segment("same", "".join(before[:start])),
        *_middle(gone, came),
        Segment("same", "".join(before[len(before) - end :])),
    ]
    return tuple(part for part in parts if part.text)


def _middle(gone: list[str], came: list[str]) -> list[Segment]:
    """The part between what begins and what ends both texts."""
    counts = Counter(came)
    if sum(counts[word] for word in gone) > MOST_PAIRS:
        # a text that repeats itself endlessly takes the matcher minutes: one block for another
        return [Segment("delete", "".join(gone)), Segment("insert", "".join(came))]
    found: list[Segment] = []
    for kind, i, j, k, l in SequenceMatcher(None, gone, came, autojunk=False).get_opcodes():  # noqa: E741
        if kind == "equal":
            found.append(Segment("same", "".join(gone[i:j])))
        else:
            found += [Segment("delete", "".join(gone[i:j])), Segment("insert", "".join(came[k:l]))]
    return found


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words both begin with."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _without(demonstrations: Sequence[Demonstration], others: Sequence[Demonstration]) -> tuple[Demonstration, ...]:
    """Those that are left when each of `others` has taken away one that is equal to it."""
    taken = Counter(others)
    left: list[Demonstration] = []
    for demonstration in demonstrations:
        if taken[demonstration]:
            taken[demonstration] -= 1
        else:
            left.append(demonstration)
    return tuple(left)
