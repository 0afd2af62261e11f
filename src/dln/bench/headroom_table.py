"""The checks of headroom as a table: whether training prompts, and depth, can be expected to pay on each task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dln.bench.headroom import Headroom
from dln.bench.paper.markdown import table

__all__ = ["headroom_markdown"]


def headroom_markdown(found: Sequence[tuple[str, Headroom]]) -> str:
    """One row per task.

    Args:
        found: names of tasks with what was measured on their dev examples.
    """
    heads = (
        *("task", "majority class", "instruction alone", "random prompts, mean", "the best of them"),
        *("spread, nats", "noise, nats", "expected gain, nats", "training pays", "gain of depth, nats", "depth pays"),
    )
    drawn = sorted({len(headroom.prompts) for _, headroom in found})
    candidates = sorted({headroom.candidates for _, headroom in found})
    explained = (
        "Accuracy in percent on dev examples, with the output layer fitted and every example judged by a fit without "
        f"it. {_numbers(drawn)} random prompts are measured per task. Spread: standard deviation of their mean "
        "log p(y|x) beyond the noise of measuring one. Expected gain: of the best of "
        f"{_numbers(candidates)} candidates above what is there without training (the instruction, or the class "
        "frequencies). It pays where the gain is more than twice the noise."
    )
    return "\n\n".join([explained, table(heads, [_row(name, headroom) for name, headroom in found])]) + "\n"


def _row(name: str, found: Headroom) -> tuple[str, ...]:
    best = max(found.prompts, key=lambda measured: measured.log_likelihood)
    return (
        name,
        _percent(found.majority),
        _percent(found.instruction.accuracy),
        _percent(float(np.mean([measured.accuracy for measured in found.prompts]))),
        _percent(best.accuracy),
        f"{found.spread:.3f}",
        f"{found.noise:.3f}",
        f"{found.expected_gain:+.3f}",
        "yes" if found.pays else "no",
        "" if found.depth_gain is None else f"{found.depth_gain:+.3f}",
        {True: "yes", False: "no", None: "not measured"}[found.depth_pays],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _numbers(values: Sequence[int]) -> str:
    return " or ".join(map(str, values))
