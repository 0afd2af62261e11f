"""The request planner: every distinct prefix of a set of sequences is evaluated once. Pure, without a model.

The distinct prefixes of all sequences form a trie. Visited in preorder, a sequence adds the nodes beyond its longest
common prefix with the one before it. The preorder is cut into packs of at most `budget` nodes. Whatever a pack needs
from earlier packs lies on the path to its first node, so the keys and values of that one path are all that is carried
from pack to pack: nothing is computed twice, and memory is bounded by the budget and the longest sequence.

    asked  = Σ_i |s_i|        needed = number of trie nodes        evaluated = Σ packs' tokens = needed

**Order.** Longest first: of several continuations of a prefix, the one that leads to the longest sequence is visited
first. The past that is carried, and with it the memory of a forward, is then largest in the first packs, and a
shortage of memory shows at once. There are two exceptions, because both would have to be computed again otherwise:
continuations of a path carried over from an earlier plan (`before`) come first, and what a later plan starts with
(`after`) comes last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Plan", "common_prefix", "longest_first"]


@dataclass(slots=True)
class _Inner:
    """A prefix that several sequences share."""

    depth: int
    weight: float = 0.0
    ends: bool = False
    children: list[_Inner | int] = field(default_factory=list["_Inner | int"])


def longest_first(shared: Sequence[int], weights: Sequence[float], last: int | None = None) -> list[int]:
    """A preorder of the prefix tree in which, at every fork, the branch of the largest weight comes first.

    Args:
        shared: for each of the lexicographically sorted distinct sequences, how much it shares with the one before.
        weights: of each sequence, usually its length.
        last: the sequence that is to be visited last: at every fork its branch comes behind all others of finite
            weight.

    Returns:
        Every index once. Sequences that share a prefix stand side by side. Equal weights keep their order.
    """
    if not weights:
        return []
    stack = [_Inner(-1)]
    leaf: int = 0
    for index in range(1, len(weights) + 1):
        cut = shared[index] if index < len(weights) else -1
        closed: _Inner | int = leaf
        if stack[-1].depth < cut:
            stack.append(_Inner(cut))
        while stack[-1].depth > cut:
            _attach(stack[-1], closed, weights, last)
            closed = stack.pop()
            if stack[-1].depth < cut:
                stack.append(_Inner(cut))
        _attach(stack[-1], closed, weights, last)
        leaf = index
    order: list[int] = []
    pending: list[_Inner | int] = [stack[0]]
    while pending:
        node = pending.pop()
        if isinstance(node, int):
            order.append(node)
        else:
            ordered = sorted(node.children, key=lambda child: (_ends(child, last), -_weight(child, weights)))
            pending.extend(ordered[::-1])  # a stack gives back the last first
    return order


def common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common prefix of two tuples or two texts."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit - 1  # a[:low] == b[:low] and the first difference is at most at `high`
    while low < high:
        middle = (low + high) // 2
        if a[low : middle + 1] == b[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low


def _attach(node: _Inner, child: _Inner | int, weights: Sequence[float], last: int | None) -> None:
    node.children.append(child)
    node.weight = max(node.weight, _weight(child, weights))
    node.ends = (node.ends or _ends(child, last)) and node.weight < math.inf


def _weight(child: _Inner | int, weights: Sequence[float]) -> float:
    return weights[child] if isinstance(child, int) else child.weight


def _ends(child: _Inner | int, last: int | None) -> bool:
    """Whether the branch leads to the last sequence; one that must come first does not count."""
    return child == last if isinstance(child, int) else child.ends


Integers = npt.NDArray[np.int64]
TokenIds = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pack:
    """Consecutive trie nodes in preorder, to be fed as one row.

    Attributes:
        tokens: [T] the nodes' tokens.
        positions: [T] their depth, 0-based: the position that the model is told.
        carry: [P] where the past comes from: indices into (past of the pack before ⧺ its tokens); for the
            first pack, into the plan's `before`. The past is the path from the root to the parent of the
            first node, in order of depth.
        mask: [T, P + T] True where a node sees a past or packed node: its ancestors and itself.
        path: [D] where the last sequence's path lies, as far as it has been fed: indices into (past ⧺ tokens).
    """

    tokens: Integers
    positions: Integers
    carry: Integers
    mask: npt.NDArray[np.bool_]
    path: Integers


@dataclass(frozen=True, eq=False)
class Plan:
    """The prefix trie of some sequences in preorder, the longest first.

    Nodes are numbered in preorder. The nodes of `before` have the numbers below `len(before)`; they are not
    fed, and not counted by `size`.

    Attributes:
        sequences: the distinct sequences, in the order in which they are visited.
        shared: for each, the length of its longest common prefix with the sequence before it.
        starts: for each, the number of the first node that it adds.
        size: number of nodes to feed.
        asked: tokens of all sequences as they were given, repetitions included.
        before: a path that has been evaluated already.
    """

    sequences: tuple[TokenIds, ...]
    shared: tuple[int, ...]
    starts: tuple[int, ...]
    size: int
    asked: int
    before: TokenIds = ()

    @classmethod
    def of(cls, sequences: Sequence[TokenIds], before: TokenIds = (), after: TokenIds = ()) -> Plan:
        """The plan for `sequences`, in any order and with repetitions.

        Args:
            sequences: what is to be evaluated.
            before: tokens of a path whose keys and values are still there, not to be evaluated again.
            after: what a later plan will begin with; the path to end near.
        """
        given = set(sequences)
        distinct = sorted({*given, *(path for path in (before, after) if path)})
        weights = [np.inf if before and sequence == before else len(sequence) for sequence in distinct]
        lengths = [0, *(common_prefix(a, b) for a, b in pairwise(distinct))]
        last = distinct.index(after) if after and after != before else None
        visited = [distinct[i] for i in longest_first(lengths[: len(distinct)], weights, last)]
        shared: list[int] = []
        starts: list[int] = []
        node = len(before)
        last = before
        for sequence in visited:
            if sequence not in given:
                continue
            common = common_prefix(last, sequence)
            shared.append(common)
            starts.append(node)
            node += len(sequence) - common
            last = sequence
        ordered = tuple(sequence for sequence in visited if sequence in given)
        return cls(ordered, tuple(shared), tuple(starts), node - len(before), sum(map(len, sequences)), before)

    def paths(self) -> Iterator[tuple[TokenIds, Integers]]:
        """Each sequence with the node numbers of all its prefixes, root first."""
        path = np.zeros(max(map(len, (self.before, *self.sequences))), dtype=np.int64)
        path[: len(self.before)] = np.arange(len(self.before))
        for sequence, common, start in zip(self.sequences, self.shared, self.starts, strict=True):
            path[common : len(sequence)] = np.arange(start, start + len(sequence) - common)
            yield sequence, path[: len(sequence)].copy()

    def packs(self, budget: int, wanted: Integers | None = None, most_wanted: int | None = None) -> Iterator[Pack]:
        """The nodes in preorder, `budget` at a time; a pack is smaller if it is the last, or holds all it may.

        Args:
            budget: at most this many nodes in a pack.
            wanted: sorted numbers of the nodes after which a distribution is wanted.
            most_wanted: at most this many of them in a pack; no bound if None.
        """
        tokens: list[int] = []
        depths: list[int] = []
        segments: list[tuple[int, int, Integers]] = []  # (first row, end row, path above) of the open pack
        past: Integers = np.arange(len(self.before))  # node numbers of the open pack's past, by depth
        carry = last = past
        first = end_node = len(self.before)
        for (sequence, path), common in zip(self.paths(), self.shared, strict=True):
            done = common
            while done < len(sequence):
                if not tokens:
                    carry, past, first = self._carried(path[:done], past, first), path[:done], int(path[done])
                    end_node = self._end(first, budget, wanted, most_wanted)
                end = min(len(sequence), done + end_node - int(path[done]))
                segments.append((len(tokens), len(tokens) + end - done, path[:done]))
                tokens.extend(sequence[done:end])
                depths.extend(range(done, end))
                done = end
                if first + len(tokens) == end_node:
                    yield _pack(tokens, depths, segments, carry, first, path[:done])
                    tokens, depths, segments = [], [], []
            last = path
        if tokens:
            yield _pack(tokens, depths, segments, carry, first, last)

    @staticmethod
    def _end(first: int, budget: int, wanted: Integers | None, most: int | None) -> int:
        """The node behind the last one that a pack from `first` on may hold."""
        if wanted is None or most is None:
            return first + budget
        excess = int(np.searchsorted(wanted, first)) + most
        return min(first + budget, int(wanted[excess])) if excess < len(wanted) else first + budget

    @staticmethod
    def _carried(path: Integers, past: Integers, first: int) -> Integers:
        """Where each node of the new past lies: at its depth in the old past, or behind it in the last pack."""
        depth = np.arange(len(path))
        return np.where(path >= first, len(past) + path - first, depth) if len(path) else depth


def _pack(
    tokens: list[int],
    depths: list[int],
    segments: list[tuple[int, int, Integers]],
    carry: Integers,
    first: int,
    path: Integers,
) -> Pack:
    size, past = len(tokens), len(carry)
    mask = np.zeros((size, past + size), dtype=np.bool_)
    for start, end, above in segments:
        inside = above[above >= first] - first
        mask[start:end, : len(above) - len(inside)] = True  # ancestors in the past come first on the path
        mask[start:end, past + inside] = True
        mask[start:end, past + start : past + end] = np.tri(end - start, dtype=np.bool_)
    return Pack(
        np.array(tokens, dtype=np.int64),
        np.array(depths, dtype=np.int64),
        carry,
        mask,
        np.where(path >= first, past + path - first, np.arange(len(path))),
    )
