"""Which candidate becomes the next prompt. A tie keeps the incumbent, which is candidate 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dln.infer.candidates import comparable
from dln.numerics import Floats

__all__ = ["Best", "BestByMargin", "Selector"]


class Selector(Protocol):
    """The choice among candidates."""

    def __call__(self, scores: Floats, per_example: Floats) -> int:
        """Index of the winner, from [N] penalised scores and their [N, B] per-example terms (NaN = unused)."""
        ...


@dataclass(frozen=True)
class Best:
    """argmax_n s^n (the paper's choice)."""

    def __call__(self, scores: Floats, per_example: Floats) -> int:
        """The first of equals; candidates without a score cannot win."""
        return 0 if np.isnan(scores).all() else int(np.nanargmax(scores))


@dataclass(frozen=True)
class BestByMargin:
    """The best candidate whose lead over the incumbent is not noise.

    A candidate replaces the incumbent only if the mean of its paired per-example differences, plus the
    difference of the penalties, exceeds `z` standard errors of that mean: a winner picked on twenty
    examples by luck is not progress.
    """

    z: float = 1.0

    def __call__(self, scores: Floats, per_example: Floats) -> int:
        """The incumbent unless somebody is clearly better."""
        used = comparable(np.isfinite(per_example))
        count = int(used.sum())
        if count < 2:
            return 0
        differences = per_example[:, used] - per_example[0, used]
        error = differences.std(axis=1, ddof=1) / np.sqrt(count)
        lead = scores - scores[0]
        eligible = lead > self.z * error
        return int(np.argmax(np.where(eligible, scores, -np.inf))) if eligible.any() else 0
