"""The training loop: step, record, save, until done. Everything random is derived from (seed, step)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dln.arguments import Seed, Size, checked
from dln.data import Dataset, Metric, exact_match
from dln.errors import BudgetReached, DlnError, InputError
from dln.infer import vi
from dln.lm.base import LanguageModel
from dln.lm.load import as_lm
from dln.lm.metered import Meter
from dln.nn import Sequential
from dln.nn.ensemble import Ensemble
from dln.nn.saving import network_to_json
from dln.schema import dump
from dln.train.agreement import check_data, check_unchanged
from dln.train.answering import member_records, predictor_of
from dln.train.assemble import algorithm, calibrator, prepared
from dln.train.evaluate import judge
from dln.train.event_log import of_kind
from dln.train.events import Event, Finished, Interrupted, Resumed, Started, StepDone, Validated
from dln.train.options import Options, resolve_options
from dln.train.progress import Progress, Recipe, advance, measure
from dln.train.provenance import provenance
from dln.train.record import scoring_modes_record
from dln.train.result import FitResult
from dln.train.run import Run

__all__ = ["Callback", "fit"]

Callback = Callable[[Event], object]
"""Sees every event right after it was written."""


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
    metric: Metric | str = exact_match,
    callbacks: Sequence[Callback] = (),
    prompt_lm: LanguageModel | str | None = None,
    hidden_lm: LanguageModel | str | None = None,
    meter: Meter | None = None,
    task: str = "",
    config: Mapping[str, Any] | None = None,
    readable: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train the prompts of `network`.

    Args:
        network: the layers with their initial prompts.
        train: labelled examples to learn from.
        dev: labelled examples to select by; without them the last network is returned.
        preset: named options, "default" or "paper".
        steps: updates; overrides the option.
        seed: of everything random; overrides the option.
        run_dir: where events, checkpoints and the result go; None keeps nothing.
        resume: go on with the run in `run_dir` instead of starting one.
        options: an `Options`, or changes to the preset as nested dictionaries.
        metric: a name ("exact_match", "package.module:function") or a callable (prediction, target) -> float, bool
            or `dln.Score`, from 0 to 1; right is ≥ 0.5.
        callbacks: called with each event.
        prompt_lm: the model that proposes prompts, or its name; default each layer's own.
        hidden_lm: the model of the "edit" proposal, or its name, and of all hidden proposals with
            `inference.hidden_writer="hidden_lm"`; default each layer's own.
        meter: whose usage is written into the events.
        task: a name for reports.
        config: what the command line needs to build the same run again; kept in run.yaml.
        record: what else run.yaml shall say: an `estimate` and the `engines` go into the first event too.
        readable: further inputs (the test examples') that learnt prompts must leave room for in the context.

    Raises:
        InputError: options, data and network do not fit together, or the run cannot be written.
        RunFailed: not one example of a batch could be scored.
        KeyboardInterrupt: passed on, after the run was left resumable.
    """
    chosen = options if isinstance(options, Options) else resolve_options(preset, dict(options or {}))
    overrides = {k: v for k, v in (("steps", steps), ("seed", seed)) if v is not None}
    chosen = chosen.model_copy(update=overrides)
    network = prepared(network, chosen)
    check_data(network, train, dev)
    score = judge(metric, network.labels)
    recipe = Recipe(
        algorithm=algorithm(
            chosen,
            lambda p, y: score(p, y) >= 0.5,
            network=network,
            prompt_lm=None if prompt_lm is None else as_lm(prompt_lm),
            hidden_lm=None if hidden_lm is None else as_lm(hidden_lm),
            longest=max((*train.inputs, *(dev.inputs if dev is not None else ()), *readable), key=len),
        ),
        calibrator=calibrator(chosen.inference),
        options=chosen,
        train=train,
        dev=dev,
        metric=score,
    )
    meta = {**provenance(network, train, dev, chosen, score, task, config), **(record or {})}
    meta["scoring_modes"] = scoring_modes_record(recipe.algorithm.scoring_modes).model_dump(mode="json")
    with ExitStack() as stack:
        run, progress = _open(stack, network, run_dir, resume, meta)
        emit = _emitter(run, callbacks, meter)
        if run is None or not of_kind(run.events(), Started):
            emit(_started(run_dir, network, train, dev, chosen, task, meta))
        else:
            emit(Resumed(step=-1 if progress is None else progress.state.step))
        return _loop(network, progress, recipe, run, emit, meter)


def _loop(
    network: Sequential,
    progress: Progress | None,
    recipe: Recipe,
    run: Run | None,
    emit: Callable[..., None],
    meter: Meter | None,
) -> FitResult:
    reason: str | None = None
    current = progress or Progress(vi.init(network))
    try:
        started = time.perf_counter()
        if progress is None:
            current, events = measure(current, recipe)
            _commit(current, events, run, emit, time.perf_counter() - started)
        while (reason := current.done(recipe.options)) is None:
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
    )


def _commit(
    progress: Progress, events: list[Event], run: Run | None, emit: Callable[..., None], seconds: float
) -> None:
    """Events first, then the checkpoint: a kill in between repeats the step, it never loses one."""
    # the seconds are those of all events together and are written to the first
    emit(*(event if i else event.model_copy(update={"seconds": seconds}) for i, event in enumerate(events)))
    if run is not None:
        run.save_checkpoint(progress.to_json())


def _emitter(run: Run | None, callbacks: Sequence[Callback], meter: Meter | None) -> Callable[..., None]:
    def emit(*events: Event) -> None:
        stamped = [
            e.model_copy(update={"usage": _usage(meter)}) if isinstance(e, StepDone | Validated) else e for e in events
        ]
        if run is not None:
            run.append(*stamped)
        for event in stamped:
            for callback in callbacks:
                callback(event)

    return emit


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
