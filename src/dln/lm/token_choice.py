"""One token from one row of logits: a draw that batch noise cannot change unnoticed.

The same prefix gives logits that differ in their last bits between batches of different shape, because
floating-point sums are taken in another order. A draw must depend on (context, options, seed) alone, so a
choice is made together with the answer to whether such noise could have changed it:

    token = argmin_i  E_i / p_i,   E_i ~ Exp(1),   p = softmax(logits / T) within the top-p nucleus

(an exponential race, the Gumbel-max trick without the logarithms; at temperature 0 simply the largest
logit). The E_i come from a counter-based generator keyed by (seed, position) and depend on nothing else. If
another token comes within the tolerance of the winner, or the winner is not surely inside the nucleus, the
choice is *close*, and the caller settles it on the logits of a forward of this prefix alone, which are a
function of the prefix only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dln.lm.base import Sampling
from dln.numerics import Floats

if TYPE_CHECKING:
    import torch

__all__ = ["TokenChoice", "choose", "choose_each", "exponentials"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A chosen token.

    Attributes:
        token: its id.
        log_prob: log p under the model at temperature 1, in nats.
        sampling_log_prob: log p under the distribution drawn from; 0 at temperature 0.
        close: whether noise below the tolerance could have led to another token.
    """

    token: int
    log_prob: float
    sampling_log_prob: float
    close: bool


def choose(logits: Floats, sampling: Sampling, seed: int, position: int, tolerance: float) -> TokenChoice:
    """The token at `position` of the draw `seed`.

    Args:
        logits: [V] unnormalised log-probabilities.
        sampling: temperature and top_p.
        seed: the draw's seed; without effect at temperature 0.
        position: index of the token within the draw, from 0.
        tolerance: largest difference of a logit between two batch shapes; 0 settles a close choice.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        # NaN or +inf is no distribution to draw from: the score says so, and callers exclude the draw.
        return TokenChoice(best, float("nan"), float("nan"), close=False)
    logits = logits - logits[best]
    weights = np.exp(logits)
    log_total = float(np.log(weights.sum()))
    if sampling.temperature == 0:
        # Two logits may each move by the tolerance, towards one another.
        close = tolerance > 0 and bool(np.count_nonzero(logits >= -2 * tolerance) > 1)
        return TokenChoice(best, -log_total, 0.0, close)
    if sampling.temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to exp(−inf) = 0
            weights = np.exp(logits / sampling.temperature)
    p = weights / weights.sum()
    noise = min(2 * tolerance / sampling.temperature, 50.0)  # of the logarithm of a ratio of two p
    sure, possible, kept = _nucleus(p, sampling.top_p, noise)
    with np.errstate(divide="ignore", over="ignore"):
        race = exponentials(seed, position, len(p)) / p
    race[~possible] = np.inf
    winner = int(np.argmin(race))
    rivals = np.count_nonzero(race <= race[winner] * np.exp(noise)) > 1
    return TokenChoice(
        winner,
        float(logits[winner]) - log_total,
        min(0.0, float(np.log(p[winner] / kept))),
        close=tolerance > 0 and bool(rivals or not sure[winner]),
    )


def choose_each(
    logits: torch.Tensor, sampling: Sampling, seeds: Sequence[int], positions: Sequence[int], tolerance: float
) -> list[TokenChoice]:
    """`choose` for each row of logits [B, V]."""
    rows = logits.double().cpu().numpy()
    return [
        choose(row, sampling, seed, position, tolerance)
        for row, seed, position in zip(rows, seeds, positions, strict=True)
    ]


def exponentials(seed: int, position: int, count: int) -> Floats:
    """`count` independent Exp(1) variables, a function of (seed, position) and their index alone.

    SplitMix64 started from a hash of (seed, position): the i-th value is mix(start + (i + 1) γ), so it
    needs no state and is computed for all i at once.
    """
    digest = hashlib.blake2b(repr((seed, position)).encode(), digest_size=8).digest()
    start = np.uint64(int.from_bytes(digest, "little"))
    x = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # wraps, as it should
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    uniform = ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # strictly inside (0, 1)
    return -np.log(uniform)


def _nucleus(p: Floats, top_p: float, noise: float) -> tuple[Mask, Mask, float]:
    """Tokens surely and possibly kept by top_p when each log p may be off by `noise`, and the mass kept.

    A token is kept if the mass of the tokens before it, in falling order, is below top_p.
    """
    if top_p >= 1:
        everything = np.ones(len(p), dtype=np.bool_)
        return everything, everything, 1.0
    # Tokens of p ≤ (1 − top_p) / 2V hold less than half of what is cut: none is kept, nor needs sorting.
    candidates = np.flatnonzero(p >= (1 - top_p) / (2 * len(p)) * np.exp(-2 * noise))
    order = candidates[np.argsort(-p[candidates], kind="stable")]
    falling = p[order]
    before = np.concatenate([[0.0], np.cumsum(falling)])
    kept = before[:-1] < top_p
    sure, possible = np.zeros(len(p), dtype=np.bool_), np.zeros(len(p), dtype=np.bool_)
    if noise == 0:
        sure[order] = possible[order] = kept
    else:
        factor = float(np.exp(noise))
        most = (before[np.searchsorted(-falling, -falling / factor, side="right")] - falling) * factor
        least = before[np.searchsorted(-falling, -falling * factor, side="left")] / factor
        sure[order], possible[order] = most < top_p, least < top_p
    return sure, possible, float(falling[kept].sum())
