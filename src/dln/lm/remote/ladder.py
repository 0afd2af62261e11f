"""The upper rungs: how the log-probability of a text is had from a server that can score at all.

| rung              | class            | what the server must do                                             |
|-------------------|------------------|---------------------------------------------------------------------|
| target scoring    | `TargetScoring`  | take token ids and return the log-probabilities of exactly these    |
| prompt log-probs  | `PromptLogProbs` | echo a prompt with the log-probabilities of its tokens              |
| forced decoding   | `ForcedDecoding` | tell log p of a given token at the next place                       |

Context and target are encoded apart and their ids concatenated. Where only text goes in, the echoed tokens show
where the target begins; a token that reaches across makes the pair unusable, and nothing is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dln.lm.base import Rung
from dln.lm.remote.dialect_values import Forcing, Ids, Prompt
from dln.lm.remote.engine_session import Session
from dln.lm.remote.read import Token, malformed

__all__ = ["ForcedDecoding", "How", "Pair", "PromptLogProbs", "TargetRung", "TargetScoring"]

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


class TargetRung(Protocol):
    """A way to score texts."""

    @property
    def name(self) -> Rung:
        """The rung's name."""
        ...

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[Token, ...] | None]:
        """The target's tokens with their log-probabilities; None for a pair that cannot be scored this way."""
        ...


@dataclass(frozen=True)
class TargetScoring:
    """Ids in, log-probabilities of the target's ids out."""

    session: Session
    name: Rung = "target scoring"

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[Token, ...] | None]:
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
    name: Rung = "prompt log-probs"

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[Token, ...] | None]:
        """One call per pair; None where a token reaches across the boundary."""
        dialect = self.session.dialect
        calls = [dialect.echo(_routed(pair), pair.text, self.max_tokens) for pair in pairs]
        rows: list[tuple[Token, ...] | None] = []
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
    name: Rung = "forced decoding"

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[Token, ...] | None]:
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


def _of(token: int, top: Sequence[Token]) -> Token:
    for entry in top:
        if entry.id == token:
            return entry
    raise malformed("a wanted token is missing", where="logprobs.top_logprobs", got=top, expected=token)
