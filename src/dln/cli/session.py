"""A training session from configuration to report: what `dln train` and `dln resume` have in common."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import typer

from dln.cli.board import Board
from dln.cli.command_line import command_of
from dln.cli.compose import Models, build_models, build_network, build_task
from dln.cli.config import RunConfig, training_options
from dln.cli.ending import tell_interrupted, tell_result
from dln.cli.forecast import estimate_record, expected
from dln.cli.show import note
from dln.cli.spending import within_budget
from dln.cli.stopping import Terminated
from dln.cli.watch import Watch, choose_watch
from dln.data import Task
from dln.errors import BudgetReached, DlnError
from dln.lm.base import LanguageModel
from dln.lm.metered import Meter, Usage
from dln.lm.remote.engine import RemoteLM
from dln.lm.wrapper import Wrapper
from dln.nn import Ensemble, Sequential
from dln.nn.ensemble import best_of
from dln.nn.saving import load_network, network_from_json
from dln.train import FitResult, Options, Run, conclude, fit, fitted_initial
from dln.train.event_log import current, of_kind, read_events
from dln.train.events import Evaluated, Event, Finished, Interrupted
from dln.train.room import check_room
from dln.train.run import read_meta
from dln.train.sizes import layer_sizes
from dln.view.report import write_report

__all__ = ["run_training"]

BUDGET_EXIT = 4


def run_training(config: RunConfig, directory: Path, *, resume: bool = False, as_json: bool = False) -> None:
    """Train, evaluate on the test examples, write the report and say what came out.

    Args:
        config: all that there is to know; for a resumed run the one of its run.yaml.
        directory: of the run.
        resume: go on with the run that is there.
        as_json: events as records on standard output, and nothing else there.

    Raises:
        DlnError: what a user can do something about.
        typer.Exit: with the code of an interruption (130, 143) or of a spent budget (4).
    """
    training_options(config)  # a mistake in the options is told before anything is loaded
    task = build_task(config)
    for text in dict.fromkeys((*task.notes, *task.train.notes)):
        note(f"note: {text}")
    with ExitStack() as stack:
        models = build_models(config, stack, Meter(_used_before(directory) if resume else Usage()))
        for text in models.notes:
            note(f"note: {text}")
        network = _initial(directory, models) if resume else build_network(config, task, models.lm)
        check_room(network, task.train, task.dev, task.test if config.test else ())
        record = None
        try:
            if not resume:
                config, record = _begin(config, task, network, models)
            options = training_options(config)
            board = Board(task.name, options.steps, models.meter, [str(prompt) for prompt in network.parameters()])
            watch = choose_watch(board, as_json=as_json)
            with watch:
                result, evaluated = _train(config, options, task, network, models, directory, resume, watch, record)
        except KeyboardInterrupt as error:
            tell_interrupted(directory)
            raise typer.Exit(143 if isinstance(error, Terminated) else 130) from error
        report = write_report(directory, command=command_of(config))
        tell_result(result, evaluated, models, board, report, config, as_json=as_json)
        if result.reason == "budget" or (evaluated is None and config.test):
            raise typer.Exit(BUDGET_EXIT)


def _train(
    config: RunConfig,
    options: Options,
    task: Task,
    network: Sequential,
    models: Models,
    directory: Path,
    resume: bool,
    watch: Watch,
    record: dict[str, Any] | None,
) -> tuple[FitResult, Evaluated | None]:
    finished = _finished(directory) if resume else None
    if finished is not None and finished.reason != "budget" and (directory / "network.json").exists():
        predictor = load_network(directory / "network.json", models.lm)
        score = float("nan") if finished.score is None else finished.score
        best, several = best_of(predictor), predictor if isinstance(predictor, Ensemble) else None
        known = (finished.best_step, score, finished.reason, finished.step)
        result = FitResult(best, network, *known, directory, several)
    else:
        result = fit(
            network,
            task.train,
            task.dev,
            options=options,
            run_dir=directory,
            resume=resume,
            metric=task.metric,
            callbacks=[watch.event],
            prompt_lm=models.prompt_lm,
            hidden_lm=models.hidden_lm,
            meter=models.meter,
            task=task.name,
            config=config.model_dump(mode="json"),
            readable=task.test.inputs if config.test else (),
            record=record,
        )
    if not config.test or result.reason == "budget":
        return result, None
    with Run.open(directory) as run:
        try:
            event = conclude(
                result.initial,
                result.predictor,
                task.test,
                fitted=fitted_initial(result.initial, task.dev, task.metric, options),
                metric=task.metric,
                meter=models.meter,
                progress=watch.progress,
            )
        except (KeyboardInterrupt, DlnError) as error:
            why = f"the final evaluation: {error}".rstrip(": ")
            run.append(Interrupted(step=result.steps, reason=why, usage=models.meter.snapshot().to_dict()))
            if not isinstance(error, BudgetReached):
                raise
            note(f"no test evaluation: {error.message}")
            return result, None
        run.append(event)
    watch.event(event)
    return result, event


def _begin(config: RunConfig, task: Task, network: Sequential, models: Models) -> tuple[RunConfig, dict[str, Any]]:
    """What is known before the first step: options that the budget allows, the estimate, and what servers can do."""
    engines = {wrapped.name: engine.report.to_dict() for wrapped, engine in _servers(models)}
    for _, engine in _servers(models):
        for line in engine.report.stays:
            note(f"note: {engine.name}: {line}")
    sizes = layer_sizes(network, task.train)
    config, notes = within_budget(config, task, sizes)
    for text in notes:
        note(f"note: {text}")
    return config, {"estimate": estimate_record(expected(config, task, sizes), config), "engines": engines}


def _servers(models: Models) -> list[tuple[LanguageModel, RemoteLM]]:
    found: list[tuple[LanguageModel, RemoteLM]] = []
    for lm in (models.lm, models.prompt_lm, models.hidden_lm):
        engine = lm.unwrapped if isinstance(lm, Wrapper) else lm
        if lm is not None and isinstance(engine, RemoteLM):
            found.append((lm, engine))
    return found


def _initial(directory: Path, models: Models) -> Sequential:
    """The network that a run began with, its templates included."""
    meta = read_meta(directory)
    return best_of(network_from_json(cast(dict[str, Any], meta["network"]), models.lm, str(directory / "run.yaml")))


def _events(directory: Path) -> list[Event]:
    return current(read_events(directory / "events.jsonl"))


def _finished(directory: Path) -> Finished | None:
    found = of_kind(_events(directory), Finished)
    return found[-1] if found else None


def _used_before(directory: Path) -> Usage:
    """What the run has used up to its last event, so that a budget is one for the whole run.

    Steps that a resumed run repeats are void, but what they have used is spent.
    """
    last: dict[str, float] = {}
    for event in read_events(directory / "events.jsonl"):
        last = getattr(event, "usage", None) or last
    whole = ("calls", "prompt_tokens", "completion_tokens", "scored_tokens", "cached_tokens")
    counts = {name: int(last.get(name, 0)) for name in whole}
    return Usage(**counts, seconds=float(last.get("seconds", 0.0)), usd=float(last.get("usd", 0.0)))
