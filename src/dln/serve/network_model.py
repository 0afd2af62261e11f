"""A trained network served as one model: the last user message is its input x, the answer its output y.

Several networks that answer together are one model too: their probabilities are averaged.

Without a temperature the network predicts, as `network.predict` does: greedy hidden texts, the most probable
label. With a temperature above 0 every layer draws at it, the i-th choice with seed + i; of several networks one
is drawn by its weight first. With `samples`, the label's probabilities are averaged over so many chains of hidden
texts.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dln.keys import Key
from dln.nn import ChoiceLayer, LanguageLayer, Prediction, Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble, best_of, members_of
from dln.nn.predict import Vote, free_prediction
from dln.serve.answer import Answer, all_of, check_choices, finite
from dln.serve.batcher import Batcher
from dln.serve.fields import ChatRequest, Common, CompletionRequest
from dln.serve.refusal import Refusal
from dln.serve.text_model import refuse_fields

__all__ = ["NetworkModel"]

NOT_HERE = (
    "echo", "prompt_logprobs", "logprob_token_ids", "allowed_token_ids", "return_token_ids",
    "return_tokens_as_token_ids", "add_special_tokens", "stop",
)  # fmt: skip
WHY = "this model is a trained network, which answers whole inputs"


@dataclass(frozen=True, slots=True)
class _Said:
    """One answer of the network with what led to it."""

    text: str
    hidden: tuple[tuple[str, ...], ...]
    probabilities: dict[str, float]
    label_mass: float | None
    members: tuple[Vote, ...] = ()


class NetworkModel:
    """A network.

    Args:
        network: one, or several that answer together.
        name: how clients call it.
        batcher: its worker.
    """

    def __init__(self, network: AnyNetwork, name: str, batcher: Batcher) -> None:
        self._network = network
        self.name = name
        self._best = best_of(network)
        layers = [layer for member in members_of(network) for layer in member.layers]
        self.root = f"{_kind(network)} on {layers[0].lm.name}"
        lengths = [layer.lm.capabilities.context_length for layer in layers]
        self.max_model_len = min((n for n in lengths if n is not None), default=None)
        self.fingerprint = ":".join(dict.fromkeys(layer.lm.fingerprint() for layer in layers))
        self.batcher = batcher

    async def complete(self, request: CompletionRequest) -> Answer:
        """One answer per prompt; each prompt is an input."""
        inputs = [one for one in request.prompts if isinstance(one, str)]
        if len(inputs) < len(request.prompts):
            raise Refusal(400, f"token ids are not supported: {WHY}", "prompt", "unsupported_parameter")

        def choice(said: _Said) -> dict[str, Any]:
            return {"text": said.text, "logprobs": self._lists(said, request.logprobs), "dln": _extra(said)}

        return await self._answer(request, inputs, request.max_tokens, choice)

    async def chat(self, request: ChatRequest) -> Answer:
        """The answer to the last user message; what was said before is not the network's input."""
        if request.top_logprobs is not None and not request.logprobs:
            raise Refusal(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        x = next((message.text for message in reversed(request.messages) if message.role == "user"), None)
        if x is None:
            raise Refusal(400, "a user message is needed: it is the input", "messages", "invalid_value")
        top = (request.top_logprobs or 0) if request.logprobs else None

        def choice(said: _Said) -> dict[str, Any]:
            message = {"role": "assistant", "content": said.text, "refusal": None, "dln": _extra(said)}
            return {"message": message, "logprobs": self._entries(said, top)}

        return await self._answer(request, [x], request.length, choice)

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Not here."""
        raise Refusal(400, f"no token ids: {WHY}", None, "unsupported")

    def detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Not here."""
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
        lm = self._best.layers[-1].lm
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
            run = partial(_sample, network, request.temperature)
            return await all_of(self.batcher, object(), run, items)
        # one key per length limit and number of samples: those requests share the network's batches
        layers = [layer for member in members_of(network) for layer in member.layers]
        limit = tuple(layer.sampling for layer in layers if isinstance(layer, LanguageLayer))
        key = ("predict", samples, limit)
        return await all_of(self.batcher, key, partial(_predict, network, samples), items)

    def _within(self, length: int | None) -> AnyNetwork:
        """The network whose answer has at most `length` tokens.

        Raises:
            Refusal: a label does not fit; a label is never cut.
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
        return f"{len(network.members)} networks of {layers} that answer together"
    return f"a network of {layers}"


def _shortened(network: Sequential, length: int) -> Sequential:
    """The network with an answer of at most `length` tokens.

    Raises:
        Refusal: a label does not fit.
    """
    last = network.layers[-1]
    if isinstance(last, ChoiceLayer):
        longest = max(map(last.lm.count_tokens, last.names))
        if length < longest:
            raise Refusal(400, f"labels of this network have up to {longest} tokens", "max_tokens", "invalid_value")
        return network
    if length < 1:
        raise Refusal(400, "max_tokens must be 1 or more", "max_tokens", "invalid_value")
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


def _sample(network: AnyNetwork, temperature: float, items: Sequence[tuple[str, int]]) -> list[_Said]:
    """Every layer draws; for a label, the probabilities given the hidden texts that were drawn."""
    found: list[_Said] = []
    for x, seed in items:
        drawn = network.pick(Key(seed).child("member")) if isinstance(network, Ensemble) else network
        last, trace = drawn.layers[-1], drawn.sample(Key(seed), [x], temperature)
        hidden = tuple(texts[0].text for texts in trace.hidden[:-1])
        probabilities: dict[str, float] = {}
        if isinstance(last, ChoiceLayer) and last.answers == "free":
            probabilities = free_prediction(last, trace.predictions, (hidden,)).probabilities
        elif isinstance(last, ChoiceLayer):
            row = last.label_log_probs(trace.inputs(len(drawn) - 1))[0]
            probabilities = {name: math.exp(value) for name, value in zip(last.names, row.tolist(), strict=True)}
        found.append(_Said(trace.predictions[0], (hidden,), probabilities, None))
    return found
