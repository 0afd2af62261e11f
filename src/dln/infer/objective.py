"""The M-step's objective: how well a candidate layer explains the posterior.

    s^n = (1/B) Σ_i Σ_k Σ_k' w_{l-1}^k w_l^k' log p(h_l^k' | F(h_{l-1}^k, x, π^n))

(paper: Algorithm 2, line 5; Algorithm 3, line 3). Objectives are [N, B] matrices of per-example terms,
so that candidates are compared on the very same examples; an example that is not scored for every
candidate is NaN for all of them.

What the M-step compares: the candidates for one layer, the pairs they are scored on, their scores.

Judging hidden layers by what they lead to, where their own texts cannot be scored.

    h_m ~ p(· | ĥ_{l-1}, π^n),  m = 1 … M, drawn on through the layers above up to the output layer
    s^n_i = log (1/M) Σ_m p(y_i | h_m)            a Monte-Carlo estimate of log p(y|x) under π^n
    s^n_i = (1/M) Σ_m R(x_i, ŷ(h_m))              where not even the output can be scored, or a metric is the likelihood

The draws of all candidates have the same seeds, by example and m: candidates differ by their prompts
and not by sampling noise, as far as the model's seeds control its draws. By Jensen's inequality
the estimate of log p(y|x) is too low on average, by less the larger M; it is so for all candidates.

The evidence lower bound of a batch under the present network.

    ELBO = E_q[ Σ_l log p(h_l | h_{l-1}, π_l) ] + H[q]  ≤  log p(y|x)

for any q, with equality at the exact posterior. Only `log_prob` (a sum over tokens) may enter it.

An example that a prompt of the network shows among its demonstrations does not count: its answer stands in
the prompt, so its log p(y|x) says nothing of examples that are not shown. What is left is a mean over fewer
examples, and a bound of log p(y|x) on these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dln.errors import InputError
from dln.infer.calibrate import Calibrator
from dln.infer.estep import Posterior
from dln.infer.rewards import (
    Correctness,
    Outcome,
    RewardFunction,
    answer_rewards,
    label_rewards,
    plain,
    texts_below,
)
from dln.infer.scoring_modes import scores_outputs
from dln.lm.base import Target, text_of
from dln.nn.layers import Convention, Layer, LayerInput, PairScores, score_pairs
from dln.nn.sequential import Sequential, Trace
from dln.numerics import Floats, logsumexp
from dln.random import Key

__all__ = [
    "Accuracy",
    "Bound",
    "ByLayer",
    "Candidates",
    "DownstreamLogProb",
    "DownstreamReward",
    "ExpectedLogProb",
    "ExpectedReward",
    "NoiseContrastive",
    "Objective",
    "Pairs",
    "Scored",
    "Stopped",
    "comparable",
    "elbo",
    "unknown_bound",
]


@dataclass(frozen=True, eq=False)
class Candidates:
    """One layer's candidates and all that may be looked at to judge them.

    Attributes:
        key: randomness for judges that draw.
        layers: [N] the candidates; the incumbent is the first.
        position: the layer's place, 0-based.
        depth: L, the number of layers.
        trace: the forward pass of the present network.
        posterior: the inferred hidden texts.
        correct: [B] whether the present network's prediction was right.
        counted: [B] examples that may be used (scored in the E-step, in no candidate's demonstrations).
        step: number of the training step, 0-based.
        above: the present network's layers over this one, the output layer last.
        beside: the present `Parallel` that the candidates are for; trace and posterior hold the texts of their branch.
        branch: which of its branches.
        row: the number of layers before this one, those side by side counted one by one.
    """

    key: Key
    layers: tuple[Layer, ...]
    position: int
    depth: int
    trace: Trace
    posterior: Posterior
    correct: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]
    step: int
    above: tuple[Layer, ...] = ()
    beside: Layer | None = None
    branch: int = 0
    row: int = 0

    @property
    def whole(self) -> tuple[Layer, ...]:
        """[N] the candidates together with the layers beside them, whose prompts stay as they are."""
        beside = self.beside
        return self.layers if beside is None else tuple(beside.with_branch(self.branch, one) for one in self.layers)

    @property
    def pairs(self) -> Pairs:
        """The weighted pairs that the candidates are scored on."""
        return Pairs.of(self.position, self.trace, self.posterior, self.counted)

    @property
    def is_output(self) -> bool:
        """Whether this is the network's last layer."""
        return self.position == self.depth - 1


@dataclass(frozen=True)
class Stopped:
    """A candidate that left the race (see `dln.infer.race`).

    Attributes:
        round: after which round, 1 is the first.
        examples: how many its partial score is a mean of.
        score: the mean over those; another candidate was clearly ahead on the same ones.
    """

    round: int
    examples: int
    score: float


@dataclass(frozen=True, eq=False)
class Scored:
    """Candidates with their objective.

    Attributes:
        layers: [N] the candidates, with their fitted bias and temperature where that applies.
        per_example: [N, B] terms of the objective, NaN for examples that were not used.
        stopped: [N] where a candidate left the race, None for those that stayed; empty without a race.
        share: pairs that were scored, as a part of all pairs of all candidates.
    """

    layers: tuple[Layer, ...]
    per_example: Floats
    stopped: tuple[Stopped | None, ...] = ()
    share: float = 1.0

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        """[B] whether an example counted."""
        return comparable(np.isfinite(self.per_example))

    @property
    def scores(self) -> Floats:
        """[N] mean over the used examples; NaN if there was none, and for a candidate without any score."""
        used = self.used
        if not used.any():
            return np.full(len(self.per_example), np.nan)
        # row by row in memory: a candidate's last bits must not depend on how many others there are
        return np.ascontiguousarray(self.per_example[:, used]).mean(axis=1)


@dataclass(frozen=True, eq=False)
class Pairs:
    """(input particle, output particle) pairs with weight w_{l-1}^k · w_l^k', zero weights left out."""

    inputs: list[LayerInput]
    outputs: list[Target]
    weights: Floats
    examples: npt.NDArray[np.int64]

    @classmethod
    def of(cls, position: int, trace: Trace, posterior: Posterior, counted: npt.NDArray[np.bool_]) -> Pairs:
        """The pairs of the layer at `position`, for every counted example."""
        inputs: list[LayerInput] = []
        outputs: list[Target] = []
        weights: list[float] = []
        examples: list[int] = []
        for i in np.flatnonzero(counted):
            below, above = posterior.levels[position][i], posterior.levels[position + 1][i]
            for h, w in zip(below.values, below.weights, strict=True):
                for target, v in zip(above.values, above.weights, strict=True):
                    if w * v > 0:
                        inputs.append(LayerInput(trace.x[i], text_of(h)))
                        outputs.append(target)
                        weights.append(float(w * v))
                        examples.append(int(i))
        return cls(inputs, outputs, np.array(weights), np.array(examples, dtype=np.int64))

    def sum_by_example(self, values: Floats, size: int) -> Floats:
        """[N, P] → [N, B]: weighted sums; NaN for an example without pairs, or with a NaN for any candidate."""
        totals = np.full((len(values), size), np.nan)
        # a pair that is unusable for one candidate makes its example NaN for all: never averaged in
        clean = np.where(np.isfinite(values) & comparable(np.isfinite(values)), values, np.nan)
        for example in np.unique(self.examples):
            inside = self.examples == example
            totals[:, example] = np.ascontiguousarray(clean[:, inside] * self.weights[inside]).sum(axis=1)
        return totals


def comparable(usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[N, M] → [M]: what is usable for every candidate, those aside that are usable nowhere.

    A candidate without any finite score is left out, so that the other candidates can still be compared.
    """
    nowhere = ~usable.any(axis=1, keepdims=True)
    return np.asarray((usable | nowhere).all(axis=0) & ~nowhere.all(), dtype=np.bool_)


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
        values = scores.known(self.convention)
        terms = np.full((len(candidates.layers), size), np.nan)
        for i, parts in spans.items():
            terms[:, i] = sum(
                w * ((values[:, span] - logsumexp(values[:, span], axis=1)[:, None]) @ v) for w, span, v in parts
            )
        terms[:, ~comparable(np.isfinite(terms))] = np.nan
        return Scored(candidates.layers, terms)


@dataclass(frozen=True)
class ExpectedReward:
    """E_q[R] of an output layer: the reward of its answers, weighted as the hidden texts that it reads.

        s^n_i = Σ_k w^k Σ_c p(c | F(h^k, x, π^n)) R(x_i, c)        labels with known probabilities
        s^n_i = Σ_k w^k R(x_i, ŷ(h^k, π^n))                        else, and with `greedy`: of the one answer given

    A fitted output layer answers each example with numbers that were fitted without it, as in
    `ExpectedLogProb`: bias and temperature fitted to twenty examples raise the accuracy on these same
    examples for any prompt. Where every label is equally frequent by design, leaving an example out makes
    its label the rarer one of the rest, so that the cross-fitted accuracy of a prompt that tells nothing
    apart lies below chance, never above.

    Args:
        reward: R.
        calibrator: as in `ExpectedLogProb`.
        greedy: the most probable label counts as the answer.
    """

    reward: RewardFunction
    calibrator: Calibrator
    greedy: bool = False

    def __call__(self, candidates: Candidates) -> Scored:
        """[N, B] rewards; an example without a reward under every candidate is left out."""
        if not candidates.is_output:
            raise InputError("this objective is for the output layer", where="inference.hidden_objective")
        pairs, trace = candidates.pairs, candidates.trace
        below, deep = texts_below(trace, max(0, candidates.position - 1)), candidates.position > 0
        asked = [
            Outcome(item.x, text_of(y), "", (*below[int(i)], plain(item.h)) if deep else ())
            for item, y, i in zip(pairs.inputs, pairs.outputs, pairs.examples, strict=True)
        ]
        layers, first = candidates.layers, candidates.layers[0].classifier
        if first is not None and first.answers == "scored":
            asked = [replace(one, y=first.names[first.index(one.y)]) for one in asked]
            scores = score_pairs(candidates.layers, pairs.inputs, pairs.outputs)
            layers, _, log_probs = calibrated(self.calibrator, candidates.layers, scores, pairs, "log_prob")
            if self.greedy:
                answers = [[c.text for c in first.draw_labels(rows, [0] * len(rows), 0.0)] for rows in log_probs]
                values = np.array([answer_rewards(self.reward, first, row, asked) for row in answers])
            else:
                values = (np.exp(log_probs) * label_rewards(self.reward, first.names, asked)).sum(axis=2)
        else:
            answers = [[c.text for c in layer.sample(candidates.key, pairs.inputs, 0.0)] for layer in layers]
            values = np.array([answer_rewards(self.reward, layers[0], row, asked) for row in answers])
        return Scored(layers, pairs.sum_by_example(values.astype(np.float64), len(trace)))


@dataclass(frozen=True)
class Accuracy:
    """The part of right answers of an output layer: `ExpectedReward` of its answers, with R = 1 for a right one.

    Args:
        correct: (prediction, target) → whether it is right.
        calibrator: as in `ExpectedLogProb`.
    """

    correct: Callable[[str, str], bool]
    calibrator: Calibrator

    def __call__(self, candidates: Candidates) -> Scored:
        """Greedy predictions of every candidate, compared with the targets."""
        return ExpectedReward(Correctness(self.correct), self.calibrator, greedy=True)(candidates)


def calibrated(
    calibrator: Calibrator, layers: Sequence[Layer], scores: PairScores, pairs: Pairs, convention: Convention
) -> tuple[tuple[Layer, ...], Floats, Floats]:
    """Candidates with fitted output numbers, and what those say of the pairs.

    Returns:
        The fitted candidates; [N, P] scores of the wanted outputs, NaN where unusable; and [N, P, C] log p(y|x) of
        every label, NaN where a model gave none. Both are held out: no pair is judged by numbers that were
        fitted to its example. Without labels C is 0.
    """
    if scores.features is None or scores.targets is None:
        values = scores.known(convention)
        return tuple(layers), values, np.zeros((*values.shape, 0))
    usable = comparable(scores.usable)
    values = np.full(scores.log_prob.shape, np.nan)
    fitted: list[Layer] = []
    choices = [layer.classifier for layer in layers if layer.classifier is not None]
    rows = np.full((*scores.log_prob.shape, choices[0].readout.size), np.nan)
    for n, (layer, features) in enumerate(zip(choices, scores.features, strict=True)):
        if not scores.usable[n].any():
            rows[n] = layer.readout.log_probs(features)
            fitted.append(layer)
            continue
        calibration = calibrator(
            layer, features[usable], scores.targets[usable], pairs.weights[usable], pairs.examples[usable]
        )
        values[n, usable] = calibration.log_prob
        rows[n, usable] = calibration.label_log_probs
        # a pair without a usable score had no part in the fit
        rows[n, ~usable] = calibration.layer.readout.log_probs(features[~usable])
        fitted.append(calibration.layer)
    return tuple(fitted), values, rows


@dataclass(frozen=True)
class DownstreamLogProb:
    """log (1/M) Σ_m p(y | h_m), in nats, for hidden layers under an output that can be scored.

    A draw under which the output has no finite score is left out of its example's mean.

    Args:
        samples: M, draws per example and candidate.
        temperature: of the draws; at 1 the estimate is of p(y|x) as it stands.
    """

    samples: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.samples, self.temperature)

    def __call__(self, candidates: Candidates) -> Scored:
        """[N, B] estimates."""
        top, drawn = _top(candidates), _Drawn.of(candidates, self.samples, self.temperature)
        scores = score_pairs([top], drawn.inputs, drawn.wanted)
        values = drawn.fold(np.where(scores.usable[0], scores.log_prob[0], -np.inf))
        counts = np.isfinite(values).sum(axis=2)
        means = logsumexp(values, axis=2) - np.log(np.maximum(counts, 1))
        return drawn.scored(candidates, np.where(counts > 0, means, np.nan))


@dataclass(frozen=True)
class DownstreamReward:
    """(1/M) Σ_m R(x, ŷ(h_m)), the mean reward of the network's greedy answers after draws from a hidden layer.

    Args:
        reward: R.
        samples: M, draws per example and candidate.
        temperature: of the draws.
    """

    reward: RewardFunction
    samples: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.samples, self.temperature)

    def __call__(self, candidates: Candidates) -> Scored:
        """[N, B] means; a draw without a reward is left out of its example's mean."""
        top, drawn = _top(candidates), _Drawn.of(candidates, self.samples, self.temperature)
        asked = [
            Outcome(item.x, text_of(y), "", texts)
            for item, y, texts in zip(drawn.inputs, drawn.wanted, drawn.hidden, strict=True)
        ]
        chooser = top.classifier
        if chooser is not None and chooser.answers == "scored" and scores_outputs(chooser):
            rewards = label_rewards(self.reward, chooser.names, asked)
            values = (np.exp(chooser.label_log_probs(drawn.inputs)) * rewards).sum(axis=1)
        else:
            answers = [answer.text for answer in top.sample(candidates.key, drawn.inputs, 0.0)]
            values = answer_rewards(self.reward, top, answers, asked)
        folded = drawn.fold(values)
        known = np.isfinite(folded)
        sums = np.where(known, folded, 0.0).sum(axis=2)
        with np.errstate(invalid="ignore"):
            return drawn.scored(candidates, sums / np.where(known.any(axis=2), known.sum(axis=2), np.nan))


@dataclass(frozen=True)
class ByLayer:
    """One objective for hidden layers whose texts have log-probabilities, another for the others."""

    scored: Objective
    unscored: Objective

    def __call__(self, candidates: Candidates) -> Scored:
        """As the layer's model allows."""
        return (self.scored if scores_outputs(candidates.layers[0]) else self.unscored)(candidates)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Output-layer inputs of N candidates, E counted examples and M draws each, in this order.

    Attributes:
        shape: (N, E, M).
        examples: [E] places in the batch.
        inputs: [N · E · M].
        wanted: [N · E · M] what the output layer should make of them.
        hidden: [N · E · M] the hidden texts that led there.
    """

    shape: tuple[int, int, int]
    examples: list[int]
    inputs: list[LayerInput]
    wanted: list[Target]
    hidden: list[tuple[str, ...]]

    @classmethod
    def of(cls, candidates: Candidates, samples: int, temperature: float) -> _Drawn:
        """One request per level for all candidates."""
        examples = [int(i) for i in np.flatnonzero(candidates.counted)]
        seen, targets = candidates.trace.inputs(candidates.position), candidates.posterior.mode(candidates.depth)
        rows = [seen[i] for i in examples for _ in range(samples)]
        inputs = rows * len(candidates.layers)
        whole = candidates.whole

        def seeds(level: int) -> list[int]:
            # a seed is a function of the example and the draw: not of the candidate, nor of who is scored beside it
            key = candidates.key.child("downstream", level)
            return [key.integer(i, m) for i in examples for m in range(samples)]

        below = texts_below(candidates.trace, candidates.position)
        hidden = [below[i] for i in examples for _ in range(samples)] * len(candidates.layers)
        drawn = [h for row in whole[0].draw_each(whole, rows, seeds(0), temperature) for h in row]
        for level, layer in enumerate((*candidates.above[:-1], None), 1):
            inputs = [LayerInput(item.x, h.text) for item, h in zip(inputs, drawn, strict=True)]
            hidden = [(*texts, plain(item.h)) for texts, item in zip(hidden, inputs, strict=True)]
            if layer is not None:
                drawn = layer.draw(inputs, seeds(level) * len(whole), temperature)
        wanted = [targets[i] for i in examples for _ in range(samples)] * len(candidates.layers)
        return cls((len(candidates.layers), len(examples), samples), examples, inputs, wanted, hidden)

    def fold(self, values: Floats) -> Floats:
        """[N · E · M] → [N, E, M]."""
        return values.reshape(self.shape)

    def scored(self, candidates: Candidates, terms: Floats) -> Scored:
        """[N, E] → the objective; an example without a term for every candidate is NaN for all."""
        rows = np.full((len(candidates.layers), len(candidates.trace)), np.nan)
        rows[:, self.examples] = terms
        rows[:, ~comparable(np.isfinite(rows))] = np.nan
        return Scored(candidates.layers, rows)


def _top(candidates: Candidates) -> Layer:
    if candidates.is_output or not candidates.above:
        raise InputError(
            "what a layer leads to can only be looked at below the output layer",
            where="inference.hidden_objective",
            got=f"layer {candidates.position} of {candidates.depth}, {len(candidates.above)} layers above",
        )
    return candidates.above[-1]


def _check(samples: int, temperature: float) -> None:
    if samples < 1:
        raise InputError("a Monte-Carlo estimate needs a draw or more", where="samples", got=samples)
    if not 0 <= temperature < float("inf"):
        raise InputError("temperature must be finite and ≥ 0", where="temperature", got=temperature)


Bound = Callable[[Sequential, Trace, Posterior], float]
"""A bound of mean log p(y|x) under the present network, in nats; NaN where there is none."""


def elbo(network: Sequential, trace: Trace, posterior: Posterior) -> float:
    """Bound of the mean log p(y|x) over the examples that every layer can score and no prompt shows, in nats.

    Args:
        network: the present network; its prompts decide which examples are shown.
        trace: the forward pass of the batch.
        posterior: q, of the same batch.

    Returns:
        NaN if no example counts.
    """
    shown = {d.x for prompt in network.parameters() for d in prompt.demonstrations}
    counted = posterior.scored & np.array([x not in shown for x in trace.x], dtype=np.bool_)
    # the text of a deterministic layer has no probability of its own, and no entropy
    random = [position for position, layer in enumerate(network.layers) if not layer.deterministic]
    levels = [posterior.levels[position + 1] for position in random]
    total = np.array([sum(level[i].entropy for level in levels) for i in range(len(trace))])
    for position in random:
        layer = network.layers[position]
        pairs = Pairs.of(position, trace, posterior, counted)
        scores = score_pairs([layer], pairs.inputs, pairs.outputs)
        total = total + pairs.sum_by_example(scores.known("log_prob"), len(trace))[0]
    known = np.isfinite(total)
    return float(total[known].mean()) if known.any() else float("nan")


def unknown_bound(network: Sequential, trace: Trace, posterior: Posterior) -> float:
    """NaN: for networks with a model that cannot score given texts."""
    return float("nan")
