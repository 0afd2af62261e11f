"""What is taken off a candidate's objective: the trust region and the exploration reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dln.errors import InputError
from dln.infer.candidates import Candidates, comparable
from dln.infer.score import Convention, score_pairs
from dln.nn.choice import ChoiceLayer
from dln.nn.sequential import AnyLayer
from dln.numerics import Floats, kl_divergence

__all__ = ["Exploration", "Penalty", "TrustRegion"]


class Penalty(Protocol):
    """A number per candidate that is subtracted from its score."""

    def __call__(self, candidates: Candidates, fitted: tuple[AnyLayer, ...]) -> Floats:
        """[N] penalties, given the candidates as proposed and as fitted."""
        ...


@dataclass(frozen=True)
class TrustRegion:
    """trust_factor · KL( p(y|ĥ, π) ‖ p(y|ĥ, π^n) ), output layer only: a step size (released code, not the paper).

    The expectation is under the present prompt π, so a candidate pays for probability that it takes away from labels
    that π believes in. The divergence is the mean over the batch's forward inputs, in nats; the incumbent's is zero
    unless its bias and temperature were fitted anew.

    Args:
        trust_factor: weight of the divergence.
        min_depth: fewest layers of a network that has a trust region; the released code has it with two layers only.
    """

    trust_factor: float
    min_depth: int = 1

    def __call__(self, candidates: Candidates, fitted: tuple[AnyLayer, ...]) -> Floats:
        """[N]; zeros for hidden layers and for networks of fewer than `min_depth` layers."""
        if not candidates.is_output or self.trust_factor == 0 or candidates.depth < self.min_depth:
            return np.zeros(len(candidates.layers))
        layers = [layer for layer in fitted if isinstance(layer, ChoiceLayer)]
        incumbent = candidates.layers[0]
        if len(layers) != len(fitted) or not isinstance(incumbent, ChoiceLayer):
            raise InputError(
                "the trust region compares label distributions and needs a ChoiceLayer on top",
                where="inference.trust_factor",
                got=self.trust_factor,
                fix="trust_factor=0",
            )
        inputs = candidates.trace.inputs(candidates.position)
        scores = score_pairs(candidates.layers, inputs, [incumbent.names[0]] * len(inputs))
        masses = scores.label_log_masses
        if masses is None:
            raise InputError("the output layer returned no label scores", where="inference.trust_factor")
        old = incumbent.normalise(masses[0])
        divergences = np.stack([kl_divergence(old, new.normalise(m)) for new, m in zip(layers, masses, strict=True)])
        finite = comparable(np.isfinite(divergences)) & candidates.counted
        if not finite.any():
            return np.zeros(len(layers))
        return self.trust_factor * _known(divergences[:, finite].mean(axis=1))


@dataclass(frozen=True)
class Exploration:
    """λ_t · (1/B) Σ_{i: ŷ_i ≠ y_i} log p(ĥ_i | x_i, π^n), hidden layers only.

    Subtracted from the score it rewards prompts under which the texts that led astray are unlikely. As in the released
    code the sum over the wrong examples is divided by all B of the batch, so that the reward weighs as much against
    the objective, a mean over B, as there are errors. Examples that do not count or cannot be scored are not in B.
    λ_t falls linearly from `weight` to zero over `total_steps`, or stays at `weight` where it is not annealed.
    `burn_in` is as in `score_pairs`.
    """

    weight: float
    total_steps: int
    convention: Convention
    annealed: bool = True
    burn_in: float = 0.0

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise InputError("total_steps must be 1 or more", where="exploration", got=self.total_steps)

    def at(self, step: int) -> float:
        """λ_t = weight · max(0, 1 − t / total_steps) where annealed, else weight."""
        return self.weight * max(0.0, 1.0 - step / self.total_steps) if self.annealed else self.weight

    def __call__(self, candidates: Candidates, fitted: tuple[AnyLayer, ...]) -> Floats:
        """[N]; zeros for the output layer and where everything was right."""
        strength = self.at(candidates.step)
        wrong = np.flatnonzero(~candidates.correct & candidates.counted)
        if candidates.is_output or strength == 0 or not len(wrong):
            return np.zeros(len(candidates.layers))
        inputs = candidates.trace.inputs(candidates.position)
        outputs = candidates.trace.outputs(candidates.position)
        texts = [outputs[i] for i in wrong]
        scores = score_pairs(candidates.layers, [inputs[i] for i in wrong], texts, self.burn_in)
        usable = comparable(scores.usable)
        if not usable.any():
            return np.zeros(len(candidates.layers))
        size = np.count_nonzero(candidates.counted) - np.count_nonzero(~usable)
        sums = np.ascontiguousarray(scores.by(self.convention)[:, usable]).sum(axis=1)
        return strength * _known(sums / size)


def _known(means: Floats) -> Floats:
    """A candidate that cannot be scored at all has no penalty: it has no score either."""
    return np.where(np.isfinite(means), means, 0.0)
