"""Ids in, ids out: what a server needs of a model in this process, below the level of texts.

A text-level `LanguageModel` decides itself how a context is encoded. A server is given prompts as texts or
as ids, echoes them with their log-probabilities, and shows tokens one by one; `TokenLevel` is that side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from dln.lm.base import Completion, Sampling
from dln.lm.query import Answer, Ids, Query, TopTokens
from dln.lm.scoring import Scoring
from dln.lm.stream import stream
from dln.numerics import Floats

__all__ = ["TokenLevel", "TokenScores", "next_query", "sequence_query", "token_scores"]


@dataclass(frozen=True, eq=False, slots=True)
class TokenScores:
    """Log-probabilities of tokens, in nats, and the most probable tokens beside them.

    Attributes:
        log_probs: [T] log p of each wanted token.
        top: per position, the most probable tokens with their log p, the most probable first; () if not asked.
    """

    log_probs: Floats
    top: tuple[TopTokens, ...]

    @classmethod
    def of(cls, answer: Answer) -> TokenScores:
        """From the engine's answer."""
        return cls(answer.log_probs, answer.top)


@runtime_checkable
class TokenLevel(Protocol):
    """A model that takes and gives token ids."""

    def encode(self, text: str) -> Ids:
        """Ids of `text` as a target or completion: no special tokens, none recognised inside either."""
        ...

    def context_ids(self, context: str) -> Ids:
        """Ids of `text` as a context, special tokens or chat turns included; never empty."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` add to what stands before them; special tokens have none."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, which need not be whole characters; a special token's name."""
        ...

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD where bytes are no whole character."""
        ...

    def sample_ids(self, prompts: Sequence[Ids], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per prompt, a function of (prompt, sampling, seed) alone."""
        ...

    def score_ids(self, sequences: Sequence[Ids], start: Sequence[int], top: int = 0) -> list[TokenScores]:
        """log p of each sequence's tokens from index `start` on (≥ 1: a first token has nothing before it).

        Position t of the scores belongs to token start + t, given all tokens before it.
        """
        ...

    def next_log_probs(self, prompts: Sequence[Ids], tokens: Sequence[int] = (), top: int = 0) -> list[TokenScores]:
        """After each prompt: log p of each of `tokens`, and the `top` most probable tokens (one position)."""
        ...


def sequence_query(ids: Ids, start: int, top: int) -> Query:
    """The query for log p of `ids[start:]`, each token given all before it; 1 ≤ start ≤ len(ids)."""
    positions = tuple(range(start - 1, len(ids) - 1))
    return Query(tuple(ids[:-1]), positions, tuple((token,) for token in ids[start:]), top=top)


def next_query(ids: Ids, tokens: Sequence[int], top: int) -> Query:
    """The query for the distribution after `ids`."""
    return Query(tuple(ids), (len(ids) - 1,), (tuple(tokens),), top=top)


def token_scores(scoring: Scoring, rows: Sequence[Ids], query_of: Callable[[int], Query]) -> list[TokenScores]:
    """The scores of each row's query; a query about no position has none."""
    scores = [TokenScores(np.zeros(0), ())] * len(rows)
    keys = [tuple(row) for row in rows]

    def queries_of(index: int) -> list[Query]:
        query = query_of(index)
        return [query] if query.positions else []

    for index, answers in stream(scoring, keys, list(map(len, keys)), queries_of):
        if answers:
            scores[index] = TokenScores.of(answers[0])
    return scores
