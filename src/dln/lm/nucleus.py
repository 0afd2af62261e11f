"""Temperature and top_p as a distribution: what a token is really drawn from."""

from __future__ import annotations

import numpy as np

from dln.lm.base import Sampling
from dln.numerics import Floats

__all__ = ["drawing_probabilities"]


def drawing_probabilities(p: Floats, sampling: Sampling) -> Floats:
    """What is drawn from: p^(1/temperature), normalised, cut to its top_p nucleus, normalised again."""
    if sampling.temperature == 0:
        return np.eye(len(p))[int(np.argmax(p))]  # argmax takes the first of equals
    if sampling.temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to exp(−inf) = 0
            p = np.exp((np.log(p) - np.log(p.max())) / sampling.temperature)
        p = p / p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p, kind="stable")
        kept = order[: int(np.searchsorted(np.cumsum(p[order]), sampling.top_p * (1 - 1e-12))) + 1]
        nucleus = np.zeros_like(p)
        nucleus[kept] = p[kept]
        p = nucleus / nucleus.sum()
    return p
