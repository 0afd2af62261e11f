"""A network is a sequence of layers: p(y|x) = Σ_h Π_l p(h_l | F_l(h_{l-1}, x, π_l)).

Prediction: greedy through the hidden layers, or averaged over draws of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast, overload

import numpy as np

from dln.arguments import Count, NonNegative, Seed, checked, shown
from dln.errors import InputError
from dln.lm.base import Completion
from dln.nn.layers import Answers, ChoiceLayer, LanguageLayer, LayerInput
from dln.nn.prompt import Prompt
from dln.numerics import Floats, log_softmax, logsumexp
from dln.random import Key

__all__ = ["AnyLayer", "Prediction", "Sequential", "Trace", "Vote", "free_prediction", "label_prediction", "predict"]


@dataclass(frozen=True)
class Vote:
    """What one member of an ensemble says of an input.

    Attributes:
        member: its position in the ensemble, from 0.
        weight: w_m, its weight in the ensemble.
        label: as of a prediction; empty if it could not score the input, and then it does not count.
        probabilities: as of a prediction.
    """

    member: int
    weight: float
    label: str
    probabilities: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """Plain data for records and answers."""
        return {"weight": self.weight, "label": self.label, "probabilities": self.probabilities}


@dataclass(frozen=True)
class Prediction:
    """What the network says of one input.

    Attributes:
        label: the most probable label, or the text of a free-text output layer; empty if unscored.
        probabilities: per label; for free text and free answers the frequency of each answer.
        hidden: the hidden texts, one tuple (h_1 … h_{L-1}) per draw.
        label_mass: mean mass the model put on all labels together, before normalising (a diagnostic:
            near zero means that the model does not see the question as one about these labels).
        draws: how many hidden draws were averaged.
        members: of an ensemble, what each member says; empty for one network. Not looked at by `==`: two
            predictions are equal if they say the same, whoever said it.
    """

    label: str
    probabilities: dict[str, float]
    hidden: tuple[tuple[str, ...], ...] = ()
    label_mass: float | None = None
    draws: int = 1
    members: tuple[Vote, ...] = field(default=(), compare=False)

    @property
    def scored(self) -> bool:
        """False if the model returned no finite score for this input."""
        return bool(self.label)

    def __str__(self) -> str:
        probability = self.probabilities.get(self.label)
        return self.label if probability is None else f"{self.label} ({probability:.2f})"


def predict(
    layers: Sequence[LanguageLayer | ChoiceLayer], x: Sequence[str], samples: int | None, key: Key
) -> list[Prediction]:
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
    for position, layer in enumerate(layers[:-1]):
        hidden = _draw(layer, key.child("layer", position), rows, draws, temperature)
        rows = [LayerInput(row.x, h.text) for row, h in zip(rows, hidden, strict=True)]
        chains = [(*chain, h.text) for chain, h in zip(chains, hidden, strict=True)]
    groups = [tuple(chains[i * draws : (i + 1) * draws]) for i in range(len(x))]
    last = layers[-1]
    if isinstance(last, ChoiceLayer) and last.answers == "free":
        texts = [answer.text for answer in last.write(last.contexts(rows), [0] * len(rows))]
        return [free_prediction(last, texts[i * draws : (i + 1) * draws], group) for i, group in enumerate(groups)]
    if isinstance(last, ChoiceLayer):
        masses = last.label_log_masses(last.contexts(rows)).reshape(len(x), draws, len(last.labels))
        return [label_prediction(last, m, g) for m, g in zip(masses, groups, strict=True)]
    answers = _draw(last, key.child("layer", len(layers) - 1), rows, draws, temperature)
    return [_from_texts([a.text for a in answers[i * draws : (i + 1) * draws]], groups[i]) for i in range(len(x))]


def label_prediction(
    layer: ChoiceLayer, masses: Floats, hidden: tuple[tuple[str, ...], ...], label_log_probs: Floats | None = None
) -> Prediction:
    """p(y|x) = mean over S draws of p(y|h^s), from [S, C] log-masses of the labels in nats.

    `label_log_probs`, [S, C] normalised over labels, stand in for those of the layer (cross-fitted ones, say).
    """
    # a draw without a finite score says nothing about the label: it is left out of the mean
    usable = np.isfinite(logsumexp(masses, axis=1)) & ~np.isnan(masses).any(axis=1)
    if not usable.any():
        return Prediction("", {}, hidden, None, 0)
    rows = layer.normalise(masses[usable]) if label_log_probs is None else label_log_probs[usable]
    log_probs = logsumexp(rows, axis=0) - np.log(usable.sum())
    probabilities = np.exp(log_softmax(log_probs))
    return Prediction(
        label=layer.names[int(np.argmax(log_probs))],
        probabilities={name: float(p) for name, p in zip(layer.names, probabilities, strict=True)},
        hidden=hidden,
        label_mass=float(np.exp(logsumexp(masses[usable], axis=1)).mean()),
        draws=int(usable.sum()),
    )


def free_prediction(layer: ChoiceLayer, texts: Sequence[str], hidden: tuple[tuple[str, ...], ...]) -> Prediction:
    """The most frequent of free answers (the first of equals), with the frequency of each label and other answer."""
    found = _from_texts(texts, hidden)
    return replace(found, probabilities=dict.fromkeys(layer.names, 0.0) | found.probabilities)


def _draw(
    layer: LanguageLayer | ChoiceLayer, key: Key, rows: Sequence[LayerInput], draws: int, temperature: float
) -> list[Completion]:
    if isinstance(layer, ChoiceLayer):
        raise InputError("a ChoiceLayer can only be the last layer", got=layer.names)
    seeds = [key.integer("draw", row.x, i % draws) for i, row in enumerate(rows)]
    return layer.draw(layer.contexts(rows), seeds, temperature)


def _from_texts(texts: Sequence[str], hidden: tuple[tuple[str, ...], ...]) -> Prediction:
    counts = Counter(texts)
    best = counts.most_common(1)[0][0]
    return Prediction(best, {text: n / len(texts) for text, n in counts.items()}, hidden, None, len(texts))


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
                got=shown(cast(object, item)),
                expected="a LanguageLayer or a ChoiceLayer",
                fix='dln.ChoiceLayer("smollm2", labels=["negative", "positive"])',
            )
    return flat
