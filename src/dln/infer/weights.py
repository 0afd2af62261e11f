"""Posterior weights: which log-terms make up log w, and how sharp the result is.

    log w^k = (Σ_terms term^k) / temperature,   q^k = softmax_k(log w^k)

`temperature` → 0 puts all weight on the best particle, large values make the weights equal (the
paper calls this posterior sharpening; its α is 1 / temperature). The usual sets of terms:
likelihood + prior (the paper), the likelihood alone, and likelihood + prior − log q (self-normalised
importance weights, the exact posterior as K grows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dln.errors import InputError
from dln.infer.hidden import HiddenRequest
from dln.infer.score import Convention, score_pairs
from dln.lm.base import Completion
from dln.nn.layer import LayerInput
from dln.numerics import Floats, logsumexp, softmax

__all__ = [
    "Evidence",
    "Likelihood",
    "MinusProposal",
    "MutualInformation",
    "Prior",
    "UniformWeights",
    "Weigher",
    "WeightTerm",
    "Weighting",
]


Proposed = tuple[tuple[Completion, ...], ...]
"""[B][K] texts."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that is known of the particles of one hidden level.

    Attributes:
        request: the layer, its inputs and what is wanted above.
        proposals: [B][K] texts.
        alpha: [B, K] log prior, NaN where unusable.
        beta: [B, K] log-likelihood of what is wanted above, NaN where unusable.
        log_q: [B, K] log-probability under the proposal that drew each text, in nats (a sum over tokens);
            NaN where it is not known.
        convention: how alpha and beta are measured.
        burn_in: leading fraction of a text's tokens that a mean leaves out.
    """

    request: HiddenRequest
    proposals: tuple[tuple[Completion, ...], ...]
    alpha: Floats
    beta: Floats
    log_q: Floats
    convention: Convention
    burn_in: float = 0.0


class Weigher(Protocol):
    """How the particles of a hidden level get their weights."""

    def evidence(
        self,
        request: HiddenRequest,
        proposals: tuple[tuple[Completion, ...], ...],
        log_q: Floats,
        convention: Convention,
    ) -> Evidence:
        """What is asked of the models to weigh [B][K] proposals."""
        ...

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K] weights; rows sum to one, or are NaN where no particle is usable."""
        ...


class WeightTerm(Protocol):
    """One additive part of log w."""

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K], in nats."""
        ...


@dataclass(frozen=True)
class Likelihood:
    """β^k = log p(h* above | h^k)."""

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K] β."""
        return evidence.beta


@dataclass(frozen=True)
class Prior:
    """α^k = log p(h^k | input)."""

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K] α."""
        return evidence.alpha


@dataclass(frozen=True)
class MinusProposal:
    """− log q(h^k): corrects for where the particle was drawn.

    Of a mixture each particle carries the density of the component that drew it, which keeps the
    weights unbiased. Only sums may be subtracted from sums.
    """

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K] −log q."""
        if evidence.convention != "log_prob":
            raise InputError(
                "−log q is a sum over tokens and cannot be combined with mean token scores",
                where="posterior weights",
                fix='score="log_prob", or leave the proposal term out',
            )
        if np.isnan(evidence.log_q).all():
            raise InputError(
                "the model does not say how probable its own draws were, which the proposal term needs",
                where=f"posterior weights, model {evidence.request.layer.lm.name}",
                fix="leave the proposal term out (posterior_terms=likelihood,prior)",
            )
        return -evidence.log_q


@dataclass(frozen=True)
class MutualInformation:
    """λ · [log p(h^k | x_i) − log (1/B) Σ_j p(h^k | x_j)]: prefers texts that belong to their own input.

    Costs B times the scoring of the prior.
    """

    weight: float = 1.0

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K] pointwise mutual information with the input, times the weight."""
        size, width = evidence.alpha.shape
        pairs = [(j, text) for row in evidence.proposals for text in row for j in range(size)]
        scores = score_pairs(
            [evidence.request.layer],
            [evidence.request.inputs[j] for j, _ in pairs],
            [t for _, t in pairs],
            evidence.burn_in,
        )
        values = np.where(scores.usable[0], scores.by(evidence.convention)[0], np.nan).reshape(size, width, size)
        return self.weight * (evidence.alpha - (logsumexp(values, axis=2) - np.log(size)))


@dataclass(frozen=True)
class Weighting:
    """Terms, temperature, and whether only the best particle counts.

    Args:
        terms: what is added up.
        temperature: > 0; below 1 sharpens.
        argmax_only: all weight on the heaviest particle (the first of equals).
        prune: a particle lighter than min(prune, 1/2K) weighs nothing, and the M-step need not score it;
            0 keeps all. What is left is renormalised: another q, and the ELBO of any q is a bound.
        burn_in: leading fraction of a text's tokens that a mean leaves out (see `score_pairs`).

    What pruning changes: let ε be the weight of an example's dropped particles, ε ≤ (K − 1) · prune. For any
    numbers f^k (log p under one candidate, say) whose mean over the kept particles is f̄ and over the dropped
    ones f̲, the example's term Σ_k w^k f^k changes by exactly ε (f̄ − f̲), so by at most
    (K − 1) · prune · (max_k f^k − min_k f^k). A layer between two hidden levels has pairs of particles, and
    ε ≤ 2 (K − 1) · prune. The difference between two candidates changes by at most the same with f the
    difference of their log p: a lead larger than that decides as it would without pruning.
    """

    terms: tuple[WeightTerm, ...] = (Likelihood(), Prior())
    temperature: float = 1.0
    argmax_only: bool = False
    prune: float = 0.0
    burn_in: float = 0.0

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("posterior weights need one term or more", where="posterior weights")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InputError("posterior_temp must be finite and > 0", where="posterior_temp", got=self.temperature)
        if not 0 <= self.prune < 1:
            raise InputError("prune must lie in [0, 1)", where="prune", got=self.prune)
        if not 0 <= self.burn_in < 1:
            raise InputError("burn_in must lie in [0, 1)", where="burn_in", got=self.burn_in)

    def evidence(
        self,
        request: HiddenRequest,
        proposals: tuple[tuple[Completion, ...], ...],
        log_q: Floats,
        convention: Convention,
    ) -> Evidence:
        """Scores all particles under their own layer (α) and what is wanted after them (β)."""
        shape = (len(proposals), len(proposals[0]))
        flat = [completion for row in proposals for completion in row]
        below = [item for item in request.inputs for _ in range(shape[1])]
        above = [LayerInput(item.x, completion.text) for item, completion in zip(below, flat, strict=True)]
        wanted = [target for target in request.wanted for _ in range(shape[1])]
        alpha, beta = (
            np.where(scores.usable[0], scores.by(convention)[0], np.nan).reshape(shape)
            for scores in (
                score_pairs([request.layer], below, flat, self.burn_in),
                score_pairs([request.above], above, wanted, self.burn_in),
            )
        )
        return Evidence(request, proposals, alpha, beta, log_q, convention, self.burn_in)

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K] weights. An unusable particle weighs nothing; a row without a usable one is NaN."""
        total = np.asarray(np.sum([term(evidence) for term in self.terms], axis=0), dtype=np.float64)
        usable = np.isfinite(total)
        weights = np.full(total.shape, np.nan)
        some = usable.any(axis=1)
        total = np.where(usable, total, -np.inf)
        # relative to the best, so that a temperature near zero leaves the best at 0 and sends the rest to −∞
        with np.errstate(over="ignore"):
            weights[some] = softmax((total[some] - total[some].max(axis=1, keepdims=True)) / self.temperature, axis=1)
        if self.argmax_only:
            best = np.argmax(total, axis=1)
            hard = np.zeros(total.shape)
            hard[np.arange(len(best)), best] = 1.0
            weights[some] = hard[some]
        # the heaviest always stays: 1/K is a lower bound of its weight
        kept = np.where(weights < min(self.prune, 0.5 / total.shape[1]), 0.0, weights)
        kept[some] /= kept[some].sum(axis=1, keepdims=True)
        return kept


@dataclass(frozen=True)
class UniformWeights:
    """q^k = 1/K: for models that cannot score a given text. Nothing is asked of them.

    Texts drawn from the prior stand for p(h|x) then, and the output layer's objective is a bound of
    log p(y|x); of those drawn with a look at the label nothing like it can be said.
    """

    def evidence(
        self,
        request: HiddenRequest,
        proposals: tuple[tuple[Completion, ...], ...],
        log_q: Floats,
        convention: Convention,
    ) -> Evidence:
        """No scores: α and β are NaN."""
        unknown = np.full((len(proposals), len(proposals[0])), np.nan)
        return Evidence(request, proposals, unknown, unknown, log_q, convention)

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K] equal weights."""
        return np.full(evidence.alpha.shape, 1.0 / evidence.alpha.shape[1])
