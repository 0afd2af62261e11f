"""What is asked of a model's next-token distributions, and how answers are read off logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from dln.numerics import Floats

if TYPE_CHECKING:
    import torch

__all__ = ["Answer", "Found", "Ids", "Query", "Question", "TopTokens", "read"]

Ids = tuple[int, ...]

TopTokens = tuple[tuple[int, float], ...]
"""(token id, log p) of the most probable next tokens, the most probable first, the smaller id first among equals."""


class Question(NamedTuple):
    """What is wanted of one next-token distribution; the fields are those of `Query`."""

    tokens: Ids
    rest: bool
    top: int


class Found(NamedTuple):
    """The answer to a `Question`: log p of its tokens, log-mass of the rest (0 if not asked), the top tokens."""

    log_probs: Floats
    rest: float
    top: TopTokens


@dataclass(frozen=True, slots=True)
class Query:
    """Which next-token log-probabilities are wanted along one sequence.

    Attributes:
        ids: the sequence that is fed.
        positions: indices into `ids` after which a distribution is wanted.
        tokens: for each position, the wanted tokens.
        rest: whether log(1 − Σ p(wanted)) is wanted for each position as well.
        top: how many of the most probable tokens are wanted for each position (at most the vocabulary).
    """

    ids: Ids
    positions: Ids
    tokens: tuple[Ids, ...]
    rest: bool = False
    top: int = 0

    @property
    def questions(self) -> list[Question]:
        """What is asked at each position."""
        return [Question(tokens, self.rest, self.top) for tokens in self.tokens]


@dataclass(frozen=True, eq=False, slots=True)
class Answer:
    """What was found for a query.

    Attributes:
        log_probs: log p of the wanted tokens, position after position.
        rest: log-mass of all other tokens, per position; 0 where it was not asked for.
        top: the most probable tokens, per position; empty where none were asked for.
    """

    log_probs: Floats
    rest: Floats
    top: tuple[TopTokens, ...] = ()

    @classmethod
    def of(cls, found: Sequence[Found]) -> Answer:
        """From what `read` gives for each position."""
        values = [one.log_probs for one in found]
        return cls(
            np.concatenate(values) if values else np.zeros(0),
            np.array([one.rest for one in found]),
            tuple(one.top for one in found),
        )


def read(logits: torch.Tensor, rows: Sequence[int], questions: Sequence[Question]) -> list[Found]:
    """The answer to `questions[i]` in row `rows[i]` of logits [R, V]; rows may repeat."""
    kinds = _grouped((question.rest, question.top) for question in questions)
    found: list[Found | None] = [None] * len(questions)
    total = logits.logsumexp(-1)
    for (rest, top), chosen in kinds.items():
        tokens = [questions[i].tokens for i in chosen]
        values = _read(logits, total, [rows[i] for i in chosen], tokens, rest, top)
        for i, value in zip(chosen, values, strict=True):
            found[i] = value
    return cast("list[Found]", found)


def _grouped(kinds: Iterable[tuple[bool, int]]) -> dict[tuple[bool, int], list[int]]:
    groups: dict[tuple[bool, int], list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(index)
    return groups


def _read(
    logits: torch.Tensor, total: torch.Tensor, rows: list[int], tokens: list[Ids], rest: bool, top: int
) -> list[Found]:
    import torch

    where = torch.as_tensor(rows, device=logits.device)
    index = torch.tensor([i for i, ids in enumerate(tokens) for _ in ids], device=logits.device, dtype=torch.long)
    token = torch.tensor([t for ids in tokens for t in ids], device=logits.device, dtype=torch.long)
    log_probs = _float64(logits[where[index], token] - total[where[index]])
    others = np.zeros(len(tokens))
    if rest:
        remaining = logits[where]
        remaining[index, token] = -torch.inf  # summing what is left loses nothing, unlike 1 − Σ p
        others = _float64(remaining.logsumexp(-1) - total[where])
    best = _top(logits, total, rows, top) if top else [()] * len(tokens)
    ends = np.cumsum([len(ids) for ids in tokens])[:-1]
    return [Found(*one) for one in zip(np.split(log_probs, ends), map(float, others), best, strict=True)]


def _top(logits: torch.Tensor, total: torch.Tensor, rows: list[int], top: int) -> list[TopTokens]:
    """The `top` most probable tokens of each of `rows`, each row of logits sorted once."""
    import torch

    distinct = sorted(set(rows))
    chosen = torch.as_tensor(distinct, device=logits.device)
    values, ids = (logits[chosen] - total[chosen, None]).topk(min(top, logits.shape[-1]), dim=-1)
    best: dict[int, TopTokens] = {}
    for row, some_ids, some_values in zip(distinct, ids.cpu().numpy(), _float64(values), strict=True):
        order = np.lexsort((some_ids, -some_values))
        best[row] = tuple((int(some_ids[i]), float(some_values[i])) for i in order)
    return [best[row] for row in rows]


def _float64(values: torch.Tensor) -> Floats:
    return cast(Floats, values.double().cpu().numpy())
