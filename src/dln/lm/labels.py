"""The label trie: how the mass of every label is read off next-token distributions.

    mass(label) = Π_t p(token_t | context, tokens before t) · (1 − Σ_c p(c | context, label))

The last factor, the explicit terminator "no longer label follows", is there only for a label whose ids are
a proper prefix of another label's; c runs over the trie's children at its end. So the masses of a row are
those of disjoint events and sum to ≤ 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dln.errors import InputError
from dln.numerics import Floats

__all__ = ["LabelTrie", "check_labels"]

Ids = tuple[int, ...]


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels that are told apart by their texts and are missing, blank or repeated.

    Raises:
        InputError: naming the labels.
    """
    if not labels or any(not label.strip() for label in labels) or len(set(labels)) != len(labels):
        raise InputError(
            "labels must be distinct and not empty", where="labels", got=list(labels), fix='labels=["yes", "no"]'
        )


@dataclass(frozen=True, slots=True)
class LabelTrie:
    """The distinct token prefixes of a label set, and which distributions they need.

    Attributes:
        ids: token ids of each label.
        children: for each internal prefix, the tokens that continue it to some label, sorted.
        paths: the internal prefixes that no other internal prefix extends. A forward over each path
            yields the distributions after all internal prefixes; one-token labels need only the empty one.
    """

    ids: tuple[Ids, ...]
    children: dict[Ids, Ids]
    paths: tuple[Ids, ...]

    @classmethod
    def build(cls, labels: Sequence[str], ids: Sequence[Sequence[int]]) -> LabelTrie:
        """The trie of `labels`, whose texts only serve the messages, tokenised as `ids`.

        Raises:
            InputError: no label, an empty label, or two labels with the same ids.
        """
        if not labels:
            raise InputError("at least one label is needed", where="labels")
        rows = tuple(tuple(row) for row in ids)
        seen: dict[Ids, str] = {}
        for label, row in zip(labels, rows, strict=True):
            if not row:
                raise InputError("a label has no tokens", where="labels", got=repr(label), fix="remove the empty label")
            if row in seen:
                raise InputError(
                    "two labels are the same tokens, so that no model can tell them apart",
                    where="labels",
                    got=f"{seen[row]!r} and {label!r}",
                    fix="keep one of them",
                )
            seen[row] = label
        following: dict[Ids, set[int]] = {}
        for row in rows:
            for depth, token in enumerate(row):
                following.setdefault(row[:depth], set()).add(token)
        children = {prefix: tuple(sorted(tokens)) for prefix, tokens in sorted(following.items())}
        extended = {prefix[:-1] for prefix in children if prefix}
        return cls(rows, children, tuple(prefix for prefix in children if prefix not in extended))

    @property
    def longest(self) -> int:
        """Tokens of the longest path, which is what is fed to the model beyond the context."""
        return max(len(path) for path in self.paths)

    def owner(self, prefix: Ids) -> int:
        """Index of the path whose forward yields the distribution after `prefix` (the first of equals)."""
        return next(i for i, path in enumerate(self.paths) if path[: len(prefix)] == prefix)

    def log_masses(self, log_probs: dict[Ids, Floats], log_rest: dict[Ids, float]) -> Floats:
        """Log-mass of every label, in nats.

        Args:
            log_probs: for each internal prefix, log p of its children, in the order of `children`.
            log_rest: for each internal prefix, log(1 − Σ p(child)).
        """
        position = {prefix: {token: i for i, token in enumerate(row)} for prefix, row in self.children.items()}
        masses = np.zeros(len(self.ids))
        for label, row in enumerate(self.ids):
            for depth, token in enumerate(row):
                prefix = row[:depth]
                masses[label] += log_probs[prefix][position[prefix][token]]
            if row in self.children:
                masses[label] += log_rest[row]
        return masses
