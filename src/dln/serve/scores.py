"""Tokens with their log-probabilities as JSON: the lists of completions, the entries of chats, vLLM's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dln.lm.query import TopTokens
from dln.serve.answer import finite
from dln.serve.tokens import Tokens

__all__ = ["Row", "chat_scores", "completion_scores", "prompt_scores"]


@dataclass(frozen=True, slots=True)
class Row:
    """One token with what is known of it.

    Attributes:
        token: its id.
        log_prob: in nats; None for the first token of a text.
        top: the tokens shown beside it; None where there is nothing to show.
        sampling: log-probability under the distribution it was drawn from; None if it was not drawn.
    """

    token: int
    log_prob: float | None
    top: TopTokens | None
    sampling: float | None = None


def completion_scores(tokens: Tokens, rows: Sequence[Row], text: str, *, by_id: bool) -> dict[str, Any]:
    """`logprobs` of a completion: parallel lists, and beside the usual ones the ids and log q of each token.

    Args:
        tokens: names them.
        rows: the tokens of the choice, the echoed prompt's first.
        text: the text of the choice.
        by_id: whether tokens are called "token_id:123".
    """
    ids = [row.token for row in rows]
    pieces = tokens.pieces(ids)

    def name(token: int) -> str:
        return f"token_id:{token}" if by_id else tokens.name(token)

    def beside(row: Row) -> dict[str, float] | None:
        if row.top is None or row.log_prob is None:
            return None
        shown = dict(row.top)
        shown.setdefault(row.token, row.log_prob)
        named: dict[str, float] = {}
        for token, value in shown.items():
            key = name(token)
            named[f"token_id:{token}" if key in named else key] = finite(value)
        return named

    tops = [beside(row) for row in rows]
    return {
        "tokens": [f"token_id:{token}" for token in ids] if by_id else pieces,
        "token_logprobs": [None if row.log_prob is None else finite(row.log_prob) for row in rows],
        "top_logprobs": tops if any(top is not None for top in tops) else None,
        "text_offset": tokens.offsets(ids, pieces, text),
        "token_ids": ids,
        "sampling_logprobs": [None if row.sampling is None else finite(row.sampling) for row in rows],
    }


def chat_scores(tokens: Tokens, rows: Sequence[Row], *, by_id: bool) -> dict[str, Any]:
    """`logprobs` of a chat's choice: one entry per token, with its bytes, id and log q."""

    def entry(token: int, value: float) -> dict[str, Any]:
        raw = tokens.raw(token)
        shown = f"token_id:{token}" if by_id else raw.decode("utf-8", "replace")
        return {"token": shown, "logprob": finite(value), "bytes": list(raw), "token_id": token}

    content: list[dict[str, Any]] = []
    for row in rows:
        shown = entry(row.token, float("nan") if row.log_prob is None else row.log_prob)
        shown["top_logprobs"] = [entry(token, value) for token, value in row.top or ()]
        if row.sampling is not None:
            shown["sampling_logprob"] = finite(row.sampling)
        content.append(shown)
    return {"content": content, "refusal": None}


def prompt_scores(tokens: Tokens, rows: Sequence[Row]) -> list[dict[str, Any] | None]:
    """`prompt_logprobs`: null for the first token, then {id: {logprob, rank, decoded_token}} with the token's own.

    The rank counts the more probable tokens among those that are shown; it is null where the token itself is
    none of them, because then its place is not known.
    """
    shown: list[dict[str, Any] | None] = []
    for row in rows:
        if row.log_prob is None:
            shown.append(None)
            continue
        ranks = {token: rank for rank, (token, _) in enumerate(row.top or (), 1)}
        values = {row.token: row.log_prob, **dict(row.top or ())}
        shown.append(
            {
                str(token): {
                    "logprob": finite(value),
                    "rank": ranks.get(token),
                    "decoded_token": tokens.raw(token).decode("utf-8", "replace"),
                }
                for token, value in values.items()
            }
        )
    return shown
