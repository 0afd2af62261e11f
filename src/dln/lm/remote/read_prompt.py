"""Whether what came back belongs to the very tokens that were sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from dln.lm.remote.call import Call
from dln.lm.remote.dialect_values import Ids
from dln.lm.remote.read import Token, TokenRow, integer, malformed, mapping, number

__all__ = ["check_next", "keyed", "same_ids", "sent_ids"]


def check_next(row: TokenRow, wanted: Ids) -> TokenRow:
    """`row`, which must say something of the next token, and of every wanted one."""
    if not row.tops or not row.tops[0]:
        raise malformed("no likeliest tokens", where="logprobs.top_logprobs")
    missing = set(wanted) - {token.id for token in row.tops[0]}
    if missing:
        raise malformed(
            "wanted tokens are missing", where="logprobs.top_logprobs", got=row.tops[0], expected=sorted(missing)
        )
    return row


def sent_ids(call: Call) -> Sequence[int]:
    """The ids of the prompt that a call sends."""
    return cast("Sequence[int]", cast("dict[str, Any]", call.body)["prompt"])


def keyed(entry: object, token: int) -> Token:
    """A token's entry among prompt log-probabilities, which are keyed by id: the one of this very token."""
    if entry is None:
        return Token(token, None, float("nan"))
    by_id = mapping(entry, "prompt_logprobs")
    if str(token) not in by_id:
        raise malformed("the entry is of another token", where="prompt_logprobs", got=by_id, expected=f"token {token}")
    value = by_id[str(token)]
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("logprob")
    return Token(token, None, number(value, "prompt_logprobs"))


def same_ids(tokens: tuple[Token, ...], sent: Sequence[int], drawn: int) -> tuple[Token, ...]:
    """The tokens of an echoed prompt, which must be the ids that were sent, the first without a number."""
    if not len(sent) <= len(tokens) <= len(sent) + drawn:
        raise malformed("not one entry per token", where="logprobs.tokens", got=len(tokens), expected=len(sent))
    for token, wanted in zip(tokens, sent, strict=False):
        if token.id is not None and integer(token.id, "tokens") != wanted:
            raise malformed("the entry is of another token", where="logprobs.tokens", got=token, expected=wanted)
    if not math.isnan(tokens[0].log_prob) and len(tokens) > 1:
        raise malformed("the first token has no log-probability", where="logprobs.token_logprobs", got=tokens[0])
    return tokens[: len(sent)]
