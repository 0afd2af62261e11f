"""Tokens for the server: prompts to ids, ids to text pieces with offsets, and log-probabilities as JSON.

Also draws among given tokens only, and POST /tokenize and /detokenize as in vLLM.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dln.errors import InputError
from dln.lm.base import Completion, Sampling
from dln.lm.local.decoding import choose
from dln.lm.local.engine import TokenLevel
from dln.lm.local.query import Ids, TopTokens
from dln.lm.local.tokenizer import Codec
from dln.serve.batching import finite
from dln.serve.fields import Message, Refusal, Text, TokenIds, check

__all__ = [
    "MOST_STEPS",
    "Prompt",
    "Row",
    "Tokens",
    "chat_scores",
    "completion_scores",
    "detokenize",
    "draw_among",
    "prompt_scores",
    "tokenize",
]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: its ids, and its text for an echo."""

    ids: Ids
    text: str


class Tokens:
    """Converts between texts and ids of a model.

    Args:
        lm: the model.
        chat: whether the contexts of the model are user messages.
    """

    def __init__(self, lm: TokenLevel, *, chat: bool) -> None:
        self._lm = lm
        self._chat = chat
        codec = getattr(lm, "codec", None)
        self._codec = codec if isinstance(codec, Codec) else None

    @property
    def terminators(self) -> frozenset[int]:
        """Ids that end a text, if known."""
        return self._codec.terminators if self._codec else frozenset()

    def prompt(self, given: str | Sequence[int]) -> Prompt:
        """Convert a prompt given as text or as ids.

        Raises:
            Refusal: a text for a model that takes user messages only.
        """
        if not isinstance(given, str):
            ids = tuple(given)
            return Prompt(ids, "".join(self.pieces(ids)))
        if self._codec is not None:
            return Prompt(self._codec.context_ids(given, chat=False), given)
        if self._chat:
            raise Refusal(400, "this is a chat model: use /v1/chat/completions", "prompt", "chat_only")
        return Prompt(self._lm.context_ids(given), given)

    def conversation(self, messages: Sequence[Message]) -> Ids:
        """Convert messages with the model's chat template, up to the start of the answer.

        Raises:
            Refusal: the model has no chat template, or it refuses these messages.
        """
        single = messages[0].text if len(messages) == 1 and messages[0].role == "user" else None
        if self._codec is not None and self._codec.has_chat:
            if single is not None:
                return self._codec.context_ids(single, chat=True)
            turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
            tokenizer = self._codec.tokenizer
            try:
                text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except Exception as error:
                raise Refusal(
                    400, f"the model's chat template refuses these messages: {error}", "messages", "invalid_value"
                ) from error
            return tuple(tokenizer.encode(text, add_special_tokens=False))
        if self._codec is None and self._chat and single is not None:
            return self._lm.context_ids(single)
        raise Refusal(400, "this model has no chat template: use /v1/completions", "messages", "no_chat_template")

    def alone(self, text: str) -> Ids:
        """Encode a text without special tokens."""
        return self._lm.encode(text)

    def text(self, ids: Sequence[int]) -> str:
        """Decode drawn ids without special tokens."""
        return self._lm.decode(ids)

    def name(self, token_id: int) -> str:
        """Return the text of a token, or its id if it is not valid text, so that names are unique."""
        shown = self._lm.token_text(token_id)
        return f"token_id:{token_id}" if "\ufffd" in shown or not shown else shown

    def raw(self, token_id: int) -> bytes:
        """Return the bytes of a token."""
        return self._lm.token_bytes(token_id)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each id adds; a character of several tokens belongs to the last one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(ids) - 1
        try:
            return [decoder.decode(self._lm.token_bytes(token), final=i == last) for i, token in enumerate(ids)]
        except InputError as error:
            raise Refusal(400, str(error), "prompt", "invalid_value") from error

    def offsets(self, ids: Sequence[int], pieces: Sequence[str], text: str) -> list[int]:
        """Return the offset of each piece in `text`, in characters.

        Tokens that are not part of the text (a start token, a terminator) have no width.
        """
        joined = "".join(pieces)
        hidden = joined != text and not joined.startswith(text)
        places: list[int] = []
        at = min(0, len(text) - len(joined)) if joined.endswith(text) else 0
        for token, piece in zip(ids, pieces, strict=True):
            places.append(min(max(at, 0), len(text)))
            if not (hidden and not joined.endswith(text) and not self._lm.decode((token,))):
                at += len(piece)
        return places


@dataclass(frozen=True, slots=True)
class Row:
    """A token with its scores.

    Attributes:
        token: its id.
        log_prob: in nats; None for the first token of a text.
        top: alternatives at its position; None without any.
        sampling: log-probability under the sampling distribution; None if it was not drawn.
    """

    token: int
    log_prob: float | None
    top: TopTokens | None
    sampling: float | None = None


def completion_scores(tokens: Tokens, rows: Sequence[Row], text: str, *, by_id: bool) -> dict[str, Any]:
    """Return `logprobs` of a completion: the usual parallel lists, with ids and log q of each token.

    Args:
        tokens: the tokens of the model.
        rows: the tokens of the choice, after those of an echoed prompt.
        text: the text of the choice.
        by_id: whether to name tokens "token_id:123".
    """
    ids = [row.token for row in rows]
    pieces = tokens.pieces(ids)

    def name(token: int) -> str:
        return f"token_id:{token}" if by_id else tokens.name(token)

    def beside(row: Row) -> dict[str, float] | None:
        if row.top is None or row.log_prob is None:
            return None
        shown = dict(row.top)
        shown.setdefault(row.token, row.log_prob)
        named: dict[str, float] = {}
        for token, value in shown.items():
            key = name(token)
            named[f"token_id:{token}" if key in named else key] = finite(value)
        return named

    tops = [beside(row) for row in rows]
    return {
        "tokens": [f"token_id:{token}" for token in ids] if by_id else pieces,
        "token_logprobs": [None if row.log_prob is None else finite(row.log_prob) for row in rows],
        "top_logprobs": tops if any(top is not None for top in tops) else None,
        "text_offset": tokens.offsets(ids, pieces, text),
        "token_ids": ids,
        "sampling_logprobs": [None if row.sampling is None else finite(row.sampling) for row in rows],
    }


def chat_scores(tokens: Tokens, rows: Sequence[Row], *, by_id: bool) -> dict[str, Any]:
    """Return `logprobs` of a chat: one entry per token, with its bytes, id and log q."""

    def entry(token: int, value: float) -> dict[str, Any]:
        raw = tokens.raw(token)
        shown = f"token_id:{token}" if by_id else raw.decode("utf-8", "replace")
        return {"token": shown, "logprob": finite(value), "bytes": list(raw), "token_id": token}

    content: list[dict[str, Any]] = []
    for row in rows:
        shown = entry(row.token, float("nan") if row.log_prob is None else row.log_prob)
        shown["top_logprobs"] = [entry(token, value) for token, value in row.top or ()]
        if row.sampling is not None:
            shown["sampling_logprob"] = finite(row.sampling)
        content.append(shown)
    return {"content": content, "refusal": None}


def prompt_scores(tokens: Tokens, rows: Sequence[Row]) -> list[dict[str, Any] | None]:
    """Return `prompt_logprobs`: null for the first token, then {id: {logprob, rank, decoded_token}}.

    The rank is null for a token that is not among the alternatives, because it is unknown.
    """
    shown: list[dict[str, Any] | None] = []
    for row in rows:
        if row.log_prob is None:
            shown.append(None)
            continue
        ranks = {token: rank for rank, (token, _) in enumerate(row.top or (), 1)}
        values = {row.token: row.log_prob, **dict(row.top or ())}
        shown.append(
            {
                str(token): {
                    "logprob": finite(value),
                    "rank": ranks.get(token),
                    "decoded_token": tokens.raw(token).decode("utf-8", "replace"),
                }
                for token, value in values.items()
            }
        )
    return shown


MOST_STEPS = 64
"""Every step scores the whole text again, so this is for labels and other short answers."""


def draw_among(
    lm: TokenLevel, tokens: Tokens, items: Sequence[tuple[Ids, int]], sampling: Sampling, allowed: Ids
) -> list[Completion]:
    """Draw a completion of `allowed` tokens per (prompt, seed).

    With every token allowed the draws equal unconstrained ones. Log-probabilities are those of the unconstrained model.
    """
    return [_Draw(lm, tokens, sampling, allowed).run(prompt, seed) for prompt, seed in items]


class _Draw:
    def __init__(self, lm: TokenLevel, tokens: Tokens, sampling: Sampling, allowed: Ids) -> None:
        self._lm, self._tokens, self._sampling, self._allowed = lm, tokens, sampling, allowed

    def run(self, prompt: Ids, seed: int) -> Completion:
        drawn: list[int] = []
        log_probs: list[float] = []
        log_q: list[float] = []
        while True:
            scores = self._lm.next_log_probs([(*prompt, *drawn)], self._allowed)[0].log_probs
            logits = np.full(max(self._allowed) + 1, -np.inf)
            logits[list(self._allowed)] = scores
            with np.errstate(divide="ignore", invalid="ignore"):
                choice = choose(logits, self._sampling, seed, len(drawn), 0.0)
            drawn.append(choice.token)
            log_probs.append(float(logits[choice.token]))
            log_q.append(choice.sampling_log_prob)
            ended = choice.token in self._tokens.terminators
            text = self._tokens.text(drawn[:-1] if ended else drawn)
            cuts = [at for at in map(text.find, self._sampling.stop) if at >= 0]
            if ended or cuts or len(drawn) >= self._sampling.max_tokens:
                return Completion(
                    text[: min(cuts)] if cuts else text,
                    tuple(drawn),
                    tuple(log_probs),
                    tuple(log_q),
                    finish_reason="stop" if ended or cuts else "length",
                )


class _Tokenize(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)  # llama-server's names for the same fields are ignored

    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class _Detokenize(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    tokens: TokenIds


def tokenize(tokens: Tokens, body: dict[str, Any], max_model_len: int | None) -> dict[str, Any]:
    """Return the ids of a prompt, with or without special tokens, or of messages in the chat template."""
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
    """Return the text of ids, with the names of special tokens."""
    return {"prompt": "".join(tokens.pieces(check(_Detokenize, body).tokens))}
