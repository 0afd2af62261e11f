"""A model with token ids, served: what is asked of it as completions and chats, and how the answers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dln.lm.base import Completion, LanguageModel, Sampling
from dln.lm.query import Ids
from dln.lm.token_level import TokenLevel, TokenScores
from dln.serve.answer import Answer, check_choices
from dln.serve.batcher import Batcher
from dln.serve.fields import ChatRequest, Common, CompletionRequest
from dln.serve.refusal import Refusal
from dln.serve.scores import Row, chat_scores, completion_scores, prompt_scores
from dln.serve.token_work import TokenWork
from dln.serve.tokenizing import detokenize, tokenize
from dln.serve.tokens import Tokens

__all__ = ["TokenModel"]

COMPLETION_TOKENS = 16
CHAT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What both kinds of requests come down to."""

    sampling: Sampling | None
    top: int | None
    prompt_top: int | None


class TokenModel:
    """A language model with token ids.

    Args:
        lm: the model.
        name: how clients call it.
        batcher: its worker.
    """

    def __init__(self, lm: LanguageModel, tokens: TokenLevel, name: str, batcher: Batcher) -> None:
        self.tokens = Tokens(tokens, chat=lm.capabilities.chat)
        self._work = TokenWork(tokens, self.tokens, batcher)
        self.name = name
        self.root = lm.name
        self.fingerprint = lm.fingerprint()
        self.max_model_len = lm.capabilities.context_length
        self.batcher = batcher

    async def complete(self, request: CompletionRequest) -> Answer:
        """Continue prompts; with `echo`, the prompts come first."""
        _refuse_samples(request)
        prompts = [self.tokens.prompt(one) for one in request.prompts]
        if request.add_special_tokens is False:
            prompts = [replace(p, ids=self.tokens.alone(p.text)) for p in prompts]
        max_tokens = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        echo, top = bool(request.echo), request.logprobs
        prompt_top = max((k for k in (request.prompt_logprobs, top if echo else None) if k is not None), default=None)
        wanted = _Wanted(self._sampling(request, max_tokens), top, prompt_top)
        scored, drawn, beside = await self._computed([p.ids for p in prompts], wanted, request)
        by_id, choices = bool(request.return_tokens_as_token_ids), list[dict[str, Any]]()
        for index, (draw, rows) in enumerate(zip(drawn, beside, strict=True)):
            prompt = prompts[index // request.count]
            before = _prompt_rows(prompt.ids, scored[index // request.count]) if scored else []
            text = prompt.text + draw.text if echo else draw.text
            shown = [*(_cut(before, top) if echo else []), *rows]
            with_scores = top is not None or request.logprob_token_ids is not None
            choice: dict[str, Any] = {
                "index": index,
                "text": text,
                "logprobs": completion_scores(self.tokens, shown, text, by_id=by_id) if with_scores else None,
                "finish_reason": draw.finish_reason,
                "stop_reason": self._stop_reason(draw, request.stops),
            }
            if request.prompt_logprobs is not None:
                choice["prompt_logprobs"] = prompt_scores(self.tokens, _cut(before, request.prompt_logprobs))
            if request.return_token_ids:
                choice |= {"token_ids": list(draw.token_ids or ()), "prompt_token_ids": list(prompt.ids)}
            choices.append(choice)
        return Answer(choices, sum(len(p.ids) for p in prompts), _count(drawn))

    async def chat(self, request: ChatRequest) -> Answer:
        """Answer a conversation, written in the model's chat form."""
        _refuse_samples(request)
        if request.top_logprobs is not None and not request.logprobs:
            raise Refusal(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        ids = self.tokens.conversation(request.messages)
        left = CHAT_TOKENS if self.max_model_len is None else min(CHAT_TOKENS, self.max_model_len - len(ids))
        length = max(1, left) if request.length is None else request.length
        top = (request.top_logprobs or 0) if request.logprobs else None
        wanted = _Wanted(self._sampling(request, length), top, request.prompt_logprobs)
        scored, drawn, beside = await self._computed([ids], wanted, request)
        choices: list[dict[str, Any]] = []
        for index, (draw, rows) in enumerate(zip(drawn, beside, strict=True)):
            with_scores = top is not None or request.logprob_token_ids is not None
            by_id = bool(request.return_tokens_as_token_ids)
            choice: dict[str, Any] = {
                "index": index,
                "message": {"role": "assistant", "content": draw.text, "refusal": None},
                "logprobs": chat_scores(self.tokens, rows, by_id=by_id) if with_scores else None,
                "finish_reason": draw.finish_reason,
                "stop_reason": self._stop_reason(draw, request.stops),
            }
            if request.return_token_ids:
                choice["token_ids"] = list(draw.token_ids or ())
            choices.append(choice)
        extra: dict[str, Any] = {"prompt_token_ids": list(ids)} if request.return_token_ids else {}
        if request.prompt_logprobs is not None:
            extra["prompt_logprobs"] = prompt_scores(self.tokens, _prompt_rows(ids, scored[0]))
        return Answer(choices, len(ids), _count(drawn), extra)

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Text or messages to ids."""
        return tokenize(self.tokens, body, self.max_model_len)

    def detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ids to text."""
        return detokenize(self.tokens, body)

    async def _computed(
        self, prompts: Sequence[Ids], wanted: _Wanted, request: Common
    ) -> tuple[list[TokenScores], list[Completion], list[list[Row]]]:
        """(scores of the prompts, the draws, the rows of each draw), prompt by prompt and choice by choice."""
        check_choices(len(prompts), request.count)
        self._check_length(prompts, wanted)
        scored = [] if wanted.prompt_top is None else await self._work.score(prompts, wanted.prompt_top)
        drawn = await self._work.draw(prompts, wanted.sampling, request)
        owners = [ids for ids in prompts for _ in range(request.count)]
        return scored, drawn, await self._work.beside(owners, drawn, wanted.top, request)

    def _sampling(self, request: Common, max_tokens: int) -> Sampling | None:
        if max_tokens == 0:
            return None
        temperature = 1.0 if request.temperature is None else request.temperature
        top_p = 1.0 if request.top_p is None else request.top_p
        return Sampling(temperature, top_p, max_tokens, request.stops)

    def _check_length(self, prompts: Sequence[Ids], wanted: _Wanted) -> None:
        limit, more = self.max_model_len, wanted.sampling.max_tokens if wanted.sampling else 0
        for ids in prompts:
            if limit is not None and len(ids) + more > limit:
                raise Refusal(
                    400,
                    f"This model's maximum context length is {limit} tokens. However, you requested "
                    f"{len(ids) + more} tokens ({len(ids)} in the prompt, {more} in the completion).",
                    None,
                    "context_length_exceeded",
                )

    def _stop_reason(self, draw: Completion, stops: Sequence[str]) -> str | None:
        if draw.finish_reason != "stop" or (draw.token_ids and draw.token_ids[-1] in self.tokens.terminators):
            return None
        text = self.tokens.text(draw.token_ids or ())
        return next((stop for stop in stops if text.startswith(stop, len(draw.text))), None)


def _prompt_rows(ids: Ids, scores: TokenScores) -> list[Row]:
    tops = scores.top or ((),) * len(scores.log_probs)
    known = [Row(token, float(v), top) for token, v, top in zip(ids[1:], scores.log_probs, tops, strict=True)]
    return [Row(ids[0], None, None), *known]


def _cut(rows: Sequence[Row], top: int | None) -> list[Row]:
    """The rows with at most `top` tokens beside each; None beside them where none were asked for."""
    return [replace(row, top=row.top[:top] if top and row.top is not None else None) for row in rows]


def _count(drawn: Sequence[Completion]) -> int:
    return sum(len(draw.token_ids or ()) for draw in drawn)


def _refuse_samples(request: Common) -> None:
    if request.samples is not None:
        raise Refusal(400, "samples is an option of a served network", "samples", "unsupported_parameter")
