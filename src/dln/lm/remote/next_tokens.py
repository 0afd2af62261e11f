"""Next-token log-probabilities over HTTP: of given tokens by their ids, or of the most probable tokens by their texts.

| capability | class          | required of the server                                               |
|------------|----------------|----------------------------------------------------------------------|
| all        | `PickedTokens` | accepts ids, and returns the log-probabilities of given ones         |
| top        | `TopTokens`    | returns the most probable next tokens                                |

A server shows most tokens by their texts. `PickedTokens` has the server encode each text once, and a text of several
ids is not a token. Special tokens cannot be recognised by their texts for certain, so the lists of the most probable
tokens leave out whatever is written like one, in angle brackets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from dln.lm.base import NextRow, ScoringMode, Token, TopList, no_such_token
from dln.lm.remote.call import BadRequest
from dln.lm.remote.dialect import Prompt
from dln.lm.remote.read import ILLEGIBLE, Ids, TokenRow
from dln.lm.remote.session import Session

__all__ = ["NextScorer", "PickedTokens", "TopTokens", "picked"]

_SPECIAL = re.compile(r"<[^<>\s]+>")


def picked(session: Session, asked: Sequence[tuple[Prompt, Ids]]) -> list[dict[int, float]]:
    """log p of the wanted ids after each prompt, by id.

    Where a list is longer than every server takes, the first prompt is asked for all of it; if the server refuses,
    lists are cut into several calls from then on.
    """
    longest = max((len(wanted) for _, wanted in asked), default=0)
    if longest > session.dialect.most_wanted and session.wanted_per_call is None:
        prompt, wanted = next(one for one in asked if len(one[1]) == longest)
        try:
            session.send([session.dialect.next_tokens(prompt, 1, wanted)], session.dialect.read_next)
            session.wanted_per_call = longest
        except BadRequest:
            session.wanted_per_call = session.dialect.most_wanted
    size = max(session.wanted_per_call or 0, session.dialect.most_wanted)
    parts = [[wanted[at : at + size] for at in range(0, len(wanted), size)] for _, wanted in asked]
    calls = [
        session.dialect.next_tokens(prompt, 1, part)
        for (prompt, _), lists in zip(asked, parts, strict=True)
        for part in lists
    ]
    answers = iter(session.send(calls, session.dialect.read_next))
    found: list[dict[int, float]] = []
    for lists in parts:
        values: dict[int, float] = {}
        for part in lists:
            shown = {token.id: token.log_prob for token in next(answers).tops[0]}
            values |= {token_id: shown[token_id] for token_id in part}
        found.append(values)
    return found


class NextScorer(Protocol):
    """A way to get next-token log-probabilities."""

    @property
    def name(self) -> ScoringMode:
        """The scoring mode."""
        ...

    @property
    def tells(self) -> Literal["all", "top"]:
        """Which tokens' log-probabilities are told."""
        ...

    def rows(self, contexts: Sequence[str], tokens: Sequence[Token], top: int) -> list[NextRow]:
        """The log-probabilities of `tokens`, and the `top` most probable ones, after each context."""
        ...


@dataclass(frozen=True)
class TopTokens:
    """The most probable next tokens: one call per context. Given tokens are recognised by their texts.

    Args:
        session: the server.
        top: how many tokens to ask for.
    """

    session: Session
    top: int
    name: ScoringMode = "top-k"
    tells: Literal["all", "top"] = "top"

    def rows(self, contexts: Sequence[str], tokens: Sequence[Token], top: int) -> list[NextRow]:
        """NaN for a given token that was not returned; the smallest returned log p bounds it."""
        if not tokens and not top:
            return [NextRow(np.zeros(0), -np.inf, ())] * len(contexts)
        prompts = [Prompt(context, None, self.session.chat) for context in contexts]
        found: list[NextRow] = []
        for row in self.answers(prompts):
            shown = row.tops[0] if row.tops else ()  # a chat's answer that ended before it began shows nothing
            by_text = {token.text: token.log_prob for token in reversed(shown)}
            values = np.array([by_text.get(token.text, np.nan) for token in tokens], dtype=np.float64)
            bound = float(np.min([token.log_prob for token in shown])) if shown else 0.0
            found.append(NextRow(values, bound, legible(row)[:top]))
        return found

    def answers(self, prompts: Sequence[Prompt]) -> list[TokenRow]:
        """What the server shows at the next position of each prompt."""
        dialect = self.session.dialect
        return self.session.send([dialect.next_tokens(p, self.top, ()) for p in prompts], dialect.read_next)


@dataclass(frozen=True)
class PickedTokens:
    """Given tokens by their ids, and the most probable ones by another call.

    Args:
        session: the server, which takes ids.
        top: how many of the most probable tokens it returns; 0 for none.
    """

    session: Session
    top: int
    name: ScoringMode = "target scoring"
    tells: Literal["all", "top"] = "all"

    def rows(self, contexts: Sequence[str], tokens: Sequence[Token], top: int) -> list[NextRow]:
        """One call per context for the given tokens, or several for a long list, and one for the most probable ones.

        Raises:
            InputError: a token whose text the server does not encode as one token.
        """
        ids: list[int] = []
        for token, row in zip(tokens, self.session.encode([token.text for token in tokens], alone=True), strict=True):
            if len(row) != 1:
                raise no_such_token(token, self.session.dialect.model)
            ids.append(row[0])
        prompts = self.session.prompts(contexts)
        wanted = tuple(dict.fromkeys(ids))
        given = picked(self.session, [(prompt, wanted) for prompt in prompts])
        best = self._best(prompts, min(top, self.top))
        return [
            NextRow(np.array([values[i] for i in ids], dtype=np.float64), -np.inf, row)
            for values, row in zip(given, best, strict=True)
        ]

    def _best(self, prompts: Sequence[Prompt], top: int) -> list[TopList]:
        if not top:
            return [()] * len(prompts)
        lists = [legible(row) for row in TopTokens(self.session, self.top).answers(prompts)]
        texts = list(dict.fromkeys(token.text for row in lists for token, _ in row))
        encoded = dict(zip(texts, self.session.encode(texts, alone=True), strict=True))
        return [
            tuple((Token(t.text, encoded[t.text][0]), p) for t, p in row if len(encoded[t.text]) == 1)[:top]
            for row in lists
        ]


def legible(row: TokenRow) -> TopList:
    """The most probable tokens that have a text and are not written like a special token, the most probable first."""
    shown = row.tops[0] if row.tops else ()
    named = [
        (Token(token.text, token.id), token.log_prob)
        for token in shown
        if token.text and not _SPECIAL.fullmatch(token.text) and not any(mark in token.text for mark in ILLEGIBLE)
    ]
    return tuple(sorted({token.text: (token, p) for token, p in reversed(named)}.values(), key=lambda one: -one[1]))
