"""Scoring modes: how log-probabilities of texts and labels are obtained, depending on what the server supports.

| mode              | class            | required of the server                                                |
|-------------------|------------------|-----------------------------------------------------------------------|
| target scoring    | `TargetScoring`  | accepts token ids and returns the log-probabilities of exactly these  |
|                   | `PickedLabels`   | returns the log-probabilities of given tokens at the next position    |
| prompt log-probs  | `PromptLogProbs` | echoes a prompt with the log-probabilities of its tokens              |
| forced decoding   | `ForcedDecoding` | returns log p of a given token at the next position                   |
| top-k             | `TopLabels`      | returns the most probable next tokens                                 |
| Monte-Carlo       | `AnsweredLabels` | draws                                                                 |
| accuracy          | `AnsweredLabels` | answers                                                               |

Context and target are encoded separately and their ids concatenated. Where only text is accepted, the echoed tokens
show where the target begins; a token that spans the boundary makes the pair unusable. Exact label masses use the trie
of the labels (see `dln.lm.labels`) with an explicit terminator, and one softmax uses one mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from dln.lm.base import Sampling, ScoringMode
from dln.lm.labels import LabelTrie, check_labels
from dln.lm.remote.dialect import Forcing, Prompt
from dln.lm.remote.next_tokens import picked
from dln.lm.remote.read import Ids, ScoredToken, malformed
from dln.lm.remote.session import Session
from dln.numerics import Floats
from dln.random import Key

__all__ = [
    "AnsweredLabels",
    "ForcedDecoding",
    "How",
    "LabelScorer",
    "Pair",
    "PickedLabels",
    "PromptLogProbs",
    "ScoredLabels",
    "TargetScoring",
    "TextScorer",
    "labels_in",
    "log_rest",
]

How = Forcing | Literal["logprob_token_ids"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and what is scored after it: its ids where the prompt has ids, else its text."""

    prompt: Prompt
    text: str
    ids: Ids = ()

    @property
    def joined(self) -> Prompt:
        """Prompt and target as one prompt."""
        ids = None if self.prompt.ids is None else (*self.prompt.ids, *self.ids)
        return Prompt(self.prompt.text + self.text, ids, self.prompt.chat)


class TextScorer(Protocol):
    """A way to score texts."""

    @property
    def name(self) -> ScoringMode:
        """The scoring mode."""
        ...

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[ScoredToken, ...] | None]:
        """The target's tokens with their log-probabilities; None for a pair that cannot be scored this way."""
        ...


@dataclass(frozen=True)
class TargetScoring:
    """Ids in, log-probabilities of the target's ids out."""

    session: Session
    name: ScoringMode = "target scoring"

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[ScoredToken, ...] | None]:
        """One call per pair; pairs of one context go to the same replica."""
        dialect = self.session.dialect
        calls = [dialect.score(_routed(pair), len(pair.prompt.ids or ())) for pair in pairs]
        answers = self.session.send(calls, dialect.read_score)
        return [row[len(row) - len(pair.ids) :] for row, pair in zip(answers, pairs, strict=True)]


@dataclass(frozen=True)
class PromptLogProbs:
    """The prompt echoed: by ids where the server takes them, else by text and the places of its tokens.

    Args:
        session: the server.
        max_tokens: how many tokens to draw behind the prompt: 0, or 1 where the server refuses 0.
    """

    session: Session
    max_tokens: int = 0
    name: ScoringMode = "prompt log-probs"

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[ScoredToken, ...] | None]:
        """One call per pair; None where a token reaches across the boundary."""
        dialect = self.session.dialect
        calls = [dialect.echo(_routed(pair), pair.text, self.max_tokens) for pair in pairs]
        rows: list[tuple[ScoredToken, ...] | None] = []
        for echo, pair in zip(self.session.send(calls, dialect.read_echo), pairs, strict=True):
            if pair.prompt.ids is None:
                rows.append(echo.after(len(pair.prompt.text)))
            else:
                rows.append(echo.tokens[len(pair.prompt.ids) :])
        return rows


@dataclass(frozen=True)
class ForcedDecoding:
    """log p of each target token as that of a next token: one step of decoding per token.

    Args:
        session: the server, which takes ids.
        how: by asking for the token's log-probability, or by allowing no other token.
    """

    session: Session
    how: How
    name: ScoringMode = "forced decoding"

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[ScoredToken, ...] | None]:
        """As many calls as there are distinct (prefix, token)."""
        dialect, how = self.session.dialect, self.how
        steps = dict.fromkeys(
            (pair.prompt.text, pair.prompt.ids or (), pair.ids[:t], pair.ids[t])
            for pair in pairs
            for t in range(len(pair.ids))
        )
        prompts = [Prompt(text, (*context, *before)) for text, context, before, _ in steps]
        tokens = [token for *_, token in steps]
        if how == "logprob_token_ids":
            calls = [dialect.next_tokens(p, 1, (token,)) for p, token in zip(prompts, tokens, strict=True)]
            tops = [row.tops[0] for row in self.session.send(calls, dialect.read_next)]
            answers = [_of(token, top) for token, top in zip(tokens, tops, strict=True)]
        else:
            calls = [dialect.force(p, token, how) for p, token in zip(prompts, tokens, strict=True)]
            answers = self.session.send(calls, dialect.read_force)
        known = dict(zip(steps, answers, strict=True))
        return [
            tuple(
                known[pair.prompt.text, pair.prompt.ids or (), pair.ids[:t], pair.ids[t]] for t in range(len(pair.ids))
            )
            for pair in pairs
        ]


def _routed(pair: Pair) -> Prompt:
    """The joined prompt under the context's text, by which calls find the replica that knows the context."""
    joined = pair.joined
    return joined if joined.ids is None else Prompt(pair.prompt.text, joined.ids, joined.chat)


def _of(token: int, top: Sequence[ScoredToken]) -> ScoredToken:
    for entry in top:
        if entry.id == token:
            return entry
    raise malformed("a wanted token is missing", where="logprobs.top_logprobs", got=top, expected=token)


POSSIBLE = 1e-6
"""The largest value that is a log-probability but for rounding."""


class LabelScorer(Protocol):
    """A way to score labels."""

    @property
    def name(self) -> ScoringMode:
        """The scoring mode."""
        ...

    def log_masses(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label, in nats; an unavailable row is all NaN."""
        ...


@dataclass(frozen=True)
class PickedLabels:
    """The log-probabilities of the labels' own tokens at the next place: one call per context and inner prefix."""

    session: Session
    name: ScoringMode = "target scoring"

    def log_masses(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """One-token labels cost one step of decoding per context, and use the server's prefix cache."""
        trie = LabelTrie.build(labels, self.session.encode(labels, alone=True))
        asked = [
            (Prompt(prompt.text, (*(prompt.ids or ()), *prefix), prompt.chat), children)
            for prompt in self.session.prompts(contexts)
            for prefix, children in trie.children.items()
        ]
        found = iter(picked(self.session, asked))
        rows = [_masses(trie, {prefix: next(found) for prefix in trie.children}) for _ in contexts]
        return np.array(rows).reshape(len(contexts), len(labels))


@dataclass(frozen=True)
class ScoredLabels:
    """Labels scored as texts: each that begins no other one, since the others' tokens lie on its way."""

    session: Session
    targets: TextScorer

    @property
    def name(self) -> ScoringMode:
        """The scoring mode of the texts."""
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
                        ScoredToken(
                            numbers.setdefault(t.id if t.id is not None else t.text, len(numbers)), None, t.log_prob
                        )
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


def _edges(ids: Sequence[Ids], rows: Sequence[tuple[ScoredToken, ...] | None]) -> dict[Ids, dict[int, float]]:
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


ALPHA = 0.5


@dataclass(frozen=True)
class AnsweredLabels:
    """Frequencies of the labels among draws.

    Args:
        session: the server.
        draws: n per context; 0 takes the one greedy answer instead.
    """

    session: Session
    draws: int

    @property
    def name(self) -> ScoringMode:
        """The scoring mode."""
        return "Monte-Carlo" if self.draws else "accuracy"

    def log_masses(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """One call per context and draw; the seeds depend on the context alone."""
        check_labels(labels)
        dialect = self.session.dialect
        longest = max(len(label.encode()) for label in labels)
        sampling = Sampling(temperature=1.0 if self.draws else 0.0, max_tokens=8 + longest // 2)
        count = self.draws or 1
        calls = [
            dialect.draw(prompt, sampling, Key(0).integer("label", context, i) if self.draws else None, None)
            for context, prompt in zip(contexts, self.session.prompts(contexts), strict=True)
            for i in range(count)
        ]
        texts = iter([drawn.text for drawn in self.session.send(calls, dialect.read_draw)])
        masses = np.zeros((len(contexts), len(labels)))
        for row in masses:
            for _ in range(count):
                read = labels_in(next(texts), labels)
                row[list(read)] += 1 / max(1, len(read))
        return np.log((masses + ALPHA) / (count + ALPHA * (len(labels) + 1)))


def labels_in(text: str, labels: Sequence[str]) -> tuple[int, ...]:
    """Which labels an answer names, as positions: usually one, none if it says no label or several.

    The answer must begin with the label, or else name exactly one somewhere, as whole words and in any case. Of
    labels that begin alike the longest counts. Labels that differ in case only share an answer unless one of them
    is spelled exactly so.
    """
    words = [label.strip() for label in labels]
    folded = [word.casefold() for word in words]
    answer = text.strip().lstrip("\"'`*([")
    opening = [word for word in folded if _begins(answer.casefold(), word)]
    if not opening:
        at = [i for i in range(len(answer)) if i == 0 or not answer[i - 1].isalnum()]
        named = {w for i in at for w in folded if _begins(answer[i:].casefold(), w)}
        opening = [word for word in named if not any(word != other and word in other for other in named)]
        if len(opening) != 1:
            return ()
    best = max(opening, key=len)
    alike = tuple(i for i, word in enumerate(folded) if word == best)
    exact = tuple(i for i in alike if answer.startswith(words[i]))
    return exact or alike


def _begins(text: str, word: str) -> bool:
    return text.startswith(word) and not text[len(word) : len(word) + 1].isalnum()
