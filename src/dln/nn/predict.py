"""Prediction: greedy through the hidden layers, or averaged over draws of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dln.errors import InputError
from dln.keys import Key
from dln.lm.base import Completion
from dln.nn.choice import ChoiceLayer
from dln.nn.layer import LanguageLayer, LayerInput
from dln.numerics import Floats, log_softmax, logsumexp

__all__ = ["Prediction", "Vote", "free_prediction", "label_prediction", "predict"]


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
