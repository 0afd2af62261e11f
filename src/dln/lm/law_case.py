"""What the laws of a language model are tried on, and how two answers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from dln.errors import ProviderError
from dln.lm.base import Completion, LanguageModel, Sampling, Target
from dln.numerics import Floats

__all__ = [
    "LawBroken",
    "LawCase",
    "Verdict",
    "check_close",
    "check_equal",
    "check_same_draw",
    "draws_of",
    "scores_of",
]

Verdict = Literal["holds", "skipped"]

_SHORT_DRAWS = Sampling(temperature=1.0, max_tokens=8)


class LawBroken(ProviderError, AssertionError):
    """An engine's answers contradict each other; its numbers must not be used."""


@dataclass(frozen=True)
class LawCase:
    """What the laws are tried on: every context with every target, and all labels.

    Args:
        contexts: at least two distinct ones, or batches are not tested.
        targets: plain texts; some of several words, or the chain rule is tested on draws alone.
        labels: distinct; best with one that is a prefix of another.
        tolerance: largest accepted difference of two log-probabilities, in nats.
        sampling: how the draws are made (temperature 1 and top_p 1 let scores be compared with them).
        seeds: seeds of the draws, per context.
    """

    contexts: Sequence[str]
    targets: Sequence[str]
    labels: Sequence[str]
    tolerance: float = 1e-4
    sampling: Sampling = _SHORT_DRAWS
    seeds: Sequence[int] = (1, 2**40 + 3)

    @property
    def pairs(self) -> tuple[list[str], list[str]]:
        """Every context with every target, as two columns."""
        pairs = list(product(self.contexts, self.targets))
        return [c for c, _ in pairs], [t for _, t in pairs]

    @property
    def draws(self) -> tuple[list[str], list[int]]:
        """Every context with every seed, as two columns."""
        pairs = list(product(self.contexts, self.seeds))
        return [c for c, _ in pairs], [s for _, s in pairs]


def scores_of(lm: LanguageModel, contexts: Sequence[str], targets: Sequence[Target]) -> list[Floats]:
    """The token log-probabilities of each pair; one answer per question, or the law is broken."""
    scores = lm.log_prob(contexts, targets)
    check_equal("one answer per question", len(scores), len(contexts), "log_prob")
    return [score.values for score in scores]


def draws_of(
    lm: LanguageModel, case: LawCase, sampling: Sampling | None = None, seeds: Sequence[int] | None = None
) -> list[Completion]:
    """One draw per request of the case, in one batch; `seeds` may replace the case's own."""
    contexts, own_seeds = case.draws
    draws = lm.sample(contexts, sampling or case.sampling, own_seeds if seeds is None else seeds)
    check_equal("one answer per question", len(draws), len(contexts), "sample")
    return draws


def check_close(law: str, got: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float, where: object) -> None:
    """Raise `LawBroken` unless shapes are equal and values differ by at most `tolerance`; NaN never agrees."""
    one, two = np.asarray(got), np.asarray(expected)
    if one.shape != two.shape or not np.allclose(one, two, rtol=0.0, atol=tolerance):
        raise LawBroken(f"law broken: {law}", where=repr(where), got=one.tolist(), expected=two.tolist())


def check_equal(law: str, got: object, expected: object, where: object) -> None:
    """Raise `LawBroken` unless the two are equal."""
    if got != expected:
        raise LawBroken(f"law broken: {law}", where=repr(where), got=got, expected=expected)


def check_same_draw(law: str, got: Completion, expected: Completion, tolerance: float, where: object) -> None:
    """Two draws must be the same text and ids; their kept scores may differ by rounding."""
    for part in ("text", "token_ids", "text_tokens", "finish_reason", "model"):
        check_equal(law, getattr(got, part), getattr(expected, part), (where, part))
    for part in ("log_probs", "sampling_log_probs"):
        one, two = getattr(got, part), getattr(expected, part)
        check_equal(law, one is None, two is None, (where, part))
        if one is not None:
            check_close(law, one, two, tolerance, (where, part))
