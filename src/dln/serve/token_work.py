"""What a served model with token ids computes: draws, and scores of prompts and draws, batched across clients.

The i-th of n choices is the draw of seed + i, so the first one is the very draw that the engine gives in process.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any

from dln.lm.base import Completion, Sampling
from dln.lm.query import Ids
from dln.lm.token_level import TokenLevel, TokenScores
from dln.serve.answer import all_of
from dln.serve.batcher import Batcher
from dln.serve.fields import Common
from dln.serve.forced import MOST_STEPS, draw_among
from dln.serve.refusal import Refusal
from dln.serve.scores import Row
from dln.serve.tokens import Tokens

__all__ = ["TokenWork"]


class TokenWork:
    """A model's work for the requests of many clients.

    Args:
        lm: the model.
        tokens: its tokens.
        batcher: its worker, which puts together what was asked at the same time.
    """

    def __init__(self, lm: TokenLevel, tokens: Tokens, batcher: Batcher) -> None:
        self._lm = lm
        self._tokens = tokens
        self._batcher = batcher

    async def score(self, prompts: Sequence[Ids], top: int) -> list[TokenScores]:
        """Each prompt's tokens but the first, with the `top` most probable ones beside each."""
        run = partial(_score, self._lm, top=top)
        return await all_of(self._batcher, ("score", top), run, [(ids, 1) for ids in prompts])

    async def draw(self, prompts: Sequence[Ids], sampling: Sampling | None, request: Common) -> list[Completion]:
        """`request.count` draws of each prompt, prompt by prompt; empty ones without `sampling`.

        Raises:
            Refusal: among given tokens only short texts are drawn.
        """
        n = request.count
        if sampling is None:
            return [Completion("", (), (), (), finish_reason="length")] * (len(prompts) * n)
        seeds = [_seed(request.seed, i) for _ in prompts for i in range(n)]
        items = list(zip([ids for ids in prompts for _ in range(n)], seeds, strict=True))
        allowed = request.allowed_token_ids
        if allowed is None:
            return await all_of(self._batcher, ("draw", sampling), partial(_sample, self._lm, sampling), items)
        if sampling.max_tokens > MOST_STEPS:
            raise Refusal(
                400, f"with allowed_token_ids, max_tokens is at most {MOST_STEPS}", "max_tokens", "invalid_value"
            )
        chosen = tuple(sorted(set(allowed)))
        run = partial(_among, self._lm, self._tokens, sampling, chosen)
        return await all_of(self._batcher, ("among", sampling, chosen), run, items)

    async def beside(
        self, prompts: Sequence[Ids], drawn: Sequence[Completion], top: int | None, request: Common
    ) -> list[list[Row]]:
        """The tokens of each draw, with what was asked to be shown beside them; `prompts` are those of the draws."""
        ids = [draw.token_ids or () for draw in drawn]
        tops: list[Sequence[Any]] = [[None] * len(row) for row in ids]
        wanted = request.logprob_token_ids
        if wanted is not None:
            chosen = tuple(dict.fromkeys(wanted))
            prefixes = [(*p, *row[:t]) for p, row in zip(prompts, ids, strict=True) for t in range(len(row))]
            run = partial(_next, self._lm, chosen)
            found = iter(await all_of(self._batcher, ("next", chosen), run, prefixes))
            tops = [[tuple(zip(chosen, next(found).log_probs.tolist(), strict=True)) for _ in row] for row in ids]
        elif top:
            items = [((*p, *row), len(p)) for p, row in zip(prompts, ids, strict=True)]
            scores = await all_of(self._batcher, ("score", top), partial(_score, self._lm, top=top), items)
            tops = [one.top for one in scores]
        rows: list[list[Row]] = []
        for draw, row, shown in zip(drawn, ids, tops, strict=True):
            values = draw.log_probs or (float("nan"),) * len(row)
            log_q = draw.sampling_log_probs or (None,) * len(row)
            rows.append([Row(*one) for one in zip(row, values, shown, log_q, strict=True)])
        return rows


def _sample(lm: TokenLevel, sampling: Sampling, items: Sequence[tuple[Ids, int]]) -> list[Completion]:
    return lm.sample_ids([ids for ids, _ in items], sampling, [seed for _, seed in items])


def _among(
    lm: TokenLevel, tokens: Tokens, sampling: Sampling, allowed: Ids, items: Sequence[tuple[Ids, int]]
) -> list[Completion]:
    return draw_among(lm, tokens, items, sampling, allowed)


def _score(lm: TokenLevel, items: Sequence[tuple[Ids, int]], *, top: int) -> list[TokenScores]:
    return lm.score_ids([ids for ids, _ in items], [start for _, start in items], top)


def _next(lm: TokenLevel, tokens: Ids, prompts: Sequence[Ids]) -> list[TokenScores]:
    return lm.next_log_probs(prompts, tokens)


def _seed(seed: int | None, index: int) -> int:
    return secrets.randbits(63) if seed is None else seed + index
