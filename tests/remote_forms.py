"""The other servers' forms, from the same tables: SGLang's, Together's, Fireworks' and llama-server's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialects import DIALECTS
from dln.lm.table import TableLM, id_of
from remote_simulator import Simulator, Words

__all__ = ["FORMS", "Form"]

VLLM_ONLY = frozenset({"prompt_logprobs", "logprob_token_ids", "allowed_token_ids", "return_token_ids"})
NO_IDS = VLLM_ONLY | {"return_tokens_as_token_ids", "//tokenize", "logit_bias"}


@dataclass
class SGLangServer(Simulator):
    """`/generate`: triples, and prompt scores from `logprob_start_len` on, the first of them null."""

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        if path != "//generate":
            return super().reply(path, body)
        before = self.sent(body["input_ids"] if "input_ids" in body else body["text"])
        parameters = dict(body["sampling_params"])
        most = parameters.pop("max_new_tokens")
        parameters = {**parameters, "max_tokens": max(1, most), "seed": parameters.get("sampling_seed")}
        text, drawn, values, prefixes, reason = self.draw(before, parameters)
        if not most:
            text, drawn, values, prefixes = "", [], [], []
        meta: dict[str, Any] = {"finish_reason": {"type": reason}, "prompt_tokens": len(before)}
        if body.get("return_logprob"):
            start = body.get("logprob_start_len", -1)
            if start >= 0:
                meta["input_token_logprobs"] = [
                    [None if i == start else self.log_prob(before[:i], before[i]), id_of(before[i]), None]
                    for i in range(start, len(before))
                ]
                if "shifted" in self.defects:
                    meta["input_token_logprobs"].pop(0)
            texts = body.get("return_text_in_logprobs")
            meta["output_token_logprobs"] = [
                [value, id_of(word), word if texts else None] for word, value in zip(drawn, values, strict=True)
            ]
            if body.get("top_logprobs_num"):
                meta["output_top_logprobs"] = [self._triples(prefix, body, texts) for prefix in prefixes]
            if body.get("token_ids_logprob"):
                meta["output_token_ids_logprobs"] = [
                    [[self.log_prob(prefix, self.word(i)), i, None] for i in body["token_ids_logprob"]]
                    for prefix in prefixes
                ]
        return {"text": text, "output_ids": [id_of(word) for word in drawn], "meta_info": meta}

    def _triples(self, prefix: Words, body: dict[str, Any], texts: bool) -> list[Any]:
        top = self.top(prefix, {"logprobs": body["top_logprobs_num"]})
        return [[value, id_of(word), word if texts else None] for word, value in top.items()]


@dataclass
class TogetherServer(Simulator):
    """Echoed prompts stand beside the choices; chat has lists too."""

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        reply = super().reply(path, {**body, "echo": False})
        if path == "/completions" and body.get("echo"):
            shown = self.sent(body["prompt"])
            numbers = [None, *(self.log_prob(shown[:i], shown[i]) for i in range(1, len(shown)))]
            reply["prompt"] = [{"text": body["prompt"], "logprobs": {"tokens": list(shown), "token_logprobs": numbers}}]
        return reply


@dataclass
class FireworksServer(Simulator):
    """`echo_last`, and lists of entries."""

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        last = body.pop("echo_last", None)
        reply = super().reply(path, {**body, **({} if last is None else {"echo": True})})
        if path != "/completions" or body.get("logprobs") is None:
            return reply
        row = reply["choices"][0]["logprobs"]
        drawn = max(1, body["max_tokens"]) if body["max_tokens"] or "one more" in self.defects else 0
        count = len(row["tokens"])
        start = 0 if last is None else max(0, count - drawn - last)
        reply["choices"][0]["logprobs"] = {
            "content": [
                {
                    "token": row["tokens"][i],
                    "token_id": id_of(row["tokens"][i]),
                    "logprob": row["token_logprobs"][i],
                    "top_logprobs": [{"token": t, "logprob": v} for t, v in (row["top_logprobs"][i] or {}).items()],
                    "text_offset": row["text_offset"][i],
                }
                for i in range(start, count)
            ]
        }
        return reply


@dataclass
class LlamaServer(Simulator):
    """A tokenizer with other names, ids in, entries with ids out, and a bias that log-probabilities do not show."""

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        if path == "//tokenize":
            if "content" not in body:
                return {"tokens": []}
            reply = super().reply(path, {"prompt": body["content"], "add_special_tokens": body["add_special"]})
            return {"tokens": reply["tokens"]}
        reply = super().reply(path, {**body, "return_tokens_as_token_ids": False})
        if path == "/completions" and body.get("logprobs"):
            row = reply["choices"][0]["logprobs"]
            reply["choices"][0]["logprobs"] = {
                "content": [
                    {
                        "id": id_of(word),
                        "token": word,
                        "logprob": value,
                        "top_logprobs": [{"id": id_of(t), "token": t, "logprob": v} for t, v in (top or {}).items()],
                    }
                    for word, value, top in zip(row["tokens"], row["token_logprobs"], row["top_logprobs"], strict=True)
                ]
            }
        return reply


class Form:
    """A kind of server, and what RemoteLM should make of it."""

    def __init__(
        self, kind: str, server: type[Simulator], labels: str, texts: str, *, chat: bool = False, **options: Any
    ) -> None:
        self.kind, self.server, self.chat = kind, server, chat
        self.labels, self.texts, self.options = labels, texts, options

    def __repr__(self) -> str:
        return f"{self.kind}{'-chat' if self.chat else ''}-{self.labels}-{self.texts}".replace(" ", "_")

    def __call__(self, lm: TableLM, **changes: Any) -> tuple[Dialect, Simulator]:
        return DIALECTS[self.kind]("table"), self.server(lm, **{**self.options, **changes})


def without(*fields: str) -> dict[str, Any]:
    return {"refused": frozenset(fields)}


FORMS = [
    Form("vllm", Simulator, "target scoring", "target scoring"),
    Form("vllm", Simulator, "target scoring", "target scoring", chat=True),
    Form("vllm", Simulator, "target scoring", "prompt log-probs", **without("prompt_logprobs")),
    Form("vllm", Simulator, "target scoring", "forced decoding", **without("prompt_logprobs", "echo")),
    Form("vllm", Simulator, "target scoring", "target scoring", opening=False),
    Form(
        "vllm",
        Simulator,
        "forced decoding",
        "forced decoding",
        **without("prompt_logprobs", "echo", "logprob_token_ids"),
    ),
    Form("sglang", SGLangServer, "target scoring", "target scoring"),
    Form("sglang", SGLangServer, "target scoring", "target scoring", chat=True),
    Form("together", TogetherServer, "prompt log-probs", "prompt log-probs", refused=NO_IDS),
    Form("fireworks", FireworksServer, "prompt log-probs", "prompt log-probs", refused=NO_IDS),
    Form(
        "fireworks",
        FireworksServer,
        "prompt log-probs",
        "prompt log-probs",
        refused=NO_IDS,
        opening=False,
        defects=frozenset({"one more"}),
    ),
    Form(
        "openai-compatible",
        LlamaServer,
        "forced decoding",
        "forced decoding",
        refused=(VLLM_ONLY | {"echo"}),
        context_length=None,
    ),
    Form("openai-compatible", Simulator, "prompt log-probs", "prompt log-probs", refused=NO_IDS),
    Form("openai-compatible", Simulator, "top-k", "accuracy", refused=NO_IDS | {"echo"}),
    Form("openai-compatible", Simulator, "Monte-Carlo", "accuracy", refused=NO_IDS | {"echo", "logprobs"}),
    Form("openai", Simulator, "top-k", "accuracy", chat=True, refused=NO_IDS | {"echo", "/completions"}),
    Form("azure", Simulator, "top-k", "accuracy", chat=True, refused=NO_IDS | {"echo", "/completions"}),
    Form("ollama", Simulator, "top-k", "accuracy", chat=True, refused=NO_IDS | {"echo"}),
    Form("ollama", Simulator, "Monte-Carlo", "accuracy", chat=True, refused=NO_IDS | {"echo", "logprobs"}),
]
"""Kinds of servers as they are, each with its scoring modes: labels first, texts second."""
