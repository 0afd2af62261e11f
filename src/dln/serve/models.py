"""Served models without token ids: a language model by text, and a trained network.

The input x of a network is the last user message, the answer is its output y. An ensemble is served as one model.
Without a temperature the network predicts as `network.predict` does: greedy hidden texts, the most probable label. With
a temperature above 0 every layer samples with it, choice i with seed + i; of an ensemble a member is drawn by its
weight first. With `samples`, label probabilities are averaged over this number of chains of hidden texts.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dln.errors import InputError
from dln.lm.base import Completion, LanguageModel, Sampling
from dln.lm.local.engine import TokenLevel
from dln.nn import Prediction, Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble, best_of, members_of
from dln.nn.prediction import Vote, text_prediction
from dln.random import Key
from dln.serve.batching import Answer, Batcher, Served, all_of, check_choices, finite
from dln.serve.fields import ChatRequest, Common, CompletionRequest, Refusal
from dln.serve.token_model import TokenModel

__all__ = ["NetworkModel", "TextModel", "refuse_fields", "served"]

COMPLETION_TOKENS = 16
CHAT_TOKENS = 1024
BELOW_TEXT = (
    "logprobs", "top_logprobs", "echo", "prompt_logprobs", "logprob_token_ids", "allowed_token_ids",
    "return_token_ids", "return_tokens_as_token_ids", "add_special_tokens", "samples",
)  # fmt: skip


class TextModel:
    """A language model without token ids, such as a table or a model on another server.

    Args:
        lm: the model.
        name: model name shown to clients.
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
            raise Refusal(400, "this model takes a single user message", "messages", "invalid_value")
        length = CHAT_TOKENS if request.length is None else request.length
        return await self._draw(
            request,
            [request.messages[0].text],
            length,
            lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
        )

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Refused."""
        raise Refusal(400, "this model has no token ids", None, "unsupported")

    def detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Refused."""
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
    """Refuse unsupported fields by name."""
    for name in names:
        value = getattr(request, name, None)
        if value is not None and value is not False:
            raise Refusal(400, f"{name} is not supported: {why}", name, "unsupported_parameter")


def _sample(lm: LanguageModel, sampling: Sampling, items: Sequence[tuple[str, int]]) -> list[Completion]:
    return lm.sample([text for text, _ in items], sampling, [seed for _, seed in items])


NOT_HERE = (
    "echo", "prompt_logprobs", "logprob_token_ids", "allowed_token_ids", "return_token_ids",
    "return_tokens_as_token_ids", "add_special_tokens", "stop",
)  # fmt: skip
WHY = "this model is a trained network"


@dataclass(frozen=True, slots=True)
class _Said:
    """An answer of the network with its hidden texts and probabilities."""

    text: str
    hidden: tuple[tuple[str, ...], ...]
    probabilities: dict[str, float]
    label_mass: float | None
    members: tuple[Vote, ...] = ()


class NetworkModel:
    """A trained network or ensemble.

    Args:
        network: the network.
        name: model name shown to clients.
        batcher: its worker.
    """

    def __init__(self, network: AnyNetwork, name: str, batcher: Batcher) -> None:
        self._network = network
        self.name = name
        self._best = best_of(network)
        layers = [layer for member in members_of(network) for layer in member.prompted]
        self.root = f"{_kind(network)} on {layers[0].lm.name}"
        lengths = [layer.lm.capabilities.context_length for layer in layers]
        self.max_model_len = min((n for n in lengths if n is not None), default=None)
        self.fingerprint = ":".join(dict.fromkeys(layer.lm.fingerprint() for layer in layers))
        self.batcher = batcher

    async def complete(self, request: CompletionRequest) -> Answer:
        """Answer each prompt as an input."""
        inputs = [one for one in request.prompts if isinstance(one, str)]
        if len(inputs) < len(request.prompts):
            raise Refusal(400, f"token ids are not supported: {WHY}", "prompt", "unsupported_parameter")

        def choice(said: _Said) -> dict[str, Any]:
            return {"text": said.text, "logprobs": self._lists(said, request.logprobs), "dln": _extra(said)}

        return await self._answer(request, inputs, request.max_tokens, choice)

    async def chat(self, request: ChatRequest) -> Answer:
        """Answer the last user message; earlier messages are ignored."""
        if request.top_logprobs is not None and not request.logprobs:
            raise Refusal(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        x = next((message.text for message in reversed(request.messages) if message.role == "user"), None)
        if x is None:
            raise Refusal(400, "there is no user message; it is the input", "messages", "invalid_value")
        top = (request.top_logprobs or 0) if request.logprobs else None

        def choice(said: _Said) -> dict[str, Any]:
            message = {"role": "assistant", "content": said.text, "refusal": None, "dln": _extra(said)}
            return {"message": message, "logprobs": self._entries(said, top)}

        return await self._answer(request, [x], request.length, choice)

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Refused."""
        raise Refusal(400, f"no token ids: {WHY}", None, "unsupported")

    def detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Refused."""
        raise Refusal(400, f"no token ids: {WHY}", None, "unsupported")

    async def _answer(
        self, request: Common, inputs: Sequence[str], length: int | None, choice: Callable[[_Said], dict[str, Any]]
    ) -> Answer:
        refuse_fields(request, NOT_HERE, WHY)
        if request.top_p is not None and request.top_p < 1:
            raise Refusal(400, f"top_p is not supported: {WHY}", "top_p", "unsupported_parameter")
        wants_scores = getattr(request, "logprobs", None) not in (None, False)
        if wants_scores and self._network.labels is None:
            raise Refusal(
                400, "logprobs is not supported: this network writes free text", "logprobs", "unsupported_parameter"
            )
        check_choices(len(inputs), request.count)
        network = self._within(length)
        said = await self._say(network, request, [x for x in inputs for _ in range(request.count)])
        if any(not one.text and self._network.labels is not None for one in said):
            raise Refusal(500, "the model gave no finite score for this input", None, "not_finite")
        choices = [{"index": i, **choice(one), "finish_reason": "stop"} for i, one in enumerate(said)]
        lm = self._best.prompted[-1].lm
        return Answer(
            choices, sum(map(lm.count_tokens, inputs)), sum(lm.count_tokens(one.text) for one in said if one.text)
        )

    async def _say(self, network: AnyNetwork, request: Common, inputs: Sequence[str]) -> list[_Said]:
        n, seed, samples = request.count, request.seed, request.samples
        seeds = [secrets.randbits(63) if seed is None else seed + i % n for i in range(len(inputs))]
        items = list(zip(inputs, seeds, strict=True))
        if request.temperature and samples:
            raise Refusal(400, "give samples or a temperature, not both", "samples", "invalid_value")
        if request.temperature:
            run = partial(_sample_network, network, request.temperature)
            return await all_of(self.batcher, object(), run, items)
        # requests with the same length limit and number of samples share a batch
        writers = [layer.writer for member in members_of(network) for layer in member.prompted]
        limit = tuple(layer.sampling for layer in writers if layer is not None)
        key = ("predict", samples, limit)
        return await all_of(self.batcher, key, partial(_predict, network, samples), items)

    def _within(self, length: int | None) -> AnyNetwork:
        """Return the network limited to answers of `length` tokens.

        Raises:
            Refusal: a label is longer; labels are never cut.
        """
        if length is None:
            return self._network
        if isinstance(self._network, Ensemble):
            return self._network.each(lambda member: _shortened(member, length))
        return _shortened(self._network, length)

    def _lists(self, said: _Said, top: int | None) -> dict[str, Any] | None:
        if top is None:
            return None
        ranked = _ranked(said)
        shown = dict(ranked[:top])
        shown.setdefault(said.text, dict(ranked)[said.text])
        return {
            "tokens": [said.text],
            "token_logprobs": [dict(ranked)[said.text]],
            "top_logprobs": [shown] if top else None,
            "text_offset": [0],
        }

    def _entries(self, said: _Said, top: int | None) -> dict[str, Any] | None:
        if top is None:
            return None
        ranked = [{"token": name, "logprob": p, "bytes": list(name.encode())} for name, p in _ranked(said)]
        own = next(entry for entry in ranked if entry["token"] == said.text)
        return {"content": [{**own, "top_logprobs": ranked[:top]}], "refusal": None}


def _kind(network: AnyNetwork) -> str:
    layers = f"{len(network)} layer{'s' if len(network) > 1 else ''}"
    if isinstance(network, Ensemble):
        return f"an ensemble of {len(network.members)} networks of {layers}"
    return f"a network of {layers}"


def _shortened(network: Sequential, length: int) -> Sequential:
    """Return the network limited to answers of `length` tokens.

    Raises:
        Refusal: a label is longer.
    """
    last, choice = network.layers[-1].writer, network.layers[-1].classifier
    if choice is not None:
        longest = max(map(choice.lm.count_tokens, choice.names))
        if length < longest:
            raise Refusal(400, f"labels of this network have up to {longest} tokens", "max_tokens", "invalid_value")
        return network
    if length < 1:
        raise Refusal(400, "max_tokens must be 1 or more", "max_tokens", "invalid_value")
    if last is None:
        return network
    shorter = replace(last.sampling, max_tokens=min(length, last.sampling.max_tokens))
    return network.with_layer(len(network) - 1, replace(last, sampling=shorter))


def _ranked(said: _Said) -> list[tuple[str, float]]:
    pairs = sorted(said.probabilities.items(), key=lambda pair: -pair[1])
    return [(name, finite(math.log(p) if p > 0 else -math.inf)) for name, p in pairs]


def _extra(said: _Said) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "hidden": list(said.hidden[0]) if said.hidden else [],
        "probabilities": said.probabilities,
        "label_mass": said.label_mass,
    }
    if len(said.hidden) > 1:
        shown["hidden_draws"] = [list(chain) for chain in said.hidden]
    if said.members:
        shown["members"] = [vote.to_json() for vote in said.members]
    return shown


def _predict(network: AnyNetwork, samples: int | None, items: Sequence[tuple[str, int]]) -> list[_Said]:
    if samples is None:
        return [_of(one) for one in network.predict_many([x for x, _ in items])]
    return [_of(network.predict(x, samples=samples, seed=seed)) for x, seed in items]


def _of(prediction: Prediction) -> _Said:
    return _Said(
        prediction.label, prediction.hidden, prediction.probabilities, prediction.label_mass, prediction.members
    )


def _sample_network(network: AnyNetwork, temperature: float, items: Sequence[tuple[str, int]]) -> list[_Said]:
    """Sample every layer; label probabilities are those given the sampled hidden texts."""
    found: list[_Said] = []
    for x, seed in items:
        drawn = network.pick(Key(seed).child("member")) if isinstance(network, Ensemble) else network
        last, trace = drawn.layers[-1].classifier, drawn.sample(Key(seed), [x], temperature)
        hidden = tuple(texts[0].text for texts in trace.hidden[:-1])
        probabilities: dict[str, float] = {}
        if last is not None and last.answers == "free":
            probabilities = text_prediction(trace.predictions, (hidden,), last.names).probabilities
        elif last is not None:
            row = last.label_log_probs(trace.inputs(len(drawn) - 1))[0]
            probabilities = {name: math.exp(value) for name, value in zip(last.names, row.tolist(), strict=True)}
        found.append(_Said(trace.predictions[0], (hidden,), probabilities, None))
    return found


def served(model: LanguageModel | AnyNetwork, name: str | None = None, *, batcher: Batcher | None = None) -> Served:
    """Make a served model of a language model, network or ensemble.

    Args:
        model: the model; served with token ids if it has them.
        name: model name shown to clients; default the model's own name. Required for a network.
        batcher: its worker; default a new one.

    Raises:
        InputError: a network without a name.
    """
    worker = batcher or Batcher()
    if isinstance(model, Sequential | Ensemble):
        if not name:
            raise InputError("a served network needs a name", where="name")
        return NetworkModel(model, name, worker)
    if isinstance(model, TokenLevel):
        return TokenModel(model, model, name or model.name, worker)
    return TextModel(model, name or model.name, worker)
