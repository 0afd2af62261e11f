"""Queries about next-token distributions, answers read off logits, and windows of bounded size.

Requests are sorted by their prefix, so that those that share one are neighbours, and turned into queries window by
window. The first window holds the longest request and those it shares most with, so that a shortage of memory shows
at once and no long prefix is cut in two; the order wraps around from there. Where a model cannot share prefixes,
requests are sorted by length alone, the longest first.

A window is full when it brings 64 forwards of new tokens, or when its sequences and the top tokens that are read from
them are 512 forwards long: what two windows share beyond one path is computed twice, so windows are large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

from dln.lm.labels import LabelTrie
from dln.lm.local.plan import common_prefix
from dln.numerics import Floats

if TYPE_CHECKING:
    import torch

__all__ = [
    "WINDOW_ASKED",
    "Answer",
    "BoundedMemo",
    "Found",
    "Ids",
    "LabelQuestions",
    "Query",
    "Question",
    "TopTokens",
    "read",
    "stream",
]

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
    counts = [len(ids) for ids in tokens]
    if len({id(ids) for ids in tokens}) == 1:  # one list for all, which may be long: read once
        flat = np.tile(np.array(tokens[0], dtype=np.int64), len(tokens))
    else:
        flat = np.fromiter(chain.from_iterable(tokens), np.int64, sum(counts))
    index = torch.from_numpy(np.repeat(np.arange(len(tokens)), counts)).to(logits.device)
    token = torch.from_numpy(flat).to(logits.device)
    log_probs = _float64(logits[where[index], token] - total[where[index]])
    others = np.zeros(len(tokens))
    if rest:
        remaining = logits[where]
        remaining[index, token] = -torch.inf  # summing what is left loses nothing, unlike 1 − Σ p
        others = _float64(remaining.logsumexp(-1) - total[where])
    best = _top(logits, total, rows, top) if top else [()] * len(tokens)
    ends = np.cumsum(counts)[:-1]
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


@dataclass(frozen=True)
class LabelQuestions:
    """The queries of a label trie.

    Attributes:
        trie: the labels' token prefixes.
        owned: for each path of the trie, the internal prefixes whose distributions its forward gives.
    """

    trie: LabelTrie
    owned: tuple[tuple[Ids, ...], ...]

    @classmethod
    def of(cls, trie: LabelTrie) -> LabelQuestions:
        """Each internal prefix is asked for once, along the first path that passes it."""
        owned: list[list[Ids]] = [[] for _ in trie.paths]
        for prefix in trie.children:
            owned[trie.owner(prefix)].append(prefix)
        return cls(trie, tuple(map(tuple, owned)))

    def queries(self, context: Ids) -> list[Query]:
        """One query per path of the trie behind `context`."""
        labelled = set(self.trie.ids)
        return [
            Query(
                (*context, *path),
                tuple(len(context) - 1 + len(prefix) for prefix in prefixes),
                tuple(self.trie.children[prefix] for prefix in prefixes),
                rest=any(prefix in labelled for prefix in prefixes),
            )
            for path, prefixes in zip(self.trie.paths, self.owned, strict=True)
        ]

    def masses(self, answers: Sequence[Answer]) -> Floats:
        """[C] log-mass of each label from the answers to `queries`, in nats."""
        log_probs: dict[Ids, Floats] = {}
        log_rest: dict[Ids, float] = {}
        for prefixes, answer in zip(self.owned, answers, strict=True):
            cuts = np.cumsum([len(self.trie.children[prefix]) for prefix in prefixes])[:-1]
            log_probs.update(zip(prefixes, np.split(answer.log_probs, cuts), strict=True))
            log_rest.update(zip(prefixes, map(float, answer.rest), strict=True))
        return self.trie.log_masses(log_probs, log_rest)


WINDOW_NEW = 64
WINDOW_ASKED = 512
"""Tokens of a window, in forwards: new ones, and those of its sequences and of the answers' top lists."""

OWN_PART = 4
"""A request goes with the one before it that it shares more than a quarter of itself with."""


class Answers(Protocol):
    """What answers a window of queries; see `Scoring`."""

    batch_tokens: int

    @property
    def shares(self) -> bool:
        """Whether queries that share a prefix gain from being in one window."""
        ...

    def answer(self, queries: Sequence[Query], following: Ids = ()) -> list[Answer]:
        """One answer per query; `following` is the first sequence of the next window."""
        ...


def stream(
    scoring: Answers,
    keys: Sequence[Any],
    lengths: Sequence[int],
    queries_of: Callable[[int], list[Query]],
) -> Iterator[tuple[int, list[Answer]]]:
    """Answers to the queries of every request, in the order in which they were computed.

    Args:
        scoring: answers the windows.
        keys: what each request begins with, text or ids: sorted by it, requests that share a prefix meet.
        lengths: tokens of each request.
        queries_of: the queries of one request; asked for when its window is made.

    Yields:
        (index of a request, the answers to its queries).
    """
    for window, following in _windows(_order(keys, lengths, scoring.shares), queries_of, scoring.batch_tokens):
        answers = iter(scoring.answer([query for _, queries in window for query in queries], following))
        for index, queries in window:
            yield index, [next(answers) for _ in queries]


class BoundedMemo:
    """Remembers encodings of texts, up to a number of tokens; then it begins anew.

    Args:
        encode: text to ids.
        tokens: how many are kept, in tokens.
    """

    def __init__(self, encode: Callable[[str], Ids], tokens: int) -> None:
        self._encode = encode
        self._tokens = tokens
        self._known: dict[str, Ids] = {}
        self._size = 0

    def __call__(self, text: str) -> Ids:
        """The ids of `text`."""
        ids = self._known.get(text)
        if ids is None:
            ids = self._encode(text)
            self._size += len(ids) + 1
            if self._size > self._tokens:
                self._known.clear()
                self._size = len(ids) + 1
            self._known[text] = ids
        return ids


def _order(keys: Sequence[Any], lengths: Sequence[int], by_prefix: bool) -> list[int]:
    if not by_prefix:
        return sorted(range(len(keys)), key=lambda i: (-lengths[i], keys[i]))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    first = max(range(len(order)), key=lambda i: lengths[order[i]], default=0)
    while first and OWN_PART * common_prefix(keys[order[first - 1]], keys[order[first]]) > len(keys[order[first]]):
        first -= 1
    return order[first:] + order[:first]


def _windows(
    order: Sequence[int], queries_of: Callable[[int], list[Query]], batch_tokens: int
) -> Iterator[tuple[list[tuple[int, list[Query]]], Ids]]:
    """Windows, each with the first sequence of the one behind it."""
    window: list[tuple[int, list[Query]]] = []
    new = asked = 0
    last: Ids = ()
    for index in order:
        queries = queries_of(index)
        if new >= WINDOW_NEW * batch_tokens or asked >= WINDOW_ASKED * batch_tokens:
            yield window, queries[0].ids if queries else ()
            window, new, asked = [], 0, 0
        for query in queries:
            new += len(query.ids) - common_prefix(last, query.ids)
            asked += len(query.ids) + query.top * len(query.positions)
            last = query.ids
        window.append((index, queries))
    if window:
        yield window, ()
