"""Draws among chosen tokens only: the model's distribution, cut to them, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dln.lm.base import Completion, Sampling
from dln.lm.query import Ids
from dln.lm.token_choice import choose
from dln.lm.token_level import TokenLevel
from dln.serve.tokens import Tokens

__all__ = ["MOST_STEPS", "draw_among"]

MOST_STEPS = 64
"""Every step scores the whole text again: this is for labels and other short answers."""


def draw_among(
    lm: TokenLevel, tokens: Tokens, items: Sequence[tuple[Ids, int]], sampling: Sampling, allowed: Ids
) -> list[Completion]:
    """One draw per (prompt, seed), in which only `allowed` tokens occur.

    The same race as in any other draw, run among fewer: with every token allowed the draws are the usual ones.
    Log-probabilities are the model's own, before the cut.
    """
    return [_Draw(lm, tokens, sampling, allowed).run(prompt, seed) for prompt, seed in items]


class _Draw:
    def __init__(self, lm: TokenLevel, tokens: Tokens, sampling: Sampling, allowed: Ids) -> None:
        self._lm, self._tokens, self._sampling, self._allowed = lm, tokens, sampling, allowed

    def run(self, prompt: Ids, seed: int) -> Completion:
        drawn: list[int] = []
        log_probs: list[float] = []
        log_q: list[float] = []
        while True:
            scores = self._lm.next_log_probs([(*prompt, *drawn)], self._allowed)[0].log_probs
            logits = np.full(max(self._allowed) + 1, -np.inf)
            logits[list(self._allowed)] = scores
            with np.errstate(divide="ignore", invalid="ignore"):
                choice = choose(logits, self._sampling, seed, len(drawn), 0.0)
            drawn.append(choice.token)
            log_probs.append(float(logits[choice.token]))
            log_q.append(choice.sampling_log_prob)
            ended = choice.token in self._tokens.terminators
            text = self._tokens.text(drawn[:-1] if ended else drawn)
            cuts = [at for at in map(text.find, self._sampling.stop) if at >= 0]
            if ended or cuts or len(drawn) >= self._sampling.max_tokens:
                return Completion(
                    text[: min(cuts)] if cuts else text,
                    tuple(drawn),
                    tuple(log_probs),
                    tuple(log_q),
                    finish_reason="stop" if ended or cuts else "length",
                )
