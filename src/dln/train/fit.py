"""The training loop: step, record, save, until done.

`fit` repeats the steps of `dln.train.progress`, writes their events and a checkpoint after each, calls the callbacks,
and returns a `FitResult`.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from dln.arguments import Seed, Size, checked
from dln.data import Dataset, FunctionMetric, Grader, Metric, SetMetric, exact_match
from dln.data.dataset import text_key
from dln.errors import BudgetReached, DlnError, InputError
from dln.extensions import described
from dln.infer import vi
from dln.infer.calibrate import Preparing
from dln.infer.constraints import copied_ngrams
from dln.infer.race import with_word_memory, without_word_memory
from dln.io import dump
from dln.lm.base import LanguageModel
from dln.lm.load import as_lm
from dln.lm.local.threads import restore_threads
from dln.lm.meter import Meter
from dln.nn import Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble, members_of
from dln.nn.saving import network_to_json
from dln.train import build
from dln.train.build import prepared
from dln.train.callbacks import Callback, Listener, ProgressBar, interactive, listeners
from dln.train.control import Controls
from dln.train.evaluate import GradedReward, run_grader
from dln.train.events import (
    Event,
    Finished,
    Interrupted,
    Resumed,
    Started,
    StepDone,
    Validated,
    scoring_modes_record,
)
from dln.train.grades import GradeFile
from dln.train.options import InferenceOptions, Options, keyword_options, resolve_options
from dln.train.progress import Progress, Recipe, advance, begin, measure, member_records, predictor_of, settle
from dln.train.result import FitResult, History
from dln.train.run import GRADES, Run, check_data, check_unchanged, of_kind, provenance

__all__ = ["fit"]


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
    metric: Metric | Grader | str = exact_match,
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
        metric: a name ("exact_match", a registered one, "package.module:function", "file.py:function") or a callable
            (example, prediction[, trace]) or (prediction, target) -> float, bool or `dln.Score`, from 0 to 1, async
            ones too (see `dln.data.metrics`). With `preset="paper"` and labels the default is `paper`.
            The options `metric_workers` and `metric_timeout` say how it is called.
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
    _warn_of_overlap(train, dev)
    store = None if run_dir is None else GradeFile(Path(run_dir) / GRADES)
    if metric is exact_match and chosen.preset == "paper" and network.labels is not None:
        metric = "paper"
    graded = run_grader(metric, network.labels, chosen, store)
    own = isinstance(graded.metric, FunctionMetric) and graded.metric.own
    selects = own or isinstance(graded.metric, SetMetric)
    given = None if algorithm is None else described(algorithm)
    longest = max((*train.inputs, *(dev.inputs if dev is not None else ()), *readable), key=len)
    if algorithm is None:
        algorithm = build.algorithm(
            chosen,
            str.__eq__,
            reward=GradedReward.of(graded, train),
            own_metric=own,
            inputs=train.inputs,
            network=network,
            prompt_lm=None if prompt_lm is None else as_lm(prompt_lm),
            hidden_lm=None if hidden_lm is None else as_lm(hidden_lm),
            longest=longest,
        )
    else:
        _refuse_twice(chosen, preset, prompt_lm, hidden_lm)
        algorithm = replace(algorithm, m_step=replace(algorithm.m_step, longest=algorithm.m_step.longest or longest))
    stopper = None if chosen.stopper is None else build.strategy("stopper", chosen.stopper, {})
    recipe = Recipe(algorithm, chosen, train, dev, graded, stopper, "accuracy" if selects else chosen.select_by)
    if isinstance(algorithm.calibrator, Preparing):
        network = with_word_memory(network)
    meta = {**provenance(network, train, dev, chosen, graded.metric, task, config, given), **(record or {})}
    meta["scoring_modes"] = scoring_modes_record(algorithm.scoring_modes).model_dump(mode="json")
    told = listeners(callbacks)
    with ExitStack() as stack:
        run, begun = _open(stack, network, run_dir, resume, meta)
        if store is not None:
            stack.enter_context(store)
        if interactive() if progress is None else progress:
            told = [*told, stack.enter_context(ProgressBar()).on_event]
        before = [] if run is None else run.events()
        emit = _Emitter(run, told, meter, before)
        if of_kind(before, Started):
            emit(Resumed(step=-1 if begun is None else begun.state.step, steps=chosen.steps))
        else:
            emit(_started(run_dir, network, train, dev, chosen, task, meta))
        num_layers = sum(len(layer.branches) for layer in network.layers)
        controls = Controls(None if run is None else run.path, before, num_layers, emit)
        return _loop(network, begun, recipe, run, emit, controls, meter)


def _warn_of_overlap(train: Dataset, dev: Dataset | None) -> None:
    """Warn if most dev inputs are training inputs too: selection on them prefers prompts that repeat what they show."""
    known = {text_key(x) for x in train.inputs}
    shared = 0 if dev is None else sum(text_key(x) in known for x in dev.inputs)
    if dev is not None and shared > len(dev) / 2:
        warnings.warn(
            f"{shared} of {len(dev)} dev inputs are training inputs too: the dev score will be too high; "
            "give other examples as dev",
            UserWarning,
            stacklevel=4,
        )


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
    controls: Controls,
    meter: Meter | None,
) -> FitResult:
    reason: str | None = None
    current, pool = progress or Progress(vi.init(network)), None
    try:
        started = time.perf_counter()
        if progress is None:
            current = begin(network, recipe)
            current, events = measure(current, recipe)
            _commit(current, events, run, emit, time.perf_counter() - started)
        while (reason := current.done(recipe)) is None:
            if controls.stop(current.state.step):
                reason = "stopped"
                break
            started = time.perf_counter()
            step = current.state.step
            current, events = advance(current, recipe, controls.tried(step), controls.opinions(step))
            _commit(current, events, run, emit, time.perf_counter() - started)
        current, pool = settle(current, recipe)
    except BudgetReached:
        reason = "budget"
    except (KeyboardInterrupt, DlnError) as error:
        why = str(error) or "interrupted by the user"
        emit(Interrupted(step=current.state.step, reason=why, usage=_usage(meter)))
        raise
    best, predictor = current.result, predictor_of(current, recipe, pool)
    plain = without_word_memory
    answers = predictor.each(plain) if isinstance(predictor, Ensemble) else plain(predictor)
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
            bias=predictor.bias.tolist() if isinstance(predictor, Ensemble) and predictor.bias is not None else None,
            copied=_copied(answers, recipe),
            usage=_usage(meter),
        )
    )
    return FitResult(
        network=plain(best.network),
        initial=plain(network),
        best_step=best.step,
        score=best.score,
        reason=reason,
        steps=current.state.step,
        run_dir=None if run is None else run.path,
        ensemble=answers if isinstance(answers, Ensemble) else None,
        history=emit.history,
    )


def _copied(network: AnyNetwork, recipe: Recipe) -> list[str] | None:
    """Runs of five words that the instructions share with training inputs; None where prompts are not private."""
    if not recipe.options.inference.private:
        return None
    prompts = [prompt for member in members_of(network) for prompt in member.parameters()]
    return copied_ngrams([prompt.instruction for prompt in prompts], recipe.train.inputs)


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
