"""A network is a sequence of layers: p(y|x) = Σ_h Π_l p(h_l | F_l(h_{l-1}, x, π_l))."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import numpy as np

from dln.arguments import Count, NonNegative, Seed, checked, shown
from dln.errors import InputError
from dln.keys import Key
from dln.lm.base import Completion
from dln.nn.choice import Answers, ChoiceLayer
from dln.nn.layer import LanguageLayer, LayerInput
from dln.nn.predict import Prediction, predict
from dln.nn.prompt import Prompt
from dln.numerics import Floats

__all__ = ["AnyLayer", "Sequential", "Trace"]

AnyLayer = LanguageLayer | ChoiceLayer


@checked
@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass: the inputs x and every layer's outputs ĥ_1 … ĥ_L = ŷ, per example."""

    x: tuple[str, ...]
    hidden: tuple[tuple[Completion, ...], ...]

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self, layer: int) -> list[LayerInput]:
        """What layer `layer` (0-based) saw: (x, ĥ of the layer below)."""
        if layer == 0:
            return [LayerInput(x, x) for x in self.x]
        return [LayerInput(x, h.text) for x, h in zip(self.x, self.hidden[layer - 1], strict=True)]

    def outputs(self, layer: int) -> tuple[Completion, ...]:
        """What layer `layer` (0-based) put out."""
        return self.hidden[layer]

    @property
    def predictions(self) -> tuple[str, ...]:
        """ŷ: the last layer's texts."""
        return tuple(completion.text for completion in self.hidden[-1])


@checked
@dataclass(frozen=True, eq=False, init=False)
class Sequential:
    """Stacked language layers.

    Args:
        layers: first to last, as one iterable or as separate arguments.

    Raises:
        InputError: no layer, something that is no layer, or a `ChoiceLayer` below the top.
    """

    layers: tuple[AnyLayer, ...]

    def __init__(self, *layers: LanguageLayer | ChoiceLayer | Iterable[Any]) -> None:
        flat = _flat(layers)
        if not flat:
            raise InputError(
                "a network needs at least one layer",
                where="Sequential, argument 'layers'",
                got="none",
                expected="a LanguageLayer or a ChoiceLayer",
                fix='dln.Sequential(dln.ChoiceLayer("smollm2", labels=["negative", "positive"]))',
            )
        for position, layer in enumerate(flat[:-1]):
            if isinstance(layer, ChoiceLayer):
                raise InputError(
                    "a ChoiceLayer can only be the last layer",
                    where=f"Sequential, layer {position}",
                    got=f"a ChoiceLayer below {len(flat) - 1 - position} other layers",
                    expected="a LanguageLayer",
                    fix="put the ChoiceLayer last",
                )
        object.__setattr__(self, "layers", tuple(flat))

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        rows = "".join(f"  ({position}) {layer!r}\n" for position, layer in enumerate(self.layers))
        return f"Sequential(\n{rows})"

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Label names of the output layer; None where it writes free text."""
        last = self.layers[-1]
        return last.names if isinstance(last, ChoiceLayer) else None

    def parameters(self) -> tuple[Prompt, ...]:
        """π_1 … π_L."""
        return tuple(layer.prompt for layer in self.layers)

    def with_prompts(self, prompts: Sequence[Prompt | str]) -> Sequential:
        """The same network under other prompts."""
        if len(prompts) != len(self.layers):
            raise InputError(
                "one prompt per layer is needed",
                where="Sequential.with_prompts, argument 'prompts'",
                got=f"{len(prompts)} prompts",
                expected=f"{len(self.layers)} prompts",
                fix=f"give a list of {len(self.layers)}",
            )
        return Sequential(layer.with_prompt(p) for layer, p in zip(self.layers, prompts, strict=True))

    def with_layer(self, position: int, layer: AnyLayer) -> Sequential:
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
        last = self.layers[-1]
        if not isinstance(last, ChoiceLayer):
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
        trace = Trace(tuple(x), ())
        for position, layer in enumerate(self.layers):
            drawn = layer.sample(key.child("layer", position), trace.inputs(position), temperature)
            trace = Trace(trace.x, (*trace.hidden, tuple(drawn)))
        return trace

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
        return predict(self.layers, x, samples, Key(seed).child("predict"))

    def state_dict(self) -> dict[str, object]:
        """The parameters as plain data: prompts, and the output layer's bias and temperature."""
        rows: list[dict[str, object]] = []
        for layer in self.layers:
            row: dict[str, object] = {"prompt": layer.prompt.to_json()}
            if isinstance(layer, ChoiceLayer):
                row |= {"bias": layer.bias.tolist(), "temperature": layer.temperature}
            rows.append(row)
        return {"layers": rows}


def _flat(items: Iterable[object]) -> list[AnyLayer]:
    flat: list[AnyLayer] = []
    for item in items:
        if isinstance(item, LanguageLayer | ChoiceLayer):
            flat.append(item)
        elif isinstance(item, Iterable) and not isinstance(item, str | Mapping):
            flat.extend(_flat(cast("Iterable[object]", item)))
        else:
            raise InputError(
                "this is no layer",
                where="Sequential, argument 'layers'",
                got=shown(item),
                expected="a LanguageLayer or a ChoiceLayer",
                fix='dln.ChoiceLayer("smollm2", labels=["negative", "positive"])',
            )
    return flat
