"""OpenAI: chat, and the legacy completions with `chat=False`.

No token ids go in or come out, and unknown fields are refused. Chat gives up to 20 likeliest tokens at each place,
completions up to 5; prompts are echoed with log-probabilities by no present model, which the probe finds out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialect_values import Forcing

__all__ = ["OpenAI"]


@dataclass(frozen=True)
class OpenAI(Dialect):
    """The OpenAI form and nothing else."""

    extras: bool = False

    name: ClassVar[str] = "openai"
    default_url: ClassVar[str | None] = "https://api.openai.com/v1"
    hosted: ClassVar[bool] = True
    key_variables: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("OPENAI_BASE_URL",)
    chat_by_default: ClassVar[bool] = True
    has_tokenizer: ClassVar[bool] = False
    scores_ids: ClassVar[bool] = False
    picks_tokens: ClassVar[bool] = False
    forcings: ClassVar[tuple[Forcing, ...]] = ()
    chat_tokens_field: ClassVar[str] = "max_completion_tokens"
