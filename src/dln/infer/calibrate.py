"""The trainable output layer: bias b and temperature T, fitted together with each candidate prompt.

    p(y|x) ∝ exp(a · log p_LM(y|x,π) + b_y),   a = 1/T

    (a, b) = argmin  −Σ_p w_p log p(y_p|x_p) + |b|² / 2σ_b² + (a − 1)² / 2σ_a²

It is convex (multinomial logistic regression with one shared slope) and takes milliseconds for C
labels. A candidate is ranked by its cross-fitted likelihood: the (a, b) that judge an example were
fitted without it, so that C + 1 free numbers cannot flatter a prompt on a small batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from dln.nn.layers import ChoiceLayer
from dln.numerics import Floats, log_softmax

__all__ = ["Calibration", "Calibrator", "FixedOutput", "PenalisedLikelihood"]

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A fitted output layer and what it says of the pairs it was fitted on.

    Attributes:
        layer: with the new bias and temperature.
        label_log_probs: [P, C] log p(y | x_p) of every label, each row by numbers fitted without that example, in nats.
        log_prob: [P] the same of the wanted label, log p(y_p | x_p).
    """

    layer: ChoiceLayer
    label_log_probs: Floats
    log_prob: Floats

    @classmethod
    def of(cls, layer: ChoiceLayer, label_log_probs: Floats, targets: Integers) -> Calibration:
        """From the rows and the [P] indices of the wanted labels."""
        chosen = np.take_along_axis(label_log_probs, targets[:, None], axis=1)[:, 0]
        return cls(layer, label_log_probs, chosen)


class Calibrator(Protocol):
    """How the output layer's bias and temperature follow a prompt."""

    def __call__(
        self, layer: ChoiceLayer, log_masses: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> Calibration:
        """Fit on P pairs: [P, C] label masses, [P] label indices, [P] weights, [P] example numbers."""
        ...


@dataclass(frozen=True)
class FixedOutput:
    """Bias and temperature stay as they are (the paper's choice)."""

    def __call__(
        self, layer: ChoiceLayer, log_masses: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> Calibration:
        """The layer unchanged."""
        return Calibration.of(layer, layer.normalise(log_masses), targets)


@dataclass(frozen=True)
class PenalisedLikelihood:
    """Penalised maximum likelihood with cross-fitted judgement.

    Args:
        bias_scale: σ_b, in nats: how large a bias is expected.
        slope_scale: σ_a: how far the slope a = 1/T is expected from 1.
        folds: the number of folds of the cross-fit.
    """

    bias_scale: float = 3.0
    slope_scale: float = 1.0
    folds: int = 5

    def __call__(
        self, layer: ChoiceLayer, log_masses: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> Calibration:
        """Fit on all pairs; judge every example by a fit that left its fold out. Without a pair nothing changes."""
        if not len(targets):
            return Calibration.of(layer, np.zeros(log_masses.shape), targets)
        bias, slope = self.fit(log_masses, targets, weights)
        rows = self.cross_fitted(log_masses, targets, weights, groups)
        return Calibration.of(layer.with_calibration(bias, 1.0 / slope), rows, targets)

    def cross_fitted(self, log_masses: Floats, targets: Integers, weights: Floats, groups: Integers) -> Floats:
        """[P, C] log p(y | x_p) of every label, in nats, by numbers fitted without the example that p is of.

        Args:
            log_masses: [P, C] label masses, in nats.
            targets: [P] label indices.
            weights: [P] how much a pair counts in a fit.
            groups: [P] example numbers; the pairs of an example are in one fold.
        """
        examples = np.unique(groups)
        folds = min(self.folds, len(examples))
        judged = np.full(log_masses.shape, np.nan)
        for fold in range(folds):
            inside = np.isin(groups, examples[fold::folds])
            b, a = self.fit(log_masses[~inside], targets[~inside], weights[~inside])
            judged[inside] = log_softmax(a * log_masses[inside] + b)
        return judged

    def fit(self, log_masses: Floats, targets: Integers, weights: Floats) -> tuple[Floats, float]:
        """(b [C], a): the penalised maximum-likelihood estimate; (0, 1) where there is no pair."""
        classes = int(log_masses.shape[1])
        onehot = np.eye(classes)[targets]
        # −∞ masses (a label the model excludes) would make the slope undefined: they are floored
        masses = np.maximum(log_masses, -1e3)
        if not len(targets):
            return np.zeros(classes), 1.0
        column = weights[:, None]
        wanted = column * onehot

        def objective(theta: Floats) -> tuple[float, Floats]:
            b, a = theta[:-1], float(theta[-1])
            rows = log_softmax(a * masses + b)
            excess = column * (np.exp(rows) - onehot)
            misfit = -float((wanted * rows).sum())
            penalty = float(np.square(b).sum()) / (2 * self.bias_scale**2) + (a - 1) ** 2 / (2 * self.slope_scale**2)
            gradient = np.empty(classes + 1)
            gradient[:-1] = excess.sum(axis=0) + b / self.bias_scale**2
            gradient[-1] = (excess * masses).sum() + (a - 1) / self.slope_scale**2
            return misfit + penalty, gradient

        from scipy import optimize  # takes a second: not before it is needed

        bounds = [(None, None)] * classes + [(0.05, 20.0)]
        start = np.append(np.zeros(classes), 1.0)
        result = cast(Any, optimize).minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
        solution: Floats = np.asarray(result.x, dtype=np.float64)
        # a constant added to b changes nothing: the penalty already centres it up to rounding
        bias: Floats = np.asarray(solution[:-1] - solution[:-1].mean(), dtype=np.float64)
        return bias, float(solution[-1])
