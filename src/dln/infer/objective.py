"""The M-step's objective: how well a candidate layer explains the posterior.

    s^n = (1/B) Σ_i Σ_k Σ_k' w_{l-1}^k w_l^k' log p(h_l^k' | F(h_{l-1}^k, x, π^n))

(paper: Algorithm 2, line 5; Algorithm 3, line 3). Objectives are [N, B] matrices of per-example terms,
so that candidates are compared on the very same examples; an example that is not scored for every
candidate is NaN for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dln.errors import InputError
from dln.infer.calibrate import Calibrator
from dln.infer.candidates import Candidates, Pairs, Scored, comparable
from dln.infer.score import Convention, PairScores, score_pairs
from dln.lm.base import Target, text_of
from dln.nn.choice import ChoiceLayer
from dln.nn.layer import LayerInput
from dln.nn.sequential import AnyLayer
from dln.numerics import Floats, logsumexp

__all__ = [
    "Accuracy",
    "ExpectedLogProb",
    "NoiseContrastive",
    "Objective",
]


class Objective(Protocol):
    """How candidates are judged."""

    def __call__(self, candidates: Candidates) -> Scored:
        """[N, B] per-example terms."""
        ...


@dataclass(frozen=True)
class ExpectedLogProb:
    """E_q[log p(h_l | h_{l-1}, π^n)], in nats (or nats per token under the mean convention).

    Args:
        convention: `log_prob` makes the sum over layers a part of the ELBO.
        calibrator: how an output layer's bias and temperature follow each candidate.
        burn_in: as in `score_pairs`.
    """

    convention: Convention
    calibrator: Calibrator
    burn_in: float = 0.0

    def __call__(self, candidates: Candidates) -> Scored:
        """One request to the model for all candidates and pairs."""
        pairs = candidates.pairs
        scores = score_pairs(candidates.layers, pairs.inputs, pairs.outputs, self.burn_in)
        layers, values, _ = calibrated(self.calibrator, candidates.layers, scores, pairs, self.convention)
        size = len(candidates.trace)
        return Scored(layers, pairs.sum_by_example(values, size))


@dataclass(frozen=True)
class NoiseContrastive:
    """InfoNCE for hidden layers: log [ p(h^k | x, π) / Σ_j p(h^j | x, π) ], weighted by q^k.

    The other particles of the same example are the noise: a prompt is good if it prefers the texts
    that the posterior prefers, whatever their probability. `burn_in` is as in `score_pairs`.
    """

    convention: Convention
    burn_in: float = 0.0

    def __call__(self, candidates: Candidates) -> Scored:
        """Scores all particles, those of zero weight too, since they are the noise."""
        if candidates.is_output:
            raise InputError("the noise-contrastive objective is for hidden layers", where="inference.hidden_objective")
        size = len(candidates.trace)
        inputs: list[LayerInput] = []
        outputs: list[Target] = []
        spans: dict[int, list[tuple[float, slice, Floats]]] = {}
        levels = candidates.posterior.levels
        for i in np.flatnonzero(candidates.counted):
            below, above = levels[candidates.position][i], levels[candidates.position + 1][i]
            for h, w in zip(below.values, below.weights, strict=True):
                start = len(outputs)
                inputs.extend([LayerInput(candidates.trace.x[i], text_of(h))] * len(above))
                outputs.extend(above.values)
                spans.setdefault(int(i), []).append((float(w), slice(start, len(outputs)), above.weights))
        scores = score_pairs(candidates.layers, inputs, outputs, self.burn_in)
        values = np.where(scores.usable, scores.by(self.convention), np.nan)
        terms = np.full((len(candidates.layers), size), np.nan)
        for i, parts in spans.items():
            terms[:, i] = sum(
                w * ((values[:, span] - logsumexp(values[:, span], axis=1)[:, None]) @ v) for w, span, v in parts
            )
        terms[:, ~comparable(np.isfinite(terms))] = np.nan
        return Scored(candidates.layers, terms)


@dataclass(frozen=True)
class Accuracy:
    """The part of right answers of an output layer.

    A fitted output layer answers each example with numbers that were fitted without it, as in
    `ExpectedLogProb`: bias and temperature fitted to twenty examples raise the accuracy on these same
    examples for any prompt. Where every label is equally frequent by design, leaving an example out makes
    its label the rarer one of the rest, so that the cross-fitted accuracy of a prompt that tells nothing
    apart lies below chance, never above.

    Args:
        correct: (prediction, target) → whether it is right.
        calibrator: as in `ExpectedLogProb`.
    """

    correct: Callable[[str, str], bool]
    calibrator: Calibrator

    def __call__(self, candidates: Candidates) -> Scored:
        """Greedy predictions of every candidate, compared with the targets."""
        if not candidates.is_output:
            raise InputError("the accuracy objective is for the output layer", where="inference.hidden_objective")
        pairs = candidates.pairs
        size = len(candidates.trace)
        first = candidates.layers[0]
        layers = candidates.layers
        if isinstance(first, ChoiceLayer) and first.answers == "scored":
            scores = score_pairs(candidates.layers, pairs.inputs, pairs.outputs)
            layers, _, answers = calibrated(self.calibrator, candidates.layers, scores, pairs, "log_prob")
            rows = [
                [
                    # an empty draw is an input that the model could not score: excluded, not wrong
                    float(self.correct(c.text, first.names[first.index(target)])) if c.text else np.nan
                    for c, target in zip(first.draw(candidates.key, row, 0.0), pairs.outputs, strict=True)
                ]
                for row in answers
            ]
        else:
            rows = [
                [
                    float(self.correct(c.text, text_of(target)))
                    for c, target in zip(layer.sample(candidates.key, pairs.inputs, 0.0), pairs.outputs, strict=True)
                ]
                for layer in layers
            ]
        return Scored(layers, pairs.sum_by_example(np.array(rows, dtype=np.float64), size))


def calibrated(
    calibrator: Calibrator, layers: Sequence[AnyLayer], scores: PairScores, pairs: Pairs, convention: Convention
) -> tuple[tuple[AnyLayer, ...], Floats, Floats]:
    """Candidates with fitted output numbers, and what those say of the pairs.

    Returns:
        The fitted candidates; [N, P] scores of the wanted outputs, NaN where unusable; and [N, P, C] log p(y|x) of
        every label, NaN where a model gave none. Both are held out: no pair is judged by numbers that were
        fitted to its example. Without labels C is 0.
    """
    if scores.label_log_masses is None or scores.targets is None:
        values = np.where(scores.usable, scores.by(convention), np.nan)
        return tuple(layers), values, np.zeros((*values.shape, 0))
    usable = comparable(scores.usable)
    values = np.full(scores.log_prob.shape, np.nan)
    rows = np.full(scores.label_log_masses.shape, np.nan)
    fitted: list[AnyLayer] = []
    for n, (layer, masses) in enumerate(zip(_choices(layers), scores.label_log_masses, strict=True)):
        if not scores.usable[n].any():
            rows[n] = layer.normalise(masses)
            fitted.append(layer)
            continue
        calibration = calibrator(
            layer, masses[usable], scores.targets[usable], pairs.weights[usable], pairs.examples[usable]
        )
        values[n, usable] = calibration.log_prob
        rows[n, usable] = calibration.label_log_probs
        # a pair without a usable score had no part in the fit
        rows[n, ~usable] = calibration.layer.normalise(masses[~usable])
        fitted.append(calibration.layer)
    return tuple(fitted), values, rows


def _choices(layers: Sequence[AnyLayer]) -> list[ChoiceLayer]:
    return [layer for layer in layers if isinstance(layer, ChoiceLayer)]
