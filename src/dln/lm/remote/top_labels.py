"""Label masses from the most probable next tokens.

The text so far plus a returned token either can still become a label or cannot. If it can become one label
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

import numpy as np

from dln.lm.base import ScoringMode
from dln.lm.labels import check_labels
from dln.lm.remote.dialect import Prompt
from dln.lm.remote.read import ScoredToken, TokenRow
from dln.lm.remote.session import Session
from dln.numerics import Floats

__all__ = ["Spread", "TopLabels", "spread"]

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
