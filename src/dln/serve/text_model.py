"""A model without token ids, served: its texts and nothing below them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dln.lm.base import Completion, LanguageModel, Sampling
from dln.serve.answer import Answer, all_of, check_choices
from dln.serve.batcher import Batcher
from dln.serve.fields import ChatRequest, Common, CompletionRequest
from dln.serve.refusal import Refusal

__all__ = ["TextModel", "refuse_fields"]

COMPLETION_TOKENS = 16
CHAT_TOKENS = 1024
BELOW_TEXT = (
    "logprobs", "top_logprobs", "echo", "prompt_logprobs", "logprob_token_ids", "allowed_token_ids",
    "return_token_ids", "return_tokens_as_token_ids", "add_special_tokens", "samples",
)  # fmt: skip


class TextModel:
    """A language model that takes and gives texts only (a table, a model behind another server).

    Args:
        lm: the model.
        name: how clients call it.
        batcher: its worker.
    """

    def __init__(self, lm: LanguageModel, name: str, batcher: Batcher) -> None:
        self._lm = lm
        self.name = name
        self.root = lm.name
        self.fingerprint = lm.fingerprint()
        self.max_model_len = lm.capabilities.context_length
        self.batcher = batcher

    async def complete(self, request: CompletionRequest) -> Answer:
        """Continue texts."""
        if self._lm.capabilities.chat:
            raise Refusal(400, "this is a chat model: use /v1/chat/completions", "prompt", "chat_only")
        texts = [one for one in request.prompts if isinstance(one, str)]
        if len(texts) < len(request.prompts):
            raise Refusal(
                400, "this model has no token ids: give the prompt as text", "prompt", "unsupported_parameter"
            )
        length = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        return await self._draw(request, texts, length, lambda text: {"text": text})

    async def chat(self, request: ChatRequest) -> Answer:
        """Answer one user's message."""
        if not self._lm.capabilities.chat:
            raise Refusal(400, "this model has no chat form: use /v1/completions", "messages", "no_chat_template")
        if len(request.messages) != 1 or request.messages[0].role != "user":
            raise Refusal(
                400, "this model is served by text: one user message is all it takes", "messages", "invalid_value"
            )
        length = CHAT_TOKENS if request.length is None else request.length
        return await self._draw(
            request,
            [request.messages[0].text],
            length,
            lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
        )

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Not here."""
        raise Refusal(400, "this model has no token ids", None, "unsupported")

    def detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Not here."""
        raise Refusal(400, "this model has no token ids", None, "unsupported")

    async def _draw(
        self, request: Common, texts: Sequence[str], length: int, shown: Callable[[str], dict[str, Any]]
    ) -> Answer:
        refuse_fields(request, BELOW_TEXT, "this model has no token ids")
        if length < 1:
            raise Refusal(400, "max_tokens must be 1 or more for this model", "max_tokens", "invalid_value")
        n = request.count
        check_choices(len(texts), n)
        sampling = Sampling(
            1.0 if request.temperature is None else request.temperature,
            1.0 if request.top_p is None else request.top_p,
            length,
            request.stops,
        )
        seeds = [secrets.randbits(63) if request.seed is None else request.seed + i for _ in texts for i in range(n)]
        items = list(zip([text for text in texts for _ in range(n)], seeds, strict=True))
        drawn: list[Completion] = await all_of(
            self.batcher, ("draw", sampling), partial(_sample, self._lm, sampling), items
        )
        choices = [
            {"index": i, **shown(draw.text), "logprobs": None, "finish_reason": draw.finish_reason}
            for i, draw in enumerate(drawn)
        ]
        used = sum(self._lm.count_tokens(d.text) if d.token_ids is None else len(d.token_ids) for d in drawn)
        return Answer(choices, sum(map(self._lm.count_tokens, texts)), used)


def refuse_fields(request: Common, names: Sequence[str], why: str) -> None:
    """Refuse what this model cannot do, by the field's name."""
    for name in names:
        value = getattr(request, name, None)
        if value is not None and value is not False:
            raise Refusal(400, f"{name} is not supported: {why}", name, "unsupported_parameter")


def _sample(lm: LanguageModel, sampling: Sampling, items: Sequence[tuple[str, int]]) -> list[Completion]:
    return lm.sample([text for text, _ in items], sampling, [seed for _, seed in items])
