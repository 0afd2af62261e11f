"""Numbers, differences and verdicts as people read them.

How much of a long run a page shows: the events keep all of it.

Numbers as people read them. What is missing or not finite is a dash, never a zero.

What changed between two prompts: a difference word by word, and demonstrations that came or went.

Plain sentences about numbers: whether training helped, and why a candidate prompt won.
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
    """What is shown at most.

    Attributes:
        prompt: characters of a prompt in the network and in differences.
        text: characters of any other text (candidates, inputs, hidden texts).
        candidates: per M-step, best first; winner and incumbent are always among them.
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
        """About half of it."""
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
    """With a true minus sign.

    >>> number(-1.5), number(float("nan"))
    ('−1.500', '—')
    """
    shown = finite(value)
    if shown is None:
        return MISSING
    text = f"{shown:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")  # a rounded −0.0001 is no negative zero
    return text.replace("-", "−")


def count(value: float | None) -> str:
    """A whole number in groups of three digits."""
    shown = finite(value)
    return MISSING if shown is None else f"{round(shown):,}".replace(",", _THIN).replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A part of one in percent."""
    shown = finite(value)
    return MISSING if shown is None else f"{number(100 * shown, digits)}{_THIN}%"


def points(value: float | None) -> str:
    """A difference of two parts of one, in percentage points and with its sign."""
    shown = finite(value)
    return MISSING if shown is None else f"{'+' if shown > 0 else ''}{number(100 * shown, 1)}"


def interval(low: float | None, high: float | None) -> str:
    """Two ends in percent; nothing is known where one of them is missing."""
    if finite(low) is None or finite(high) is None:
        return MISSING
    return f"{percent(low)} to {percent(high)}"


def p_value(value: float | None) -> str:
    """With its relation sign.

    >>> p_value(0.0000123), p_value(0.0456)
    ('< 0.0001', '= 0.0456')
    """
    shown = finite(value)
    if shown is None:
        return MISSING
    return "< 0.0001" if shown < 0.0001 else f"= {shown:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds in the units that fit.

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
    """Seconds since 1970 as a date in UTC; 0 means that nobody wrote it down."""
    shown = finite(time)
    if not shown or not 0 < shown < 253402300800:  # the year 10000
        return MISSING
    return datetime.fromtimestamp(shown, UTC).strftime("%Y-%m-%d %H:%M UTC")


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


SIGNIFICANCE = 0.05


def verdict(event: Evaluated) -> str:
    """One sentence: significantly better, worse, or no significant difference (p < 0.05, two-sided)."""
    if event.before is None:
        return f"The initial network was not evaluated on these {event.after.n} examples: there is nothing to compare."
    p, difference = finite(event.p_value), difference_of(event)
    if difference is None:
        return "There is no difference to speak of: an accuracy could not be measured."
    if p is None:
        return f"The accuracy changed by {points(difference)} points; no paired test was made."
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
    """Accuracy after − before; None where one of them is missing."""
    if event.difference is not None:
        return finite(event.difference[0])
    if event.before is None:
        return None
    return finite(event.after.accuracy - event.before.accuracy)


def why_chosen(record: LayerRecord) -> str:
    """Why the winner of an M-step won, or why the incumbent stayed."""
    scores = [finite(candidate.score) for candidate in record.candidates]
    others = [score for i, score in enumerate(scores) if i != record.winner and score is not None]
    if len(scores) == 1:
        reason = "every proposal was dropped" if record.dropped else "nothing else was proposed"
        return f"Kept: {reason}."
    chosen = scores[record.winner]
    stopped = sum(candidate.stopped is not None for candidate in record.candidates)
    if stopped == len(scores) - 1:
        return "Kept: all other candidates fell clearly behind and were stopped."
    if chosen is None:
        return "Kept: not one candidate could be scored." if not others else "Kept: the incumbent could not be scored."
    return _why_kept(chosen, others) if record.winner == 0 else _why_changed(chosen, scores[0], others)


def _why_kept(incumbent: float, others: Sequence[float]) -> str:
    if not others:
        return "Kept: no other candidate could be scored."
    lead = max(others) - incumbent
    if lead > 0:
        return (
            f"Kept: the best other candidate scored {number(lead)} more, a lead that the selection rule did not accept."
        )
    if lead == 0:
        return "Kept: the best other candidate has the same score, and a tie keeps the incumbent."
    return f"Kept: no candidate beat the incumbent; the best fell short by {number(-lead)}."


def _why_changed(chosen: float, incumbent: float | None, others: Sequence[float]) -> str:
    text = f"Changed: the winner scored {number(chosen)}, "
    if incumbent is None:
        text += "while the incumbent could not be scored"
    else:
        text += f"{number(chosen - incumbent)} more than the incumbent ({number(incumbent)})"
    # the incumbent is one of the others; it is the runner-up only if it was the only other one
    runner_up = max(others, default=None)
    if runner_up is None or (incumbent is not None and runner_up == incumbent):
        return f"{text}; the incumbent came second." if incumbent is not None else f"{text}."
    if runner_up > chosen:
        more = number(runner_up - chosen)
        return f"{text}; another one scored {more} more still, which the selection rule did not accept."
    return f"{text} and {number(chosen - runner_up)} more than the runner-up ({number(runner_up)})."
