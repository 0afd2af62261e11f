"""Which slot of a key-value cache holds which token: a trie of prefixes with reference counts. Pure, no model.

Every token has one slot, found from its parent's, so that prompts with a common prefix share its slots. A
slot is free again when nothing is below it and nobody holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from dln.lm.plan import Integers

__all__ = ["ROOT", "SlotTrie"]

ROOT = -1
"""The parent of a first token."""


class SlotTrie:
    """Slots of tokens, each below the one of the token before it."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._name: list[int | None] = []
        self._references: list[int] = []
        self._free: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    @property
    def used(self) -> int:
        """How many slots hold a token."""
        return len(self._parent) - len(self._free)

    @property
    def height(self) -> int:
        """All slots in use are below this number."""
        return len(self._parent)

    def walk(self, ids: Sequence[int]) -> list[int]:
        """The slots of the longest known prefix of `ids`."""
        path: list[int] = []
        slot = ROOT
        for token in ids:
            below = self._children.get((slot, token))
            if below is None:
                break
            path.append(below)
            slot = below
        return path

    def add(self, parent: int, token: int | None) -> int:
        """A slot below `parent`, the lowest that is free; one without a token is found by no walk.

        It is held by whoever asked for it, until `release`.
        """
        if self._free:
            slot = heappop(self._free)
            self._parent[slot], self._name[slot], self._references[slot] = parent, token, 1
        else:
            slot = len(self._parent)
            self._parent.append(parent)
            self._name.append(token)
            self._references.append(1)
        if token is not None:
            self._children[parent, token] = slot
        if parent != ROOT:
            self._references[parent] += 1
        return slot

    def hold(self, slot: int) -> None:
        """Keep `slot` and all above it until it is released once more."""
        self._references[slot] += 1

    def release(self, slot: int) -> None:
        """End one hold; what nobody needs any more is free."""
        while slot != ROOT:
            self._references[slot] -= 1
            if self._references[slot]:
                return
            parent, name = self._parent[slot], self._name[slot]
            if name is not None:
                del self._children[parent, name]
            heappush(self._free, slot)
            slot = parent

    def compact(self) -> Integers:
        """Move all tokens to the lowest slots, in their order.

        Returns:
            [used] the slots they were in; slot i is now that of what was in `result[i]`.
        """
        free = set(self._free)
        kept = [slot for slot in range(len(self._parent)) if slot not in free]
        new = {ROOT: ROOT} | {slot: i for i, slot in enumerate(kept)}
        self._parent = [new[self._parent[slot]] for slot in kept]
        self._name = [self._name[slot] for slot in kept]
        self._references = [self._references[slot] for slot in kept]
        self._free = []
        self._children = {(self._parent[i], name): i for i, name in enumerate(self._name) if name is not None}
        return np.array(kept, dtype=np.int64)
