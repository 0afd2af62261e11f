"""The evidence lower bound of a batch under the present network.

    ELBO = E_q[ Σ_l log p(h_l | h_{l-1}, π_l) ] + H[q]  ≤  log p(y|x)

for any q, with equality at the exact posterior. Only `log_prob` (a sum over tokens) may enter it.

An example that a prompt of the network shows among its demonstrations does not count: its answer stands in
the prompt, so its log p(y|x) says nothing of examples that are not shown. What is left is a mean over fewer
examples, and a bound of log p(y|x) on these.
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
    """Bound of the mean log p(y|x) over the examples that every layer can score and no prompt shows, in nats.

    Args:
        network: the present network; its prompts decide which examples are shown.
        trace: the forward pass of the batch.
        posterior: q, of the same batch.

    Returns:
        NaN if no example counts.
    """
    shown = {d.x for prompt in network.parameters() for d in prompt.demonstrations}
    counted = posterior.scored & np.array([x not in shown for x in trace.x], dtype=np.bool_)
    total = np.array([sum(level[i].entropy for level in posterior.levels) for i in range(len(trace))])
    for position, layer in enumerate(network.layers):
        pairs = Pairs.of(position, trace, posterior, counted)
        scores = score_pairs([layer], pairs.inputs, pairs.outputs)
        values = np.where(scores.usable, scores.log_prob, np.nan)
        total = total + pairs.sum_by_example(values, len(trace))[0]
    known = np.isfinite(total)
    return float(total[known].mean()) if known.any() else float("nan")


def unknown_bound(network: Sequential, trace: Trace, posterior: Posterior) -> float:
    """NaN: for networks with a model that cannot score given texts."""
    return float("nan")
