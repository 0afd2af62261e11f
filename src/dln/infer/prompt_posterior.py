"""The posterior over prompts that validation gives, and the networks that answer together under it.

    q(π_m) ∝ exp(n · ℓ_m / T),    Σ_m q(π_m) = 1

ℓ_m is the mean log-likelihood of network m on n held-out examples, in nats per example, so n · ℓ_m is the log
evidence of its prompts and T = 1 is Bayes' rule under equal priors. But the networks were chosen by these very
examples, and ℓ of two good prompts differs by less than its standard error, which n magnifies: a large T keeps
weights nearly equal among prompts whose difference is noise. T → ∞ gives equal weights, T → 0 the best one alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dln.errors import InputError
from dln.infer.memory import Snapshot
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.numerics import Floats, softmax

__all__ = ["answering", "posterior_weights"]


def posterior_weights(log_likelihoods: Sequence[float] | Floats, examples: int, temperature: float) -> Floats:
    """[M] q(π_m) = softmax_m(n · ℓ_m / T).

    Args:
        log_likelihoods: [M] ℓ_m, mean log p(y|x) per held-out example, in nats. What is −∞ or not a number has no
            weight, unless that is so of all: then nothing is known and all weigh the same.
        examples: n ≥ 0, how many examples ℓ is a mean over.
        temperature: T > 0; ∞ is allowed.

    Raises:
        InputError: no log-likelihood, one of +∞, n < 0, or T not above 0.
    """
    values = np.asarray(log_likelihoods, dtype=np.float64)
    if values.ndim != 1 or not len(values) or np.isposinf(values).any():
        raise InputError("finite log-likelihoods are needed, one per network", got=values.tolist())
    if examples < 0:
        raise InputError("a number of examples cannot be negative", where="examples", got=examples, expected="≥ 0")
    if not temperature > 0:
        raise InputError("the temperature of an ensemble must be above 0", where="temperature", got=temperature)
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(values), 1.0 / len(values))
    with np.errstate(over="ignore"):  # what overflows is −∞: no weight
        differences = np.where(known, values, np.nan) - values[known].max()
        return softmax(np.where(known, examples * differences / temperature, -np.inf))


def answering(snapshots: Sequence[Snapshot], size: int, *, examples: int | None, temperature: float) -> AnyNetwork:
    """The best `size` networks of the memory, answering together with their posterior weights; one is itself.

    Args:
        snapshots: best first, each set of prompts once (see `dln.infer.memory.remember`); at least one.
        size: M ≥ 1; fewer snapshots are all taken.
        examples: n, how many held-out examples the scores are mean log-likelihoods over; None where the scores
            are something else (an accuracy has no evidence in it): then the weights are equal.
        temperature: T > 0.

    Raises:
        InputError: no snapshot, or a size or temperature that is not possible.
    """
    if not snapshots or size < 1:
        raise InputError("one network or more must answer", got=f"{len(snapshots)} networks, size {size}")
    chosen = snapshots[:size]
    if examples is None:
        weights = posterior_weights([0.0] * len(chosen), 0, math.inf)
    else:
        weights = posterior_weights([snapshot.score for snapshot in chosen], examples, temperature)
    heavy = [(s.network, float(w)) for s, w in zip(chosen, weights, strict=True) if w > 0]
    if len(heavy) == 1:
        return heavy[0][0]
    return Ensemble((network for network, _ in heavy), [weight for _, weight in heavy])
