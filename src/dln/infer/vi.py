"""One training step of a deep language network, of any depth, by variational inference.

    1. forward   ĥ_l ~ p(· | ĥ_{l-1}, π_l)                                   (greedy, unless told otherwise)
    2. E-step    q(h_l) = Σ_k w_l^k δ(h_l^k),  w^k ∝ p(h^k | ĥ_{l-1}, π_l) p(h*_{l+1} | h^k, π_{l+1})
    3. M-step    π_l ← argmax_n  E_q[log p(h_l | h_{l-1}, π^n)] − penalties^n,   π^0 the present prompt

With one layer there is nothing hidden and this is DLN-1 (paper, Algorithm 1); with two it is DLN-2
(Algorithm 2); with more it is Algorithm 3 of Appendix E. There is no other path. Layers side by side
(`dln.nn.Parallel`) are one layer in the E-step, which weighs tuples of their texts, and are improved one by one in the
M-step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dln.errors import RunFailed
from dln.infer.calibrate import Calibrator, FixedOutput
from dln.infer.constraints import Constraint
from dln.infer.estep import EStep, Posterior, Weigher, Weighting
from dln.infer.hidden import HiddenProposal, LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.memory import (
    Opinion,
    Replay,
    Reservoir,
    Snapshot,
    labelled_examples,
    layer_feedback,
    worked_examples,
)
from dln.infer.mstep import Best, LayerInfo, MStep, Penalty, Selector
from dln.infer.objective import Bound, Candidates, ExpectedLogProb, Objective, elbo
from dln.infer.prompts import DemonstrationProposal, MixturePrompts, PromptProposal, RewriteProposal
from dln.infer.race import Recalled
from dln.infer.rewards import Correctness, Reward, RewardFunction, outcomes_of, same_text, values_of
from dln.infer.scoring_modes import ScoringModes
from dln.lm.base import Target
from dln.nn.layers import Convention, Layer
from dln.nn.prompt import Demonstration
from dln.nn.sequential import Sequential, Trace
from dln.particles import Particles
from dln.random import Key

__all__ = ["Batch", "Info", "State", "VariationalInference", "build", "init", "update"]


RIGHT = 1.0 - 1e-9
"""The reward from which on an answer is right: there is nothing to improve."""


@dataclass(frozen=True)
class Batch:
    """Labelled examples of one step.

    Attributes:
        x: inputs.
        y: wanted outputs.
        pool: other labelled (input, output) pairs, which the output layer may show as demonstrations.
        tried: instructions that a person wants tried, by layer (see `Candidates.row`); candidates like any others.
        opinions: what a person thinks of instructions, by layer likewise; shown to the proposals.
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    pool: tuple[tuple[str, str], ...] = ()
    tried: Mapping[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    opinions: Mapping[int, tuple[Opinion, ...]] = field(default_factory=dict[int, tuple[Opinion, ...]])


@dataclass(frozen=True, eq=False)
class State:
    """What training changes.

    Attributes:
        network: with the present prompts.
        step: updates done.
        memory: the best networks so far by validation, best first; their prompts are candidates too.
        reservoir: worked examples of each layer from earlier batches.
        replay: examples of earlier batches that judge candidates of the output layer too.
    """

    network: Sequential
    step: int = 0
    memory: tuple[Snapshot, ...] = ()
    reservoir: Reservoir = field(default_factory=Reservoir)
    replay: Replay = field(default_factory=Replay)


@dataclass(frozen=True, eq=False)
class Info:
    """Everything a viewer could want to know of one step.

    Attributes:
        trace: the forward pass.
        correct: [B] whether each prediction was right: its reward is 1.
        rewards: [B] R of each prediction, with what the metric says of it.
        posterior: the inferred hidden texts.
        layers: M-steps in the order they were taken; a frozen layer has none.
        elbo: of the batch before the M-step, in nats per example, without the examples that a prompt of the
            network shows (see `dln.infer.objective`); NaN if no example is left that could be scored.
        excluded: examples left out because a score was missing or not finite.
        scoring_modes: how texts and outputs were scored, and what that lost.
    """

    trace: Trace
    correct: tuple[bool, ...]
    rewards: tuple[Reward, ...]
    posterior: Posterior
    layers: tuple[LayerInfo, ...]
    elbo: float
    excluded: int
    scoring_modes: ScoringModes = field(default_factory=ScoringModes)

    @property
    def accuracy(self) -> float:
        """Mean reward of the batch before the step, the part of right predictions; NaN if none has a reward."""
        values = values_of(self.rewards)
        known = np.isfinite(values)
        return float(values[known].mean()) if known.any() else float("nan")

    @property
    def unrewarded(self) -> int:
        """Predictions for which the metric gave no value."""
        return int(np.isnan(values_of(self.rewards)).sum())


def init(network: Sequential) -> State:
    """The state before the first step."""
    return State(network)


@dataclass(frozen=True)
class VariationalInference:
    """The algorithm: an E-step, an M-step, and what an answer is worth.

    Attributes:
        e_step: infers the hidden texts.
        m_step: improves one layer.
        reward: R of an outcome, 1 for a right answer.
        rewrite_only_wrong: infer hidden texts only where the prediction was wrong.
        forward_temperature: of the forward pass; 0 is greedy.
        skip_correct: change nothing where every prediction of the batch is right.
        reservoir: worked examples kept per layer, where hidden layers take demonstrations from.
        worked: labelled examples per step that layers below the last one write about, for it to show.
        evidence: examples of earlier steps that judge candidates of the output layer too, at most.
        bound: what is reported as the ELBO.
        scoring_modes: how the models at hand let texts and outputs be scored, for the record.
        calibrator: fits the output layer's numbers at a validation, as the objective does with every candidate.
    """

    e_step: EStep
    m_step: MStep
    reward: RewardFunction
    rewrite_only_wrong: bool = False
    forward_temperature: float = 0.0
    skip_correct: bool = False
    reservoir: int = 256
    worked: int = 0
    evidence: int = 0
    bound: Bound = elbo
    scoring_modes: ScoringModes = field(default_factory=ScoringModes)
    calibrator: Calibrator = field(default_factory=FixedOutput)


def build(
    *,
    num_hidden: int = 5,
    num_prompts: int = 10,
    q_hidden: HiddenProposal | None = None,
    q_prompt: PromptProposal | None = None,
    weighting: Weigher | None = None,
    score: Convention = "log_prob",
    hidden_objective: Objective | None = None,
    output_objective: Objective | None = None,
    penalties: tuple[Penalty, ...] = (),
    select: Selector | None = None,
    layer_steps: int | tuple[int, ...] = 1,
    max_prompt_tokens: int = 256,
    longest: str = "",
    constraints: tuple[Constraint, ...] = (),
    include_forward: bool = True,
    rewrite_only_wrong: bool = False,
    forward_temperature: float = 0.0,
    skip_correct: bool = False,
    reservoir: int = 256,
    worked: int = 0,
    evidence: int = 0,
    correct: Callable[[str, str], bool] = same_text,
    reward: RewardFunction | None = None,
    bound: Bound = elbo,
    scoring_modes: ScoringModes | None = None,
    calibrator: Calibrator | None = None,
) -> VariationalInference:
    """The algorithm from its decisions, each with a plain default.

    Without arguments: K = 5 hidden texts from the prior and the prior that sees the label, weights
    prior × likelihood, N = 10 prompts half rewritten and half with demonstrations, the expected
    log-probability as objective, no penalties, the best candidate wins, the output layer's numbers are not fitted.
    Without a `reward` it is 1 for an answer that is `correct` and 0 for another.
    """
    fixed = FixedOutput()
    reward = reward or Correctness(correct)
    return VariationalInference(
        e_step=EStep(
            proposal=q_hidden or MixtureProposal((PriorProposal(), LabelledPriorProposal())),
            weighting=weighting or Weighting(reward=reward),
            num_hidden=num_hidden,
            convention=score,
            include_forward=include_forward,
        ),
        m_step=MStep(
            proposal=q_prompt or MixturePrompts((RewriteProposal(), DemonstrationProposal())),
            num_prompts=num_prompts,
            hidden_objective=hidden_objective or ExpectedLogProb(score, fixed),
            output_objective=output_objective or ExpectedLogProb(score, calibrator or fixed),
            penalties=penalties,
            select=select or Best(),
            layer_steps=layer_steps,
            max_prompt_tokens=max_prompt_tokens,
            longest=longest,
            constraints=constraints,
        ),
        reward=reward,
        rewrite_only_wrong=rewrite_only_wrong,
        forward_temperature=forward_temperature,
        skip_correct=skip_correct,
        reservoir=reservoir,
        worked=worked,
        evidence=evidence,
        bound=bound,
        scoring_modes=scoring_modes or ScoringModes(),
        calibrator=calibrator or fixed,
    )


def update(state: State, batch: Batch, key: Key, vi: VariationalInference) -> tuple[State, Info]:
    """One step: forward, E-step, M-step of every layer.

    All layers choose under the same posterior, with the present prompt among the candidates, so a step
    never lowers the batch objective Σ_l s_l. What is asked twice within the step is asked of the models
    once (`dln.infer.race`).

    Args:
        state: where training stands.
        batch: labelled examples.
        key: randomness of this step.
        vi: the algorithm.

    Raises:
        RunFailed: not one example of the batch could be scored.
    """
    memory = Recalled.of(state.network.layers)
    network = memory.remembering_network(state.network)
    trace = network.sample(key.child("forward"), batch.x, temperature=vi.forward_temperature)
    rewards = tuple(vi.reward(outcomes_of(trace, batch.y)))
    correct = [reward.value >= RIGHT for reward in rewards]
    if vi.skip_correct and all(correct) and not batch.tried:
        return replace(state, step=state.step + 1), _skipped(trace, rewards, batch, vi)

    rewrite = [not right for right in correct] if vi.rewrite_only_wrong else None
    posterior = vi.e_step(key, network, trace, batch.y, rewrite)

    improved = network
    steps: list[LayerInfo] = []
    for l, layer in enumerate(network.layers):  # noqa: E741  # the paper's letter
        labelled = _labelled(key, network, l, batch, vi)
        for b in range(len(layer.branches)):
            present = replace(state, network=network)
            step = _Step(key, present, trace, posterior, correct, rewards, labelled, batch)
            best, infos = step.improve(vi.m_step, l, b)
            improved = improved.with_layer(l, improved.layers[l].with_branch(b, best))
            steps.extend(infos)

    info = Info(
        trace=trace,
        correct=tuple(correct),
        rewards=rewards,
        posterior=posterior,
        layers=tuple(replace(step, layers=tuple(map(memory.plain, step.layers))) for step in steps),
        elbo=vi.bound(network, trace, posterior),
        excluded=_excluded(steps, posterior),
        scoring_modes=vi.scoring_modes,
    )
    return (
        replace(
            state,
            network=memory.plain_network(improved),
            step=state.step + 1,
            reservoir=_worked(state, trace, posterior, vi.reservoir),
            replay=state.replay.add(trace, posterior, vi.evidence),
        ),
        info,
    )


@dataclass(frozen=True, eq=False)
class _Step:
    """What every M-step of a step reads: the present network and its posterior."""

    key: Key
    state: State
    trace: Trace
    posterior: Posterior
    correct: list[bool]
    rewards: tuple[Reward, ...]
    labelled: tuple[Demonstration, ...]
    batch: Batch

    def improve(self, m_step: MStep, position: int, branch: int) -> tuple[Layer, tuple[LayerInfo, ...]]:
        """One layer, or one of several side by side, and its M-steps; a layer without a prompt stays as it is."""
        network, layer = self.state.network, self.state.network.layers[position]
        present, count = layer.branches[branch].prompted, len(layer.branches)
        if present is None:
            return layer.branches[branch], ()
        trace, posterior = self.trace, self.posterior
        if count > 1:
            trace = trace.branch(position, branch, count)
            posterior = posterior.branch(position + 1, branch, count)
        incumbent = Candidates(
            key=self.key,
            layers=(present,),
            position=position,
            depth=len(network),
            trace=trace,
            posterior=posterior,
            correct=np.array(self.correct, dtype=np.bool_),
            counted=posterior.scored,
            step=self.state.step,
            above=network.layers[position + 1 :],
            beside=layer if count > 1 else None,
            branch=branch,
            row=sum(len(below.branches) for below in network.layers[:position]) + branch,
        )
        feedback = layer_feedback(
            self.key,
            position,
            trace,
            posterior,
            self.correct,
            self.labelled,
            self.state.reservoir,
            branch,
            count,
            [reward.feedback for reward in self.rewards],
        )
        feedback = replace(feedback, opinions=self.batch.opinions.get(incumbent.row, ()))
        others = (snapshot.network.layers[position].branches[branch].prompted for snapshot in self.state.memory)
        remembered = tuple(other.prompt for other in others if other is not None)
        tried = tuple(present.prompt.with_instruction(text) for text in self.batch.tried.get(incumbent.row, ()))
        return m_step(self.key, present, self.state.replay.joined(incumbent), feedback, remembered, tried)


def _skipped(trace: Trace, rewards: tuple[Reward, ...], batch: Batch, vi: VariationalInference) -> Info:
    """The record of a step that changed nothing: the forward texts are all that is known, and nothing was scored."""
    texts = (trace.x, *trace.hidden[:-1], batch.y)
    levels = tuple(tuple(Particles[Target].point(text) for text in level) for level in texts)
    posterior = Posterior(levels, (), np.ones(len(trace), dtype=np.bool_))
    return Info(trace, (True,) * len(trace), rewards, posterior, (), float("nan"), 0, vi.scoring_modes)


def _labelled(
    key: Key, network: Sequential, position: int, batch: Batch, vi: VariationalInference
) -> tuple[Demonstration, ...]:
    """What the last layer can show; nothing for other layers, or where it is not trained."""
    depth = len(network)
    if position < depth - 1 or not vi.m_step.repeats(position, depth):
        return ()
    return labelled_examples(key, network.layers[:position], batch.pool, vi.worked)


def _worked(state: State, trace: Trace, posterior: Posterior, limit: int) -> Reservoir:
    """The reservoir with this batch's worked examples, of a deep network."""
    if len(state.network) == 1:
        return state.reservoir
    return state.reservoir.add(worked_examples(trace, posterior), limit=limit)


def _excluded(steps: list[LayerInfo], posterior: Posterior) -> int:
    """Examples without a usable score.

    Raises:
        RunFailed: there is no other kind.
    """
    missing = ~posterior.scored
    for info in steps:
        missing = missing | info.missing[: len(missing)]  # earlier examples come behind those of the batch
    if missing.all():
        raise RunFailed(
            "not one example of the batch could be scored",
            got="missing, NaN, infinite or positive log-probabilities, or no value of the metric, for every example",
            expected="finite log-probabilities ≤ 0 and values of the metric",
            fix="check that the model scores this template's targets, and that the labels are ones it can write",
        )
    return int(missing.sum())
