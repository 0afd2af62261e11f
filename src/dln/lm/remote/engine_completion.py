"""A draw as the server tells it, as a `Completion`: its text, ids and densities, as far as each is known."""

from __future__ import annotations

import math
from typing import Literal

from dln.lm.base import Completion, Sampling
from dln.lm.remote.dialect_values import Drawn
from dln.lm.remote.engine_density import draw_log_probs
from dln.lm.remote.probe_report import ProbeReport

__all__ = ["completion_of"]

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
