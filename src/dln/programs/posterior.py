"""The posterior of a program's intermediate texts, and the credit of its stages.

    log w_k = log p(h_k | what the stage read, π) + R(h_k)/τ          where the texts' probabilities are known
    log w_k = R(h_k)/τ                                                else

τ is `dln.infer.rewards.reward_temperature` of these rewards. h_k are distinct texts of one stage for one example: the
one of the forward pass and others, each continued by the rest of the program under its present parameters. R(h_k) is
the reward of that continuation.

Credit. Let R be the reward of the forward pass. What a hidden stage alone could gain by writing better texts is
g_l = max(0, Σ_k w_k R(h_k) − R). The regret 1 − R of an example is divided among its stages: g_l to each hidden stage
(scaled down to the regret if they are more together), and the rest to the last stage, since the texts before it are not
to blame for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dln.numerics import Floats
from dln.particles import Particles
from dln.programs.evaluations import Outcome
from dln.programs.trace import Stage

__all__ = ["StagePosterior", "credits_of", "stage_posterior"]


@dataclass(frozen=True)
class StagePosterior:
    """The posterior of one stage's text for one example.

    Attributes:
        stage: as in the forward pass: what it read, and its text ĥ.
        forward: the outcome of the forward pass.
        particles: distinct texts with their log-weights, ĥ first.
        outcomes: [K] the outcome that each text led to.
        scored: whether log p(h | …) is part of the weights.
    """

    stage: Stage
    forward: Outcome
    particles: Particles[str]
    outcomes: tuple[Outcome, ...]
    scored: bool

    @property
    def rewards(self) -> Floats:
        """[K] R(h_k)."""
        return np.array([outcome.score for outcome in self.outcomes])

    @property
    def expected_reward(self) -> float:
        """Σ_k w_k R(h_k)."""
        return float(self.particles.weights @ self.rewards)

    @property
    def gain(self) -> float:
        """max(0, Σ_k w_k R(h_k) − R)."""
        return max(0.0, self.expected_reward - self.forward.score)

    @property
    def best(self) -> tuple[str, Outcome]:
        """The text of largest reward, the heavier of equals; ĥ unless another one is better."""
        rewards, weights = self.rewards, self.particles.log_weights
        k = max(range(len(rewards)), key=lambda i: (rewards[i], weights[i]))
        k = k if rewards[k] > rewards[0] else 0
        return self.particles.values[k], self.outcomes[k]


def stage_posterior(name: str, forward: Outcome, others: Sequence[Outcome], temperature: float) -> StagePosterior:
    """The posterior of stage `name` from the forward pass and runs in which its text was given.

    Runs without a reward are left out. log p(h | …) is used where it is known of all texts.

    Args:
        name: of the stage.
        forward: the run under the program's own texts; it has a reward.
        others: runs with other texts of this stage and equal texts before it.
        temperature: τ.
    """
    texts: dict[str, tuple[Stage, Outcome]] = {}
    for outcome in (forward, *others):
        stage = outcome.rollout.find(name)
        if stage is not None and np.isfinite(outcome.score):
            texts.setdefault(stage.text, (stage, outcome))
    pairs = list(texts.values())
    prior = [stage.log_prob for stage, _ in pairs]
    known = [value for value in prior if value is not None]
    scored = len(known) == len(prior)
    rewards = np.array([outcome.score for _, outcome in pairs])
    log_weights = rewards / temperature + (np.array(known) if scored else 0.0)
    particles = Particles(tuple(texts), np.asarray(log_weights, dtype=np.float64))
    return StagePosterior(pairs[0][0], forward, particles, tuple(outcome for _, outcome in pairs), scored)


def credits_of(
    forward: Sequence[Outcome], posteriors: Mapping[int, Sequence[StagePosterior]], trained: Sequence[str]
) -> dict[str, float]:
    """{parameter: credit} the regret of the examples, divided among the stages and summed by parameter.

    Args:
        forward: outcomes of the forward pass, those whose regret counts.
        posteriors: of the hidden stages, by the example of the outcome.
        trained: names of the parameters; a stage that uses several divides its credit evenly among them.
    """
    found: defaultdict[str, float] = defaultdict(float, dict.fromkeys(trained, 0.0))
    for outcome in forward:
        regret = 1.0 - outcome.score
        stages = outcome.rollout.stages
        if not np.isfinite(regret) or not stages:
            continue
        hidden = posteriors.get(outcome.request.example, ())
        gains = [posterior.gain for posterior in hidden]
        scale = min(1.0, regret / sum(gains)) if sum(gains) else 0.0
        last = next((stage for stage in reversed(stages) if set(stage.parameters) & set(trained)), None)
        shares = [(posterior.stage, gain * scale) for posterior, gain in zip(hidden, gains, strict=True)]
        shares += [] if last is None else [(last, regret - scale * sum(gains))]
        for stage, share in shares:
            own = [name for name in stage.parameters if name in found]
            for name in own:
                found[name] += share / len(own)
    return dict(found)
