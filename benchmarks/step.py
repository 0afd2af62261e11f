"""A whole training step of a two-layer network: forward, E-step, both M-steps, by `dln.infer.vi.update`.

The same step runs with the engine and with plain batches (scoring in padded batches, sampling by transformers'
`generate`, no cache between calls). Draws of the two differ, so their lengths are reported beside the seconds; and as
a way takes minutes, in which a shared machine changes its speed, so is the speed right before and right after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.measure import measure, measure_machine
from benchmarks.plain import PlainLM
from benchmarks.scoring import BATCH_ROWS, best_rows, in_full, sample_of
from benchmarks.workload import Subject, two_layer_network, two_layers
from dln.infer import vi
from dln.lm.base import LanguageModel, Sampling
from dln.lm.local.engine import TransformersLM
from dln.random import Key
from dln.train import Options, resolve_options
from dln.train.build import algorithm

__all__ = ["StepResult", "StepTime", "measure_step"]


@dataclass(frozen=True)
class StepTime:
    """One way of taking the step.

    Attributes:
        way: which engine, which rules.
        seconds: best run.
        runs: how many.
        flops: operations per second of plain matrix products, the mean of right before and right after.
        hidden_tokens: mean length of the hidden texts drawn.
        candidates: candidates judged, both layers together.
        memory: bytes that the step took on top.
    """

    way: str
    seconds: float
    runs: int
    flops: float
    hidden_tokens: float
    candidates: int
    memory: float


@dataclass(frozen=True)
class StepResult:
    """The same step three ways: `plain` in full, the engine in `full`, the engine with the work-saving rules."""

    preset: str
    about: str
    full: StepTime
    saving: StepTime
    plain: StepTime

    @property
    def speed_up(self) -> float:
        """Plain over the engine, neither leaving out anything."""
        return self.plain.seconds / self.full.seconds

    @property
    def speed_up_saving(self) -> float:
        """Plain over the engine with the work-saving rules."""
        return self.plain.seconds / self.saving.seconds

    def at_equal_speed(self, time: StepTime) -> float:
        """Plain over `time` in units of plain matrix products: seconds × operations per second of each."""
        return self.plain.seconds * self.plain.flops / (time.seconds * time.flops)


def measure_step(
    lm: TransformersLM,
    subject: Subject,
    *,
    preset: str,
    prompts: int,
    batch: int,
    hidden: int,
    hidden_tokens: int,
    repeat: int,
) -> StepResult:
    """Take a step with N, B, K = `prompts`, `batch`, `hidden` under the options of `preset`.

    Args:
        lm: the engine.
        subject: the data.
        preset: whose options are taken, N and K aside.
        prompts: N.
        batch: B.
        hidden: K.
        hidden_tokens: hidden texts end after so many tokens.
        repeat: runs with the engine; a way that takes long runs once.
    """
    sizes: dict[str, Any] = {"num_prompts": prompts, "num_hidden": hidden}
    full = in_full(resolve_options(preset, {"batch_size": batch, "inference": sizes}))
    rules = resolve_options("default").inference
    saved = {"prune": rules.prune, "race": rules.race}
    saving = full.model_copy(update={"inference": full.inference.model_copy(update=saved)})
    plain = _plain(lm, subject)

    def take(way: str, model: LanguageModel, options: Options, runs: int) -> StepTime:
        return _take(way, model, lm, subject, options, (batch, hidden_tokens), runs)

    return StepResult(
        preset=preset,
        about=(
            f"N {prompts} × B {batch} × K {hidden}, {subject.name}, hidden texts of at most {hidden_tokens} tokens, "
            f"options of preset {preset!r}"
        ),
        full=take("engine, in full", lm, full, repeat),
        saving=take("engine, work-saving rules", lm, saving, repeat),
        plain=take(f"plain batches of {plain.rows}", plain, full, 1),
    )


def _plain(lm: TransformersLM, subject: Subject) -> PlainLM:
    """The plain way with its fastest batch size, warmed up in scoring and sampling."""
    setting = two_layers(lm, subject, prompts=3, batch=2, hidden=2, hidden_tokens=8)
    plain = best_rows(PlainLM(lm), sample_of(setting.workload(), max(BATCH_ROWS[lm.network.device.type])))
    plain.sample(["warm up"], Sampling(0.7, max_tokens=2, stop=("\n",)), [0])
    return plain


def _take(
    way: str,
    model: LanguageModel,
    engine: TransformersLM,
    subject: Subject,
    options: Options,
    sizes: tuple[int, int],
    runs: int,
) -> StepTime:
    batch, hidden_tokens = sizes
    examples = subject.batch(batch)
    network = two_layer_network(model, subject, hidden_tokens)
    algo = algorithm(options, lambda prediction, y: prediction.strip() == y.strip(), network=network)
    state = vi.init(network)
    data = vi.Batch(tuple(e.input for e in examples), tuple(e.target for e in examples))
    before = measure_machine(engine)
    taken = measure(
        lambda: vi.update(state, data, Key(options.seed), algo), engine.network.device, runs, name=f"a step, {way}"
    )
    around = before.joined(measure_machine(engine))
    info = taken.value[1]
    lengths = [len(h.token_ids or ()) for row in info.posterior.hidden[0].proposals for h in row]
    return StepTime(
        way=way,
        seconds=taken.best,
        runs=len(taken.seconds),
        flops=around.flops,
        hidden_tokens=float(np.mean(lengths)),
        candidates=sum(len(layer.proposals) for layer in info.layers),
        memory=taken.memory,
    )
