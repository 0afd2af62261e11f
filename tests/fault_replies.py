"""What an OpenAI-compatible server in vLLM's manner answers when all is well; pure: JSON in, JSON out.

`Manners` say what the server can and what it refuses or quietly ignores; faults are played elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np

from dln.lm.base import Sampling
from dln.numerics import Floats
from fault_language import EOS, Drawn, Language

__all__ = ["Manners", "Refusal", "answer"]

Served = Literal["served", "ignored", "refused"]


class Refusal(Exception):
    """The server says no: a status and a message."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", code: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": kind, "param": None, "code": status if code is None else code}
        }


@dataclass(frozen=True)
class Manners:
    """What the server offers.

    Args:
        model: the name it is served under.
        language: the model behind it.
        key: what `Authorization: Bearer` must carry, if anything.
        context_length: prompt and completion together, in tokens.
        prompt_log_probs: whether `prompt_logprobs` works, is ignored, or is a 400.
        echo: the same for `echo`.
        tokenizer: whether there are /tokenize and /detokenize.
        token_ids: whether prompts may be ids and drawn ids are returned.
        top_log_probs: the most that `logprobs` may ask for; 0: log-probabilities are never returned.
        chosen_ids: whether `logprob_token_ids` and `allowed_token_ids` are honoured; else they are ignored.
        seeds: whether `seed` is honoured.
        zero_means_one: whether `max_tokens=0` draws one token all the same.
        completions: whether there is /v1/completions.
        chat: whether there is /v1/chat/completions.
    """

    model: str = "tiny"
    language: Language = field(default_factory=Language)
    key: str | None = None
    context_length: int = 4096
    prompt_log_probs: Served = "served"
    echo: Served = "served"
    tokenizer: bool = True
    token_ids: bool = True
    top_log_probs: int = 20
    chosen_ids: bool = True
    seeds: bool = True
    zero_means_one: bool = False
    completions: bool = True
    chat: bool = True


_unseeded = count(10**12)


def answer(manners: Manners, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to one request.

    Raises:
        Refusal: an error status with its message.
    """
    offered = {
        ("GET", "/v1/models"): True,
        ("GET", "/health"): True,
        ("GET", "/version"): manners.tokenizer,
        ("POST", "/tokenize"): manners.tokenizer,
        ("POST", "/detokenize"): manners.tokenizer,
        ("POST", "/v1/completions"): manners.completions,
        ("POST", "/v1/chat/completions"): manners.chat,
    }
    if not offered.get((method, path), False):
        raise Refusal(404, "Not Found", "NotFoundError")
    if method == "GET":
        return _get(manners, path)
    if body.get("model") not in (None, manners.model):
        raise Refusal(404, f"The model `{body['model']}` does not exist.", "NotFoundError", "model_not_found")
    if path == "/tokenize":
        ids = _prompt_ids(manners, _chat_text(body["messages"]) if "messages" in body else body.get("prompt"))
        return {"count": len(ids), "max_model_len": manners.context_length, "tokens": ids, "token_strs": None}
    if path == "/detokenize":
        return {"prompt": manners.language.decode(body["tokens"])}
    return _generate(manners, body, chat=path.endswith("/chat/completions"))


def _get(manners: Manners, path: str) -> dict[str, Any]:
    if path == "/v1/models":
        card = {"id": manners.model, "object": "model", "created": 1, "owned_by": "vllm", "root": manners.model}
        return {"object": "list", "data": [{**card, "parent": None, "max_model_len": manners.context_length}]}
    return {"version": "0.0"} if path == "/version" else {}


def _generate(manners: Manners, body: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    echo, scores = bool(body.get("echo")), body.get("prompt_logprobs") is not None
    for wanted, served, name in ((echo, manners.echo, "echo"), (scores, manners.prompt_log_probs, "prompt_logprobs")):
        if wanted and served == "refused":
            raise Refusal(400, f"{name} is not supported by this server", code="unsupported_parameter")
    width = int(body.get("top_logprobs") or 0) if chat else body.get("logprobs")
    if width is not None and width > manners.top_log_probs > 0:
        raise Refusal(400, f"Requested {width} log-probabilities; the most is {manners.top_log_probs}")
    prompts = [_chat_text(body["messages"])] if chat else _prompts(body.get("prompt"))
    choices: list[dict[str, Any]] = []
    drawn_tokens = prompt_tokens = 0
    for prompt in prompts:
        ids = _prompt_ids(manners, prompt)
        sampling, needed = _sampling(manners, body, echo and not chat, len(ids), chat=chat)
        if needed > manners.context_length:
            raise Refusal(
                400,
                f"This model's maximum context length is {manners.context_length} tokens. However, you requested"
                f" {needed} tokens ({len(ids)} in the prompt, {needed - len(ids)} in the completion).",
                code="context_length_exceeded",
            )
        prompt_tokens += len(ids)
        for k in range(int(body.get("n") or 1)):
            drawn = _draw(manners, body, ids, sampling, k)
            drawn_tokens += len(drawn.ids)
            choice = _Choice(manners, body, ids, drawn).chat() if chat else _Choice(manners, body, ids, drawn).text()
            choices.append({"index": len(choices), **choice})
    return {
        "id": f"cmpl-{next(_unseeded)}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": manners.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": drawn_tokens,
            "total_tokens": prompt_tokens + drawn_tokens,
        },
    }


def _prompts(prompt: Any) -> list[Any]:
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return [prompt]


def _prompt_ids(manners: Manners, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return manners.language.encode(prompt)
    if not (manners.token_ids and isinstance(prompt, list) and all(isinstance(i, int) for i in prompt)):
        raise Refusal(400, "the prompt must be a string" + (" or token ids" if manners.token_ids else ""))
    if any(not 0 <= i < manners.language.size for i in prompt):
        raise Refusal(400, "a token id is outside of the vocabulary")
    return prompt


def _chat_text(messages: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"<|{m['role']}|>{m['content']}" for m in messages) + "<|assistant|>"


def _sampling(
    manners: Manners, body: Mapping[str, Any], echo: bool, prompt: int, *, chat: bool
) -> tuple[Sampling, int]:
    """How to draw, and how many tokens that needs; no tokens is said by a stop at once (see `_draw`)."""
    limit = body.get("max_completion_tokens") if chat else None
    limit = body.get("max_tokens", None if chat else 16) if limit is None else limit
    limit = manners.context_length - prompt if limit is None else int(limit)
    if limit < 0 or (limit == 0 and not echo and not manners.zero_means_one and chat):
        raise Refusal(400, "max_tokens must be positive")
    stop = body.get("stop") or ()
    return Sampling(
        temperature=float(1.0 if body.get("temperature") is None else body["temperature"]),
        top_p=float(1.0 if body.get("top_p") is None else body["top_p"]),
        max_tokens=max(1, limit),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    ), prompt + limit


def _draw(manners: Manners, body: Mapping[str, Any], ids: list[int], sampling: Sampling, k: int) -> Drawn:
    if body.get("max_tokens") == 0 and not manners.zero_means_one:
        return Drawn([], "", "length")
    seed = body.get("seed") if manners.seeds else None
    allowed = body.get("allowed_token_ids") if manners.chosen_ids else None
    return manners.language.draw(ids, sampling, next(_unseeded) if seed is None else int(seed) * 1000 + k, allowed)


class _Choice:
    """One completion in the two forms that servers write it."""

    def __init__(self, manners: Manners, body: Mapping[str, Any], prompt: list[int], drawn: Drawn) -> None:
        self.manners, self.body, self.prompt, self.drawn = manners, body, prompt, drawn
        self.rows = manners.language.rows([*prompt, *drawn.ids])

    def text(self) -> dict[str, Any]:
        """A choice of /v1/completions."""
        body, manners = self.body, self.manners
        echo = bool(body.get("echo")) and manners.echo == "served"
        width = body.get("logprobs") if manners.top_log_probs else None
        start = 0 if echo else len(self.prompt)
        choice: dict[str, Any] = {
            "text": (manners.language.decode(self.prompt) if echo else "") + self.drawn.text,
            "logprobs": None if width is None else self._columns(start, int(width)),
            "finish_reason": self.drawn.reason,
            "stop_reason": None,
        }
        if body.get("prompt_logprobs") is not None and manners.prompt_log_probs == "served":
            top = int(body["prompt_logprobs"])
            choice["prompt_logprobs"] = [None, *(self._entry(t, top) for t in range(1, len(self.prompt)))]
        else:
            choice["prompt_logprobs"] = None
        if body.get("return_token_ids") and manners.token_ids:
            choice |= {"token_ids": self.drawn.ids, "prompt_token_ids": self.prompt}
        return choice

    def chat(self) -> dict[str, Any]:
        """A choice of /v1/chat/completions."""
        content = None
        if self.body.get("logprobs") and self.manners.top_log_probs:
            width = int(self.body.get("top_logprobs") or 0)
            content = {"content": [self._chat_entry(t, width) for t in self._range(len(self.prompt))]}
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": self.drawn.text},
            "logprobs": content,
            "finish_reason": self.drawn.reason,
        }
        if self.body.get("return_token_ids") and self.manners.token_ids:
            choice["token_ids"] = self.drawn.ids
        return choice

    def _range(self, start: int) -> range:
        return range(start, len(self.prompt) + len(self.drawn.ids))

    def _token(self, t: int) -> int:
        return self.prompt[t] if t < len(self.prompt) else self.drawn.ids[t - len(self.prompt)]

    def _name(self, token: int) -> str:
        if self.body.get("return_tokens_as_token_ids") and self.manners.token_ids:
            return f"token_id:{token}"
        return "</s>" if token == EOS else self.manners.language.bytes_of(token).decode("utf-8", "replace")

    def _wanted(self, row: Floats, token: int, width: int) -> list[int]:
        """The token itself and those that were asked for by name or by rank."""
        chosen = self.body.get("logprob_token_ids") if self.manners.chosen_ids else None
        best = list(chosen) if chosen else np.argsort(-row, kind="stable")[:width].tolist()
        return list(dict.fromkeys([token, *best]))

    def _columns(self, start: int, width: int) -> dict[str, Any]:
        positions = self._range(start)
        tokens = [self._token(t) for t in positions]
        lengths = [len(self._name(token)) for token in tokens]
        return {
            "text_offset": [int(x) for x in np.cumsum([0, *lengths])[:-1]],
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": [self._log_prob(t) if t else None for t in positions],
            "top_logprobs": [
                {self._name(i): _finite(self.rows[t][i]) for i in self._wanted(self.rows[t], self._token(t), width)}
                if t
                else None
                for t in positions
            ],
        }

    def _log_prob(self, t: int) -> float:
        return _finite(self.rows[t][self._token(t)])

    def _entry(self, t: int, width: int) -> dict[str, Any]:
        row = self.rows[t]
        best = np.argsort(-row, kind="stable")[:width].tolist() if width else []
        return {
            str(i): {
                "logprob": _finite(row[i]),
                "rank": int((row > row[i]).sum()) + 1,
                "decoded_token": self._name(i),
            }
            for i in dict.fromkeys([self._token(t), *best])
        }

    def _chat_entry(self, t: int, width: int) -> dict[str, Any]:
        def entry(token: int) -> dict[str, Any]:
            raw = self.manners.language.bytes_of(token)
            return {"token": self._name(token), "logprob": _finite(self.rows[t][token]), "bytes": list(raw)}

        top = [entry(i) for i in np.argsort(-self.rows[t], kind="stable")[:width].tolist()]
        return {**entry(self._token(t)), "top_logprobs": top}


def _finite(value: float) -> float:
    """JSON has no −inf; −9999 stands for it, as in vLLM."""
    return -9999.0 if value == -math.inf else float(value)
