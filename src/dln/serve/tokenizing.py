"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from dln.serve.fields import Ids, Message, Text, check
from dln.serve.refusal import Refusal
from dln.serve.tokens import Tokens

__all__ = ["detokenize", "tokenize"]


class _Tokenize(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)  # llama-server's names for the same are passed over

    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class _Detokenize(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    tokens: Ids


def tokenize(tokens: Tokens, body: dict[str, Any], max_model_len: int | None) -> dict[str, Any]:
    """Ids of a prompt (as a context, or alone without special tokens), or of messages in the chat form."""
    asked = check(_Tokenize, body)
    if asked.messages is not None:
        if not asked.add_generation_prompt:
            raise Refusal(400, "add_generation_prompt must be true", "add_generation_prompt", "unsupported_parameter")
        ids = tokens.conversation(asked.messages)
    elif asked.prompt is not None:
        ids = tokens.prompt(asked.prompt).ids if asked.add_special_tokens else tokens.alone(asked.prompt)
    else:
        raise Refusal(400, "prompt or messages is needed", "prompt", "missing_required_parameter")
    strings = [tokens.raw(token).decode("utf-8", "replace") for token in ids] if asked.return_token_strs else None
    return {"count": len(ids), "max_model_len": max_model_len, "tokens": list(ids), "token_strs": strings}


def detokenize(tokens: Tokens, body: dict[str, Any]) -> dict[str, Any]:
    """The text of ids, special tokens by their names."""
    return {"prompt": "".join(tokens.pieces(check(_Detokenize, body).tokens))}
