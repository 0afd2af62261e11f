"""Requests and refusals: every field with its type and bounds, and error responses in the OpenAI format.

An unsupported field that would change the answer is refused by name, never ignored. Fields of OpenAI and vLLM that ask
for the default (a penalty of 0), or that concern only the caller (`user`), are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dln.errors import BudgetReached, ContextLengthError, DlnError, InputError, ProviderError

__all__ = [
    "MAX_CHOICES",
    "ChatRequest",
    "Common",
    "CompletionRequest",
    "Message",
    "Refusal",
    "Text",
    "TokenIds",
    "check",
    "refusal_of",
]


class Refusal(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: the error and what to do about it.
        param: the field of the request.
        code: error code for programs.
        retry_after: seconds after which to retry.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The field `type` of the response."""
        if self.status == 401:
            return "authentication_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """JSON of the response."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def refusal_of(error: DlnError) -> Refusal:
    """Convert an error of the model: 400 if the client can fix it, else 5xx."""
    if isinstance(error, ContextLengthError):
        return Refusal(400, str(error), None, "context_length_exceeded")
    if isinstance(error, InputError):
        return Refusal(400, str(error), str(error.where) if error.where is not None else None, "invalid_value")
    if isinstance(error, BudgetReached):
        return Refusal(429, str(error), None, "insufficient_quota")
    if isinstance(error, ProviderError):
        return Refusal(502, str(error), None, "provider_error")
    return Refusal(500, str(error), None, "model_error")


MAX_PROMPTS = 512
MAX_N = 128
MAX_CHOICES = 1024
MAX_TOKENS = 4096
MAX_TOP = 100

ModelT = TypeVar("ModelT", bound=BaseModel)
Text = Annotated[str, Field(max_length=4_000_000)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]

FREE = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "priority", "request_id", "cache_salt", "parallel_tool_calls", "skip_reading_prefix_cache", "verbosity",
}  # fmt: skip
"""Fields that do not change the answers of this server."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
    "logit_bias": ({},), "top_k": (-1, 0), "min_p": (0,), "min_tokens": (0,), "ignore_eos": (False,),
    "use_beam_search": (False,), "early_stopping": (False,), "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,), "include_stop_str_in_output": (False,), "stop_token_ids": ([],),
    "bad_words": ([],), "suffix": ("",), "best_of": (1,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "add_generation_prompt": (True,), "continue_final_message": (False,),
    "truncate_prompt_tokens": (), "guided_json": (), "guided_regex": (), "guided_choice": (),
    "reasoning_effort": (), "web_search_options": (), "prediction": (), "audio": (), "chat_template": (),
    "chat_template_kwargs": ({},), "documents": ([],), "add_special_tokens": (), "stream_options": (),
}  # fmt: skip
"""Fields that are accepted with these values (or null) and refused with any other."""


class Common(BaseModel):
    """Fields of both kinds of requests."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow", strict=True)

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: dict[str, bool] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    logprob_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    allowed_token_ids: TokenIds | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    samples: Annotated[int, Field(ge=1, le=1024)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def count(self) -> int:
        """Choices per prompt."""
        return self.n or 1


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)] | TokenIds | Annotated[
        list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)
    ]  # fmt: skip
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    add_special_tokens: bool | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list."""
        given: Any = self.prompt
        many = isinstance(given, list) and not isinstance(cast("list[object]", given)[0], int)
        return cast("list[str] | list[list[int]]", given if many else [given])


class Part(BaseModel):
    """A part of a message."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    type: Literal["text", "input_text"]
    text: Text


class Message(BaseModel):
    """A message of a conversation."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]

    @property
    def text(self) -> str:
        """The text of the message."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None

    @property
    def length(self) -> int | None:
        """Maximum number of tokens, under its current or its former name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def check(model: type[ModelT], body: object) -> ModelT:
    """Parse a request.

    Raises:
        Refusal: 400, names the first invalid field.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "the body must be a JSON object", None, "invalid_type")
    try:
        request = model.model_validate(body)
    except ValidationError as error:
        raise _explain(error) from None
    for name, value in (request.model_extra or {}).items():
        if name in FREE or value is None:
            continue
        if name not in NEUTRAL:
            raise Refusal(400, f"unknown field {name!r}", name, "unknown_parameter")
        if not any(value == usual and isinstance(value, bool) == isinstance(usual, bool) for usual in NEUTRAL[name]):
            raise Refusal(400, f"{name} is not supported by this server; leave it out", name, "unsupported_parameter")
    return request


def _explain(error: ValidationError) -> Refusal:
    """Report the deepest error: for a union, that of the type that the value is closest to."""
    found = max(error.errors(include_url=False, include_input=False), key=lambda one: len(_place(one["loc"])))
    place = _place(found["loc"])
    name = place.partition("[")[0].partition(".")[0]
    return Refusal(400, f"{place or 'the request'}: {found['msg']}", name or None, "invalid_value")


def _place(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`, without pydantic's names of union members."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int", "float", "bool"):
            text += f".{step}" if text else step
    return text
