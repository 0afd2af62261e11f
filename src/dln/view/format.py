"""Formatting for reports: numbers, prompt differences, verdicts, and limits on how much is shown.

A missing or non-finite number is shown as a dash, never as zero.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import SequenceMatcher
from typing import Literal

from dln.nn.prompt import Demonstration, Prompt
from dln.train.events import Evaluated, LayerRecord

__all__ = [
    "MISSING",
    "SIGNIFICANCE",
    "Limits",
    "PromptDifference",
    "Segment",
    "count",
    "date",
    "difference_of",
    "duration",
    "finite",
    "interval",
    "number",
    "p_value",
    "percent",
    "points",
    "prompt_difference",
    "verdict",
    "why_chosen",
    "word_difference",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a long run is shown; the events keep all of it.

    Attributes:
        prompt: characters of a prompt in the network and in differences.
        text: characters of any other text (candidates, inputs, hidden texts).
        candidates: per M-step, best first, always with winner and incumbent.
        explained: examples per step whose hidden particles are shown.
        batch: examples per step.
        demonstrations: per candidate.
        changed: rows of each table of fixed, broken and unsolved examples.
    """

    prompt: int = 8000
    text: int = 1500
    candidates: int = 100
    explained: int = 3
    batch: int = 50
    demonstrations: int = 32
    changed: int = 100

    def tighter(self) -> Limits:
        """Return limits of about half the size."""
        return Limits(
            prompt=max(400, self.prompt // 2),
            text=max(60, self.text // 2),
            candidates=max(3, self.candidates * 2 // 3),
            explained=max(1, self.explained - 1),
            batch=max(3, self.batch // 2),
            demonstrations=max(1, self.demonstrations // 2),
            changed=max(10, self.changed // 2),
        )


MISSING = "—"
_THIN = "\u202f"  # narrow and not broken at the end of a line


def finite(value: float | None) -> float | None:
    """`value`, or None where it is NaN or infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def number(value: float | None, digits: int = 3) -> str:
    """Format a number, with a true minus sign.

    >>> number(-1.5), number(float("nan"))
    ('−1.500', '—')
    """
    shown = finite(value)
    if shown is None:
        return MISSING
    text = f"{shown:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")  # −0.0001 rounds to 0, not −0
    return text.replace("-", "−")


def count(value: float | None) -> str:
    """Format a whole number in groups of three digits."""
    shown = finite(value)
    return MISSING if shown is None else f"{round(shown):,}".replace(",", _THIN).replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction in percent."""
    shown = finite(value)
    return MISSING if shown is None else f"{number(100 * shown, digits)}{_THIN}%"


def points(value: float | None) -> str:
    """Format a difference of two fractions in percentage points, with its sign."""
    shown = finite(value)
    return MISSING if shown is None else f"{'+' if shown > 0 else ''}{number(100 * shown, 1)}"


def interval(low: float | None, high: float | None) -> str:
    """Format an interval in percent; a dash if an end is missing."""
    if finite(low) is None or finite(high) is None:
        return MISSING
    return f"{percent(low)} to {percent(high)}"


def p_value(value: float | None) -> str:
    """Format a p-value, with its relation sign.

    >>> p_value(0.0000123), p_value(0.0456)
    ('< 0.0001', '= 0.0456')
    """
    shown = finite(value)
    if shown is None:
        return MISSING
    return "< 0.0001" if shown < 0.0001 else f"= {shown:.3g}"


def duration(seconds: float | None) -> str:
    """Format seconds in suitable units.

    >>> duration(4.25), duration(245), duration(7260)
    ('4.2 s', '4 min 05 s', '2 h 01 min')
    """
    shown = finite(seconds)
    if shown is None:
        return MISSING
    if shown < 60:
        return f"{number(shown, 1)} s"
    minutes, rest = divmod(round(shown), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def date(time: float | None) -> str:
    """Format seconds since 1970 as a date in UTC; 0 means unknown."""
    shown = finite(time)
    if not shown or not 0 < shown < 253402300800:  # the year 10000
        return MISSING
    return datetime.fromtimestamp(shown, UTC).strftime("%Y-%m-%d %H:%M UTC")


# a word or punctuation mark with the space after it; scripts without spaces are compared character by character
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGNS}]\s*|[^\W{_SIGNS}]+\s*|[^\w\s]\s*|\s+")

MOST_PAIRS = 20_000
"""Texts with more pairs of equal words are not compared word by word."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of words in both texts, only in the new one, or only in the old one."""

    kind: Literal["same", "insert", "delete"]
    text: str


@dataclass(frozen=True, slots=True)
class PromptDifference:
    """The difference between two prompts.

    Attributes:
        segments: of the instruction, in reading order.
        added: new demonstrations.
        removed: removed demonstrations.
        kept: number of demonstrations in both.
        reordered: whether the order of the kept ones changed.
    """

    segments: tuple[Segment, ...]
    added: tuple[Demonstration, ...]
    removed: tuple[Demonstration, ...]
    kept: int
    reordered: bool

    @property
    def changed(self) -> bool:
        """Whether the prompts differ."""
        words = any(segment.kind != "same" for segment in self.segments)
        return bool(words or self.added or self.removed or self.reordered)


def prompt_difference(old: Prompt, new: Prompt) -> PromptDifference:
    """Return the changes that turn `old` into `new`."""
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
    """Compare word by word: same and deleted segments joined give `old`, same and inserted ones give `new`."""
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
    """Segments between the common beginning and the common end."""
    counts = Counter(came)
    if sum(counts[word] for word in gone) > MOST_PAIRS:
        # the matcher takes minutes on very repetitive texts: replace the whole block
        return [Segment("delete", "".join(gone)), Segment("insert", "".join(came))]
    found: list[Segment] = []
    for kind, i, j, k, l in SequenceMatcher(None, gone, came, autojunk=False).get_opcodes():  # noqa: E741
        if kind == "equal":
            found.append(Segment("same", "".join(gone[i:j])))
        else:
            found += [Segment("delete", "".join(gone[i:j])), Segment("insert", "".join(came[k:l]))]
    return found


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the common beginning, in words."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _without(demonstrations: Sequence[Demonstration], others: Sequence[Demonstration]) -> tuple[Demonstration, ...]:
    """Multiset difference, in order."""
    taken = Counter(others)
    left: list[Demonstration] = []
    for demonstration in demonstrations:
        if taken[demonstration]:
            taken[demonstration] -= 1
        else:
            left.append(demonstration)
    return tuple(left)


SIGNIFICANCE = 0.05


def verdict(event: Evaluated) -> str:
    """Summarize the paired test in one sentence (two-sided, p < 0.05)."""
    if event.before is None:
        return f"No comparison: the initial network was not evaluated on these {event.after.n} examples."
    p, difference = finite(event.p_value), difference_of(event)
    if difference is None:
        return "No comparison: an accuracy could not be measured."
    if p is None:
        return f"The accuracy changed by {points(difference)} points; no paired test was run."
    if p >= SIGNIFICANCE or difference == 0:
        return (
            f"No significant difference: the accuracy changed by {points(difference)} points, "
            f"which may be chance (p {p_value(p)})."
        )
    word, verb = ("better", "rose") if difference > 0 else ("worse", "fell")
    return (
        f"The trained network is significantly {word} than the initial one: "
        f"the accuracy {verb} by {points(abs(difference)).lstrip('+')} points (p {p_value(p)})."
    )


def difference_of(event: Evaluated) -> float | None:
    """Return accuracy after − before; None if one is missing."""
    if event.difference is not None:
        return finite(event.difference[0])
    if event.before is None:
        return None
    return finite(event.after.accuracy - event.before.accuracy)


def why_chosen(record: LayerRecord) -> str:
    """Explain in one sentence why the winner of an M-step won, or why the incumbent was kept."""
    scores = [finite(candidate.score) for candidate in record.candidates]
    others = [score for i, score in enumerate(scores) if i != record.winner and score is not None]
    if len(scores) == 1:
        reason = "all proposals were dropped" if record.dropped else "there were no other candidates"
        return f"Kept: {reason}."
    chosen = scores[record.winner]
    stopped = sum(candidate.stopped is not None for candidate in record.candidates)
    if stopped == len(scores) - 1:
        return "Kept: all other candidates were clearly worse and were stopped early."
    if chosen is None:
        return "Kept: no candidate could be scored." if not others else "Kept: the incumbent could not be scored."
    return _why_kept(chosen, others) if record.winner == 0 else _why_changed(chosen, scores[0], others)


def _why_kept(incumbent: float, others: Sequence[float]) -> str:
    if not others:
        return "Kept: no other candidate could be scored."
    lead = max(others) - incumbent
    if lead > 0:
        return f"Kept: the best other candidate scored {number(lead)} higher, which the selection rule did not accept."
    if lead == 0:
        return "Kept: the best other candidate has the same score, and ties keep the incumbent."
    return f"Kept: no candidate beat the incumbent; the best one scored {number(-lead)} lower."


def _why_changed(chosen: float, incumbent: float | None, others: Sequence[float]) -> str:
    text = f"Changed: the winner scored {number(chosen)}, "
    if incumbent is None:
        text += "and the incumbent could not be scored"
    else:
        text += f"{number(chosen - incumbent)} higher than the incumbent ({number(incumbent)})"
    # the incumbent is one of the others; it is the runner-up only if it was the only other one
    runner_up = max(others, default=None)
    if runner_up is None or (incumbent is not None and runner_up == incumbent):
        return f"{text}; the incumbent was second." if incumbent is not None else f"{text}."
    if runner_up > chosen:
        more = number(runner_up - chosen)
        return f"{text}; another candidate scored {more} higher, which the selection rule did not accept."
    return f"{text} and {number(chosen - runner_up)} higher than the runner-up ({number(runner_up)})."
