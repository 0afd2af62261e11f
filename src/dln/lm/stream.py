"""Any number of requests as windows of bounded size, in an order in which they share the most.

Requests are sorted by what they begin with, so that those that share a prefix come one after another, and
are turned into queries window by window. Windows begin with the longest request and those it shares most of itself
with, and go round from there, so that a shortage of memory shows at once and no long prefix is cut in two; inside
a window the planner visits the longest first as well, and last what the next window goes on with. Where a model
cannot share prefixes, the order is that of length alone, the longest first.

A window is full when it brings 64 forwards of new tokens, or when its sequences are 512 forwards long: what two
windows share beyond one path is computed twice, so they are large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from dln.lm.query import Answer, Ids, Query
from dln.lm.visiting_order import common_prefix

__all__ = ["WINDOW_ASKED", "BoundedMemo", "stream"]

WINDOW_NEW = 64
WINDOW_ASKED = 512
"""Tokens of a window's sequences, in forwards."""

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
            asked += len(query.ids)
            last = query.ids
        window.append((index, queries))
    if window:
        yield window, ()
