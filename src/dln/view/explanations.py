"""Plain sentences about numbers: whether training helped, and why a candidate prompt won."""

from __future__ import annotations

from collections.abc import Sequence

from dln.train.events import Evaluated
from dln.train.records import LayerRecord
from dln.view.numbers import finite, number, p_value, points

__all__ = ["SIGNIFICANCE", "difference_of", "verdict", "why_chosen"]

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
