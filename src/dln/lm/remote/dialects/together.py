"""Together: `echo` returns the prompt's tokens beside the choices, under `prompt`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from dln.lm.remote.call import Call
from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialect_values import Forcing, Prompt
from dln.lm.remote.read import malformed, mapping, sequence, token_row
from dln.lm.remote.read_echo import Echo, lay_along

__all__ = ["Together"]


@dataclass(frozen=True)
class Together(Dialect):
    """Together's completions and chat: texts in, log-probabilities out."""

    extras: bool = False

    name: ClassVar[str] = "together"
    default_url: ClassVar[str | None] = "https://api.together.xyz/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("TOGETHER_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("TOGETHER_BASE_URL",)
    hosted: ClassVar[bool] = True
    has_tokenizer: ClassVar[bool] = False
    scores_ids: ClassVar[bool] = False
    picks_tokens: ClassVar[bool] = False
    forcings: ClassVar[tuple[Forcing, ...]] = ()
    echo_tokens: ClassVar[tuple[int, ...]] = (1, 0)

    def _complete(self, prompt: Prompt, body: dict[str, Any], top: int | None, *, draws: bool = False) -> Call:
        call = super()._complete(prompt, body, top, draws=draws)
        fields = dict(cast("dict[str, Any]", call.body))
        if "top_logprobs" in fields:  # a number in chat too
            fields["logprobs"] = fields.pop("top_logprobs")
        return replace(call, body=fields)

    def read_echo(self, call: Call, reply: Any) -> Echo:
        """The prompt's tokens.

        Raises:
            MalformedReply: there is no prompt in the reply (echo ignored), or its tokens are not those of ours.
        """
        rows = sequence(mapping(reply, "reply").get("prompt") or [], "prompt")
        if len(rows) != 1:
            raise malformed("the prompt was not echoed", where="prompt", got=len(rows), expected=1)
        row = token_row(mapping(rows[0], "prompt").get("logprobs"), "prompt.logprobs")
        if not row.tokens:
            raise malformed("no log-probabilities of the prompt", where="prompt.logprobs")
        return lay_along(row, cast("dict[str, Any]", call.body)["prompt"], 0)
