"""Scoring outputs under candidate layers, in one request to the model.

Two conventions exist and are never mixed: `log_prob` (sum over target tokens, a log-likelihood, the
only one an ELBO is made of) and `mean_token_log_prob` (the paper's ranking score). Nothing is averaged
in that is not a possible log-probability: `usable` says which pairs may be used.

Posterior weights: which log-terms make up log w, and how sharp the result is.

    log w^k = (Σ_terms term^k) / temperature,   q^k = softmax_k(log w^k)

`temperature` → 0 puts all weight on the best particle, large values make the weights equal (the
paper calls this posterior sharpening; its α is 1 / temperature). The usual sets of terms:
likelihood + prior (the paper), the likelihood alone, and likelihood + prior − log q (self-normalised
importance weights, the exact posterior as K grows).

A model behind an API often cannot score a given text. Then the weights are made of what is known: a text is
worth as much as the answer that it leads to (see `Weighting`).

The E-step: an approximate posterior over the hidden texts of every layer, top down.

    h_l^k ~ q(h | ĥ_{l-1}, ĥ_l, h*_{l+1})                 K proposals per example
    log w^k = α^k + β^k   with   α^k = log p(h_l^k | ĥ_{l-1}, π_l),  β^k = log p(h*_{l+1} | h_l^k, π_{l+1})
    h*_l = the heaviest particle, and the next layer below is told to reach it

(paper: Algorithm 2, lines 2–3; Algorithm 3 of Appendix E for any depth). Which terms enter log w is
the choice of a `Weighting`, and so is what stands for β where h*_{l+1} cannot be scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dln.errors import InputError
from dln.infer.hidden import HiddenDraw, HiddenProposal, HiddenRequest, draw_together
from dln.infer.rewards import (
    Correctness,
    Outcome,
    RewardFunction,
    answer_rewards,
    label_rewards,
    plain,
    reward_temperature,
    texts_below,
)
from dln.infer.scoring_modes import scores_outputs
from dln.lm.base import Completion, Target
from dln.nn.context import parts_of
from dln.nn.layers import Convention, Layer, LayerInput, score_pairs
from dln.nn.sequential import Sequential, Trace
from dln.numerics import Floats, logsumexp, softmax
from dln.particles import Particles
from dln.random import Key

__all__ = [
    "EStep",
    "Evidence",
    "HiddenLevel",
    "Likelihood",
    "MinusProposal",
    "MutualInformation",
    "Posterior",
    "Prior",
    "Weigher",
    "WeightTerm",
    "Weighting",
]


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that is known of the particles of one hidden level.

    Attributes:
        request: the layer, its inputs and what is wanted above.
        proposals: [B][K] texts.
        alpha: [B, K] log prior, NaN where unusable, and where the layer's model cannot score texts.
        beta: [B, K] log-likelihood of what is wanted above, or what stands for it, NaN where unusable.
        log_q: [B, K] log-probability under the proposal that drew each text, in nats (a sum over tokens);
            NaN where it is not known.
        convention: how alpha and beta are measured.
        burn_in: leading fraction of a text's tokens that a mean leaves out.
        prior_known: whether the layer's model can score the texts, so that alpha says something.
        tau: τ where beta is R/τ of a reward; None where it is a log-likelihood.
    """

    request: HiddenRequest
    proposals: tuple[tuple[Completion, ...], ...]
    alpha: Floats
    beta: Floats
    log_q: Floats
    convention: Convention
    burn_in: float = 0.0
    prior_known: bool = True
    tau: float | None = None


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
                where=f"posterior weights, {evidence.request.layer!r}",
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
        values = scores.known(evidence.convention)[0].reshape(size, width, size)
        return self.weight * (evidence.alpha - (logsumexp(values, axis=2) - np.log(size)))


@dataclass(frozen=True)
class Weighting:
    """Terms, temperature, and whether only the best particle counts.

    β^k is the first of these that the models at hand allow, ĥ(h^k) being the text that the layers above write
    from h^k greedily, and ŷ(h^k) the answer:

        log p(h* above | h^k)            the layer above can score what is wanted of it
        log p(y | ĥ(h^k))                the output layer can
        R(ŷ(h^k)) / τ                    else

    With `by_reward` it is R/τ whatever the models allow. An output layer over labels whose probabilities are known has
    the expected reward, Σ_c p(c | ĥ(h^k)) R(c), in the place of that of its one answer.

    Where a layer's model cannot score the texts that it writes, α is not known and β alone makes the weights.
    Texts that are all equally wrong then weigh the same.

    Args:
        terms: what is added up.
        temperature: > 0; below 1 sharpens.
        argmax_only: all weight on the heaviest particle (the first of equals).
        prune: a particle lighter than min(prune, 1/2K) weighs nothing, and the M-step need not score it;
            0 keeps all. What is left is renormalised: another q, and the ELBO of any q is a bound.
        burn_in: leading fraction of a text's tokens that a mean leaves out (see `score_pairs`).
        reward: R.
        reward_scale: of τ, see `dln.infer.rewards`; by default a wrong answer is worth 10 nats less than a right one.
        reward_temp: τ itself, where it is not to follow the spread of the rewards.
        by_reward: β is R/τ, also where the output can be scored.

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
    reward: RewardFunction = field(default_factory=Correctness)
    reward_scale: float = 0.1
    reward_temp: float | None = None
    by_reward: bool = False

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("posterior weights need one term or more", where="posterior weights")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InputError("posterior_temp must be finite and > 0", where="posterior_temp", got=self.temperature)
        if not 0 <= self.prune < 1:
            raise InputError("prune must lie in [0, 1)", where="prune", got=self.prune)
        if not 0 <= self.burn_in < 1:
            raise InputError("burn_in must lie in [0, 1)", where="burn_in", got=self.burn_in)
        for name, value in (("reward_scale", self.reward_scale), ("reward_temp", self.reward_temp)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and > 0", where=name, got=value)

    def evidence(
        self,
        request: HiddenRequest,
        proposals: tuple[tuple[Completion, ...], ...],
        log_q: Floats,
        convention: Convention,
    ) -> Evidence:
        """Score all particles under their own layer (α) and by what they lead to (β), as far as the models can."""
        shape = (len(proposals), len(proposals[0]))
        flat = [completion for row in proposals for completion in row]
        below = [item for item in request.inputs for _ in range(shape[1])]
        read = [LayerInput(item.x, completion.text) for item, completion in zip(below, flat, strict=True)]
        alpha, known = np.full(len(flat), np.nan), scores_outputs(request.layer)
        if known:
            scores = score_pairs([request.layer], below, flat, self.burn_in)
            alpha = scores.known(convention)[0]
        above = (request.above, *request.beyond)
        follows = next((layer for layer in above[:-1] if not layer.deterministic), above[-1])
        beta, tau = np.zeros(0), None
        if self.by_reward or not (scores_outputs(follows) or scores_outputs(above[-1])):
            beta, tau = self._rewarded(above, request, read, shape)
        else:
            beta = self._likelihood(above, request, read, shape, convention)
        return Evidence(
            request, proposals, alpha.reshape(shape), beta.reshape(shape), log_q, convention, self.burn_in, known, tau
        )

    def _likelihood(
        self,
        above: Sequence[Layer],
        request: HiddenRequest,
        read: list[LayerInput],
        shape: tuple[int, int],
        convention: Convention,
    ) -> Floats:
        """[B · K] log p of what is wanted of the first layer above that can score it."""
        while above[0].deterministic and len(above) > 1:  # what follows from the text is what counts
            read, above = _through(above[0], read), above[1:]
        if scores_outputs(above[0]):
            wanted = [target for target in request.wanted for _ in range(shape[1])]
            return score_pairs(above[:1], read, wanted, self.burn_in).known(convention)[0]
        *between, top = above
        for layer in between:
            read = _through(layer, read)
        return score_pairs([top], read, [y for y in request.y for _ in range(shape[1])]).known("log_prob")[0]

    def _rewarded(
        self, above: Sequence[Layer], request: HiddenRequest, read: list[LayerInput], shape: tuple[int, int]
    ) -> tuple[Floats, float]:
        """[B, K] R/τ of the answers that the layers above give from what they read, and τ."""
        below = request.below or ((),) * shape[0]
        hidden = [(*texts, plain(read[i * shape[1] + k].h)) for i, texts in enumerate(below) for k in range(shape[1])]
        *between, top = above
        for layer in between:
            read = _through(layer, read)
            hidden = [(*texts, plain(item.h)) for texts, item in zip(hidden, read, strict=True)]
        y = [target for target in request.y for _ in range(shape[1])]
        asked = [Outcome(item.x, target, "", texts) for item, target, texts in zip(read, y, hidden, strict=True)]
        chooser = top.classifier
        if chooser is not None and chooser.answers == "scored" and scores_outputs(chooser):
            probabilities = np.exp(chooser.label_log_probs(read))
            rewards = (probabilities * label_rewards(self.reward, chooser.names, asked)).sum(axis=1)
        else:
            answers = [answer.text for answer in top.draw(read, [0] * len(read), 0.0)]
            rewards = answer_rewards(self.reward, top, answers, asked)
        rewards = rewards.reshape(shape)
        tau = self.reward_temp or reward_temperature(rewards, self.reward_scale)
        return rewards / tau, tau

    def __call__(self, evidence: Evidence) -> Floats:
        """[B, K] weights. An unusable particle weighs nothing; a row without a usable one is NaN."""
        # the other terms are made of scores of the texts themselves
        terms = self.terms if evidence.prior_known else (Likelihood(),)
        total = np.asarray(np.sum([term(evidence) for term in terms], axis=0), dtype=np.float64)
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


def _through(layer: Layer, inputs: Sequence[LayerInput]) -> list[LayerInput]:
    """The inputs of the layer above `layer`, which writes greedily (the seed has no effect)."""
    written = layer.draw(inputs, [0] * len(inputs), 0.0)
    return [LayerInput(item.x, h.text) for item, h in zip(inputs, written, strict=True)]


@dataclass(frozen=True, eq=False)
class HiddenLevel:
    """The proposals of one hidden level and their weights.

    Attributes:
        proposals: [B][K] the texts, in proposal order, before equal ones are merged.
        sources: [B][K] which proposal each comes from.
        alpha: [B, K] log p(h^k | ĥ below, π) under the step's scoring convention; NaN = unusable or unknown.
        beta: [B, K] log p(h* above | h^k, π above), likewise, or what stands for it (see `Weighting`).
        weights: [B, K] posterior weights q^k; rows sum to one.
        tau: τ where beta is R/τ of a reward, else None.
    """

    proposals: tuple[tuple[Completion, ...], ...]
    sources: tuple[tuple[str, ...], ...]
    alpha: Floats
    beta: Floats
    weights: Floats
    tau: float | None = None

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """[B] whether some particle of an example could be weighed."""
        return np.asarray(np.isfinite(self.weights.sum(axis=1)))

    @property
    def particles(self) -> tuple[Particles[Target], ...]:
        """[B] q(h_l) with equal texts merged; equal weights where nothing could be weighed."""
        weights = np.where(self.usable[:, None], self.weights, 1.0)
        log_weights = np.log(weights, out=np.full(weights.shape, -np.inf), where=weights > 0)
        return tuple(
            Particles[Target](row, log_row).merged(_identity)
            for row, log_row in zip(self.proposals, log_weights, strict=True)
        )


def _followed(layer: Layer, trace: Trace, position: int, below: HiddenLevel | None) -> HiddenLevel:
    """The level of a deterministic layer: the texts that follow from those below, with the same weights."""
    rows = [[item.h] for item in trace.inputs(position)]
    weights = np.ones((len(rows), 1))
    if below is not None:
        rows, weights = [[h.text for h in row] for row in below.proposals], below.weights
    items = [LayerInput(x, h) for x, row in zip(trace.x, rows, strict=True) for h in row]
    drawn, width = layer.draw(items, [0] * len(items), 0.0), weights.shape[1]
    return HiddenLevel(
        proposals=tuple(tuple(drawn[i * width : (i + 1) * width]) for i in range(len(rows))),
        sources=(("function",) * width,) * len(rows),
        alpha=np.zeros(weights.shape),
        beta=np.full(weights.shape, np.nan),
        weights=weights,
    )


@dataclass(frozen=True, eq=False)
class Posterior:
    """q(h_1, …, h_{L-1} | x, y) = Π_l q(h_l), per example, with x and y as points at the ends.

    Attributes:
        levels: levels[l][i] are the particles of h_l of example i; l = 0 is x and l = L is y.
        hidden: diagnostics of levels 1 … L-1.
        scored: [B] False where no particle of some level could be scored: left out of the M-step.
    """

    levels: tuple[tuple[Particles[Target], ...], ...]
    hidden: tuple[HiddenLevel, ...]
    scored: npt.NDArray[np.bool_]

    def branch(self, level: int, index: int, count: int) -> Posterior:
        """The same posterior with one of `count` parallel texts at `level`: its marginal."""

        def marginal(particles: Particles[Target]) -> Particles[Target]:
            parts = tuple(parts_of(value, count)[index] for value in particles.values)
            return Particles[Target](parts, particles.log_weights).merged(_identity)

        rows = tuple(map(marginal, self.levels[level]))
        return replace(self, levels=(*self.levels[:level], rows, *self.levels[level + 1 :]))

    def mode(self, level: int) -> list[Target]:
        """h*_l: the heaviest particle of each example."""
        return [particles.mode for particles in self.levels[level]]

    def entropy(self) -> float:
        """Σ_l H[q(h_l)], mean over the scored examples, in nats."""
        per_example = [sum(level[i].entropy for level in self.levels) for i in np.flatnonzero(self.scored)]
        return float(np.mean(per_example)) if per_example else float("nan")

    def ess(self, level: int) -> float:
        """Effective sample size of level l, mean over examples, in particles."""
        return float(np.mean([particles.ess for particles in self.levels[level]]))


@dataclass(frozen=True)
class EStep:
    """The choices of an E-step; calling it infers every hidden level, from the output down to the input.

    Args:
        proposal: q, where the particles come from.
        weighting: how they get their weights.
        num_hidden: K, proposals per example.
        convention: how α and β are measured.
        include_forward: whether the forward pass's own ĥ is a particle too. The first released code has it, Algorithm 2
            and the last released code leave it out.
    """

    proposal: HiddenProposal
    weighting: Weigher
    num_hidden: int
    convention: Convention
    include_forward: bool = True

    def __call__(
        self, key: Key, network: Sequential, trace: Trace, y: Sequence[str], rewrite: Sequence[bool] | None = None
    ) -> Posterior:
        """Posterior over the hidden texts of `trace` given the wanted outputs `y`.

        Examples that `rewrite` (all, by default) leaves out keep ĥ as their only particle.
        """
        layers, depth = network.layers, len(network)
        inputs = tuple(Particles[Target].point(x) for x in trace.x)
        wanted = tuple(Particles[Target].point(target) for target in y)
        found: dict[int, HiddenLevel] = {}
        modes: tuple[Target, ...] = tuple(y)
        for position in reversed(range(depth - 1)):
            if layers[position].deterministic:
                continue
            request = HiddenRequest(
                layer=layers[position],
                above=layers[position + 1],
                inputs=tuple(trace.inputs(position)),
                outputs=trace.outputs(position),
                wanted=modes,
                y=tuple(y),
                beyond=layers[position + 2 :],
                below=tuple(texts_below(trace, position)),
            )
            found[position] = self._weigh(request, self._draws(key.child("hidden", position), request, rewrite))
            modes = tuple(particles.mode for particles in found[position].particles)
        for position in range(depth - 1):
            if layers[position].deterministic:
                found[position] = _followed(layers[position], trace, position, found.get(position - 1))
        hidden = tuple(found[position] for position in range(depth - 1))
        scored = np.logical_and.reduce([level.usable for level in hidden], axis=0) if hidden else np.ones(len(trace))
        levels = (inputs, *(level.particles for level in hidden), wanted)
        return Posterior(levels, hidden, scored.astype(np.bool_))

    def _draws(self, key: Key, request: HiddenRequest, rewrite: Sequence[bool] | None) -> list[list[HiddenDraw]]:
        own = [HiddenDraw.of(h, "forward") for h in request.outputs]
        again = [i for i in range(len(own)) if rewrite is None or rewrite[i]]
        drawn = self._proposed(key, request.subset(again)) if again else []
        head = 1 if self.include_forward else 0
        # an example that keeps ĥ has as many copies of it as the others have particles
        rows = [[forward] * (self.num_hidden + head) for forward in own]
        for i, row in zip(again, drawn, strict=True):
            rows[i] = [own[i]] * head + row
        return rows

    def _proposed(self, key: Key, request: HiddenRequest) -> list[list[HiddenDraw]]:
        """[B][K] draws; of parallel layers, tuples of draws that are proposed branch by branch."""
        count, size = len(request.layer.branches), len(request.inputs)
        if count == 1:
            return draw_together(self.proposal(key, request, self.num_hidden))
        asked = [self.proposal(key.child("branch", b), request.branch(b), self.num_hidden) for b in range(count)]
        drawn = draw_together([row for rows in asked for row in rows])
        return [
            [HiddenDraw.joined(parts) for parts in zip(*(drawn[b * size + i] for b in range(count)), strict=True)]
            for i in range(size)
        ]

    def _weigh(self, request: HiddenRequest, draws: list[list[HiddenDraw]]) -> HiddenLevel:
        proposals = tuple(tuple(draw.completion for draw in row) for row in draws)
        log_q = np.array([[draw.log_q for draw in row] for row in draws])
        evidence = self.weighting.evidence(request, proposals, log_q, self.convention)
        return HiddenLevel(
            proposals=proposals,
            sources=tuple(tuple(draw.source for draw in row) for row in draws),
            alpha=evidence.alpha,
            beta=evidence.beta,
            weights=self.weighting(evidence),
            tau=evidence.tau,
        )


def _identity(target: Target) -> tuple[str, tuple[int, ...] | None]:
    return (target, None) if isinstance(target, str) else target.identity
