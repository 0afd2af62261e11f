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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from dln.errors import InputError
from dln.infer.hidden import HiddenDraw, HiddenProposal, HiddenRequest, draw_together
from dln.infer.scoring_modes import scores_outputs
from dln.lm.base import Completion, Target
from dln.nn.layers import ChoiceLayer, LanguageLayer, LayerInput
from dln.nn.sequential import AnyLayer, Sequential, Trace
from dln.numerics import Floats, logsumexp, softmax
from dln.particles import Particles
from dln.random import Key

__all__ = [
    "Convention",
    "EStep",
    "Evidence",
    "HiddenLevel",
    "Likelihood",
    "MinusProposal",
    "MutualInformation",
    "PairScores",
    "Posterior",
    "Prior",
    "Weigher",
    "WeightTerm",
    "Weighting",
    "score_pairs",
]

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


Proposed = tuple[tuple[Completion, ...], ...]
"""[B][K] texts."""


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
    """

    request: HiddenRequest
    proposals: tuple[tuple[Completion, ...], ...]
    alpha: Floats
    beta: Floats
    log_q: Floats
    convention: Convention
    burn_in: float = 0.0
    prior_known: bool = True


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

    β^k is the first of these that the models at hand allow, ĥ(h^k) being the text that the layers above write
    from h^k greedily, and ŷ(h^k) the answer:

        log p(h* above | h^k)            the layer above can score what is wanted of it
        log p(y | ĥ(h^k))                the output layer can
        (R(ŷ(h^k)) − 1) / τ              else; R is 1 for a right answer and 0 for a wrong one

    Where a layer's model cannot score the texts that it writes, α is not known and β alone makes the weights.
    Texts that are all equally wrong then weigh the same.

    Args:
        terms: what is added up.
        temperature: > 0; below 1 sharpens.
        argmax_only: all weight on the heaviest particle (the first of equals).
        prune: a particle lighter than min(prune, 1/2K) weighs nothing, and the M-step need not score it;
            0 keeps all. What is left is renormalised: another q, and the ELBO of any q is a bound.
        burn_in: leading fraction of a text's tokens that a mean leaves out (see `score_pairs`).
        correct: R, (prediction, target) → whether it is right.
        reward_scale: τ; a wrong answer is worth 1/τ nats less than a right one.

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
    correct: Callable[[str, str], bool] = lambda prediction, target: prediction.strip() == target.strip()
    reward_scale: float = 0.1

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("posterior weights need one term or more", where="posterior weights")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InputError("posterior_temp must be finite and > 0", where="posterior_temp", got=self.temperature)
        if not 0 <= self.prune < 1:
            raise InputError("prune must lie in [0, 1)", where="prune", got=self.prune)
        if not 0 <= self.burn_in < 1:
            raise InputError("burn_in must lie in [0, 1)", where="burn_in", got=self.burn_in)
        if not (np.isfinite(self.reward_scale) and self.reward_scale > 0):
            raise InputError("reward_scale must be finite and > 0", where="reward_scale", got=self.reward_scale)

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
            alpha = np.where(scores.usable[0], scores.by(convention)[0], np.nan)
        if scores_outputs(request.above):
            wanted = [target for target in request.wanted for _ in range(shape[1])]
            scores = score_pairs([request.above], read, wanted, self.burn_in)
            beta = np.where(scores.usable[0], scores.by(convention)[0], np.nan)
        else:
            beta = self._answered(request, read, [y for y in request.y for _ in range(shape[1])])
        return Evidence(
            request, proposals, alpha.reshape(shape), beta.reshape(shape), log_q, convention, self.burn_in, known
        )

    def _answered(self, request: HiddenRequest, read: list[LayerInput], y: list[str]) -> Floats:
        """[B · K] the worth of the answers that the layers above give from what they read."""
        *between, top = (request.above, *request.beyond)
        greedy = Key(0)  # at temperature 0 the seed has no effect
        for layer in between:
            written = layer.sample(greedy, read, 0.0)
            read = [LayerInput(item.x, h.text) for item, h in zip(read, written, strict=True)]
        if scores_outputs(top):
            scores = score_pairs([top], read, y)
            return np.where(scores.usable[0], scores.log_prob[0], np.nan)
        answers = top.sample(greedy, read, 0.0)
        # an empty answer over labels is an input that the model could not score: excluded, not wrong
        labels = isinstance(top, ChoiceLayer)
        rewards = [
            np.nan if labels and not answer.text else float(self.correct(answer.text, target))
            for answer, target in zip(answers, y, strict=True)
        ]
        return (np.array(rewards) - 1.0) / self.reward_scale

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


@dataclass(frozen=True, eq=False)
class HiddenLevel:
    """What was proposed and weighed at one hidden level.

    Attributes:
        proposals: [B][K] the texts, in proposal order, before equal ones are merged.
        sources: [B][K] which proposal each comes from.
        alpha: [B, K] log p(h^k | ĥ below, π) under the step's scoring convention; NaN = unusable or unknown.
        beta: [B, K] log p(h* above | h^k, π above), likewise, or what stands for it (see `Weighting`).
        weights: [B, K] posterior weights q^k; rows sum to one.
    """

    proposals: tuple[tuple[Completion, ...], ...]
    sources: tuple[tuple[str, ...], ...]
    alpha: Floats
    beta: Floats
    weights: Floats


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
        depth = len(network)
        levels: list[tuple[Particles[Target], ...]] = [()] * (depth + 1)
        levels[0] = tuple(Particles[Target].point(x) for x in trace.x)
        levels[depth] = tuple(Particles[Target].point(target) for target in y)
        scored = np.ones(len(trace), dtype=np.bool_)
        hidden: list[HiddenLevel] = []
        for position in reversed(range(depth - 1)):
            request = HiddenRequest(
                layer=network.layers[position],
                above=network.layers[position + 1],
                inputs=tuple(trace.inputs(position)),
                outputs=trace.outputs(position),
                wanted=tuple(particles.mode for particles in levels[position + 2]),
                y=tuple(y),
                beyond=network.layers[position + 2 :],
            )
            draws = self._draws(key.child("hidden", position), request, rewrite)
            level = self._weigh(request, draws)
            usable = np.asarray(np.isfinite(level.weights.sum(axis=1)))
            scored &= usable
            log_weights = _log(np.where(usable[:, None], level.weights, 1.0))
            levels[position + 1] = tuple(
                Particles[Target](row, log_row).merged(_identity)
                for row, log_row in zip(level.proposals, log_weights, strict=True)
            )
            hidden.insert(0, level)
        return Posterior(tuple(levels), tuple(hidden), scored)

    def _draws(self, key: Key, request: HiddenRequest, rewrite: Sequence[bool] | None) -> list[list[HiddenDraw]]:
        own = [HiddenDraw.of(h, "forward") for h in request.outputs]
        again = [i for i in range(len(own)) if rewrite is None or rewrite[i]]
        drawn = draw_together(self.proposal(key, request.subset(again), self.num_hidden)) if again else []
        head = 1 if self.include_forward else 0
        # an example that keeps ĥ has as many copies of it as the others have particles
        rows = [[forward] * (self.num_hidden + head) for forward in own]
        for i, row in zip(again, drawn, strict=True):
            rows[i] = [own[i]] * head + row
        return rows

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
        )


def _identity(target: Target) -> tuple[str, tuple[int, ...] | None]:
    return (target, None) if isinstance(target, str) else target.identity


def _log(weights: Floats) -> Floats:
    return np.log(weights, out=np.full(weights.shape, -np.inf), where=weights > 0)
