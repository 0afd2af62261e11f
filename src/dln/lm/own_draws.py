"""Whether a target is a draw of this very model, which is then scored on the ids it was drawn as."""

from __future__ import annotations

from dln.lm.base import Completion, Target
from dln.lm.query import Ids

__all__ = ["own_ids", "text_tokens"]


def own_ids(target: Target, tokens_id: str) -> Ids | None:
    """The ids of a draw of the model `tokens_id` (with or without chat); None for anything else."""
    if not isinstance(target, Completion) or not target.model.startswith(f"{tokens_id}:"):
        return None
    return target.token_ids


def text_tokens(target: Target, tokens_id: str, count: int) -> int:
    """How many of the `count` scored tokens carry text: all, unless an own draw says otherwise."""
    if isinstance(target, Completion) and own_ids(target, tokens_id) is not None and target.text_tokens is not None:
        return min(target.text_tokens, count)
    return count
