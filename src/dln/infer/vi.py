"""One training step of a deep language network, of any depth, by variational inference.

    1. forward   ĥ_l ~ p(· | ĥ_{l-1}, π_l)                                              (greedy)
    2. E-step    q(h_l) = Σ_k w_l^k δ(h_l^k),  w^k ∝ p(h^k | ĥ_{l-1}, π_l) p(h*_{l+1} | h^k, π_{l+1})
    3. M-step    π_l ← argmax_n  E_q[log p(h_l | h_{l-1}, π^n)] − penalties^n,   π^0 the present prompt

With one layer there is nothing hidden and this is DLN-1 (paper, Algorithm 1); with two it is DLN-2
(Algorithm 2); with more it is Algorithm 3 of Appendix E. There is no other path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from dln.errors import RunFailed
from dln.infer.calibrate import FixedOutput
from dln.infer.candidates import Candidates
from dln.infer.demonstrations import DemonstrationProposal
from dln.infer.elbo import elbo
from dln.infer.feedback import layer_feedback, worked_examples
from dln.infer.hidden import HiddenProposal, LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.memory import Reservoir, Snapshot
from dln.infer.mstep import LayerInfo, MStep
from dln.infer.objective import ExpectedLogProb, Objective
from dln.infer.posterior import EStep, Posterior
from dln.infer.prompts import MixturePrompts, PromptProposal
from dln.infer.regularize import Penalty
from dln.infer.rewrites import RewriteProposal
from dln.infer.score import Convention
from dln.infer.select import Best, Selector
from dln.infer.weights import Weighting
from dln.keys import Key
from dln.nn.sequential import Sequential, Trace

__all__ = ["Batch", "Info", "State", "VariationalInference", "build", "init", "update"]


@dataclass(frozen=True)
class VariationalInference:
    """The algorithm: an E-step, an M-step, and when an answer is right.

    Attributes:
        e_step: infers the hidden texts.
        m_step: improves one layer.
        correct: (prediction, target) → whether the prediction is right.
        rewrite_only_wrong: infer hidden texts only where the prediction was wrong.
        reservoir: worked examples kept per layer, where deep networks take demonstrations from.
    """

    e_step: EStep
    m_step: MStep
    correct: Callable[[str, str], bool]
    rewrite_only_wrong: bool = False
    reservoir: int = 256


def build(
    *,
    num_hidden: int = 5,
    num_prompts: int = 10,
    q_hidden: HiddenProposal | None = None,
    q_prompt: PromptProposal | None = None,
    weighting: Weighting | None = None,
    score: Convention = "log_prob",
    hidden_objective: Objective | None = None,
    output_objective: Objective | None = None,
    penalties: tuple[Penalty, ...] = (),
    select: Selector | None = None,
    layer_steps: int | tuple[int, ...] = 1,
    max_prompt_tokens: int = 256,
    longest: str = "",
    include_forward: bool = True,
    rewrite_only_wrong: bool = False,
    reservoir: int = 256,
    correct: Callable[[str, str], bool] = lambda prediction, target: prediction.strip() == target.strip(),
) -> VariationalInference:
    """The algorithm from its decisions, each with a plain default.

    Without arguments: K = 5 hidden texts from the prior and the prior that sees the label, weights
    prior × likelihood, N = 10 prompts half rewritten and half with demonstrations, the expected
    log-probability as objective, no penalties, the best candidate wins.
    """
    expected = ExpectedLogProb(score, FixedOutput())
    return VariationalInference(
        e_step=EStep(
            proposal=q_hidden or MixtureProposal((PriorProposal(), LabelledPriorProposal())),
            weighting=weighting or Weighting(),
            num_hidden=num_hidden,
            convention=score,
            include_forward=include_forward,
        ),
        m_step=MStep(
            proposal=q_prompt or MixturePrompts((RewriteProposal(), DemonstrationProposal())),
            num_prompts=num_prompts,
            hidden_objective=hidden_objective or expected,
            output_objective=output_objective or expected,
            penalties=penalties,
            select=select or Best(),
            layer_steps=layer_steps,
            max_prompt_tokens=max_prompt_tokens,
            longest=longest,
        ),
        correct=correct,
        rewrite_only_wrong=rewrite_only_wrong,
        reservoir=reservoir,
    )


@dataclass(frozen=True)
class Batch:
    """Labelled examples of one step.

    Attributes:
        x: inputs.
        y: wanted outputs.
        pool: other labelled (input, output) pairs, which may be shown as demonstrations.
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    pool: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class State:
    """What training changes.

    Attributes:
        network: with the present prompts.
        step: updates done.
        memory: the best networks so far by validation, best first; their prompts are candidates too.
        reservoir: worked examples of each layer from earlier batches.
    """

    network: Sequential
    step: int = 0
    memory: tuple[Snapshot, ...] = ()
    reservoir: Reservoir = field(default_factory=Reservoir)


@dataclass(frozen=True, eq=False)
class Info:
    """Everything a viewer could want to know of one step.

    Attributes:
        trace: the forward pass.
        correct: [B] whether each prediction was right.
        posterior: the inferred hidden texts.
        layers: M-steps in the order they were taken; a frozen layer has none.
        elbo: of the batch before the M-step, in nats per example (see `dln.infer.elbo`); NaN if no
            example could be scored.
        excluded: examples left out because a score was missing or not finite.
    """

    trace: Trace
    correct: tuple[bool, ...]
    posterior: Posterior
    layers: tuple[LayerInfo, ...]
    elbo: float
    excluded: int

    @property
    def accuracy(self) -> float:
        """Part of the batch that was right before the step."""
        return float(np.mean(self.correct))


def init(network: Sequential) -> State:
    """The state before the first step."""
    return State(network)


def update(state: State, batch: Batch, key: Key, vi: VariationalInference) -> tuple[State, Info]:
    """One step: forward, E-step, M-step of every layer.

    All layers choose under the same posterior, with the present prompt among the candidates, so a step
    never lowers the batch objective Σ_l s_l.

    Args:
        state: where training stands.
        batch: labelled examples.
        key: randomness of this step.
        vi: the algorithm.

    Raises:
        RunFailed: not one example of the batch could be scored.
    """
    network = state.network
    trace = network.sample(key.child("forward"), batch.x, temperature=0.0)
    correct = [vi.correct(p, y) for p, y in zip(trace.predictions, batch.y, strict=True)]

    rewrite = [not right for right in correct] if vi.rewrite_only_wrong else None
    posterior = vi.e_step(key, network, trace, batch.y, rewrite)

    improved = network
    steps: list[LayerInfo] = []
    for l, layer in enumerate(network.layers):  # noqa: E741  # the paper's letter
        situation = Candidates(
            key=key,
            layers=(layer,),
            position=l,
            depth=len(network),
            trace=trace,
            posterior=posterior,
            correct=np.array(correct, dtype=np.bool_),
            counted=posterior.scored,
            step=state.step,
        )
        feedback = layer_feedback(key, l, trace, posterior, correct, batch.pool, state.reservoir)
        remembered = tuple(snapshot.prompts[l] for snapshot in state.memory)
        best, infos = vi.m_step(key, situation, feedback, remembered)
        improved = improved.with_layer(l, best)
        steps.extend(infos)

    info = Info(
        trace=trace,
        correct=tuple(correct),
        posterior=posterior,
        layers=tuple(steps),
        elbo=elbo(network, trace, posterior),
        excluded=_excluded(steps, posterior),
    )
    reservoir = state.reservoir
    if len(network) > 1:
        reservoir = reservoir.add(worked_examples(trace, posterior), limit=vi.reservoir)
    return replace(state, network=improved, step=state.step + 1, reservoir=reservoir), info


def _excluded(steps: list[LayerInfo], posterior: Posterior) -> int:
    """Examples without a usable score.

    Raises:
        RunFailed: there is no other kind.
    """
    missing = ~posterior.scored
    for info in steps:
        missing = missing | info.missing
    if missing.all():
        raise RunFailed(
            "not one example of the batch could be scored",
            got="missing, NaN, infinite or positive log-probabilities for every example",
            expected="finite log-probabilities ≤ 0",
            fix="check that the model scores this template's targets, and that the labels are ones it can write",
        )
    return int(missing.sum())
