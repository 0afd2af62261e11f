"""Fireworks: `echo_last` returns the end of the prompt only, which is where the target is.

A token covers at least one byte, so a target of n bytes lies within the last n tokens; one more shows that a token
begins where the target does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from dln.lm.remote.call import Call
from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialect_values import Forcing, Prompt
from dln.lm.remote.read import choices_of, malformed, token_row
from dln.lm.remote.read_echo import Echo, lay_along

__all__ = ["Fireworks"]


@dataclass(frozen=True)
class Fireworks(Dialect):
    """Fireworks' completions and chat: texts in, log-probabilities out."""

    extras: bool = False

    name: ClassVar[str] = "fireworks"
    default_url: ClassVar[str | None] = "https://api.fireworks.ai/inference/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("FIREWORKS_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("FIREWORKS_BASE_URL",)
    hosted: ClassVar[bool] = True
    has_tokenizer: ClassVar[bool] = False
    scores_ids: ClassVar[bool] = False
    picks_tokens: ClassVar[bool] = False
    forcings: ClassVar[tuple[Forcing, ...]] = ()
    top_choices: ClassVar[tuple[int, ...]] = (5,)
    echo_tokens: ClassVar[tuple[int, ...]] = (0, 1)

    def echo(self, prompt: Prompt, target: str, max_tokens: int) -> Call:
        """The end of the prompt, long enough to hold the target."""
        body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0}
        body["echo_last"] = len(target.encode()) + 1
        return self._complete(prompt, body, 1)

    def read_echo(self, call: Call, reply: Any) -> Echo:
        """The last tokens of the prompt.

        Raises:
            MalformedReply: what came back is not the end of the prompt (echo ignored).
        """
        choice = choices_of(reply)[0]
        row = token_row(choice.get("logprobs"))
        if not row.tokens:
            raise malformed("no log-probabilities of the prompt", where="logprobs", got=choice.get("logprobs"))
        body = cast("dict[str, Any]", call.body)
        return lay_along(row, body["prompt"], max(1, body["max_tokens"]), last=body["echo_last"])
