"""What goes into a training step and what comes out: the batch, the state, and what is said of the step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dln.infer.memory import Reservoir, Snapshot
from dln.infer.mstep import LayerInfo
from dln.infer.posterior import Posterior
from dln.infer.replay import Replay
from dln.infer.scoring_modes import ScoringModes
from dln.nn.sequential import Sequential, Trace

__all__ = ["Batch", "Info", "State", "init"]


@dataclass(frozen=True)
class Batch:
    """Labelled examples of one step.

    Attributes:
        x: inputs.
        y: wanted outputs.
        pool: other labelled (input, output) pairs, which the output layer may show as demonstrations.
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
        correct: [B] whether each prediction was right.
        posterior: the inferred hidden texts.
        layers: M-steps in the order they were taken; a frozen layer has none.
        elbo: of the batch before the M-step, in nats per example, without the examples that a prompt of the
            network shows (see `dln.infer.elbo`); NaN if no example is left that could be scored.
        excluded: examples left out because a score was missing or not finite.
        scoring_modes: how texts and outputs were scored, and what that lost.
    """

    trace: Trace
    correct: tuple[bool, ...]
    posterior: Posterior
    layers: tuple[LayerInfo, ...]
    elbo: float
    excluded: int
    scoring_modes: ScoringModes = field(default_factory=ScoringModes)

    @property
    def accuracy(self) -> float:
        """Part of the batch that was right before the step."""
        return float(np.mean(self.correct))


def init(network: Sequential) -> State:
    """The state before the first step."""
    return State(network)
