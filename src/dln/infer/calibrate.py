"""Fitting the output layer together with each candidate prompt.

Label words alone (`PenalisedLikelihood`), bias b and slope a = 1/T:

    p(y|x) ∝ exp(a log p_LM(y|x,π) + b_y)
    (a, b) = argmin  −Σ_p w_p log p(y_p|x_p) + |b|² / 2σ_b² + (a − 1)² / 2σ_a²

Many words (`PenalisedWords`), A around the label words:

    (D, b) = argmin  −Σ_p w_p log p(y_p|x_p) + W Σ_yw (D_yw s_w)² / 2σ² + |b|² / 2σ_b²,     A = a A_0 + D

Both are convex multinomial logistic regressions with exact gradients. A candidate is ranked by its cross-fitted
likelihood: the numbers that judge an example were fitted without it, so that they cannot flatter a prompt on a small
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from dln.errors import InputError
from dln.nn.layers import ChoiceLayer
from dln.nn.readout import LabelReadout, WordReadout, choose_words, label_weights
from dln.numerics import Floats, log_softmax

__all__ = [
    "Calibration",
    "Calibrator",
    "FixedOutput",
    "PenalisedLikelihood",
    "PenalisedWords",
    "Preparing",
    "cross_fitted",
    "fit_pool",
]

Integers = npt.NDArray[np.int64]
SLOPES = (0.05, 20.0)
"""Bounds of the slope a."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A fitted output layer and what it says of the pairs it was fitted on.

    Attributes:
        layer: with the fitted readout.
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
    """How the output layer's readout follows a prompt."""

    def __call__(
        self, layer: ChoiceLayer, features: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> Calibration:
        """Fit on P pairs: [P, F] features of the readout, [P] label indices, [P] weights, [P] example numbers."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A `Calibrator` that chooses what the output layer reads before the first step."""

    def prepare(self, layer: ChoiceLayer, contexts: Sequence[str]) -> ChoiceLayer:
        """The layer with another readout, from contexts of training inputs."""
        ...


@dataclass(frozen=True)
class FixedOutput:
    """The readout stays as it is (the paper's choice)."""

    def __call__(
        self, layer: ChoiceLayer, features: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> Calibration:
        """The layer unchanged."""
        return Calibration.of(layer, layer.readout.log_probs(features), targets)


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
        self, layer: ChoiceLayer, features: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> Calibration:
        """Fit on all pairs; judge every example by a fit that left its fold out. Without a pair nothing changes."""
        if not isinstance(layer.readout, LabelReadout):
            raise InputError(
                "this fit is for the label words alone",
                where="inference.output_layer",
                got=repr(layer.readout),
                expected="a layer with a LabelReadout",
                fix='output_layer="words"',
            )
        if not len(targets):
            return Calibration.of(layer, np.zeros(features.shape), targets)
        bias, slope, rows = self._fitted(features, targets, weights, groups)
        return Calibration.of(layer.with_readout(LabelReadout(bias, 1.0 / slope)), rows, targets)

    def cross_fitted(self, log_masses: Floats, targets: Integers, weights: Floats, groups: Integers) -> Floats:
        """[P, C] log p(y | x_p) of every label, in nats, by numbers fitted without the example that p is of.

        Args:
            log_masses: [P, C] label masses, in nats.
            targets: [P] label indices.
            weights: [P] how much a pair counts in a fit.
            groups: [P] example numbers; the pairs of an example are in one fold.
        """
        return self._fitted(log_masses, targets, weights, groups)[2]

    def fit(self, log_masses: Floats, targets: Integers, weights: Floats) -> tuple[Floats, float]:
        """(b [C], a): the penalised maximum-likelihood estimate; (0, 1) where there is no pair."""
        ((*b, a),) = self._minima(log_masses, targets, weights[None]).tolist()
        return np.array(b, dtype=np.float64), a

    def _fitted(
        self, log_masses: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> tuple[Floats, float, Floats]:
        """b and a fitted to all pairs, and what `cross_fitted` says."""
        folds = folds_of(groups, self.folds)
        everything, *others = self._minima(
            log_masses, targets, np.stack([weights, *(weights * ~inside for inside in folds)])
        )
        judged = np.full(log_masses.shape, np.nan)
        for inside, theta in zip(folds, others, strict=True):
            judged[inside] = log_softmax(theta[-1] * log_masses[inside] + theta[:-1])
        return everything[:-1], float(everything[-1]), judged

    def _minima(self, log_masses: Floats, targets: Integers, weights: Floats) -> Floats:
        """[K, C + 1] b and a for each of K weightings of the pairs, by Newton's method with step halving.

        The objective is strictly convex. Each step goes to the minimum of its quadratic model within SLOPES.
        """
        # −∞ masses (a label the model excludes) would make the slope undefined: they are floored
        masses, onehot = np.maximum(log_masses, -1e3), np.eye(log_masses.shape[1])[targets]
        problems, classes = len(weights), log_masses.shape[1]
        column = weights[:, :, None]
        penalty = np.append(np.full(classes, self.bias_scale**-2.0), self.slope_scale**-2.0)
        prior = np.append(np.zeros(classes), 1.0)

        def at(theta: Floats) -> tuple[Floats, Floats]:
            """[K] the objective, and [K, P, C] p(y|x)."""
            logits = theta[:, -1, None, None] * masses + theta[:, None, :-1]
            rows = log_softmax(logits.reshape(-1, classes)).reshape(logits.shape)
            misfit = (weights * (onehot * rows).sum(axis=2)).sum(axis=1)
            return 0.5 * (penalty * np.square(theta - prior)).sum(axis=1) - misfit, np.exp(rows)

        def towards(theta: Floats, p: Floats) -> tuple[Floats, Floats]:
            """[K, C + 1] the gradient, and how far to go against it."""
            excess, weighted, mean = column * (p - onehot), column * p, (p * masses).sum(axis=2, keepdims=True)
            gradient = penalty * (theta - prior)
            gradient[:, :-1] += excess.sum(axis=1)
            gradient[:, -1] += (excess * masses).sum(axis=(1, 2))
            curvature = np.eye(classes) * (penalty[:-1] + weighted.sum(axis=1))[:, None] - weighted.mT @ p
            across = (weighted * (masses - mean)).sum(axis=1)
            along = penalty[-1] + (weighted * np.square(masses - mean)).sum(axis=(1, 2))
            solved: Floats = np.asarray(
                np.linalg.solve(curvature, np.stack([gradient[:, :-1], across], axis=2)), dtype=np.float64
            )
            free, bent = solved[:, :, 0], solved[:, :, 1]
            down = (gradient[:, -1] - (across * free).sum(axis=1)) / (along - (across * bent).sum(axis=1))
            down = theta[:, -1] - np.clip(theta[:, -1] - down, *SLOPES)
            return gradient, np.column_stack([free - bent * down[:, None], down])

        theta, live = np.tile(prior, (problems, 1)), np.ones(problems, dtype=np.bool_)
        value, p = at(theta)
        for _ in range(100):
            gradient, move = towards(theta, p)
            last: Flags = live & ((gradient * move).sum(axis=1) < 1e-9)  # half of it is what is left to gain
            theta[last] -= move[last]
            live &= ~last
            if not live.any():
                break
            size: Floats = np.ones((problems, 1))
            while True:
                step = theta - size * move
                lower, moved = at(step)
                worse: Flags = live & ~(lower <= value)
                if not worse.any() or size.min() < 1e-6:
                    break
                size[worse] /= 2
            live &= lower < value  # rounding: no smaller value is to be found for the others
            theta[live], value[live], p[live] = step[live], lower[live], moved[live]
        # a constant added to b changes nothing: the penalty already centres it up to rounding
        theta[:, :-1] -= theta[:, :-1].mean(axis=1, keepdims=True)
        return theta


Flags = npt.NDArray[np.bool_]


def folds_of(groups: Integers, folds: int) -> list[Flags]:
    """[P] for each fold, the pairs of its examples; the pairs of an example are in one fold."""
    examples = np.unique(groups)
    return [np.isin(groups, examples[fold::folds]) for fold in range(min(folds, len(examples)))]


def cross_fitted(
    spreads: Sequence[float],
    parts: Sequence[Flags],
    targets: Integers,
    weights: Floats,
    judge: Callable[[int, Flags, float], Floats],
) -> tuple[float, Floats]:
    """The spread σ of the largest cross-fitted log-likelihood, and [P, C] the log-probabilities judged under it.

    Args:
        spreads: values to choose from, rising.
        parts: the pairs of each fold.
        targets: [P].
        weights: [P].
        judge: [n, C] log p(y|x) of the pairs of a fold, under the fit with a spread to all other pairs.
    """
    chosen, best, judged = spreads[0], -np.inf, np.zeros((0, 0))
    for spread in spreads:
        pieces = [judge(fold, inside, spread) for fold, inside in enumerate(parts)]
        rows = np.full((len(targets), pieces[0].shape[1]), np.nan)
        for inside, piece in zip(parts, pieces, strict=True):
            rows[inside] = piece
        score = float(weights @ rows[np.arange(len(targets)), targets])
        if score > best:
            chosen, best, judged = spread, score, rows
        elif spread > chosen > 0:
            break  # the cross-fitted likelihood has one maximum in σ but for noise
    return chosen, judged


@dataclass(frozen=True)
class PenalisedWords:
    """Multinomial logistic regression on the log-probabilities of words, with cross-fitted judgement.

    The prior A_0 is the label words, 1/n_y at each of the n_y words of label y; its slope a and the bias are those that
    `labels` fits to them. s_w is the standard deviation of log p(w|x) over the pairs: a word's penalty does not depend
    on how much its probability varies. σ, the spread that is expected of a logit, is chosen from `spreads` by the
    cross-fitted likelihood: one number for all examples. σ = 0 is the label words alone, and with few examples it is
    the choice. Nothing is random.

    D is computed in the span of the pairs, with one coordinate per principal component of the standardised features,
    which the quadratic penalty allows; components that σ makes irrelevant are left out.

    Args:
        labels: how bias and slope of the label words are fitted, and of a `LabelReadout`.
        size: W, how many words are read.
        spreads: values of σ to choose from, rising; one alone is taken.
        folds: the number of folds of the cross-fit.
    """

    labels: PenalisedLikelihood = field(default_factory=PenalisedLikelihood)
    size: int = 1000
    spreads: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    folds: int = 5

    def prepare(self, layer: ChoiceLayer, contexts: Sequence[str]) -> ChoiceLayer:
        """The layer with a readout of the words that are most probable after `contexts`.

        It stays as it is where it has a word readout already, or where the model does not tell words' probabilities.
        """
        if isinstance(layer.readout, WordReadout) or layer.lm.capabilities.next_tokens == "none":
            return layer
        return layer.with_readout(choose_words(layer.lm, contexts, layer.words, self.size))

    def __call__(
        self, layer: ChoiceLayer, features: Floats, targets: Integers, weights: Floats, groups: Integers
    ) -> Calibration:
        """Fit on all pairs; judge every example by a fit that left its fold out. Without a pair nothing changes."""
        readout = layer.readout
        if not isinstance(readout, WordReadout):
            return self.labels(layer, features, targets, weights, groups)
        if not len(targets):
            return Calibration.of(layer, np.zeros((0, readout.size)), targets)
        words = _Words.of(readout, features, targets, weights)
        parts = folds_of(groups, self.folds)
        priors = [words.prior(self.labels, ~inside) for inside in parts]
        found = [words.fit(prior, ~inside, 0.0) for inside, prior in zip(parts, priors, strict=True)]

        def judge(fold: int, inside: Flags, spread: float) -> Floats:
            found[fold] = words.fit(priors[fold], ~inside, spread, found[fold])
            return words.log_probs(found[fold], inside)

        chosen, judged = cross_fitted(self.spreads, parts, targets, weights, judge)
        everything = np.ones(len(targets), dtype=np.bool_)
        solution = words.fit(words.prior(self.labels, everything), everything, chosen)
        return Calibration.of(layer.with_readout(words.readout(solution)), judged, targets)


@dataclass(frozen=True, eq=False)
class _Prior:
    """The label words' fit: slope a and bias b; σ_b is the scale of the bias."""

    slope: float
    bias: Floats
    bias_scale: float


@dataclass(frozen=True, eq=False)
class _Solution:
    """log p(y|x) ∝ a L + G Uᵀ + b for the pairs; U is [C, R]."""

    prior: _Prior
    coefficients: Floats
    bias: Floats


@dataclass(frozen=True, eq=False)
class _Words:
    """The regression problem of P pairs.

    Attributes:
        word_readout: gives the words.
        label_features: L [P, C], log p of each label's words, their mean over the words of a label.
        components: G [P, R] = Z V, the standardised features in their principal components.
        directions: V [W, R].
        energy: [R] Σ_p w_p G_pr².
        mean, scale: [W] of the features; a scale of 0 is a word whose log-probability never changes.
        onehot: [P, C].
        weights: [P].
    """

    word_readout: WordReadout
    label_features: Floats
    components: Floats
    directions: Floats
    energy: Floats
    mean: Floats
    scale: Floats
    onehot: Floats
    weights: Floats

    @classmethod
    def of(cls, readout: WordReadout, features: Floats, targets: Integers, weights: Floats) -> _Words:
        total = weights.sum()
        mean = weights @ features / total
        centred = features - mean
        scale = np.sqrt(weights @ np.square(centred) / total)
        varies = scale > 1e-9
        scale = np.where(varies, scale, 0.0)
        z = np.where(varies, centred / np.where(varies, scale, 1.0), 0.0) * np.sqrt(weights)[:, None]
        if len(z) <= z.shape[1]:
            energy, left = np.linalg.eigh(z @ z.T)
            kept = energy > energy[-1] * 1e-9
            energy, left = energy[kept], left[:, kept]
            directions = z.T @ left / np.sqrt(energy)
        else:
            energy, directions = np.linalg.eigh(z.T @ z)
            kept = energy > energy[-1] * 1e-9
            energy, directions = energy[kept], directions[:, kept]
        standardised = z / np.sqrt(weights)[:, None]
        return cls(
            word_readout=readout,
            label_features=features @ label_weights(readout.label_words, len(readout.words)).T,
            components=standardised @ directions,
            directions=directions,
            energy=energy,
            mean=mean,
            scale=scale,
            onehot=np.eye(readout.size)[targets],
            weights=weights,
        )

    def prior(self, labels: PenalisedLikelihood, inside: Flags) -> _Prior:
        """Slope and bias of the label words, fitted to some of the pairs."""
        bias, slope = labels.fit(self.label_features[inside], self.onehot[inside].argmax(axis=1), self.weights[inside])
        return _Prior(slope, bias, labels.bias_scale)

    def fit(self, prior: _Prior, inside: Flags, spread: float, begin: _Solution | None = None) -> _Solution:
        """The penalised maximum-likelihood estimate of D and b on some of the pairs, sought from `begin`."""
        classes, width = self.onehot.shape[1], self.directions.shape[1]
        nothing = _Solution(prior, np.zeros((classes, width)), prior.bias)
        unit = spread / np.sqrt(max(1, len(self.scale)))  # σ / √W: of one weight
        kept = self.energy * unit**2 > 1e-3
        if spread == 0 or not kept.any() or not inside.any():
            return nothing
        # in units in which the penalised curvature of every coordinate is about one (Böhning's bound: ½ of the energy)
        step = unit / np.sqrt(1 + 0.5 * self.energy[kept] * unit**2)
        shrink = np.square(step / unit)
        first = nothing if begin is None else begin
        regression = _Regression(
            design=np.column_stack([self.components[inside][:, kept] * step, np.ones(int(inside.sum()))]),
            offset=prior.slope * self.label_features[inside],
            onehot=self.onehot[inside],
            weights=self.weights[inside],
            penalty=np.append(shrink, 1 / prior.bias_scale**2),
        )
        found = regression.minimum(np.column_stack([first.coefficients[:, kept] / step, first.bias]))
        coefficients = np.zeros((classes, width))
        coefficients[:, kept] = found[:, :-1] * step
        return _Solution(prior, coefficients, found[:, -1] - found[:, -1].mean())

    def log_probs(self, solution: _Solution, inside: Flags) -> Floats:
        """[n, C] log p(y|x) of some of the pairs."""
        logits = solution.prior.slope * self.label_features[inside] + solution.bias
        return log_softmax(logits + self.components[inside] @ solution.coefficients.T)

    def readout(self, solution: _Solution) -> WordReadout:
        """The solution in terms of the words' log-probabilities."""
        slopes = np.where(self.scale > 0, 1.0 / np.where(self.scale > 0, self.scale, 1.0), 0.0)
        deviation = (solution.coefficients @ self.directions.T) * slopes
        prior = label_weights(self.word_readout.label_words, len(self.scale)) * solution.prior.slope
        return self.word_readout.with_fit(prior + deviation, solution.bias - deviation @ self.mean, self.scale)


SMALL = 60
"""Numbers up to which Newton's method is faster than L-BFGS."""


@dataclass(frozen=True, eq=False)
class _Regression:
    """Multinomial logistic regression: −Σ_p w_p log softmax(O_p + X_p Uᵀ)_{y_p} + ½ Σ_yr q_r U_yr².

    Attributes:
        design: X [P, R].
        offset: O [P, C].
        onehot: [P, C] the targets.
        weights: w [P].
        penalty: q [R].
    """

    design: Floats
    offset: Floats
    onehot: Floats
    weights: Floats
    penalty: Floats

    def minimum(self, start: Floats) -> Floats:
        """U [C, R], sought from `start`."""
        if start.size <= SMALL:
            return self._newton(start)
        from scipy import optimize  # takes a second: not before it is needed

        def objective(theta: Floats) -> tuple[float, Floats]:
            value, gradient, _ = self._at(theta.reshape(start.shape))
            return value, gradient.ravel()

        options = {"maxiter": 300, "ftol": 1e-8, "gtol": 1e-3}
        result = cast(Any, optimize).minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
        return np.asarray(result.x, dtype=np.float64).reshape(start.shape)

    def _at(self, u: Floats) -> tuple[float, Floats, Floats]:
        """Value, gradient [C, R], and p(y|x) [P, C]."""
        rows = log_softmax(self.offset + self.design @ u.T)
        p = np.exp(rows)
        value = 0.5 * float((self.penalty * np.square(u)).sum()) - float(
            self.weights @ (self.onehot * rows).sum(axis=1)
        )
        return value, (self.weights[:, None] * (p - self.onehot)).T @ self.design + self.penalty * u, p

    def _hessian(self, p: Floats) -> Floats:
        """[CR, CR] second derivatives where the probabilities are p [P, C]."""
        _, count = p.shape
        curvature = -p[:, :, None] * p[:, None, :]
        curvature[:, range(count), range(count)] += p
        weighted = (self.weights[:, None, None] * curvature)[..., None] * self.design[:, None, None, :]
        blocks = np.einsum("pcdi,pj->cidj", weighted, self.design)
        size = count * self.design.shape[1]
        return blocks.reshape(size, size) + np.diag(np.tile(self.penalty, count))

    def _newton(self, start: Floats) -> Floats:
        """Newton's method with step halving; the objective is strictly convex."""
        u = start
        value, gradient, p = self._at(u)
        for _ in range(50):
            if np.abs(gradient).max() < 1e-6:
                break
            move = np.linalg.solve(self._hessian(p), gradient.ravel()).reshape(start.shape)
            size = 1.0
            while (step := self._at(u - size * move))[0] > value and size > 1e-6:
                size /= 2
            if step[0] > value:
                break  # rounding: no smaller value is to be found
            u, (value, gradient, p) = u - size * move, step
        return u


def fit_pool(
    log_probs: Floats, targets: Integers, scale: float = 0.1, bias_scale: float = 0.1
) -> tuple[Floats, Floats]:
    """Weights a and bias b of a product of experts, log p(y|x) = log softmax_y(Σ_m a_m log p_m(y|x) + b_y).

        (a, b) = argmin  −Σ_p log p(y_p|x_p) + Σ_m (a_m − 1/M)² / 2σ_a² + |b|² / 2σ_b²,   a_m ≥ 0

    Args:
        log_probs: [M, P, C] of the members, held out, in nats.
        targets: [P] label indices.
        scale: σ_a.
        bias_scale: σ_b, in nats.

    Returns:
        a [M] and b [C].
    """
    members, _, classes = log_probs.shape
    onehot, values, equal = np.eye(classes)[targets], np.maximum(log_probs, -50.0), 1.0 / members

    def objective(theta: Floats) -> tuple[float, Floats]:
        a, b = theta[:members], theta[members:]
        rows = log_softmax(np.einsum("m,mpc->pc", a, values) + b)
        excess = np.exp(rows) - onehot
        penalty = float(np.square(a - equal).sum()) / (2 * scale**2) + float(np.square(b).sum()) / (2 * bias_scale**2)
        slope = np.einsum("pc,mpc->m", excess, values) + (a - equal) / scale**2
        return penalty - float((onehot * rows).sum()), np.concatenate([slope, excess.sum(axis=0) + b / bias_scale**2])

    from scipy import optimize  # takes a second: not before it is needed

    start = np.concatenate([np.full(members, equal), np.zeros(classes)])
    bounds = [(0.0, None)] * members + [(None, None)] * classes
    result = cast(Any, optimize).minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    solution = np.asarray(result.x, dtype=np.float64)
    return solution[:members], solution[members:] - solution[members:].mean()
