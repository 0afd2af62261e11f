"""What is asked of a network's next-token distributions, and how answers are read off logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from dln.numerics import Floats

if TYPE_CHECKING:
    import torch

__all__ = ["Answer", "Ids", "Query", "read"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """Which next-token log-probabilities are wanted along one sequence.

    Attributes:
        ids: the sequence that is fed.
        positions: indices into `ids` after which a distribution is wanted.
        tokens: for each position, the wanted tokens.
        rest: whether log(1 − Σ p(wanted)) is wanted for each position as well.
    """

    ids: Ids
    positions: Ids
    tokens: tuple[Ids, ...]
    rest: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Answer:
    """log p of a query's wanted tokens, position after position, and log-mass of the rest per position."""

    log_probs: Floats
    rest: Floats

    @classmethod
    def of(cls, rows: Sequence[tuple[Floats, float]]) -> Answer:
        """From what `read` gives for each position."""
        return cls(np.concatenate([row for row, _ in rows]), np.array([rest for _, rest in rows]))


def read(logits: torch.Tensor, rows: Sequence[int], tokens: Sequence[Ids], rest: bool) -> list[tuple[Floats, float]]:
    """For each i: log p of `tokens[i]` in row `rows[i]` of logits [R, V], and log-mass of all other tokens.

    The rest is 0 where `rest` is False: it costs a pass over the vocabulary.
    """
    import torch

    total = logits.logsumexp(-1)
    where = torch.as_tensor(list(rows), device=logits.device)
    index = torch.tensor([i for i, ids in enumerate(tokens) for _ in ids], device=logits.device, dtype=torch.long)
    token = torch.tensor([t for ids in tokens for t in ids], device=logits.device, dtype=torch.long)
    log_probs = _float64(logits[where[index], token] - total[where[index]])
    others = np.zeros(len(tokens))
    if rest:
        remaining = logits[where]
        remaining[index, token] = -torch.inf  # summing what is left loses nothing, unlike 1 − Σ p
        others = _float64(remaining.logsumexp(-1) - total[where])
    ends = np.cumsum([len(ids) for ids in tokens])[:-1]
    return list(zip(np.split(log_probs, ends), map(float, others), strict=True))


def _float64(values: torch.Tensor) -> Floats:
    return cast(Floats, values.double().cpu().numpy())
