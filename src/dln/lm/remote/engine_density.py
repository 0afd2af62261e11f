"""log q of a drawn token at another temperature, from its log-probability and those of the likeliest tokens.

    log q(i) = log p(i) / T − log Σ_j p(j)^(1/T)

The sum runs over the whole vocabulary, of which only the likeliest tokens are known. At T < 1 the others matter
little: with m their mass together and p_min the smallest known probability, each is at most p_min, so that

    Σ_others p^(1/T)  ≤  m · p_min^(1/T − 1)

If that bound moves the result by more than `TOLERANCE`, the density is not known, and None says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dln.lm.base import Sampling
from dln.lm.remote.read import Token

__all__ = ["TOLERANCE", "sampling_log_prob"]

TOLERANCE = 0.02
"""Nats per token."""


def sampling_log_prob(token: Token, top: Sequence[Token], sampling: Sampling) -> float | None:
    """log q of `token` under `sampling`; None where it is not known well enough.

    Args:
        token: what was drawn, with its log-probability at temperature 1.
        top: the likeliest tokens at its place at temperature 1.
        sampling: how it was drawn.
    """
    if sampling.temperature == 0:
        return 0.0
    if sampling.temperature == 1 and sampling.top_p == 1:
        return token.log_prob
    known = {(entry.id, entry.text): entry.log_prob for entry in top}
    if (token.id, token.text) not in known and not any(
        abs(value - token.log_prob) < 1e-9 and text == token.text for (_, text), value in known.items()
    ):
        known[token.id, token.text] = token.log_prob
    values = sorted((value for value in known.values() if math.isfinite(value)), reverse=True)
    total = math.fsum(map(math.exp, values))
    others, power = max(0.0, 1.0 - total), 1 / sampling.temperature
    possible = bool(values) and total <= 1 + 1e-3 and math.isfinite(token.log_prob)
    if not possible or (others > 1e-6 and power <= 1):
        return None
    tempered = [math.exp(power * value) for value in values]
    # The drawn token may stand beside the likeliest ones without being one: it bounds nothing.
    bounds = [entry.log_prob for entry in top if entry != token and math.isfinite(entry.log_prob)]
    tail = others * math.exp(min(bounds, default=0.0) * (power - 1)) if others > 1e-6 else 0.0
    norm = math.fsum(tempered)
    if not norm or tail / norm > TOLERANCE:
        return None
    if sampling.top_p < 1:
        kept, at_least = 0, 0.0
        for value in tempered:
            kept, at_least = kept + 1, at_least + value / (norm + tail)
            if at_least >= sampling.top_p * (1 - 1e-12):
                break
        else:
            return None
        norm, tail = math.fsum(tempered[:kept]), 0.0
    return min(0.0, power * token.log_prob - math.log(norm + tail / 2))
