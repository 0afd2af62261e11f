"""`dln.optimize`: train the text parameters of any Python callable by a metric."""

from __future__ import annotations

import hashlib
import html
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dln.arguments import Count, Seed, Size, checked, shown
from dln.data import Dataset
from dln.errors import BudgetReached, InputError, RunFailed
from dln.infer.mstep import Best, Selector
from dln.io import parse, read_text, write_atomically
from dln.lm.base import LanguageModel
from dln.lm.load import as_lm
from dln.lm.meter import Budget, Usage
from dln.programs.evaluations import Evaluations, Journal, Outcome, Recorded, program_metric
from dln.programs.proposals import EditText, ParameterProposal, RewriteParameter, TextProposal, needed
from dln.programs.records import finished_event, program_network, started_event, step_event, validated_event
from dln.programs.step import ProgramState, StepInfo, VariationalProgram
from dln.programs.trace import Program, Request, content, text_view
from dln.random import Key
from dln.train.callbacks import Callback, Listener, listeners
from dln.train.events import Event, Interrupted, Resumed
from dln.train.result import History, html_table
from dln.train.run import Run, check_unchanged

__all__ = ["BEST", "ProgramResult", "load_parameters", "optimize"]

BEST: Selector = Best()


@dataclass(frozen=True)
class ProgramResult:
    """What `optimize` returns.

    Attributes:
        parameters: the trained texts by name.
        initial: the texts that training started from.
        score: mean reward of `parameters` on the dev examples; without them, on the last batch.
        initial_score: of `initial` on the dev examples; None without them.
        best_step: the step the texts are from; 0 means that nothing better was found.
        steps: steps done.
        reason: why training ended: "steps" or "budget".
        metric_calls: calls of the metric.
        rollouts: runs of the program.
        usage: of the language models, those that propose included.
        failed: evaluations without a reward, counted by reason.
        run_dir: the run directory, if there is one.
        history: one record per step.
    """

    parameters: Mapping[str, str]
    initial: Mapping[str, str]
    score: float
    initial_score: float | None
    best_step: int
    steps: int
    reason: str
    metric_calls: int
    rollouts: int
    usage: Usage
    failed: Mapping[str, int] = field(default_factory=dict[str, int])
    run_dir: Path | None = None
    history: History = field(default_factory=History, compare=False)

    @checked
    def save(self, path: str | Path) -> None:
        """Write the trained texts as JSON, for `load_parameters`."""
        document = {"schema": 1, "parameters": dict(self.parameters)}
        write_atomically(Path(path), json.dumps(document, ensure_ascii=False, indent=2) + "\n")

    def __repr__(self) -> str:
        place = "" if self.run_dir is None else f", run_dir={str(self.run_dir)!r}"
        return (
            f"ProgramResult({self.steps} steps, stopped: {self.reason}, best step {self.best_step}, "
            f"score={self.score:.4g}, {self.metric_calls} metric calls{place})"
        )

    def _repr_html_(self) -> str:
        texts = html_table(["parameter", "text"], list(self.parameters.items()))
        return f"<p>{html.escape(repr(self))}</p>{texts}{self.history.to_html()}"


@dataclass(frozen=True)
class _ParametersFile:
    schema: int
    parameters: dict[str, str]


@checked
def load_parameters(path: str | Path) -> dict[str, str]:
    """The texts that `ProgramResult.save` wrote.

    Raises:
        InputError: there is no such file, or it is of another kind.
    """
    try:
        data = json.loads(read_text(path))
    except ValueError as error:
        raise InputError("this file is not JSON", where=path, got=str(error)) from error
    return parse(_ParametersFile, data, str(path)).parameters


@checked
def optimize(
    program: Callable[..., Any],
    parameters: Mapping[str, str],
    train: Dataset | Sequence[Any],
    *,
    metric: Callable[..., Any] | str,
    dev: Dataset | Sequence[Any] | None = None,
    lm: LanguageModel | str | None = None,
    steps: Count = 4,
    batch_size: Count = 12,
    num_candidates: Count = 6,
    num_texts: Size = 2,
    num_inferred: Count = 4,
    text_proposal: TextProposal | None = None,
    parameter_proposals: Sequence[ParameterProposal] | None = None,
    select: Selector = BEST,
    max_metric_calls: Count | None = None,
    budget: Budget | None = None,
    concurrency: Count = 8,
    seed: Seed = 13,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callback | Listener | str] = (),
    wanted: Callable[[Any], str] | None = None,
    name: str = "program",
) -> ProgramResult:
    """Train the text parameters of a program.

    Every text that the program hands to its trace is a latent variable. Its posterior over proposed texts,
    log w = log p(h | …) + R/τ (R/τ where p is not known), says which stage is to blame for missing rewards, and from
    which texts new parameters are written; candidates are raced on common examples (`dln.programs.step`).

    The same call with the `run_dir` of a run that was stopped goes on with it: nothing that was finished is paid again.

    Args:
        program: a callable (example, parameters, trace) -> output, sync or async (`dln.Trace`).
        parameters: initial texts by name.
        train: examples to train on, of any kind; the program and the metric get them as they are.
        metric: (example, prediction[, trace]) -> float | bool | `Score`, from 0 to 1, sync or async; or a name for
            `dln.Example`s. An evaluation that fails or gives NaN is left out and counted.
        dev: examples to select by; without them the result is the last incumbent.
        lm: the model that proposes texts and parameters; needed unless both are given.
        steps: number of steps.
        batch_size: examples of a step.
        num_candidates: candidates per step, divided among the parameters by credit.
        num_texts: proposed texts per hidden stage and example.
        num_inferred: examples per step whose intermediate texts are inferred, at most.
        text_proposal: proposes intermediate texts; by default `lm` writes them.
        parameter_proposals: propose parameters; by default `lm` rewrites them.
        select: chooses the winner of a race; a tie keeps the incumbent.
        max_metric_calls: limit of calls of the metric.
        budget: limits of the language models: calls, tokens, US dollars.
        concurrency: evaluations at a time.
        seed: of all randomness.
        run_dir: directory of events, finished evaluations and the result.
        callbacks: told of every event.
        wanted: the wanted output of an example as a text; by default its `target`, else the whole example.
        name: of the task, for reports.

    Raises:
        InputError: an argument cannot be used, a parameter is used by no stage, or the run directory holds another run.
        RunFailed: no evaluation of the first batch has a reward.
    """
    examples = [list(train), [] if dev is None else list(dev)]
    _check(program, parameters, examples[0])
    judge = program_metric(metric)
    everything = [*examples[0], *examples[1]]
    key = Key(seed)
    data_hash = hashlib.sha256("".join(map(content, everything)).encode("utf-8", "surrogatepass")).hexdigest()
    options = {
        "steps": steps,
        "batch_size": batch_size,
        "num_candidates": num_candidates,
        "num_texts": num_texts,
        "num_inferred": num_inferred,
        "max_metric_calls": max_metric_calls,
        "seed": seed,
    }
    writer = None if lm is None else as_lm(lm)
    if text_proposal is None or parameter_proposals is None:
        needed(writer)
    meta = {
        "schema": 1,
        "task": name,
        "kind": "program",
        "metric": judge.name,
        "options": options,
        "network": program_network(parameters),
        "models": {} if writer is None else {writer.name: writer.fingerprint()},
        "data_hash": data_hash,
    }
    with ExitStack() as stack:
        run = None if run_dir is None else stack.enter_context(_open(Path(run_dir), meta))
        journal = Journal(None if run is None else run.path / "evaluations.jsonl")
        evaluations = stack.enter_context(
            Evaluations(
                program,
                everything,
                judge,
                journal,
                key,
                concurrency=concurrency,
                budget=budget,
                max_metric_calls=max_metric_calls,
            )
        )
        choices = VariationalProgram(
            texts=text_proposal or EditText(),
            rewrites=tuple(parameter_proposals or (RewriteParameter(),)),
            lm=None if writer is None else Recorded(writer, journal, evaluations),
            batch_size=batch_size,
            num_texts=num_texts,
            num_inferred=num_inferred,
            num_candidates=num_candidates,
            select=select,
        )
        loop = _Training(
            evaluations=evaluations,
            choices=choices,
            key=key,
            examples=everything,
            train_size=len(examples[0]),
            initial=dict(parameters),
            steps=steps,
            wanted=wanted,
            run=run,
            told=listeners(callbacks),
        )
        loop.tell(started_event(meta, run_dir, len(examples[0]), len(examples[1]), steps))
        return loop.train()


def _check(program: Program, parameters: Mapping[str, str], train: Sequence[object]) -> None:
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):  # a callable of another language: it cannot be asked
        signature = None
    if signature is not None:
        try:
            signature.bind("example", "parameters", "trace")
        except TypeError as error:
            raise InputError(
                "the program has a wrong signature",
                where="program",
                got=f"{getattr(program, '__name__', type(program).__name__)}{signature}",
                expected="(example, parameters, trace)",
                fix="def program(example, parameters, trace): ...",
            ) from error
    if not parameters:
        raise InputError(
            "there is nothing to train", where="parameters", got="no texts", expected="one text or more by name"
        )
    if not train:
        raise InputError("there are no examples", where="train", got="no examples", expected="one example or more")


def _open(path: Path, meta: Mapping[str, Any]) -> Run:
    """A new run, or one that was stopped."""
    if not (path / "run.yaml").exists():
        return Run.create(path, meta)
    run = Run.open(path)
    try:
        check_unchanged(run, meta)
    except InputError:
        run.close()
        raise
    if run.events():
        run.append(Resumed(step=-1))
    return run


@dataclass
class _Training:
    """The loop over steps, with its events."""

    evaluations: Evaluations
    choices: VariationalProgram
    key: Key
    examples: Sequence[Any]
    train_size: int
    initial: dict[str, str]
    steps: int
    wanted: Callable[[Any], str] | None
    run: Run | None
    told: list[Listener]
    events: list[Event] = field(default_factory=list[Event])

    def tell(self, event: Event) -> None:
        """Write an event and pass it on."""
        self.events.append(event)
        if self.run is not None:
            self.run.append(event)
        for listener in self.told:
            listener(event)

    def train(self) -> ProgramResult:
        """All steps."""
        state = ProgramState(tuple(self.initial.items()))
        best, best_step, score = dict(self.initial), 0, float("nan")
        dev = range(self.train_size, len(self.examples))
        initial_score: float | None = None
        reason, last_batch = "steps", float("nan")
        try:
            if dev:
                initial_score = score = self._validate(0, self.initial, dev, None)
            for _ in range(self.steps):
                began = time.perf_counter()
                before = dict(state.parameters)
                state, info = self.choices.update(
                    state, self.key, self.evaluations, range(self.train_size), self._view, self._wanted
                )
                if state.step == 1:
                    self._check_first(info)
                seconds = time.perf_counter() - began
                self.tell(step_event(state, info, before, self._pairs(info), self._usage(), seconds))
                after = dict(state.parameters)
                last_batch = _batch_score(info)
                if not dev:
                    changed = after != before
                    best, best_step = after, state.step if changed else best_step
                elif after != before:
                    found = self._validate(state.step, after, dev, score)
                    if found > score:
                        best, best_step, score = after, state.step, found
        except BudgetReached:
            reason = "budget"
            if not self.evaluations.spent.metric_calls:
                raise
        except BaseException as error:
            if self.run is not None:
                self.run.append(Interrupted(step=state.step, reason=_short(error), usage=self._usage()))
            raise
        score = score if dev else last_batch
        network = program_network(best)
        self.tell(finished_event(state.step, reason, best_step, score, network, self._usage()))
        result = ProgramResult(
            parameters=best,
            initial=dict(self.initial),
            score=score,
            initial_score=initial_score,
            best_step=best_step,
            steps=state.step,
            reason=reason,
            metric_calls=self.evaluations.spent.metric_calls,
            rollouts=self.evaluations.spent.rollouts,
            usage=self.evaluations.spent.usage,
            failed=dict(self.evaluations.failed),
            run_dir=None if self.run is None else self.run.path,
            history=History.of(self.events),
        )
        if self.run is not None:
            result.save(self.run.path / "parameters.json")
        return result

    def _validate(self, step: int, parameters: Mapping[str, str], dev: Sequence[int], best: float | None) -> float:
        """Mean reward on the dev examples, recorded; those without a reward are left out."""
        began = time.perf_counter()
        outcomes = self.evaluations(Request.of(example, parameters) for example in dev)
        scores = _known(outcomes)
        if not scores:
            raise _no_reward(outcomes, "dev")
        score = float(np.mean(scores))
        seconds = time.perf_counter() - began
        better = best is None or score > best
        self.tell(validated_event(step, scores, len(outcomes) - len(scores), better, self._usage(), seconds))
        return score

    def _check_first(self, info: StepInfo) -> None:
        """Refuse programs without rewards, without stages, and with parameters that no stage uses."""
        if not _known(info.forward):
            raise _no_reward(info.forward, "train")
        used = {name for outcome in info.forward for name in outcome.rollout.used}
        stages = [stage for outcome in info.forward for stage in outcome.rollout.stages]
        if not stages:
            raise InputError(
                "the program recorded no intermediate text",
                where="program",
                got="a trace without stages",
                expected="one stage or more",
                fix='text = trace("answer", lambda: ...)',
            )
        used |= {name for stage in stages for name in stage.parameters}
        unused = [name for name in self.initial if name not in used]
        if unused:
            raise InputError(
                "the program does not use a parameter",
                where="parameters",
                got=f"{', '.join(map(repr, unused))} was read on none of {len(info.forward)} examples",
                expected="every parameter is read for a stage",
                fix=f"parameters[{unused[0]!r}] in the program, or leave it out",
            )

    def _pairs(self, info: StepInfo) -> list[tuple[str, str]]:
        """(input, wanted output) of the batch, for reports."""
        examples = [self.examples[outcome.request.example] for outcome in info.forward]
        return [(text_view(getattr(example, "input", example)), self._want(example)) for example in examples]

    def _want(self, example: object) -> str:
        if self.wanted is not None:
            return self.wanted(example)
        target = getattr(example, "target", None)
        return target if isinstance(target, str) else text_view(example)

    def _view(self, position: int) -> str:
        return text_view(self.examples[position])

    def _wanted(self, position: int) -> str:
        return self._want(self.examples[position])

    def _usage(self) -> dict[str, float]:
        spent = self.evaluations.spent
        return {**spent.usage.to_dict(), "metric_calls": spent.metric_calls, "rollouts": spent.rollouts}


def _known(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.score for outcome in outcomes if np.isfinite(outcome.score)]


def _batch_score(info: StepInfo) -> float:
    """Mean reward of the parameters after the step, on its batch."""
    if info.race is not None:
        return float(info.race.scores[info.race.winner])
    known = _known(info.forward)
    return float(np.mean(known)) if known else float("nan")


def _no_reward(outcomes: Sequence[Outcome], part: str) -> RunFailed:
    return RunFailed(
        "no evaluation has a reward",
        where=part,
        got=outcomes[0].error,
        expected="a reward from 0 to 1 for one example or more",
        fix="run the program and the metric on one example",
    )


def _short(error: BaseException) -> str:
    return shown(str(error) or type(error).__name__, 200)
