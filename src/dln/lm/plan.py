"""The request planner: every distinct prefix of a set of sequences is evaluated once. Pure, no model.

The distinct prefixes of all sequences form a trie. Sorted lexicographically, sequences visit it in
preorder: a sequence adds the nodes beyond its longest common prefix with the one before it. The preorder
is cut into packs of at most `budget` nodes. Whatever a pack needs from earlier packs lies on the path to
its first node, so that keys and values of that one path are all that is carried from pack to pack: nothing
is computed twice, and memory is bounded by the budget and the longest sequence.

    asked  = Σ_i |s_i|        needed = number of trie nodes        evaluated = Σ packs' tokens = needed
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Pack", "Plan"]

Integers = npt.NDArray[np.int64]
Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pack:
    """Consecutive trie nodes in preorder, to be fed as one row.

    Attributes:
        tokens: [T] the nodes' tokens.
        positions: [T] their depth, 0-based: the position that the model is told.
        carry: [P] where the past comes from: indices into (past of the pack before ⧺ its tokens). The
            past is the path from the root to the parent of the first node, in order of depth.
        mask: [T, P + T] True where a node sees a past or packed node: its ancestors and itself.
    """

    tokens: Integers
    positions: Integers
    carry: Integers
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Plan:
    """The prefix trie of some sequences in preorder.

    Attributes:
        sequences: the distinct sequences, sorted.
        shared: for each, the length of its longest common prefix with the sequence before it.
        starts: for each, the number of the first node that it adds.
        size: number of nodes.
        asked: tokens of all sequences as they were given, repetitions included.
    """

    sequences: tuple[Ids, ...]
    shared: tuple[int, ...]
    starts: tuple[int, ...]
    size: int
    asked: int

    @classmethod
    def of(cls, sequences: Sequence[Ids]) -> Plan:
        """The plan for `sequences`, in any order and with repetitions."""
        distinct = sorted(set(sequences))
        shared: list[int] = []
        starts: list[int] = []
        size = 0
        before: Ids = ()
        for sequence in distinct:
            common = common_prefix(before, sequence)
            shared.append(common)
            starts.append(size)
            size += len(sequence) - common
            before = sequence
        return cls(tuple(distinct), tuple(shared), tuple(starts), size, sum(map(len, sequences)))

    def paths(self) -> Iterator[tuple[Ids, Integers]]:
        """Each sequence with the node numbers of all its prefixes, root first."""
        path = np.zeros(max(map(len, self.sequences), default=0), dtype=np.int64)
        for sequence, common, start in zip(self.sequences, self.shared, self.starts, strict=True):
            path[common : len(sequence)] = np.arange(start, start + len(sequence) - common)
            yield sequence, path[: len(sequence)].copy()

    def packs(self, budget: int) -> Iterator[Pack]:
        """The nodes in preorder, `budget` at a time (the last pack may be smaller)."""
        tokens: list[int] = []
        depths: list[int] = []
        segments: list[tuple[int, int, Integers]] = []  # (first row, end row, path above) of the open pack
        past: Integers = np.zeros(0, dtype=np.int64)  # node numbers of the open pack's past, by depth
        carry: Integers = past
        first = 0
        for (sequence, path), common in zip(self.paths(), self.shared, strict=True):
            done = common
            while done < len(sequence):
                end = min(len(sequence), done + budget - len(tokens))
                if not tokens:
                    carry, past, first = self._carried(path[:done], past, first), path[:done], int(path[done])
                segments.append((len(tokens), len(tokens) + end - done, path[:done]))
                tokens.extend(sequence[done:end])
                depths.extend(range(done, end))
                done = end
                if len(tokens) == budget:
                    yield _pack(tokens, depths, segments, carry, first)
                    tokens, depths, segments = [], [], []
        if tokens:
            yield _pack(tokens, depths, segments, carry, first)

    @staticmethod
    def _carried(path: Integers, past: Integers, first: int) -> Integers:
        """Where each node of the new past lies: at its depth in the old past, or behind it in the last pack."""
        depth = np.arange(len(path))
        return np.where(path >= first, len(past) + path - first, depth) if len(path) else depth


def common_prefix(a: Ids, b: Ids) -> int:
    """Length of the longest common prefix."""
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


def _pack(
    tokens: list[int], depths: list[int], segments: list[tuple[int, int, Integers]], carry: Integers, first: int
) -> Pack:
    size, past = len(tokens), len(carry)
    mask = np.zeros((size, past + size), dtype=np.bool_)
    for start, end, above in segments:
        inside = above[above >= first] - first
        mask[start:end, : len(above) - len(inside)] = True  # ancestors in the past come first on the path
        mask[start:end, past + inside] = True
        mask[start:end, past + start : past + end] = np.tri(end - start, dtype=np.bool_)
    return Pack(np.array(tokens, dtype=np.int64), np.array(depths, dtype=np.int64), carry, mask)
