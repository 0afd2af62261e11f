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
    found: list[Segment] = []
    for kind, i, j, k, l in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():  # noqa: E741
        if kind == "equal":
            found.append(Segment("same", "".join(before[i:j])))
            continue
        if j > i:
            found.append(Segment("delete", "".join(before[i:j])))
        if l > k:
            found.append(Segment("insert", "".join(after[k:l])))
    return tuple(found)


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
