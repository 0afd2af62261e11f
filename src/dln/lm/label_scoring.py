"""Label masses as queries: what is asked of the model for one context, and how masses are read off the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dln.lm.labels import LabelTrie
from dln.lm.query import Answer, Ids, Query
from dln.numerics import Floats

__all__ = ["LabelQuestions"]


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
