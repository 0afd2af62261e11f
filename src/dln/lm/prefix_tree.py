"""A tree of prefixes whose masses are probabilities: the exact arithmetic behind `TableLM`.

Texts are cut into words, each with the white space before it, and end with an explicit terminator.
A node's mass is the probability of all texts below it, so p(token | prefix) is a ratio of masses.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

__all__ = ["END", "TERMINATOR_ID", "PrefixTree", "id_of", "split_tokens"]

END = ""
"""The terminator among a node's children; no word is empty, so the name is free."""

TERMINATOR_ID = 0
"""The id of the terminator."""

_WORD = re.compile(r"\s*\S+|\s+")


@lru_cache(maxsize=4096)  # a table asks for the words of the same few texts in every context
def split_tokens(text: str) -> tuple[str, ...]:
    """Words with the white space before them; `"".join(split_tokens(text)) == text`."""
    return tuple(_WORD.findall(text))


@lru_cache(maxsize=4096)
def id_of(token: str) -> int:
    """A stable 48-bit id, 0 for the terminator alone.

    48 bits are exact in any JSON reader, and two words do not meet by chance.
    """
    if token == END:
        return TERMINATOR_ID
    return int.from_bytes(hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big") or 1


@dataclass(slots=True)
class PrefixTree:
    """A prefix: its mass, and what may follow it, in the order of the words (the terminator is first)."""

    mass: float = 0.0
    children: dict[str, PrefixTree] = field(default_factory=dict[str, "PrefixTree"])
    by_id: dict[int, PrefixTree] = field(default_factory=dict[int, "PrefixTree"])

    def add(self, path: Sequence[str], mass: float) -> None:
        """Put one complete path in; call `close` after the last."""
        node = self
        for token in path:
            if token not in node.children:
                child = PrefixTree()
                node.children[token] = node.by_id[id_of(token)] = child
            node = node.children[token]
        node.mass = mass

    def close(self) -> None:
        """Give every inner node the mass of its children, the deepest first (a loop: texts may be long)."""
        order: list[PrefixTree] = [self]
        for node in order:
            order.extend(node.children.values())
        for node in reversed(order):
            if node.children:
                node.children = dict(sorted(node.children.items()))
                node.mass = math.fsum(child.mass for child in node.children.values())

    def log_prob_after(self, parent: PrefixTree) -> float:
        """log p(this token | the prefix of `parent`), never positive."""
        return math.log(self.mass / parent.mass)

    def follow(self, path: Sequence[str]) -> PrefixTree | None:
        """The node at the end of `path`, if any text goes that way."""
        node: PrefixTree | None = self
        for token in path:
            node = node.children.get(token) if node else None
        return node

    def leaves(self) -> Iterator[tuple[list[str], list[float]]]:
        """Each complete path with its tokens' log-probabilities, in the order of the words."""
        pending: list[tuple[PrefixTree, list[str], list[float]]] = [(self, [], [])]
        while pending:
            node, tokens, log_probs = pending.pop()
            if not node.children:
                yield tokens, log_probs
            for token, child in reversed(node.children.items()):
                pending.append((child, [*tokens, token], [*log_probs, child.log_prob_after(node)]))
