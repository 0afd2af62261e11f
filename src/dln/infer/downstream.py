"""Judging hidden layers by what they lead to, where their own texts cannot be scored.

    h_m ~ p(· | ĥ_{l-1}, π^n),  m = 1 … M, drawn on through the layers above up to the output layer
    s^n_i = log (1/M) Σ_m p(y_i | h_m)            a Monte-Carlo estimate of log p(y|x) under π^n
    s^n_i = (1/M) Σ_m [ŷ(h_m) is right]           where not even the output can be scored

The draws of all candidates have the same seeds, by example and m: candidates differ by their prompts
and not by luck of the draw, as far as the model lets a seed have that effect. By Jensen's inequality
the estimate of log p(y|x) is too low on average, by less the larger M; it is so for all candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from dln.errors import InputError
from dln.infer.candidates import Candidates, Scored, comparable
from dln.infer.score import score_pairs
from dln.lm.base import Target, text_of
from dln.nn.layer import LanguageLayer, LayerInput
from dln.nn.sequential import AnyLayer
from dln.numerics import Floats, logsumexp

__all__ = ["DownstreamAccuracy", "DownstreamLogProb"]


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
class DownstreamAccuracy:
    """The part of draws after which the network's greedy answer is right, for hidden layers.

    Args:
        correct: (prediction, target) → whether it is right.
        samples: M, draws per example and candidate.
        temperature: of the draws.
    """

    correct: Callable[[str, str], bool]
    samples: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.samples, self.temperature)

    def __call__(self, candidates: Candidates) -> Scored:
        """[N, B] parts, between 0 and 1."""
        top, drawn = _top(candidates), _Drawn.of(candidates, self.samples, self.temperature)
        answers = top.sample(candidates.key, drawn.inputs, 0.0)
        right = [
            float(self.correct(answer.text, text_of(target)))
            for answer, target in zip(answers, drawn.wanted, strict=True)
        ]
        return drawn.scored(candidates, drawn.fold(np.array(right, dtype=np.float64)).mean(axis=2))


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Output-layer inputs of N candidates, E counted examples and M draws each, in this order.

    Attributes:
        shape: (N, E, M).
        examples: [E] places in the batch.
        inputs: [N · E · M].
        wanted: [N · E · M] what the output layer should make of them.
    """

    shape: tuple[int, int, int]
    examples: list[int]
    inputs: list[LayerInput]
    wanted: list[Target]

    @classmethod
    def of(cls, candidates: Candidates, samples: int, temperature: float) -> _Drawn:
        """One request per level for all candidates."""
        examples = [int(i) for i in np.flatnonzero(candidates.counted)]
        seen, targets = candidates.trace.inputs(candidates.position), candidates.posterior.mode(candidates.depth)
        rows = [seen[i] for i in examples for _ in range(samples)]
        inputs = rows * len(candidates.layers)
        contexts = [context for layer in candidates.layers for context in layer.contexts(rows)]
        chain = cast("tuple[LanguageLayer, ...]", (candidates.layers[0], *candidates.above[:-1]))
        for level, layer in enumerate(chain):
            # a seed is a function of the example and the draw: not of the candidate, nor of who is scored beside it
            key = candidates.key.child("downstream", level)
            seeds = [key.integer(i, m) for i in examples for m in range(samples)] * len(candidates.layers)
            drawn = layer.draw(contexts if level == 0 else layer.contexts(inputs), seeds, temperature)
            inputs = [LayerInput(item.x, h.text) for item, h in zip(inputs, drawn, strict=True)]
        wanted = [targets[i] for i in examples for _ in range(samples)] * len(candidates.layers)
        return cls((len(candidates.layers), len(examples), samples), examples, inputs, wanted)

    def fold(self, values: Floats) -> Floats:
        """[N · E · M] → [N, E, M]."""
        return values.reshape(self.shape)

    def scored(self, candidates: Candidates, terms: Floats) -> Scored:
        """[N, E] → the objective; an example without a term for every candidate is NaN for all."""
        rows = np.full((len(candidates.layers), len(candidates.trace)), np.nan)
        rows[:, self.examples] = terms
        rows[:, ~comparable(np.isfinite(rows))] = np.nan
        return Scored(candidates.layers, rows)


def _top(candidates: Candidates) -> AnyLayer:
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
