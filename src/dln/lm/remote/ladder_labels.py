"""Exact label masses: from the next token's log-probabilities, or from scored texts.

Both lay the labels out as a trie (see `dln.lm.labels`) with the terminator explicit. One softmax is read off one
rung: a row is never mixed from two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dln.lm.base import Rung
from dln.lm.labels import LabelTrie
from dln.lm.remote.dialect_values import Ids, Prompt
from dln.lm.remote.engine_session import Session
from dln.lm.remote.ladder import Pair, TargetRung
from dln.lm.remote.read import Token, malformed
from dln.numerics import Floats

__all__ = ["LabelRung", "PickedLabels", "ScoredLabels", "log_rest"]

POSSIBLE = 1e-6
"""The largest value that is a log-probability but for rounding."""

MOST_WANTED = 100
"""Token ids per call; vLLM takes 128."""


class LabelRung(Protocol):
    """A way to score labels."""

    @property
    def name(self) -> Rung:
        """The rung's name."""
        ...

    def log_masses(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label, in nats; a row that cannot be had is all NaN."""
        ...


@dataclass(frozen=True)
class PickedLabels:
    """The log-probabilities of the labels' own tokens at the next place: one call per context and inner prefix."""

    session: Session
    name: Rung = "target scoring"

    def log_masses(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """One-token labels cost one step of decoding per context, and use the server's prefix cache."""
        dialect = self.session.dialect
        trie = LabelTrie.build(labels, self.session.encode(labels, alone=True))
        parts = [
            (prefix, children[at : at + MOST_WANTED])
            for prefix, children in trie.children.items()
            for at in range(0, len(children), MOST_WANTED)
        ]
        prompts = self.session.prompts(contexts)
        calls = [
            dialect.next_tokens(Prompt(prompt.text, (*(prompt.ids or ()), *prefix), prompt.chat), 1, wanted)
            for prompt in prompts
            for prefix, wanted in parts
        ]
        answers = iter(self.session.send(calls, dialect.read_next))
        masses = np.zeros((len(prompts), len(labels)))
        for row in masses:
            edges: dict[Ids, dict[int, float]] = {prefix: {} for prefix in trie.children}
            for prefix, wanted in parts:
                top = {token.id: token.log_prob for token in next(answers).tops[0]}
                edges[prefix] |= {token: top[token] for token in wanted}
            row[:] = _masses(trie, edges)
        return masses


@dataclass(frozen=True)
class ScoredLabels:
    """Labels scored as texts: each that begins no other one, since the others' tokens lie on its way."""

    session: Session
    targets: TargetRung

    @property
    def name(self) -> Rung:
        """The rung by which the texts are scored."""
        return self.targets.name

    def log_masses(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """One scored text per context and label."""
        if not self.session.takes_ids:
            return self._by_text(contexts, labels)
        trie = LabelTrie.build(labels, self.session.encode(labels, alone=True))
        whole = [ids for ids in trie.ids if ids not in trie.children]
        pairs = [Pair(prompt, "", ids) for prompt in self.session.prompts(contexts) for ids in whole]
        rows = iter(self.targets.rows(pairs))
        return np.array([_masses(trie, _edges(whole, [next(rows) for _ in whole])) for _ in contexts]).reshape(
            len(contexts), len(labels)
        )

    def _by_text(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        # Which tokens a label is made of is seen in the answer; ids or texts of the tokens tell them apart.
        LabelTrie.build(labels, [tuple(map(ord, label)) for label in labels])  # refuses empty and equal labels
        pairs = [Pair(prompt, label) for prompt in self.session.prompts(contexts) for label in labels]
        rows = iter(self.targets.rows(pairs))
        numbers: dict[object, int] = {}
        masses = np.full((len(contexts), len(labels)), np.nan)
        for row in masses:
            scored = [next(rows) for _ in labels]
            if all(scored):
                keyed = [
                    tuple(
                        Token(numbers.setdefault(t.id if t.id is not None else t.text, len(numbers)), None, t.log_prob)
                        for t in tokens or ()
                    )
                    for tokens in scored
                ]
                ids = [tuple(token.id or 0 for token in tokens) for tokens in keyed]
                row[:] = _masses(LabelTrie.build(labels, ids), _edges(ids, keyed))
        return masses


def log_rest(log_probs: Sequence[float]) -> float:
    """log(1 − Σ p); NaN if any is NaN or the sum is more than one by more than rounding."""
    total = math.fsum(math.exp(value) if value < 1 else math.inf for value in log_probs)
    if math.isnan(total) or any(math.isnan(value) for value in log_probs) or total > 1 + 1e-3:
        return math.nan
    return math.log1p(-total) if total < 1 else -math.inf


def _edges(ids: Sequence[Ids], rows: Sequence[tuple[Token, ...] | None]) -> dict[Ids, dict[int, float]]:
    edges: dict[Ids, dict[int, float]] = {}
    for label, tokens in zip(ids, rows, strict=True):
        values = [math.nan] * len(label) if tokens is None else [token.log_prob for token in tokens]
        if len(values) != len(label):
            raise malformed("not one log-probability per token", where="scores", got=len(values), expected=len(label))
        for depth, (token, value) in enumerate(zip(label, values, strict=True)):
            edges.setdefault(label[:depth], {})[token] = value
    return edges


def _masses(trie: LabelTrie, edges: dict[Ids, dict[int, float]]) -> Floats:
    log_probs = {
        prefix: np.array([edges[prefix][token] for token in children]) for prefix, children in trie.children.items()
    }
    if any(not (row <= POSSIBLE).all() for row in log_probs.values()):
        # A NaN, or a positive number that a sum with others would hide: nothing is known of the row.
        return np.full(len(trie.ids), np.nan)
    masses = trie.log_masses(log_probs, {prefix: log_rest(row.tolist()) for prefix, row in log_probs.items()})
    return np.full(len(masses), np.nan) if np.isnan(masses).any() else masses
