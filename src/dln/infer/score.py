"""Scoring outputs under candidate layers, in one request to the model.

Two conventions exist and are never mixed: `log_prob` (sum over target tokens, a log-likelihood, the
only one an ELBO is made of) and `mean_token_log_prob` (the paper's ranking score). Nothing is averaged
in that is not a possible log-probability: `usable` says which pairs may be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dln.errors import InputError
from dln.lm.base import Target
from dln.nn.choice import ChoiceLayer
from dln.nn.layer import LanguageLayer, LayerInput
from dln.nn.sequential import AnyLayer
from dln.numerics import Floats

__all__ = ["Convention", "PairScores", "score_pairs"]

Convention = Literal["log_prob", "mean_token_log_prob"]


@dataclass(frozen=True, eq=False)
class PairScores:
    """Scores of P (input, output) pairs under N candidate layers.

    Attributes:
        log_prob: [N, P] Σ over the output's tokens, in nats.
        mean_token_log_prob: [N, P] mean over the output's text tokens behind the burn-in, in nats per token.
        label_log_masses: [N, P, C] of an output layer over labels, not normalised; else None.
        targets: [P] label index of each output, where there are labels.
    """

    log_prob: Floats
    mean_token_log_prob: Floats
    label_log_masses: Floats | None = None
    targets: npt.NDArray[np.int64] | None = None

    def by(self, convention: Convention) -> Floats:
        """[N, P] under the named convention."""
        return self.log_prob if convention == "log_prob" else self.mean_token_log_prob

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """[N, P] whether a score is a possible log-probability: finite and not positive."""
        return np.isfinite(self.log_prob) & (self.log_prob <= 1e-6)


def score_pairs(
    layers: Sequence[AnyLayer], inputs: Sequence[LayerInput], outputs: Sequence[Target], burn_in: float = 0.0
) -> PairScores:
    """log p(output_p | input_p, π_n) for all candidates n and pairs p; equal contexts are asked once.

    The candidates are variants of one layer: same model, template and labels, other prompts. `burn_in` is the leading
    fraction of a text's tokens that its mean leaves out; sums and labels are not changed by it.
    """
    first = layers[0]
    if isinstance(first, ChoiceLayer):
        return _score_labels([layer for layer in layers if isinstance(layer, ChoiceLayer)], inputs, outputs)
    return _score_texts(first, layers, inputs, outputs, burn_in)


def _score_texts(
    first: LanguageLayer,
    layers: Sequence[AnyLayer],
    inputs: Sequence[LayerInput],
    outputs: Sequence[Target],
    burn_in: float,
) -> PairScores:
    requests: dict[tuple[str, Target], int] = {}
    rows = [
        [
            requests.setdefault((context, output), len(requests))
            for context, output in zip(contexts, outputs, strict=True)
        ]
        for contexts in (layer.contexts(inputs) for layer in layers)
    ]
    scores = first.log_prob_contexts([context for context, _ in requests], [output for _, output in requests])
    if len(scores) != len(requests):
        raise InputError("the model scored another number of requests", got=len(scores), expected=len(requests))
    sums = np.array([s.log_prob if s.finite else np.nan for s in scores])
    means = np.array([s.mean_after(burn_in) if s.finite else np.nan for s in scores])
    positions = np.array(rows, dtype=np.int64).reshape(len(layers), len(inputs))
    return PairScores(sums[positions], means[positions])


def _score_labels(layers: Sequence[ChoiceLayer], inputs: Sequence[LayerInput], outputs: Sequence[Target]) -> PairScores:
    requests: dict[str, int] = {}
    rows = [[requests.setdefault(c, len(requests)) for c in layer.contexts(inputs)] for layer in layers]
    positions = np.array(rows, dtype=np.int64).reshape(len(layers), len(inputs))
    masses = layers[0].label_log_masses(list(requests))[positions]
    targets = np.array([layers[0].index(output) for output in outputs], dtype=np.int64)
    normalised = np.stack([layer.normalise(row) for layer, row in zip(layers, masses, strict=True)])
    chosen = np.take_along_axis(normalised, targets[None, :, None], axis=2)[:, :, 0]
    return PairScores(chosen, chosen, masses, targets)
