"""Where a run stands between two steps, and the pure functions that take it further.

`advance` does one training step, and a validation where one is due; `measure` validates. Everything random is derived
from (seed, step), so that a `Progress` and the `Recipe` of its run say all that comes next. `predictor_of` is what
answers when training is over: the best network, or several of the best together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dln.data import Dataset, Grader, batch_indices, split
from dln.data.dataset import text_key
from dln.infer import vi
from dln.infer.calibrate import fit_pool
from dln.infer.memory import Opinion, Replay, Reservoir, Snapshot, answering, remember
from dln.io import dump, parse
from dln.nn import LayerInput, Sequential, load_state_dict
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.numerics import Floats
from dln.random import Key
from dln.train.evaluate import READ_BY, Support, fit_output, validate, with_readout
from dln.train.events import Backtracked, Event, MemberRecord, Validated, step_event
from dln.train.options import Options, Stopper

__all__ = [
    "NOTHING_TO_GAIN",
    "Pool",
    "Progress",
    "Recipe",
    "advance",
    "begin",
    "measure",
    "member_records",
    "predictor_of",
    "settle",
]


@dataclass(frozen=True)
class Recipe:
    """What stays the same from step to step; `select_by` is the validation score of networks with labels."""

    algorithm: vi.VariationalInference
    options: Options
    train: Dataset
    dev: Dataset | None
    metric: Grader
    stopper: Stopper | None = None
    select_by: str = "log_likelihood"


@dataclass(frozen=True)
class SnapshotRecord:
    """A network at a validation, in a checkpoint."""

    parameters: dict[str, Any]
    score: float
    step: int


NOTHING_TO_GAIN = "nothing to gain"
"""Why training ended: the dev accuracy leaves nothing to gain."""

FEWEST_DEV = 8
"""A dev accuracy on fewer examples ends no training."""


@dataclass(frozen=True)
class ProgressRecord:
    """A run between two steps, in a checkpoint."""

    step: int
    parameters: dict[str, Any]
    memory: list[SnapshotRecord]
    kept: list[SnapshotRecord]
    reservoir: Reservoir
    replay: Replay
    best: SnapshotRecord | None
    last_gain: int
    stale: int
    at_ceiling: bool = False


@dataclass(frozen=True, eq=False)
class Progress:
    """A run between two steps.

    Attributes:
        state: of the inference.
        best: the best winner of a step by validation; None before the first one.
        last_gain: validations since the best or since the last return to it.
        stale: validations since the best.
        kept: the best networks by validation, best first, of the winners of steps and their runners-up; they may
            answer together.
        at_ceiling: whether a network has reached the dev accuracy at which training stops.
    """

    state: vi.State
    best: Snapshot | None = None
    last_gain: int = 0
    stale: int = 0
    kept: tuple[Snapshot, ...] = ()
    at_ceiling: bool = False

    @property
    def result(self) -> Snapshot:
        """The network that training would return now."""
        return self.kept[0] if self.kept else Snapshot(self.state.network, float("nan"), self.state.step)

    def done(self, recipe: Recipe) -> str | None:
        """Why training is over, or None."""
        options = recipe.options
        if self.at_ceiling:
            return NOTHING_TO_GAIN
        if options.patience is not None and self.stale >= options.patience:
            return "early stopping"
        if self.state.step >= options.steps:
            return "steps"
        return "stopper" if self.state.step and recipe.stopper is not None and recipe.stopper(self) else None

    def to_json(self) -> dict[str, Any]:
        """Plain data for the checkpoint: parameters only, the layout is the run's."""
        return {
            "step": self.state.step,
            "parameters": self.state.network.state_dict(),
            "memory": [_snapshot_to_json(s) for s in self.state.memory],
            "kept": [_snapshot_to_json(s) for s in self.kept],
            "reservoir": dump(self.state.reservoir),
            "replay": dump(self.state.replay),
            "best": None if self.best is None else _snapshot_to_json(self.best),
            "last_gain": self.last_gain,
            "stale": self.stale,
            "at_ceiling": self.at_ceiling,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], layout: Sequential) -> Progress:
        """The inverse of `to_json` for a network of the same layout.

        Raises:
            InputError: naming the field that is wrong, missing or unknown.
        """
        record = parse(ProgressRecord, data, "checkpoint")
        state = vi.State(
            network=load_state_dict(layout, record.parameters),
            step=record.step,
            memory=tuple(_snapshot(row, layout) for row in record.memory),
            reservoir=record.reservoir,
            replay=record.replay,
        )
        best = None if record.best is None else _snapshot(record.best, layout)
        kept = tuple(_snapshot(row, layout) for row in record.kept)
        return cls(state, best, record.last_gain, record.stale, kept, record.at_ceiling)


def begin(network: Sequential, recipe: Recipe) -> Progress:
    """A run before its first step: a word readout has chosen its words on training inputs."""
    order = Key(recipe.options.seed).child("readout").generator().permutation(len(recipe.train))
    inputs = [recipe.train.inputs[int(i)] for i in order[:READ_BY]]
    return Progress(vi.init(with_readout(network, recipe.algorithm.calibrator, inputs)))


def advance(
    progress: Progress,
    recipe: Recipe,
    tried: Mapping[int, tuple[str, ...]] | None = None,
    opinions: Mapping[int, tuple[Opinion, ...]] | None = None,
) -> tuple[Progress, list[Event]]:
    """One update, and a validation where one is due; all is derived from (seed, step), `tried` and `opinions`."""
    options, state = recipe.options, progress.state
    key = Key(options.seed).child("step", state.step)
    batch = replace(_batch(recipe, key), tried=tried or {}, opinions=opinions or {})
    state, info = vi.update(state, batch, key, recipe.algorithm)
    events: list[Event] = [step_event(state, info, batch.y)]
    progress = replace(progress, state=state)
    if recipe.dev is not None and (state.step % options.val_every == 0 or state.step >= options.steps):
        progress, more = measure(progress, recipe, _runners_up(info, state.network, _members(progress, options) - 1))
        events.extend(more)
    return progress, events


def measure(progress: Progress, recipe: Recipe, runners_up: Sequence[Sequential] = ()) -> tuple[Progress, list[Event]]:
    """Validate: best so far, memory, and back to the best after `tolerance` validations without gain.

    Networks that came close may answer together with the best in the end. They are validated beside it, and have no
    part in what training does.
    """
    options, state, dev = recipe.options, progress.state, recipe.dev
    if dev is None:
        return progress, []
    support = _scored_before(state)
    validation = validate(state.network, dev, recipe.metric, recipe.algorithm.calibrator, support)
    score, select_by = validation.score(recipe.select_by)
    best = progress.best
    gained = best is None or score > best.score
    snapshot = Snapshot(validation.network, score, state.step)
    members = _members(progress, options)
    kept = remember(progress.kept, snapshot, members)
    for network in runners_up:
        if network.parameters() not in [other.prompts for other in kept]:
            close = validate(network, dev, recipe.metric, recipe.algorithm.calibrator, support)
            beside = Snapshot(close.network, close.score(recipe.select_by)[0], state.step)
            kept = remember(kept, beside, members)
    state = replace(state, memory=remember(state.memory, snapshot, options.memory))
    events: list[Event] = [
        Validated(
            step=state.step, score=score, select_by=select_by, best=gained, result=validation.evaluation.to_record()
        )
    ]
    if gained or best is None:
        ceiling = options.stop_at_accuracy
        at_ceiling = ceiling is not None and len(dev) >= FEWEST_DEV and validation.evaluation.accuracy.mean >= ceiling
        return Progress(replace(state, network=validation.network), snapshot, kept=kept, at_ceiling=at_ceiling), events
    since = progress.last_gain + 1
    if options.tolerance is not None and since >= options.tolerance:  # in the last step too: a run may be extended
        events.append(Backtracked(step=state.step, to_step=best.step))
        return Progress(replace(state, network=best.network), best, 0, progress.stale + 1, kept), events
    return Progress(state, best, since, progress.stale + 1, kept), events


def _members(progress: Progress, options: Options) -> int:
    """How many networks answer together."""
    network = progress.state.network
    last = network.layers[-1].classifier
    return options.members(len(network), last is not None and last.readout.wide)


def _scored_before(state: vi.State) -> Support:
    """The examples that candidates have been scored on, with the hidden texts of most weight."""
    return [(LayerInput(e.x, max(e.below, key=lambda pair: pair[1])[0]), e.y) for e in state.replay.examples if e.below]


def settle(progress: Progress, recipe: Recipe) -> tuple[Progress, Pool | None]:
    """After the last step: wide readouts fitted to all examples, and the weights of networks that answer together.

    Each of the kept networks is fitted to `fit_examples` of the train set (of a deep network, to those that candidates
    were scored on) and the dev set, without the examples that it shows. The product of experts is fitted to the
    cross-fitted predictions for the examples that no member shows.
    """
    options, dev, kept = recipe.options, recipe.dev, progress.kept
    last = progress.state.network.layers[-1].classifier
    if dev is None or not kept or last is None or not last.readout.wide:
        return progress, None
    support = _scored_before(progress.state)
    if len(progress.state.network) == 1:
        order = Key(options.seed).child("settle").generator().permutation(len(recipe.train))
        chosen = recipe.train.select([int(i) for i in order[: options.fit_examples]])
        support = [(LayerInput(e.input, e.input), e.target) for e in chosen]
    found = [fit_output(snapshot.network, dev, recipe.algorithm.calibrator, support) for snapshot in kept]
    settled = tuple(replace(snapshot, network=fit.network) for snapshot, fit in zip(kept, found, strict=True))
    progress = replace(progress, kept=settled)
    if len(kept) == 1 or options.pool == "mean":
        return progress, None
    rows = np.stack([np.concatenate([np.where(f.usable[:, None], f.rows, np.nan), f.support_rows]) for f in found])
    targets = np.array([last.index(y) for y in (*dev.targets, *(y for _, y in support))], dtype=np.int64)
    known = np.isfinite(rows).all(axis=(0, 2))
    return progress, Pool(*fit_pool(rows[:, known], targets[known])) if known.any() else None


@dataclass(frozen=True, eq=False)
class Pool:
    """A fitted product of experts: a [M] and b [C] (see `dln.infer.calibrate.fit_pool`)."""

    weights: Floats
    bias: Floats


def _runners_up(info: vi.Info, network: Sequential, num: int) -> list[Sequential]:
    """`network` with each of the `num` best losers of the last layer's election instead."""
    last = len(network) - 1
    steps = [step for step in info.layers if step.position == last]
    return [network.with_layer(last, layer) for layer in steps[-1].runners_up(num)] if steps and num else []


def _batch(recipe: Recipe, key: Key) -> vi.Batch:
    """The step's examples, none of which the output layer may show, and those it may."""
    train, options = recipe.train, recipe.options
    shown = _shown(train, options)
    drawn = train.select([i for i, x in enumerate(train.inputs) if x not in shown])
    size = min(options.batch_size, len(drawn))
    chosen = drawn.select(batch_indices(drawn, size, key.child("batch"), options.balanced))
    inside = set(chosen.inputs)
    pool = tuple((e.input, e.target) for e in train if e.input not in inside and (not shown or e.input in shown))
    return vi.Batch(chosen.inputs, chosen.targets, pool)


def _shown(train: Dataset, options: Options) -> frozenset[str]:
    """The inputs that the output layer may show and that never judge it, the same in every step.

    Empty where there is no such part; then any example outside of the batch may be shown.
    """
    distinct = len({text_key(x) for x in train.inputs})
    size = round(options.shown * distinct)
    shows = "demonstrations" in options.inference.prompt_proposals and not options.inference.private
    if size < 1 or distinct - size < 1 or not shows:
        return frozenset()
    return frozenset(split(train, (size,), options.seed)[0].inputs)


def _snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    return {"parameters": snapshot.network.state_dict(), "score": snapshot.score, "step": snapshot.step}


def _snapshot(record: SnapshotRecord, layout: Sequential) -> Snapshot:
    return Snapshot(load_state_dict(layout, record.parameters), record.score, record.step)


def predictor_of(progress: Progress, recipe: Recipe, pool: Pool | None = None) -> AnyNetwork:
    """What would answer now: the best `ensemble` networks together, or the result where there is no other.

    With a `pool` they are a product of experts. The weights of a mixture follow the validation scores where these are
    log-likelihoods, and are equal else. Without a dev set there is nothing to choose several networks by: the result
    answers alone.
    """
    options, dev, members = recipe.options, recipe.dev, _members(progress, recipe.options)
    if members == 1 or dev is None or not progress.kept:
        return progress.result.network
    if pool is not None and (pool.weights > 0).any():
        heavy = pool.weights > 0
        used = [snapshot.network for snapshot, weighs in zip(progress.kept, heavy, strict=True) if weighs]
        return Ensemble(used, pool.weights[heavy], pool.bias)
    scored = recipe.select_by == "log_likelihood" and progress.state.network.labels is not None
    n = len(dev) if scored else None
    return answering(progress.kept, members, examples=n, temperature=options.ensemble_temp)


def member_records(predictor: AnyNetwork, kept: Sequence[Snapshot]) -> list[MemberRecord]:
    """The members of an ensemble with their validations; none of one network."""
    if not isinstance(predictor, Ensemble):
        return []
    validated = {id(snapshot.network): snapshot for snapshot in kept}
    found = [
        (validated[id(member)], weight) for member, weight in zip(predictor.members, predictor.weights, strict=True)
    ]
    return [
        MemberRecord(
            weight=float(weight),
            step=snapshot.step,
            score=snapshot.score if math.isfinite(snapshot.score) else None,
            parameters=snapshot.network.state_dict(),
        )
        for snapshot, weight in found
    ]
