"""A network is a sequence of layers: p(y|x) = Σ_h Π_l p(h_l | F_l(h_{l-1}, x, π_l)).

Prediction: greedy through the hidden layers, or averaged over draws of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import numpy as np

from dln.arguments import Count, NonNegative, Seed, checked, shown
from dln.errors import InputError
from dln.lm.base import Completion
from dln.nn.context import SEPARATOR, LayerInput, parts_of
from dln.nn.layers import Answers, Layer, PromptedLayer
from dln.nn.prediction import Prediction, Vote
from dln.nn.prompt import Prompt
from dln.numerics import Floats
from dln.random import Key

__all__ = ["AnyLayer", "Prediction", "Sequential", "Trace", "Vote", "forward"]

AnyLayer = Layer


def _predict(layers: Sequence[Layer], x: Sequence[str], samples: int | None, key: Key) -> list[Prediction]:
    """p(y|x) ≈ (1/S) Σ_s p(y | h^s), h^s ~ p(h|x) at temperature 1; one greedy chain if `samples` is None.

    The draws for an input depend on the key and the input alone, not on the inputs beside it.

    Raises:
        InputError: `samples` is below 1.
    """
    if samples is not None and samples < 1:
        raise InputError(
            "samples must be 1 or more", where="samples", got=samples, expected="a whole number ≥ 1", fix="samples=8"
        )
    draws, temperature = (1, 0.0) if samples is None else (samples, 1.0)
    rows = [LayerInput(text, text) for text in x for _ in range(draws)]
    chains: list[tuple[str, ...]] = [()] * len(rows)

    def seeds(position: int) -> list[int]:
        address = key.child("layer", position)
        return [address.integer("draw", row.x, i % draws) for i, row in enumerate(rows)]

    for position, layer in enumerate(layers[:-1]):
        hidden = [h.text for h in layer.draw(rows, seeds(position), temperature)]
        rows = [LayerInput(row.x, h) for row, h in zip(rows, hidden, strict=True)]
        chains = [(*chain, h.replace(SEPARATOR, "\n\n")) for chain, h in zip(chains, hidden, strict=True)]
    groups = [tuple(chains[i * draws : (i + 1) * draws]) for i in range(len(x))]
    return layers[-1].answer(rows, groups, seeds(len(layers) - 1), temperature)


@checked
@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass: the inputs x and every layer's outputs ĥ_1 … ĥ_L = ŷ, per example."""

    x: tuple[str, ...]
    hidden: tuple[tuple[Completion, ...], ...]

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self, layer: int) -> list[LayerInput]:
        """The inputs of layer `layer` (0-based): (x, ĥ of the layer below)."""
        if layer == 0:
            return [LayerInput(x, x) for x in self.x]
        return [LayerInput(x, h.text) for x, h in zip(self.x, self.hidden[layer - 1], strict=True)]

    def branch(self, layer: int, index: int, count: int) -> Trace:
        """The same pass with the outputs of one of the `count` layers side by side at `layer` (0-based)."""
        own = tuple(cast(Completion, parts_of(h, count)[index]) for h in self.hidden[layer])
        return Trace(self.x, (*self.hidden[:layer], own, *self.hidden[layer + 1 :]))

    def outputs(self, layer: int) -> tuple[Completion, ...]:
        """The outputs of layer `layer` (0-based)."""
        return self.hidden[layer]

    @property
    def predictions(self) -> tuple[str, ...]:
        """ŷ: the last layer's texts."""
        return tuple(completion.text for completion in self.hidden[-1])


def forward(key: Key, layers: Sequence[Layer], x: Sequence[str], temperature: float | None = None) -> Trace:
    """A forward pass: ĥ_l ~ p(· | ĥ_{l-1}, π_l), layer after layer; `temperature` overrides every layer's own."""
    trace = Trace(tuple(x), ())
    for position, layer in enumerate(layers):
        drawn = layer.sample(key.child("layer", position), trace.inputs(position), temperature)
        trace = Trace(trace.x, (*trace.hidden, tuple(drawn)))
    return trace


@checked
@dataclass(frozen=True, eq=False, init=False)
class Sequential:
    """A stack of layers.

    Args:
        layers: first to last, as one iterable or as separate arguments.

    Raises:
        InputError: no layer, something that is no layer, a `ChoiceLayer` below another layer, a `Parallel` as the
            last layer, or one with a deterministic branch above another layer.
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer | Iterable[Any]) -> None:
        flat = _flat(layers)
        if not flat:
            raise InputError(
                "a network needs at least one layer",
                where="Sequential, argument 'layers'",
                got="none",
                expected="a LanguageLayer or a ChoiceLayer",
                fix='dln.Sequential(dln.ChoiceLayer("smollm2", labels=["negative", "positive"]))',
            )
        _check_order(flat)
        object.__setattr__(self, "layers", tuple(flat))

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, position: int) -> Layer:
        return self.layers[position]

    def __repr__(self) -> str:
        rows = "".join(f"  ({position}) {layer!r}\n" for position, layer in enumerate(self.layers))
        return f"Sequential(\n{rows})"

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{i}</th><td>{layer._repr_html_()}</td></tr>" for i, layer in enumerate(self.layers, 1))  # pyright: ignore[reportPrivateUsage]
        return f"<table><caption>Sequential, {len(self)} layers</caption>{''.join(rows)}</table>"

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Label names of the output layer; None where it writes free text."""
        last = self.layers[-1].classifier
        return None if last is None else last.names

    @property
    def prompted(self) -> tuple[PromptedLayer, ...]:
        """The layers with a prompt, those side by side one by one."""
        found = (branch.prompted for layer in self.layers for branch in layer.branches)
        return tuple(layer for layer in found if layer is not None)

    def parameters(self) -> tuple[Prompt, ...]:
        """π_1 … π_L: the prompts of all layers that have one, and of all branches of parallel layers."""
        return tuple(layer.prompt for layer in self.prompted)

    def with_prompts(self, prompts: Sequence[Prompt | str]) -> Sequential:
        """The same network under other prompts."""
        count = len(self.parameters())
        if len(prompts) != count:
            raise InputError(
                "one prompt per layer is needed",
                where="Sequential.with_prompts, argument 'prompts'",
                got=f"{len(prompts)} prompts",
                expected=f"{count} prompts",
                fix=f"give a list of {count}",
            )
        layers: list[Layer] = []
        start = 0
        for layer in self.layers:
            end = start + len(layer.prompts)
            layers.append(layer.with_prompts(prompts[start:end]))
            start = end
        return Sequential(layers)

    def with_layer(self, position: int, layer: Layer) -> Sequential:
        """The same network with one layer (0-based) exchanged."""
        if not 0 <= position < len(self.layers):
            raise InputError(
                "there is no layer here",
                where="Sequential.with_layer, argument 'position'",
                got=position,
                expected=f"0 to {len(self.layers) - 1}",
                fix=f"position={len(self.layers) - 1}, the last layer",
            )
        return Sequential((*self.layers[:position], layer, *self.layers[position + 1 :]))

    def with_answers(self, answers: Answers) -> Sequential:
        """The same network with its labels predicted in another way (see `ChoiceLayer`).

        Raises:
            InputError: the output layer writes free text, or there is no such way.
        """
        last = self.layers[-1].classifier
        if last is None:
            raise InputError(
                "only an output layer over labels can answer freely or by score",
                where="answers",
                got=answers,
                expected="a network with a ChoiceLayer on top",
            )
        return self.with_layer(len(self) - 1, replace(last, answers=answers))

    def sample(self, key: Key, x: Sequence[str], temperature: NonNegative | None = None) -> Trace:
        """A forward pass: ĥ_l ~ p(· | ĥ_{l-1}, π_l), layer after layer.

        `temperature` overrides every layer's own; layers are greedy by default.
        """
        return forward(key, self.layers, x, temperature)

    def log_prob(self, trace: Trace) -> Floats:
        """[B] Σ_l log p(h_l | h_{l-1}, π_l): the joint log-probability of complete traces, in nats."""
        total = np.zeros(len(trace))
        for position, layer in enumerate(self.layers):
            scores = layer.log_prob(trace.inputs(position), trace.outputs(position))
            total += np.array([score.log_prob for score in scores])
        return total

    # a text is a sequence of texts to a type checker, and one input to us
    @overload
    def predict(self, x: str, *, samples: int | None = None, seed: int = 0) -> Prediction: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def predict(self, x: Sequence[str], *, samples: int | None = None, seed: int = 0) -> list[Prediction]: ...
    def predict(
        self, x: str | Sequence[str], *, samples: Count | None = None, seed: Seed = 0
    ) -> Prediction | list[Prediction]:
        """Label (or text), probabilities and hidden texts: of one input, or of each input of a list.

        Raises:
            InputError: `x` is neither a text nor a list of texts.
        """
        if isinstance(x, str):
            return self.predict_many([x], samples=samples, seed=seed)[0]
        return self.predict_many(x, samples=samples, seed=seed)

    def predict_many(self, x: Sequence[str], *, samples: Count | None = None, seed: Seed = 0) -> list[Prediction]:
        """Predictions for many inputs.

        Without `samples` the hidden texts are the greedy ones. With `samples=S`, S chains of hidden
        texts are drawn at temperature 1 and p(y|x) = (1/S) Σ_s p(y | h^s) is averaged over them.
        """
        return _predict(self.layers, x, samples, Key(seed).child("predict"))

    def state_dict(self) -> dict[str, object]:
        """The parameters as plain data: prompts, and the output layer's bias and temperature."""
        return {"layers": [layer.state() for layer in self.layers]}


def _check_order(layers: Sequence[Layer]) -> None:
    last = len(layers) - 1
    for position, layer in enumerate(layers):
        where = f"Sequential, layer {position}"
        if layer.classifier is not None and position < last:
            raise InputError(
                "a ChoiceLayer can only be the last layer",
                where=where,
                got=f"a ChoiceLayer below {last - position} other layers",
                expected="a LanguageLayer",
                fix="put the ChoiceLayer last",
            )
        if len(layer.branches) > 1 and position == last:
            raise InputError(
                "parallel layers cannot be the last layer",
                where=where,
                got=f"{len(layer.branches)} texts as the answer",
                expected="a layer above that makes one answer of them",
                fix='a ChoiceLayer with template="classify_several" above',
            )
        if position and not layer.deterministic and any(branch.deterministic for branch in layer.branches):
            raise InputError(
                "a function beside other layers can only stand in the first layer",
                where=where,
                got=repr(layer),
                expected="a function that is a layer of its own",
            )


def _flat(items: Iterable[object]) -> list[Layer]:
    flat: list[Layer] = []
    for item in items:
        if isinstance(item, Layer):
            flat.append(item)
        elif isinstance(item, Iterable) and not isinstance(item, str | Mapping):
            flat.extend(_flat(cast("Iterable[object]", item)))
        else:
            raise InputError(
                "this is no layer",
                where="Sequential, argument 'layers'",
                got=shown(cast(object, item)),
                expected="a LanguageLayer, a ChoiceLayer or another dln.Layer",
                fix='dln.ChoiceLayer("smollm2", labels=["negative", "positive"])',
            )
    return flat
