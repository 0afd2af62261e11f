"""Work that cannot matter is not done: both M-steps under the default rules against the same in full.

Under the rules hidden texts of little posterior weight are left out and candidates race (see `dln.infer.race`);
in full every candidate is scored on every hidden text of every input, which is what plain batches do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dln.bench.clock import measure
from dln.bench.scoring import Seconds
from dln.bench.two_layers import TwoLayers
from dln.infer.candidates import Scored
from dln.infer.vi import VariationalInference
from dln.lm.transformers import TransformersLM
from dln.train import Options, resolve_options
from dln.train.assemble import algorithm

__all__ = ["IN_FULL", "SavingResult", "in_full", "measure_saving"]

IN_FULL: dict[str, Any] = {"prune": 0.0, "race": False}
"""The work-saving rules, off."""


@dataclass(frozen=True)
class SavingResult:
    """The M-steps of a two-layer network under the default rules and in full.

    Attributes:
        name: of the workload.
        saving: seconds of both M-steps under the rules.
        full: the same in full, both with the engine.
        plain_seconds: plain batches in full, best run.
        particles: hidden texts whose weight is kept, as a part of all.
        share: (candidate, pair) scores asked for in the races, as a part of all, per layer.
        same_winner: per layer, whether the winner is that of full scoring.
        winners: per layer, (under the rules, in full).
    """

    name: str
    saving: Seconds
    full: Seconds
    plain_seconds: float
    particles: float
    share: tuple[float, ...]
    same_winner: tuple[bool, ...]
    winners: tuple[tuple[int, int], ...]

    @property
    def speed_up(self) -> float:
        """Plain batches in full over the engine under the rules."""
        return self.plain_seconds / self.saving.best


def measure_saving(lm: TransformersLM, setting: TwoLayers, plain_seconds: float, repeat: int) -> SavingResult:
    """Score both layers' candidates under the default rules and in full.

    Args:
        lm: the engine, as in `setting`.
        setting: a network with hidden texts and candidates, nothing pruned.
        plain_seconds: what plain batches took for the same pairs in full.
        repeat: runs.
    """
    options = resolve_options("default", {"inference": {"hidden_objective": "log_prob"}})
    rules, everything = (
        algorithm(o, lambda p, y: p == y, network=setting.network) for o in (options, in_full(options))
    )
    kept = setting.weighed(rules.e_step.weighting)
    device = lm.network.device
    saving = measure(lambda: _judge(rules, kept), device, repeat, name="work-saving rules")
    full = measure(lambda: _judge(everything, setting), device, repeat, name="both M-steps in full")
    winners = tuple(
        (rules.m_step.select(s.scores, s.per_example), everything.m_step.select(f.scores, f.per_example))
        for s, f in zip(saving.value, full.value, strict=True)
    )
    weights = np.concatenate([particles.weights for particles in kept.posterior.levels[1]])
    return SavingResult(
        name=setting.workload().name,
        saving=Seconds.of(saving),
        full=Seconds.of(full),
        plain_seconds=plain_seconds,
        particles=float(np.mean(weights > 0)),
        share=tuple(scored.share for scored in saving.value),
        same_winner=tuple(a == b for a, b in winners),
        winners=winners,
    )


def in_full(options: Options) -> Options:
    """The same options with the work-saving rules off."""
    return options.model_copy(update={"inference": options.inference.model_copy(update=IN_FULL)})


def _judge(vi: VariationalInference, setting: TwoLayers) -> list[Scored]:
    objectives = (vi.m_step.hidden_objective, vi.m_step.output_objective)
    return [objective(setting.situation(l)) for l, objective in enumerate(objectives)]  # noqa: E741
