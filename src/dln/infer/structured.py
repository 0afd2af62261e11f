"""Fitting output layers whose labels are ordered, or sets of labels (`dln.nn.structured`).

With the base weights A_0 of the labels' words, a slope a, K scores z = (a A_0 + D) log p(w|x) + b, and γ the shape:

    (a, D, b, γ) = argmin −Σ_p w_p log p(y_p|x_p) + W Σ_kw (D_kw s_w)² / 2σ² + (|b|² + |γ|²) / 2σ_b² + (a − 1)² / 2σ_a²

s_w is the standard deviation of log p(w|x) over the pairs, and the features are centred. σ is chosen, and every example
judged, by cross-fitting, as in `dln.infer.calibrate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from dln.answers import parts_of, single_labels
from dln.infer.calibrate import SLOPES, Calibration, Flags, Integers, PenalisedLikelihood, cross_fitted, folds_of
from dln.nn.layers import ChoiceLayer
from dln.nn.readout import WordReadout, choose_words
from dln.nn.structured import OrdinalReadout, SetReadout, StructuredReadout
from dln.numerics import Floats

__all__ = ["PenalisedOrder", "PenalisedSets", "PenalisedStructure"]


@dataclass(frozen=True)
class PenalisedStructure(ABC):
    """Penalised maximum likelihood of a `StructuredReadout`, with cross-fitted judgement; nothing is random.

    Where the model does not tell words' probabilities, the label words are fitted instead.

    Args:
        labels: σ_b and σ_a, and how a `LabelReadout` is fitted.
        size: W, how many words are read.
        spreads: values of σ to choose from, rising.
        folds: the number of folds of the cross-fit.
    """

    labels: PenalisedLikelihood = field(default_factory=PenalisedLikelihood)
    size: int = 1000
    spreads: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    folds: int = 5

    @abstractmethod
    def structured(self, layer: ChoiceLayer, contexts: Sequence[str]) -> StructuredReadout:
        """The readout before training."""

    def prepare(self, layer: ChoiceLayer, contexts: Sequence[str]) -> ChoiceLayer:
        """The layer with a readout of the words that are most probable after `contexts`, unless it has one already."""
        if isinstance(layer.readout, StructuredReadout) or layer.lm.capabilities.next_tokens == "none":
            return layer
        return layer.with_readout(self.structured(layer, contexts))

    def __call__(
        self, layer: ChoiceLayer, features: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> Calibration:
        """Fit on all pairs; judge every example by a fit that left its fold out. Without a pair nothing changes."""
        readout = layer.readout
        if not isinstance(readout, StructuredReadout):
            return self.labels(layer, features, targets, weights, groups)
        if not len(targets):
            return Calibration.of(layer, np.zeros((0, readout.size)), targets)
        problem = _Problem.of(readout, features, targets, weights, self.labels)
        parts = folds_of(groups, self.folds)
        found: list[Floats | None] = [None] * len(parts)

        def judge(fold: int, inside: Flags, spread: float) -> Floats:
            theta = found[fold] = problem.fit(~inside, spread, found[fold])
            return problem.rows(theta, inside)

        chosen, judged = cross_fitted(self.spreads, parts, targets, weights, judge)
        everything = np.ones(len(targets), dtype=np.bool_)
        solution = problem.fit(everything, chosen, None)
        return Calibration.of(layer.with_readout(problem.readout_of(solution)), judged, targets)


class PenalisedOrder(PenalisedStructure):
    """The fit of an `OrdinalReadout`: the labels of the layer in their order, lowest first."""

    def structured(self, layer: ChoiceLayer, contexts: Sequence[str]) -> StructuredReadout:
        """The readout before training."""
        words = choose_words(layer.lm, contexts, layer.words, self.size)
        return OrdinalReadout(words.words, words.label_words)


class PenalisedSets(PenalisedStructure):
    """The fit of a `SetReadout`: each label of the layer is a set of single labels, as in "a, b"."""

    def structured(self, layer: ChoiceLayer, contexts: Sequence[str]) -> StructuredReadout:
        """The readout before training."""
        singles = single_labels(layer.names)
        spoken = [[layer.target_prefix + name] for name in singles]
        words: WordReadout = choose_words(layer.lm, contexts, spoken, self.size)
        members = [[singles.index(part) for part in parts_of(name)] for name in layer.names]
        return SetReadout(words.words, words.label_words, members)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The fit to P pairs; a solution is the vector (a, b [K], γ [B], U [K, R]), with D in the span of the pairs.

    Attributes:
        readout: gives the words and the likelihood.
        base: [P, K] A_0 log p(w|x), centred.
        components: G [P, R], the standardised features in their principal components.
        directions: V [W, R].
        energy: [R] Σ_p w_p G_pr².
        mean, scale: [W] of the features.
        targets, weights: [P].
        labels: σ_a and σ_b.
    """

    readout: StructuredReadout
    base: Floats
    components: Floats
    directions: Floats
    energy: Floats
    mean: Floats
    scale: Floats
    targets: Integers
    weights: Floats
    labels: PenalisedLikelihood

    @classmethod
    def of(
        cls,
        readout: StructuredReadout,
        features: Floats,
        targets: Integers,
        weights: Floats,
        labels: PenalisedLikelihood,
    ) -> _Problem:
        mean = weights @ features / weights.sum()
        centred = features - mean
        spread = np.sqrt(weights @ np.square(centred) / weights.sum())
        scale = np.where(spread > 1e-9, spread, 0.0)
        standardised = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
        left, values, right = np.linalg.svd(standardised * np.sqrt(weights)[:, None], full_matrices=False)
        del left
        kept = values > values[0] * 1e-4
        directions = right[kept].T
        return cls(
            readout=readout,
            base=centred @ readout.base().T,
            components=standardised @ directions,
            directions=directions,
            energy=np.square(values[kept]),
            mean=mean,
            scale=scale,
            targets=targets,
            weights=weights,
            labels=labels,
        )

    @property
    def _counts(self) -> tuple[int, int, int]:
        """K, B and R."""
        return len(self.readout.intercept), len(self.readout.shape), len(self.energy)

    def _parts(self, theta: Floats) -> tuple[float, Floats, Floats, Floats]:
        scores, shape, width = self._counts
        ends = 1 + scores, 1 + scores + shape
        return float(theta[0]), theta[1 : ends[0]], theta[ends[0] : ends[1]], theta[ends[1] :].reshape(scores, width)

    def _scores(self, theta: Floats, inside: Flags) -> Floats:
        slope, intercept, _, u = self._parts(theta)
        return slope * self.base[inside] + intercept + self.components[inside] @ u.T

    def rows(self, theta: Floats, inside: Flags) -> Floats:
        """[n, C] log p(y|x) of some of the pairs."""
        return self.readout.rows(self._scores(theta, inside), self._parts(theta)[2])

    def fit(self, inside: Flags, spread: float, begin: Floats | None) -> Floats:
        """The minimum on some of the pairs, sought from `begin`."""
        scores, shape, width = self._counts
        start = np.concatenate([[1.0], np.zeros(scores + shape + scores * width)]) if begin is None else begin.copy()
        unit = spread / np.sqrt(len(self.scale))
        read = self.energy * unit**2 > 1e-3
        # in units in which the penalised curvature of every coordinate is about one
        step = np.where(read, unit / np.sqrt(1 + 0.25 * self.energy * unit**2), 0.0)
        units = np.concatenate([np.ones(1 + scores + shape), np.tile(step, scores)])
        penalty = np.concatenate(
            [
                [self.labels.slope_scale**-2.0],
                np.full(scores + shape, self.labels.bias_scale**-2.0),
                np.tile(np.square(step / unit) if unit else step, scores),
            ]
        )
        centre = np.concatenate([[1.0], np.zeros(len(units) - 1)])
        free = units > 0
        components, base, weights = self.components[inside], self.base[inside], self.weights[inside]
        targets = self.targets[inside]

        def objective(reduced: Floats) -> tuple[float, Floats]:
            scaled = np.where(free, 0.0, centre)
            scaled[free] = reduced
            theta = scaled * units
            found = self.readout.gradient(self._scores(theta, inside), self._parts(theta)[2], targets)
            pull = found.scores * weights[:, None]
            by = np.concatenate(
                [
                    [(pull * base).sum()],
                    pull.sum(axis=0),
                    weights @ found.shape,
                    (pull.T @ components).ravel(),
                ]
            )
            away = scaled - centre
            value = 0.5 * float(penalty @ np.square(away)) - float(weights @ found.log_prob)
            return value, (penalty * away - by * units)[free]

        from scipy import optimize  # takes a second: not before it is needed

        scaled = np.divide(start, units, out=np.zeros_like(start), where=free)
        bounds = [SLOPES, *[(None, None)] * scores, *[(-8.0, 8.0)] * shape, *[(None, None)] * (scores * width)]
        result = cast(Any, optimize).minimize(
            objective,
            scaled[free],
            jac=True,
            method="L-BFGS-B",
            bounds=[bound for bound, kept in zip(bounds, free, strict=True) if kept],
            options={"maxiter": 300, "ftol": 1e-9, "gtol": 1e-4},
        )
        theta = np.zeros(len(units))
        theta[free] = np.asarray(result.x, dtype=np.float64) * units[free]
        return theta

    def readout_of(self, theta: Floats) -> StructuredReadout:
        """The solution in terms of the words' log-probabilities."""
        slope, intercept, shape, u = self._parts(theta)
        inverse = np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)
        weights = slope * self.readout.base() + (u @ self.directions.T) * inverse
        return self.readout.with_fit(weights, intercept - weights @ self.mean, shape, self.scale)
