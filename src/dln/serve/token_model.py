"""A served model with token ids: completions, chats, and scores of prompts and draws, batched across clients.

Choice i of n is the draw with seed + i, so the first one equals the draw of the engine in process.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dln.lm.base import Completion, LanguageModel, Sampling
from dln.lm.local.engine import TokenLevel, TokenScores
from dln.lm.local.query import Ids
from dln.serve.batching import Answer, Batcher, all_of, check_choices
from dln.serve.fields import ChatRequest, Common, CompletionRequest, Refusal
from dln.serve.tokens import (
    MOST_STEPS,
    Row,
    Tokens,
    chat_scores,
    completion_scores,
    detokenize,
    draw_among,
    prompt_scores,
    tokenize,
)

__all__ = ["TokenModel", "TokenWork"]


class TokenWork:
    """The engine calls of a model for many clients.

    Args:
        lm: the model.
        tokens: its tokens.
        batcher: its worker.
    """

    def __init__(self, lm: TokenLevel, tokens: Tokens, batcher: Batcher) -> None:
        self._lm = lm
        self._tokens = tokens
        self._batcher = batcher

    async def score(self, prompts: Sequence[Ids], top: int) -> list[TokenScores]:
        """Score each token of each prompt except the first, with the `top` most probable tokens at its position."""
        run = partial(_score, self._lm, top=top)
        return await all_of(self._batcher, ("score", top), run, [(ids, 1) for ids in prompts])

    async def draw(self, prompts: Sequence[Ids], sampling: Sampling | None, request: Common) -> list[Completion]:
        """Draw `request.count` completions of each prompt in order; empty ones without `sampling`.

        Raises:
            Refusal: `max_tokens` is too large for draws among `allowed_token_ids`.
        """
        n = request.count
        if sampling is None:
            return [Completion("", (), (), (), finish_reason="length")] * (len(prompts) * n)
        seeds = [_seed(request.seed, i) for _ in prompts for i in range(n)]
        items = list(zip([ids for ids in prompts for _ in range(n)], seeds, strict=True))
        allowed = request.allowed_token_ids
        if allowed is None:
            return await all_of(self._batcher, ("draw", sampling), partial(_sample, self._lm, sampling), items)
        if sampling.max_tokens > MOST_STEPS:
            raise Refusal(
                400, f"with allowed_token_ids, max_tokens is at most {MOST_STEPS}", "max_tokens", "invalid_value"
            )
        chosen = tuple(sorted(set(allowed)))
        run = partial(_among, self._lm, self._tokens, sampling, chosen)
        return await all_of(self._batcher, ("among", sampling, chosen), run, items)

    async def beside(
        self, prompts: Sequence[Ids], drawn: Sequence[Completion], top: int | None, request: Common
    ) -> list[list[Row]]:
        """Return the tokens of each draw with the requested alternatives; `prompts` are those of the draws."""
        ids = [draw.token_ids or () for draw in drawn]
        tops: list[Sequence[Any]] = [[None] * len(row) for row in ids]
        wanted = request.logprob_token_ids
        if wanted is not None:
            chosen = tuple(dict.fromkeys(wanted))
            prefixes = [(*p, *row[:t]) for p, row in zip(prompts, ids, strict=True) for t in range(len(row))]
            run = partial(_next, self._lm, chosen)
            found = iter(await all_of(self._batcher, ("next", chosen), run, prefixes))
            tops = [[tuple(zip(chosen, next(found).log_probs.tolist(), strict=True)) for _ in row] for row in ids]
        elif top:
            items = [((*p, *row), len(p)) for p, row in zip(prompts, ids, strict=True)]
            scores = await all_of(self._batcher, ("score", top), partial(_score, self._lm, top=top), items)
            tops = [one.top for one in scores]
        rows: list[list[Row]] = []
        for draw, row, shown in zip(drawn, ids, tops, strict=True):
            values = draw.log_probs or (float("nan"),) * len(row)
            log_q = draw.sampling_log_probs or (None,) * len(row)
            rows.append([Row(*one) for one in zip(row, values, shown, log_q, strict=True)])
        return rows


def _sample(lm: TokenLevel, sampling: Sampling, items: Sequence[tuple[Ids, int]]) -> list[Completion]:
    return lm.sample_ids([ids for ids, _ in items], sampling, [seed for _, seed in items])


def _among(
    lm: TokenLevel, tokens: Tokens, sampling: Sampling, allowed: Ids, items: Sequence[tuple[Ids, int]]
) -> list[Completion]:
    return draw_among(lm, tokens, items, sampling, allowed)


def _score(lm: TokenLevel, items: Sequence[tuple[Ids, int]], *, top: int) -> list[TokenScores]:
    return lm.score_ids([ids for ids, _ in items], [start for _, start in items], top)


def _next(lm: TokenLevel, tokens: Ids, prompts: Sequence[Ids]) -> list[TokenScores]:
    return lm.next_log_probs(prompts, tokens)


def _seed(seed: int | None, index: int) -> int:
    return secrets.randbits(63) if seed is None else seed + index


COMPLETION_TOKENS = 16
CHAT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to compute for a request."""

    sampling: Sampling | None
    top: int | None
    prompt_top: int | None


class TokenModel:
    """A language model with token ids.

    Args:
        lm: the model.
        name: model name shown to clients.
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
        """Continue prompts; with `echo`, return them too."""
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
        """Answer a conversation with the model's chat template."""
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
        """Return scores of the prompts, the draws, and the rows of each draw, ordered by prompt and choice."""
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
    """Limit the alternatives of each row to `top`; None without any."""
    return [replace(row, top=row.top[:top] if top and row.top is not None else None) for row in rows]


def _count(drawn: Sequence[Completion]) -> int:
    return sum(len(draw.token_ids or ()) for draw in drawn)


def _refuse_samples(request: Common) -> None:
    if request.samples is not None:
        raise Refusal(400, "samples is an option of a served network", "samples", "unsupported_parameter")
