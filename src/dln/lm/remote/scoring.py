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

**Top-k.** The text so far plus a returned token either can still become a label or cannot. If it can become one label
only, its probability is that label's. If it can become several, the next token is needed: a completion server is asked
for it; of a chat, only the continuation of the greedy answer is known. Mass that stays undecided between some of the
labels makes the row NaN if it is more than 5 % of their mass; mass undecided between all of them (a blank before any
answer) carries no information and is left out. A label of which no token was returned is *censored*: it gets the
smallest returned log-probability, which is an upper bound, or an equal share of the remaining probability if that is
less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from dln.lm.base import Sampling, ScoringMode
from dln.lm.labels import LabelTrie, check_labels
from dln.lm.remote.dialect import Forcing, Prompt
from dln.lm.remote.next_tokens import picked
from dln.lm.remote.read import Ids, ScoredToken, TokenRow, malformed
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
    "TopLabels",
    "labels_in",
    "log_rest",
    "spread",
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


DEEPEST = 8

NEGLIGIBLE = 1e-4

MOST_OPEN = 0.05

ROUNDING = 1e-6

MOST_LOG_PROB = 1e-3

Tables = Mapping[str, tuple[ScoredToken, ...]]


@dataclass(frozen=True)
class TopLabels:
    """The `top` likeliest next tokens.

    In a chat, tokens that differ in case and in blanks around them count as one wording.

    Args:
        session: the server.
        top: how many tokens to ask for.
    """

    session: Session
    top: int
    name: ScoringMode = "top-k"

    def log_masses(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """One call per context, and more where several labels begin alike."""
        check_labels(labels)
        prompts = self.session.prompts(contexts)
        tables: list[dict[str, tuple[ScoredToken, ...]]] = [{} for _ in prompts]
        wanted = [{""} for _ in prompts]
        spreads = [Spread()] * len(prompts)
        for depth in range(DEEPEST):
            asked = [(i, text) for i, texts in enumerate(wanted) for text in sorted(texts)]
            if not asked:
                break
            begun = self._fill(tables, prompts, asked, 1 if depth == 0 else DEEPEST)
            wanted = [set[str]() for _ in prompts]
            for i in {i for i, _ in asked if "" in tables[i]}:
                spreads[i] = spread(labels, tables[i], chat=self.session.chat)
                missing = set(spreads[i].open) - set(tables[i])
                wanted[i] = missing & begun.get(i, set()) if self.session.chat else missing
        return np.array([_settled(found, labels) for found in spreads]).reshape(len(contexts), len(labels))

    def _fill(
        self,
        tables: Sequence[dict[str, tuple[ScoredToken, ...]]],
        prompts: Sequence[Prompt],
        asked: Sequence[tuple[int, str]],
        length: int,
    ) -> dict[int, set[str]]:
        """Ask for what comes after the texts so far; of a chat, which texts a longer answer would tell more of."""
        dialect = self.session.dialect
        if self.session.chat:  # what follows is seen along the greedy answer only: one longer call for all
            asked = [(i, "") for i in dict.fromkeys(i for i, _ in asked)]
        places = length if self.session.chat else 1
        calls = [dialect.next_tokens(self._after(prompts[i], text), self.top, (), places) for i, text in asked]
        begun: dict[int, set[str]] = {}
        for (i, text), row in zip(asked, self.session.send(calls, dialect.read_next), strict=True):
            tables[i].update(_along(row, text, places))
            if places == 1 and row.tokens:
                begun[i] = {text + (row.tokens[0].text or "")}
        return begun

    def _after(self, prompt: Prompt, text: str) -> Prompt:
        # The labels' tokens are compared as texts, so a completion is continued as text.
        return prompt if self.session.chat else Prompt(prompt.text + text)


@dataclass(frozen=True)
class Spread:
    """How the probability of the next tokens falls on labels.

    Attributes:
        masses: label → probability found so far.
        open: text so far → probability that may belong to several labels.
        unsettled: the part of `open` that belongs to some of the labels and not to others.
        smallest: the smallest returned probability of a first token.
        returned: the sum of the returned probabilities of first tokens.
    """

    masses: Mapping[str, float] = field(default_factory=dict[str, float])
    open: Mapping[str, float] = field(default_factory=dict[str, float])
    unsettled: float = 0.0
    smallest: float = math.nan
    returned: float = math.nan


def spread(labels: Sequence[str], tables: Tables, *, chat: bool) -> Spread:
    """Let the probability of each returned token fall on the label that it begins.

    Args:
        labels: distinct, not empty.
        tables: text so far → the likeliest tokens after it; "" is the beginning.
        chat: whether case and blanks around do not matter.
    """
    keys = {label: _key(label, chat=chat) for label in labels}
    masses: dict[str, float] = {}
    undecided: dict[str, float] = {}
    unsettled = 0.0
    pending: list[tuple[str, float]] = [("", 1.0)]
    while pending:
        before, mass = pending.pop()
        ended = [label for label in labels if keys[label] == _key(before, chat=chat)]
        left = mass
        for token in tables[before]:
            text, p = before + (token.text or ""), mass * _probability(token)
            if ended and not (token.text and _longer(text, ended[0], keys, chat=chat)):
                continue  # not on the way to a longer label: it belongs to the one that has ended
            left -= p
            candidates = _candidates(text, keys, chat=chat)
            if not candidates or not token.text:
                continue
            if len({keys[label] for label in candidates}) == 1:
                for label in candidates:
                    masses[label] = masses.get(label, 0.0) + p / len(candidates)
            elif text in tables:
                pending.append((text, p))
            elif p > NEGLIGIBLE:
                undecided[text] = undecided.get(text, 0.0) + p
                unsettled += p if len(candidates) < len(labels) else 0.0
        for label in ended:
            masses[label] = masses.get(label, 0.0) + max(0.0, left) / len(ended)
    first = [_probability(token) for token in tables[""]]
    return Spread(masses, undecided, unsettled, min(first), math.fsum(first))


def _along(row: TokenRow, text: str, length: int) -> dict[str, tuple[ScoredToken, ...]]:
    tables: dict[str, tuple[ScoredToken, ...]] = {}
    for place, top in enumerate(row.tops):
        if top:
            tables[text] = top
        if place >= len(row.tokens):
            break
        text += row.tokens[place].text or ""
    if len(row.tokens) < length:
        tables.setdefault(text, ())  # the model ended here: nothing goes on
    return tables


def _settled(found: Spread, labels: Sequence[str]) -> Floats:
    known = math.fsum(found.masses.values())
    values = [*found.masses.values(), found.smallest, found.returned]
    if any(math.isnan(value) for value in values) or found.unsettled > MOST_OPEN * (known + found.unsettled):
        return np.full(len(labels), np.nan)
    missing = [label for label in labels if not found.masses.get(label)]
    bound = found.smallest
    if missing and known + bound * len(missing) > 1.0:
        bound = min(bound, max(ROUNDING, 1.0 - found.returned) / len(missing))
    with np.errstate(divide="ignore"):
        return np.log(np.array([found.masses.get(label) or bound for label in labels]))


def _probability(token: ScoredToken) -> float:
    """NaN for what is no log-probability, so that the row it belongs to becomes NaN."""
    return math.exp(token.log_prob) if token.log_prob <= MOST_LOG_PROB else math.nan


def _key(text: str, *, chat: bool) -> str:
    return text.strip().casefold() if chat else text


def _candidates(text: str, keys: Mapping[str, str], *, chat: bool) -> list[str]:
    so_far = text.lstrip().casefold() if chat else text
    going = [label for label, key in keys.items() if key.startswith(so_far) or key == _key(text, chat=chat)]
    if going or not chat:
        exact = [label for label in going if label.strip() == text.strip()]
        return exact if exact and len({keys[label] for label in going}) == 1 else going
    # a chat's answer may go on behind the label ("yes."): then the longest label that it begins with
    over = [label for label, key in keys.items() if so_far.startswith(key) and not so_far[len(key)].isalnum()]
    longest = max((len(keys[label]) for label in over), default=0)
    return [label for label in over if len(keys[label]) == longest]


def _longer(text: str, ended: str, keys: Mapping[str, str], *, chat: bool) -> bool:
    candidates = _candidates(text, keys, chat=chat)
    return any(keys[label] != keys[ended] for label in candidates)
