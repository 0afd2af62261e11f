"""Rewards: what an answer is worth, where a metric stands in the place of log p(y|x).

    p(y | h) ∝ exp(R(x, y, ŷ(h)) / τ)          log w^k = log p(h^k | x) + R^k / τ

A reward is a number per outcome of the network, usually a metric from 0 to 1. Where it differs little between the
hidden texts of an example, a fixed τ would make their weights equal, and where it differs much, it would leave one of
them. By default τ follows the spread of the rewards in the batch:

    τ = scale · max_i (max_k R_i^k − min_k R_i^k)

so that the best text of the example with the largest spread weighs exp(1 / scale) times as much as the worst one,
whatever the unit of R. Right and wrong answers (1 and 0) have τ = scale. Without any spread τ = scale, and the weights
are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dln.errors import InputError
from dln.nn.context import SEPARATOR
from dln.nn.layers import Layer
from dln.nn.sequential import Trace
from dln.numerics import Floats

__all__ = [
    "Correctness",
    "Outcome",
    "Reward",
    "RewardFunction",
    "answer_rewards",
    "label_rewards",
    "outcomes_of",
    "plain",
    "reward_temperature",
    "same_text",
    "texts_below",
    "values_of",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the network made of an example.

    Attributes:
        x: the network's input.
        y: the wanted output.
        answer: the output.
        hidden: the texts that led to it, h_1 … h_{L−1}.
    """

    x: str
    y: str
    answer: str
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reward:
    """R of an outcome, NaN where there is none (then it is left out), and what is to be said of it."""

    value: float
    feedback: str = ""


class RewardFunction(Protocol):
    """R, for many outcomes at once."""

    def __call__(self, outcomes: Sequence[Outcome]) -> Sequence[Reward]:
        """One reward per outcome; equal outcomes have equal rewards."""
        ...


def same_text(prediction: str, target: str) -> bool:
    """Whether two texts are equal but for white space at the ends."""
    return prediction.strip() == target.strip()


@dataclass(frozen=True)
class Correctness:
    """R = 1 for a right answer, 0 for a wrong one.

    Args:
        correct: (prediction, target) → whether it is right.
    """

    correct: Callable[[str, str], bool] = same_text

    def __call__(self, outcomes: Sequence[Outcome]) -> list[Reward]:
        """1.0 or 0.0 each."""
        return [Reward(float(self.correct(one.answer, one.y))) for one in outcomes]


def values_of(rewards: Sequence[Reward]) -> Floats:
    """[N] the numbers; an infinity is no reward."""
    values = np.array([reward.value for reward in rewards], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def reward_temperature(rewards: Floats, scale: float) -> float:
    """τ for [B, K] rewards of the hidden texts of a batch (see the module); NaN rewards are left out.

    Raises:
        InputError: the scale is not a finite number above 0.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise InputError("reward_scale must be finite and > 0", where="reward_scale", got=scale)
    known = np.isfinite(rewards)
    rows = known.any(axis=1)
    if not rows.any():
        return scale
    high = np.where(known, rewards, -np.inf)[rows].max(axis=1)
    low = np.where(known, rewards, np.inf)[rows].min(axis=1)
    spread = float((high - low).max())
    return scale * spread if spread > 0 else scale


def texts_below(trace: Trace, position: int) -> list[tuple[str, ...]]:
    """[B] the forward texts of the layers below `position`, as people read them."""
    return [tuple(plain(level[i].text) for level in trace.hidden[:position]) for i in range(len(trace))]


def outcomes_of(trace: Trace, y: Sequence[str]) -> list[Outcome]:
    """[B] the outcomes of a forward pass."""
    below = texts_below(trace, len(trace.hidden) - 1)
    return [Outcome(*row) for row in zip(trace.x, y, trace.predictions, below, strict=True)]


def answer_rewards(reward: RewardFunction, layer: Layer, answers: Sequence[str], asked: Sequence[Outcome]) -> Floats:
    """[P] rewards of answers of an output layer.

    Args:
        reward: R.
        layer: the output layer. Its empty answer over labels is an input that its model could not score: NaN.
        answers: [P].
        asked: [P] the outcomes without their answers.
    """
    known = [i for i, answer in enumerate(answers) if answer or layer.classifier is None]
    values = np.full(len(answers), np.nan)
    if known:
        values[known] = values_of(reward([replace(asked[i], answer=answers[i]) for i in known]))
    return values


def label_rewards(reward: RewardFunction, names: Sequence[str], asked: Sequence[Outcome]) -> Floats:
    """[P, C] the reward of every label as the answer; `asked` as in `answer_rewards`."""
    outcomes = [replace(one, answer=name) for one in asked for name in names]
    return values_of(reward(outcomes)).reshape(len(asked), len(names))


def plain(text: str) -> str:
    """A hidden text as people read it: those of parallel layers are separated by blank lines."""
    return text.replace(SEPARATOR, "\n\n")
