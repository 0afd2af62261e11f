"""The training loop: step, record, save, until done.

`advance` takes a run one step further and `measure` validates it; both are pure functions of where the run stands
(`Progress`) and of what stays the same (`Recipe`), and everything random is derived from (seed, step). `fit` repeats
them, writes their events and checkpoints, and returns a `FitResult`.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dln.arguments import Seed, Size, checked
from dln.data import Dataset, Metric, NamedMetric, batch_indices, exact_match, split
from dln.data.dataset import text_key
from dln.errors import BudgetReached, DlnError, InputError
from dln.extensions import described
from dln.infer import vi
from dln.infer.memory import Replay, Reservoir, Snapshot, answering, remember
from dln.io import dump, parse
from dln.lm.base import LanguageModel
from dln.lm.load import as_lm
from dln.lm.local.threads import restore_threads
from dln.lm.meter import Meter
from dln.nn import Sequential, load_state_dict
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.nn.saving import network_to_json
from dln.random import Key
from dln.train import build
from dln.train.build import prepared
from dln.train.callbacks import Callback, Listener, ProgressBar, interactive, listeners
from dln.train.evaluate import judge, validate
from dln.train.events import (
    Backtracked,
    Event,
    Finished,
    Interrupted,
    MemberRecord,
    Resumed,
    Started,
    StepDone,
    Validated,
    scoring_modes_record,
    step_event,
)
from dln.train.options import InferenceOptions, Options, Stopper, keyword_options, resolve_options
from dln.train.result import FitResult, History
from dln.train.run import Run, check_data, check_unchanged, of_kind, provenance

__all__ = ["Progress", "Recipe", "advance", "fit", "measure", "member_records", "predictor_of"]


@dataclass(frozen=True)
class Recipe:
    """What stays the same from step to step."""

    algorithm: vi.VariationalInference
    options: Options
    train: Dataset
    dev: Dataset | None
    metric: NamedMetric
    stopper: Stopper | None = None


@dataclass(frozen=True)
class SnapshotRecord:
    """A network at a validation, in a checkpoint."""

    parameters: dict[str, Any]
    score: float
    step: int


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
    """

    state: vi.State
    best: Snapshot | None = None
    last_gain: int = 0
    stale: int = 0
    kept: tuple[Snapshot, ...] = ()

    @property
    def result(self) -> Snapshot:
        """The network that training would return now."""
        return self.kept[0] if self.kept else Snapshot(self.state.network, float("nan"), self.state.step)

    def done(self, recipe: Recipe) -> str | None:
        """Why training is over, or None."""
        options = recipe.options
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
        return cls(state, best, record.last_gain, record.stale, kept)


def advance(progress: Progress, recipe: Recipe) -> tuple[Progress, list[Event]]:
    """One update, and a validation where one is due; everything is derived from (seed, step)."""
    options, state = recipe.options, progress.state
    key = Key(options.seed).child("step", state.step)
    batch = _batch(recipe, key)
    state, info = vi.update(state, batch, key, recipe.algorithm)
    events: list[Event] = [step_event(state, info, batch.y)]
    progress = replace(progress, state=state)
    if recipe.dev is not None and (state.step % options.val_every == 0 or state.step >= options.steps):
        progress, more = measure(progress, recipe, _runners_up(info, state.network, options.ensemble - 1))
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
    validation = validate(state.network, dev, recipe.metric, recipe.algorithm.calibrator)
    score, select_by = validation.score(options.select_by)
    best = progress.best
    gained = best is None or score > best.score
    snapshot = Snapshot(validation.network, score, state.step)
    kept = remember(progress.kept, snapshot, options.ensemble)
    for network in runners_up:
        if network.parameters() not in [other.prompts for other in kept]:
            close = validate(network, dev, recipe.metric, recipe.algorithm.calibrator)
            beside = Snapshot(close.network, close.score(options.select_by)[0], state.step)
            kept = remember(kept, beside, options.ensemble)
    state = replace(state, memory=remember(state.memory, snapshot, options.memory))
    events: list[Event] = [
        Validated(
            step=state.step, score=score, select_by=select_by, best=gained, result=validation.evaluation.to_record()
        )
    ]
    if gained or best is None:
        return Progress(replace(state, network=validation.network), snapshot, kept=kept), events
    since = progress.last_gain + 1
    if options.tolerance is not None and since >= options.tolerance and state.step < options.steps:
        events.append(Backtracked(step=state.step, to_step=best.step))
        return Progress(replace(state, network=best.network), best, 0, progress.stale + 1, kept), events
    return Progress(state, best, since, progress.stale + 1, kept), events


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

    None where nothing is shown; then any example may be either.
    """
    distinct = len({text_key(x) for x in train.inputs})
    size = round(options.shown * distinct)
    if size < 1 or distinct - size < 1 or "demonstrations" not in options.inference.prompt_proposals:
        return frozenset()
    return frozenset(split(train, (size,), options.seed)[0].inputs)


def _snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    return {"parameters": snapshot.network.state_dict(), "score": snapshot.score, "step": snapshot.step}


def _snapshot(record: SnapshotRecord, layout: Sequential) -> Snapshot:
    return Snapshot(load_state_dict(layout, record.parameters), record.score, record.step)


def predictor_of(progress: Progress, recipe: Recipe) -> AnyNetwork:
    """What would answer now: the best `ensemble` networks together, or the result where there is no other.

    The weights follow the validation scores where these are log-likelihoods, and are equal else. Without a dev set
    there is nothing to choose several networks by: the result answers alone.
    """
    options, dev = recipe.options, recipe.dev
    if options.ensemble == 1 or dev is None or not progress.kept:
        return progress.result.network
    scored = options.select_by == "log_likelihood" and progress.state.network.labels is not None
    n = len(dev) if scored else None
    return answering(progress.kept, options.ensemble, examples=n, temperature=options.ensemble_temp)


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


@checked
def fit(
    network: Sequential,
    train: Dataset,
    dev: Dataset | None = None,
    *,
    preset: str = "default",
    steps: Size | None = None,
    seed: Seed | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    options: Options | Mapping[str, Any] | None = None,
    algorithm: vi.VariationalInference | None = None,
    metric: Metric | str = exact_match,
    callbacks: Sequence[Callback | Listener | str] = (),
    progress: bool | None = None,
    prompt_lm: LanguageModel | str | None = None,
    hidden_lm: LanguageModel | str | None = None,
    meter: Meter | None = None,
    task: str = "",
    config: Mapping[str, Any] | None = None,
    readable: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
    **more: Any,
) -> FitResult:
    """Train the prompts of `network`.

    Args:
        network: the layers with their initial prompts.
        train: labelled examples to learn from.
        dev: labelled examples to select by; without them the last network is returned.
        preset: named options, "default" or "paper".
        steps: updates; overrides the option.
        seed: random seed; overrides the option.
        run_dir: where events, checkpoints and the result go; None keeps nothing.
        resume: go on with the run in `run_dir` instead of starting one.
        options: an `Options`, or changes to the preset as nested dictionaries.
        algorithm: the training step itself (`dln.infer.vi.build(...)`), in place of one built from the options of
            `inference`; its own `correct` says within a step whether an answer is right.
        metric: a name ("exact_match", a registered one, "package.module:function") or a callable
            (prediction, target) -> float, bool or `dln.Score`, from 0 to 1; right is ≥ 0.5.
        callbacks: called with each event: functions, objects with `on_event`, or registered names.
        progress: whether to show a progress bar; by default on a terminal and in a notebook.
        prompt_lm: the model that proposes prompts, or its name; default each layer's own.
        hidden_lm: the model of the "edit" proposal, or its name, and of all hidden proposals with
            `inference.hidden_writer="hidden_lm"`; default each layer's own.
        meter: whose usage is written into the events.
        task: a name for reports.
        config: what the command line needs to build the same run again; kept in run.yaml.
        readable: further inputs (the test examples') that learnt prompts must leave room for in the context.
        record: what else run.yaml shall say: an `estimate` and the `engines` go into the first event too.
        more: options as keywords: `batch_size=8, num_prompts=6, stopper=...`; they go over `options`.

    Raises:
        InputError: options, data and network do not fit together, the run cannot be written, or a resumed run would
            compute with something else than it began with.
        RunFailed: not one example of a batch could be scored.
        KeyboardInterrupt: passed on, after the run was left resumable.
    """
    chosen = _options(preset, options, {"steps": steps, "seed": seed}, more)
    network = prepared(network, chosen)
    check_data(network, train, dev)
    judged = judge(metric, network.labels)
    given = None if algorithm is None else described(algorithm)
    longest = max((*train.inputs, *(dev.inputs if dev is not None else ()), *readable), key=len)
    if algorithm is None:
        algorithm = build.algorithm(
            chosen,
            lambda p, y: judged(p, y) >= 0.5,
            network=network,
            prompt_lm=None if prompt_lm is None else as_lm(prompt_lm),
            hidden_lm=None if hidden_lm is None else as_lm(hidden_lm),
            longest=longest,
        )
    else:
        _refuse_twice(chosen, preset, prompt_lm, hidden_lm)
        algorithm = replace(algorithm, m_step=replace(algorithm.m_step, longest=algorithm.m_step.longest or longest))
    stopper = None if chosen.stopper is None else build.strategy("stopper", chosen.stopper, {})
    recipe = Recipe(algorithm, chosen, train, dev, judged, stopper)
    meta = {**provenance(network, train, dev, chosen, judged, task, config, given), **(record or {})}
    meta["scoring_modes"] = scoring_modes_record(algorithm.scoring_modes).model_dump(mode="json")
    told = listeners(callbacks)
    with ExitStack() as stack:
        run, begun = _open(stack, network, run_dir, resume, meta)
        if interactive() if progress is None else progress:
            told = [*told, stack.enter_context(ProgressBar()).on_event]
        before = [] if run is None else run.events()
        emit = _Emitter(run, told, meter, before)
        if of_kind(before, Started):
            emit(Resumed(step=-1 if begun is None else begun.state.step))
        else:
            emit(_started(run_dir, network, train, dev, chosen, task, meta))
        return _loop(network, begun, recipe, run, emit, meter)


_ARGUMENTS = tuple(name for name in inspect.signature(fit).parameters if name != "more")


def _options(
    preset: str, options: Options | Mapping[str, Any] | None, named: Mapping[str, Any], more: Mapping[str, Any]
) -> Options:
    """The preset, with `options` over it, and the keywords over both."""
    keywords = keyword_options(more, _ARGUMENTS)
    keywords |= {name: value for name, value in named.items() if value is not None}
    if not isinstance(options, Options):
        return resolve_options(preset, dict(options or {}), keywords)
    if not keywords:
        return options
    inner: dict[str, Any] = {**dict(options.inference), **keywords.pop("inference", {})}
    changed: dict[str, Any] = {**dict(options), **keywords, "inference": InferenceOptions(**inner)}
    return Options(**changed)


def _refuse_twice(options: Options, preset: str, *models: object) -> None:
    """Options of one step have no effect where the algorithm itself is given."""
    changed = options.inference != resolve_options(preset).inference
    if changed or any(model is not None for model in models):
        raise InputError(
            "the training step is described twice",
            where="fit, argument 'algorithm'",
            got="algorithm, and " + ("options of inference" if changed else "prompt_lm or hidden_lm"),
            expected="one of the two",
            fix="give these decisions to dln.infer.vi.build(...), or leave out algorithm",
        )


def _loop(
    network: Sequential,
    progress: Progress | None,
    recipe: Recipe,
    run: Run | None,
    emit: _Emitter,
    meter: Meter | None,
) -> FitResult:
    reason: str | None = None
    current = progress or Progress(vi.init(network))
    try:
        started = time.perf_counter()
        if progress is None:
            current, events = measure(current, recipe)
            _commit(current, events, run, emit, time.perf_counter() - started)
        while (reason := current.done(recipe)) is None:
            started = time.perf_counter()
            current, events = advance(current, recipe)
            _commit(current, events, run, emit, time.perf_counter() - started)
    except BudgetReached:
        reason = "budget"
    except (KeyboardInterrupt, DlnError) as error:
        why = str(error) or "interrupted by the user"
        emit(Interrupted(step=current.state.step, reason=why, usage=_usage(meter)))
        raise
    best, predictor = current.result, predictor_of(current, recipe)
    score = None if best.score != best.score else best.score  # NaN: there was no dev set
    if run is not None:
        run.save_network(predictor, {"run": run.path.name, "best_step": best.step, "dev_score": score})
    emit(
        Finished(
            step=current.state.step,
            reason=reason,
            best_step=best.step,
            score=score,
            network=network_to_json(best.network),
            members=member_records(predictor, current.kept),
            usage=_usage(meter),
        )
    )
    return FitResult(
        network=best.network,
        initial=network,
        best_step=best.step,
        score=best.score,
        reason=reason,
        steps=current.state.step,
        run_dir=None if run is None else run.path,
        ensemble=predictor if isinstance(predictor, Ensemble) else None,
        history=emit.history,
    )


def _commit(progress: Progress, events: list[Event], run: Run | None, emit: _Emitter, seconds: float) -> None:
    """Events first, then the checkpoint: a kill in between repeats the step, it never loses one."""
    # the seconds are those of all events together and are written to the first
    emit(*(event if i else event.model_copy(update={"seconds": seconds}) for i, event in enumerate(events)))
    if run is not None:
        run.save_checkpoint(progress.to_json())


class _Emitter:
    """Writes events, tells them to the callbacks, and keeps what the history is made of."""

    def __init__(
        self, run: Run | None, listeners: Sequence[Listener], meter: Meter | None, before: Sequence[Event]
    ) -> None:
        self._run, self._listeners, self._meter = run, listeners, meter
        self._told = list(map(_brief, before))

    def __call__(self, *events: Event) -> None:
        usage = {"usage": _usage(self._meter)}
        stamped = [e.model_copy(update=usage) if isinstance(e, StepDone | Validated) else e for e in events]
        if self._run is not None:
            self._run.append(*stamped)
        for event in stamped:
            self._told.append(_brief(event))
            for listener in self._listeners:
                listener(event)

    @property
    def history(self) -> History:
        return History.of(self._told)


def _brief(event: Event) -> Event:
    """A step without its texts, which are many."""
    texts: dict[str, Any] = {"examples": [], "hidden": [], "layers": [], "parameters": {}}
    return event.model_copy(update=texts) if isinstance(event, StepDone) else event


def _open(
    stack: ExitStack, network: Sequential, run_dir: str | Path | None, resume: bool, meta: dict[str, Any]
) -> tuple[Run | None, Progress | None]:
    if run_dir is None:
        if resume:
            raise InputError(
                "there is nothing to resume without a run directory",
                where="run_dir",
                got="None",
                expected="the directory of a run",
                fix='run_dir="runs/a"',
            )
        return None, None
    if not resume:
        return stack.enter_context(Run.create(run_dir, meta)), None
    run = stack.enter_context(Run.open(run_dir))
    check_unchanged(run, meta)
    restore_threads(run.meta.get("threads"))
    saved = run.load_checkpoint()
    return run, None if saved is None else Progress.from_json(saved, network)


def _started(
    run_dir: str | Path | None,
    network: Sequential,
    train: Dataset,
    dev: Dataset | None,
    options: Options,
    task: str,
    meta: Mapping[str, Any],
) -> Started:
    return Started(
        run=Path(run_dir).name if run_dir is not None else "unsaved",
        task=task or train.name,
        labels=None if network.labels is None else list(network.labels),
        train_size=len(train),
        dev_size=0 if dev is None else len(dev),
        steps=options.steps,
        network=meta["network"],
        options=meta["options"],
        versions=meta["versions"],
        data_hash=meta["data_hash"],
        estimate=meta.get("estimate"),
        engines=meta.get("engines", {}),
    )


def _usage(meter: Meter | None) -> dict[str, float]:
    return {} if meter is None else dump(meter.snapshot())
