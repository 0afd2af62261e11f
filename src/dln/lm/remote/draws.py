"""A server's draw as a `Completion`: its text up to the first stop string, its ids and their log-probabilities.

**Density of a draw.** log q at another temperature follows from the log-probabilities of the draw and those of the
most probable tokens:

    log q(i) = log p(i) / T − log Σ_j p(j)^(1/T)

The sum runs over the whole vocabulary, of which only the most probable tokens are known. At T < 1 the others matter
little: with m their total mass and p_min the smallest known probability, each is at most p_min, so that

    0  ≤  Σ_others p^(1/T)  ≤  m · p_min^(1/T − 1)

The midpoint is used, and half the width is the error. A draw whose errors add up to more than `TOLERANCE` has no known
density (None).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dln.lm.base import Completion, Sampling
from dln.lm.remote.dialect import Drawn
from dln.lm.remote.probe import ProbeReport
from dln.lm.remote.read import ScoredToken

__all__ = ["TOLERANCE", "completion_of", "draw_log_probs", "token_log_prob"]

Values = tuple[float, ...] | None

POSSIBLE = 1e-6
"""The largest value that is a log-probability but for rounding."""


def completion_of(drawn: Drawn, sampling: Sampling, report: ProbeReport, model: str) -> Completion:
    """The draw, cut at the first stop string.

    Args:
        drawn: what the server sent.
        sampling: how it was drawn.
        report: what is known of the server: whether its ids are used, and which log-probabilities it tells.
        model: the fingerprint of the model that drew it.
    """
    drawn = _within(drawn, sampling.max_tokens)
    text, finish = drawn.text, drawn.finish
    cuts = [at for at in map(text.find, sampling.stop) if at >= 0]
    if cuts:  # the server knows fewer stop strings than were given, or none
        text, finish = text[: min(cuts)], "stop"
    ids = drawn.ids if report.token_ids else None
    log_probs, log_q = _densities(drawn, sampling, report) if ids is not None and drawn.row.tokens else (None, None)
    reason: Literal["stop", "length"] = "length" if finish == "length" else "stop"
    return Completion(
        text=text,
        token_ids=ids,
        log_probs=log_probs,
        sampling_log_probs=log_q,
        text_tokens=None if ids is None else _text_tokens(drawn, text, len(ids)),
        finish_reason=reason,
        model=model,
    )


def _within(drawn: Drawn, max_tokens: int) -> Drawn:
    """The first `max_tokens` tokens of a draw that is longer since the server accepts no smaller limit."""
    shown = [token.text for token in drawn.row.tokens]
    if len(shown) <= max_tokens or None in shown:
        return drawn
    text, row = "".join(part or "" for part in shown[:max_tokens]), drawn.row
    row = replace(
        row,
        tokens=row.tokens[:max_tokens],
        tops=row.tops[:max_tokens],
        sampling=None if row.sampling is None else row.sampling[:max_tokens],
    )
    ids = None if drawn.ids is None else drawn.ids[:max_tokens]
    # a token that is not text (a terminator) may be shown beside the text
    return Drawn(text, "length", row, ids) if drawn.text.startswith(text) else drawn


def _densities(drawn: Drawn, sampling: Sampling, report: ProbeReport) -> tuple[Values, Values]:
    """log p and log q of each token; both are None where a value is no log-probability, so that no sum hides it."""
    values = tuple(token.log_prob for token in drawn.row.tokens)
    if not all(map(_possible, (*values, *(drawn.row.sampling or ())))):
        return None, None
    if sampling.temperature == 1 and sampling.top_p == 1:
        return values, values
    told = (0.0,) * len(values) if sampling.temperature == 0 else drawn.row.sampling
    if report.densities == "model":
        return values, told or draw_log_probs(drawn.row.tokens, drawn.row.tops, sampling)
    return None, told or (values if report.densities == "sampling" else None)


def _possible(value: float) -> bool:
    return math.isfinite(value) and value <= POSSIBLE


def _text_tokens(drawn: Drawn, text: str, count: int) -> int:
    """How many leading tokens lie within `text`; the rest are the terminator, or what a stop string cut off."""
    shown = [token.text for token in drawn.row.tokens]
    if len(shown) == count and all(part is not None for part in shown):
        inside, at = 0, 0
        for k, part in enumerate(shown):
            at += len(part or "")
            if at > len(text) or not (part and text.startswith(part, at - len(part))):
                break
            inside = k + 1
        if at >= len(text) or inside == count:
            return inside
    ended = drawn.finish == "stop" and drawn.text == text
    return max(0, count - 1) if ended else count


TOLERANCE = 0.25
"""Nats per draw."""

ROUNDING = 1e-6


def draw_log_probs(
    tokens: Sequence[ScoredToken], tops: Sequence[Sequence[ScoredToken]], sampling: Sampling
) -> tuple[float, ...] | None:
    """log q of each token of a draw under `sampling`; None where they are not known well enough together.

    Args:
        tokens: what was drawn, with log-probabilities at temperature 1.
        tops: the likeliest tokens at each place at temperature 1; empty where none are known.
        sampling: how it was drawn.
    """
    known = [
        token_log_prob(token, tops[place] if place < len(tops) else (), sampling) for place, token in enumerate(tokens)
    ]
    found = [pair for pair in known if pair is not None]
    if len(found) < len(known) or math.fsum(error for _, error in found) > TOLERANCE:
        return None
    return tuple(value for value, _ in found)


def token_log_prob(token: ScoredToken, top: Sequence[ScoredToken], sampling: Sampling) -> tuple[float, float] | None:
    """log q of one token, and how far it may be off, in nats; None where nothing can be said."""
    if sampling.temperature == 0:
        return 0.0, 0.0
    if sampling.temperature == 1 and sampling.top_p == 1:
        return token.log_prob, 0.0
    others = [entry.log_prob for entry in top if not _same(entry, token)]
    values = sorted((value for value in (token.log_prob, *others) if math.isfinite(value)), reverse=True)
    total, power = math.fsum(map(math.exp, values)), 1 / sampling.temperature
    rest = max(0.0, 1.0 - total)
    whole = rest <= ROUNDING
    if not math.isfinite(token.log_prob) or total > 1 + 1e-3 or not (whole or (power > 1 and others)):
        return None
    tempered = [math.exp(power * value) for value in values]
    # The drawn token may stand beside the likeliest ones without being one of them: it bounds nothing.
    tail = 0.0 if whole else rest * math.exp(min(others) * (power - 1))
    norm = math.fsum(tempered)
    if sampling.top_p < 1:
        kept = _nucleus(tempered, norm + tail, sampling.top_p)
        if kept is None:
            return None
        norm, tail = math.fsum(tempered[:kept]), 0.0
    return min(0.0, power * token.log_prob - math.log(norm + tail / 2)), tail / 2 / norm


def _nucleus(tempered: Sequence[float], norm: float, top_p: float) -> int | None:
    """How many of the likeliest tokens reach `top_p`; None if the known ones do not surely."""
    reached = 0.0
    for count, value in enumerate(tempered, 1):
        reached += value / norm
        if reached >= top_p * (1 - 1e-12):
            return count
    return None


def _same(entry: ScoredToken, token: ScoredToken) -> bool:
    named = entry.id == token.id if entry.id is not None and token.id is not None else entry.text == token.text
    return named and abs(entry.log_prob - token.log_prob) < ROUNDING
