"""The evidence lower bound of a batch under the present network.

    ELBO = E_q[ Σ_l log p(h_l | h_{l-1}, π_l) ] + H[q]  ≤  log p(y|x)

for any q, with equality at the exact posterior. Only `log_prob` (a sum over tokens) may enter it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dln.infer.candidates import Pairs
from dln.infer.posterior import Posterior
from dln.infer.score import score_pairs
from dln.nn.sequential import Sequential, Trace

__all__ = ["Bound", "elbo", "unknown_bound"]

Bound = Callable[[Sequential, Trace, Posterior], float]
"""A bound of mean log p(y|x) under the present network, in nats; NaN where there is none."""


def elbo(network: Sequential, trace: Trace, posterior: Posterior) -> float:
    """Mean over the examples of the batch that every layer can score, in nats; NaN if there is none."""
    total = np.array([sum(level[i].entropy for level in posterior.levels) for i in range(len(trace))])
    for position, layer in enumerate(network.layers):
        pairs = Pairs.of(position, trace, posterior, posterior.scored)
        scores = score_pairs([layer], pairs.inputs, pairs.outputs)
        values = np.where(scores.usable, scores.log_prob, np.nan)
        total = total + pairs.sum_by_example(values, len(trace))[0]
    known = np.isfinite(total)
    return float(total[known].mean()) if known.any() else float("nan")


def unknown_bound(network: Sequential, trace: Trace, posterior: Posterior) -> float:
    """NaN: for networks with a model that cannot score given texts."""
    return float("nan")
