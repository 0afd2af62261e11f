"""`dln train` and `dln resume`: a training session from configuration to report, alone or once per seed.

A series of seeds is a folder with `seeds.yaml`, which holds the seeds and the shared configuration, and one ordinary
run directory per seed: `seed-13`, `seed-42`, … It is resumed as a whole.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml
from rich.table import Table

from dln.cli import flags
from dln.cli.build import (
    build_network,
    build_task,
    data_record,
    ensemble_line,
    initial_network,
    recorded_config,
    task_label,
    with_columns,
)
from dln.cli.config import (
    CACHE,
    ENGINE,
    LAYERS,
    LIMITS,
    PRICES,
    SERVER,
    SIDE_MODELS,
    SIZES,
    TASK,
    RunConfig,
    command_of,
    config_schema,
    parse_config,
    training_options,
)
from dln.cli.estimate import both, dry_run, estimate_record, within_budget
from dln.cli.flags import seeds_of
from dln.cli.models import Models, build_models, moved, with_secrets
from dln.cli.output import Terminated, duration, err, evaluation_table, examples, note, out, print_record, safe
from dln.cli.progress import Board, Watch, choose_watch
from dln.cli.runs import tell_together
from dln.cli.sources import configured, load_config, recipe_file
from dln.data import Task
from dln.errors import BudgetReached, CorruptDataError, DlnError, InputError
from dln.experiments.linear import cheap_evaluations
from dln.integrations.trackers import TrackerName, tracker
from dln.io import write_atomically
from dln.lm.base import LanguageModel, Wrapper
from dln.lm.local.threads import restore_threads
from dln.lm.meter import Meter, Usage
from dln.lm.remote.engine import RemoteLM
from dln.nn import Ensemble, Sequential
from dln.nn.ensemble import best_of, members_of
from dln.nn.saving import load_network
from dln.train import FitResult, Options, Run, conclude, fit, fitted_initial
from dln.train.callbacks import Listener
from dln.train.estimate import check_room, layer_sizes
from dln.train.evaluate import run_grader
from dln.train.events import Evaluated, Finished, Interrupted, StepDone
from dln.train.grades import GradeFile
from dln.train.options import READ_WORDS
from dln.train.progress import NOTHING_TO_GAIN
from dln.train.run import GRADES, current, extend_run, of_kind, read_events, read_meta
from dln.view.report import write_report
from dln.view.seeds import read_together

__all__ = ["RESUME_EPILOG", "TRAIN_EPILOG", "resume", "run_training", "train"]

BUDGET_EXIT = 4
SERIES = "seeds.yaml"

TRAIN_EPILOG = examples(
    "dln train --task questions",
    "dln train --csv mail.csv --input message --target kind --steps 10",
    "dln train --task questions --seeds 13,42,25 --run-dir runs/questions-seeds",
    "dln train --task subj --data data --layers 2 --max-minutes 30",
    "dln train --task mail.csv --set batch_size=32 --set inference.num_prompts=12",
    "dln train --task questions --lm vllm/Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1",
    "dln train --task mail.csv --lm openai/gpt-4o-mini --max-usd 5 --dry-run",
    "dln train --recipe paper/navigate-e2e --data data --lm vllm/Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1",
)


@configured(
    *(TASK, "instruction data leaky labelled", SIZES, LAYERS, "preset steps seed set test lm", ENGINE, SIDE_MODELS),
    *("batch_tokens", CACHE, PRICES, LIMITS, "run_dir track"),
)
def train(
    context: typer.Context,
    config: RunConfig,
    recipe: flags.Recipe = None,
    seeds: flags.Seeds = None,
    as_json: flags.Json = False,
    estimate: Annotated[bool, typer.Option("--dry-run", help="Estimate the cost and exit.")] = False,
    print_schema: Annotated[
        bool, typer.Option("--print-schema", help="Print the JSON Schema of --config files and exit.")
    ] = False,
) -> None:
    """Train the prompts of a network, evaluate it, and write a report.

    The run directory is runs/<task>-<layers>l-<time> unless --run-dir names another.
    """
    if print_schema:
        sys.stdout.write(json.dumps(config_schema(), indent=2) + "\n")
        return
    if recipe is not None:
        lines = recipe_file(recipe).read_text(encoding="utf-8").splitlines()
        note(f"recipe: {' '.join(line.removeprefix('# ') for line in lines if line.startswith('#'))}")
    series = None if seeds is None else seeds_of(seeds)
    source = context.get_parameter_source("seed")
    if series is not None and source is not None and source.name == "COMMANDLINE":
        raise InputError(
            "seeds are given twice", where="--seeds", got=f"--seed and --seeds {seeds}", fix="leave out one of them"
        )
    if estimate:
        dry_run(config, as_json=as_json)
        if series is not None:
            note(f"note: this is the estimate for one run; {len(series)} seeds take {len(series)} times as much")
        return
    directory = _directory(config)
    if series is None:
        run_training(config, directory, as_json=as_json)
        return
    training_options(config)  # an invalid option is reported before the folder is made
    _begin_series(directory, config, series)

    def one(seed: int, path: Path) -> None:
        run_training(_with_seed(config, seed), path, as_json=as_json)

    _run_series(directory, series, one, as_json=as_json)


def _directory(config: RunConfig) -> Path:
    if config.run_dir is not None:
        if not config.run_dir.strip():
            raise InputError("the run directory has no name", where="--run-dir", fix="--run-dir runs/first")
        return Path(config.run_dir)
    name = f"{task_label(config)}-{config.network.layers}l-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = Path("runs") / name, 1
    while path.exists():  # two runs that began in the same second
        n += 1
        path = Path("runs") / f"{name}-{n}"
    return path


RESUME_EPILOG = examples(
    "dln resume runs/questions",
    "dln resume runs/questions --steps 20",
    "dln resume runs/questions-seeds",
    "dln resume runs/questions --max-tokens 5000000",
    "dln resume runs/mail --max-usd 10 --api-key-env MY_KEY",
)


@configured("steps", SERVER, CACHE, PRICES, LIMITS)
def resume(
    given: dict[str, Any], run: flags.RunDirectory, config_file: flags.Config = None, as_json: flags.Json = False
) -> None:
    """Resume a run, or all runs of a series; the result is identical to an uninterrupted run.

    With --steps, a finished or stopped run is extended to that number of steps.
    """
    steps: int | None = given.get("options", {}).get("steps")

    def present(config: RunConfig) -> RunConfig:
        # secrets are not in the record: they come from the present settings
        models = moved(with_secrets(config.lm, load_config({}, config_file).lm), given.get("lm", {}))
        budget = config.budget.model_copy(update=given.get("budget", {}))
        return config.model_copy(update={"lm": models, "budget": budget})

    def resumed(path: Path) -> None:
        if steps is not None:
            extend_run(path, steps)
        _resume(path, recorded_config(path), present, as_json=as_json)

    if not (run / SERIES).is_file():
        resumed(run)
        return
    shared, seeds = _read_series(run)
    if steps is not None:
        shared = shared.model_copy(update={"options": {**shared.options, "steps": steps}})

    def one(seed: int, path: Path) -> None:
        if (path / "run.yaml").exists():
            resumed(path)
        else:
            run_training(_with_seed(present(shared), seed), path, as_json=as_json)

    _run_series(run, seeds, one, as_json=as_json)


def _resume(run: Path, recorded: RunConfig, present: Callable[[RunConfig], RunConfig], *, as_json: bool) -> None:
    """Resume one run.

    Raises:
        typer.Exit: (exit code 4) its budget is spent and no higher limit is given.
    """
    config = present(recorded)
    state = _state(run, config)
    changes = config.budget != recorded.budget
    if state == "budget" and not changes:
        command = f"dln resume {shlex.quote(str(run))} --max-tokens …"
        note(f"the budget of this run is spent; resume it with a higher limit: {command}")
        raise typer.Exit(BUDGET_EXIT)
    if state == "finished":
        name = shlex.quote(str(run))
        note(f"this run is finished; see: dln report {name}, or extend it: dln resume {name} --steps N")
        return
    run_training(config, run, resume=True, as_json=as_json)


def _state(run: Path, config: RunConfig) -> str:
    log = run / "events.jsonl"
    finished = _finished(run, training_options(config).steps) if log.exists() else None
    if finished is None:
        return "unfinished"
    if finished.reason == "budget":
        return "budget"
    tested = any(event.split == "test" for event in of_kind(current(read_events(log)), Evaluated))
    complete = (tested or not config.test) and all((run / name).exists() for name in ("report.html", "network.json"))
    return "finished" if complete else "unfinished"


def tell_result(
    result: FitResult,
    evaluated: Evaluated | None,
    models: Models,
    board: Board,
    report: Path,
    config: RunConfig,
    *,
    as_json: bool,
) -> None:
    """Print the final evaluation, the cost, and the next commands; with `as_json` one record."""
    used = models.meter.snapshot()
    if result.reason == "budget":
        note("the budget is spent: this is the result so far, without a test evaluation")
        note(f"resume with a higher limit: dln resume {shlex.quote(str(result.run_dir))} --max-tokens …")
    if as_json:
        print_record(
            {
                "kind": "result",
                "reason": result.reason,
                "steps": result.steps,
                "best_step": result.best_step,
                "members": len(members_of(result.predictor)),
                "run_dir": str(result.run_dir),
                "network": str(Path(str(result.run_dir)) / "network.json"),
                "report": str(report),
                "tokens": used.tokens,
                "calls": used.calls,
                "usd": used.usd,
                "seconds": round(board.elapsed, 3),
            }
        )
        return
    console = out()
    if evaluated is not None:
        console.print(evaluation_table(evaluated))
    facts, together = Table.grid(padding=(0, 2)), ensemble_line(result.predictor)
    for name, value in (
        ("stopped", _stopped(result, training_options(config).steps)),
        ("best step", f"{result.best_step}" + (" (the initial network)" if not result.best_step else "")),
        *([("predicts by", together)] if together is not None else []),
        *_words_of(result.network),
        ("used", f"{used.tokens:,} tokens in {used.calls:,} calls, {_money(used, models)}{duration(board.elapsed)}"),
        ("run", safe(result.run_dir)),
        ("report", safe(report)),
    ):
        facts.add_row(name, value)
    console.print(facts, soft_wrap=True)
    name = shlex.quote(str(result.run_dir))
    for number, command in enumerate((f'dln predict {name} "…"', f"dln show {name}", f"dln report {name} --open")):
        note(f"{'      ' if number else 'next: '}{command}")


def _words_of(network: Sequential) -> list[tuple[str, str]]:
    """The words behind the first two labels of a word readout, as rows of a table; `dln show` has all of them."""
    last = network.layers[-1].classifier
    evidence = () if last is None else last.readout.evidence(last.names, most=4)
    return [("words", safe(str(label))) for label in evidence[:2]]


def _stopped(result: FitResult, planned: int) -> str:
    reached = f"{result.steps} of {planned} steps"
    return f"reached {reached}" if result.reason == "steps" else f"{result.reason}, after {reached}"


def tell_interrupted(directory: Path) -> None:
    """Say how to resume."""
    if not (directory / "run.yaml").exists():
        note("interrupted before the run began; nothing was saved")
        return
    events = current(read_events(directory / "events.jsonl"))
    done = max((event.step for event in of_kind(events, StepDone)), default=0)
    err().print(
        safe(f"interrupted after step {done}; resume with: dln resume {shlex.quote(str(directory))}"), soft_wrap=True
    )


def _money(used: Usage, models: Models) -> str:
    """The cost, unless all models are free."""
    if not any(quote is None or quote.price.usd(1, 1) for quote in models.quotes.values()):
        return ""
    return f"${used.usd:.4f}" + (" plus models without a known price" if None in models.quotes.values() else "") + ", "


def run_training(config: RunConfig, directory: Path, *, resume: bool = False, as_json: bool = False) -> None:
    """Train, evaluate on the test examples, write the report and print the result.

    Args:
        config: the settings; for a resumed run those of its run.yaml.
        directory: of the run.
        resume: resume the run in that directory.
        as_json: print events as records to standard output, and nothing else.

    Raises:
        DlnError: the task, a model or an option cannot be used, or a request failed.
        typer.Exit: interrupted (130, 143), or the budget is spent (4).
    """
    training_options(config)  # invalid options are reported before anything is loaded
    task = build_task(config)
    if resume:
        restore_threads(read_meta(directory).get("threads"))
    with ExitStack() as stack:
        models = build_models(config, stack, Meter(_used_before(directory) if resume else Usage()))
        for text in models.notes:
            note(f"note: {text}")
        network = (
            initial_network(directory, lambda name: models.lm) if resume else build_network(config, task, models.lm)
        )
        check_room(network, task.train, task.dev, task.test if config.test else ())
        record = None
        trackers = [
            stack.enter_context(tracker(cast(TrackerName, name), directory, tell=lambda text: note(f"note: {text}")))
            for name in config.track
        ]
        try:
            if not resume:
                config, record = _begin(with_columns(config, task), task, network, models)
                record |= data_record(task)
            options = training_options(config)
            board = Board(task.name, options.steps, models.meter, [str(prompt) for prompt in network.parameters()])
            watch = choose_watch(board, as_json=as_json)
            with watch:
                told = (watch.event, *(one.on_event for one in trackers))
                result, evaluated = _train(
                    config, options, task, network, models, directory, resume, watch, told, record
                )
        except KeyboardInterrupt as error:
            tell_interrupted(directory)
            raise typer.Exit(143 if isinstance(error, Terminated) else 130) from error
        report = write_report(directory, command=command_of(config))
        for one in trackers:
            one.close()
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
    told: Sequence[Listener],
    record: dict[str, Any] | None,
) -> tuple[FitResult, Evaluated | None]:
    finished = _finished(directory, options.steps) if resume else None
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
            callbacks=told,
            progress=False,
            prompt_lm=models.prompt_lm,
            hidden_lm=models.hidden_lm,
            meter=models.meter,
            task=task.name,
            config=config.model_dump(mode="json"),
            readable=task.test.inputs if config.test else (),
            record=record,
        )
    if result.reason == NOTHING_TO_GAIN and result.steps < options.steps:
        note(
            f"note: nothing to gain: the dev accuracy has reached {options.stop_at_accuracy:.0%}, so training ended "
            f"after {result.steps} of {options.steps} steps (--set stop_at_accuracy=null trains on)"
        )
    if not config.test or result.reason == "budget":
        return result, None
    with Run.open(directory) as run, GradeFile(directory / GRADES) as store:
        graded = run_grader(task.metric, network.labels, options, store)
        try:
            event = conclude(
                result.initial,
                result.predictor,
                task.test,
                fitted=fitted_initial(result.initial, task.dev, graded, options, task.train),
                baselines=cheap_evaluations(task, _label_words(result.initial, options)),
                metric=graded,
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
    for tell in told:
        tell(event)
    return result, event


def _label_words(initial: Sequential, options: Options) -> Sequential | None:
    """The initial network where its label words are a baseline: where training fits a word readout instead."""
    last = initial.layers[-1].classifier
    if last is None or options.inference.output_layer not in READ_WORDS or last.lm.capabilities.next_tokens == "none":
        return None
    return initial


def _begin(config: RunConfig, task: Task, network: Sequential, models: Models) -> tuple[RunConfig, dict[str, Any]]:
    """The options that the budget allows, the cost estimate, and the abilities of servers, before the first step."""
    engines = {wrapped.name: engine.report.to_dict() for wrapped, engine in _servers(models)}
    for _, engine in _servers(models):
        for line in (*engine.report.requests, *engine.report.stays):
            note(f"note: {engine.name}: {line}")
    sizes = layer_sizes(network, task.train)
    config, notes = within_budget(config, task, sizes)
    for text in notes:
        note(f"note: {text}")
    return config, {"estimate": estimate_record(both(config, task, network), config), "engines": engines}


def _servers(models: Models) -> list[tuple[LanguageModel, RemoteLM]]:
    found: list[tuple[LanguageModel, RemoteLM]] = []
    for lm in (models.lm, models.prompt_lm, models.hidden_lm):
        engine = lm.unwrapped if isinstance(lm, Wrapper) else lm
        if lm is not None and isinstance(engine, RemoteLM):
            found.append((lm, engine))
    return found


def _finished(directory: Path, steps: int) -> Finished | None:
    """How the run finished; None if it did not, has been extended since, or was stopped by a person before its end."""
    found = of_kind(current(read_events(directory / "events.jsonl")), Finished)
    extended = found and found[-1].reason in ("steps", "stopped") and found[-1].step < steps
    return None if extended or not found else found[-1]


def _used_before(directory: Path) -> Usage:
    """The usage up to the last event, so that a budget is that of the whole run; repeated steps count twice."""
    last: dict[str, float] = {}
    for event in read_events(directory / "events.jsonl"):
        last = getattr(event, "usage", None) or last
    whole = ("calls", "prompt_tokens", "completion_tokens", "scored_tokens", "cached_tokens")
    counts = {name: int(last.get(name, 0)) for name in whole}
    return Usage(**counts, seconds=float(last.get("seconds", 0.0)), usd=float(last.get("usd", 0.0)))


def _begin_series(directory: Path, config: RunConfig, seeds: tuple[int, ...]) -> None:
    """Write `seeds.yaml` into an empty folder.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(
            "this folder is not empty",
            where=directory,
            expected="an empty or new folder",
            fix=f"dln resume {shlex.quote(str(directory))}" if (directory / SERIES).is_file() else "another --run-dir",
        )
    content = {"schema": 1, "seeds": list(seeds), "config": config.model_dump(mode="json")}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / SERIES, yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    except OSError as error:
        raise InputError("cannot write the folder of the runs", where=directory, got=error.strerror) from error


def _read_series(directory: Path) -> tuple[RunConfig, tuple[int, ...]]:
    """The configuration that all runs share, and the seeds.

    Raises:
        CorruptDataError: `seeds.yaml` is damaged.
    """
    file = directory / SERIES
    try:
        data = cast(Mapping[str, Any], yaml.safe_load(file.read_text(encoding="utf-8")))
        seeds = tuple(int(seed) for seed in data["seeds"])
        recorded = cast(Mapping[str, Any], data["config"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CorruptDataError("this file is damaged", where=file, got=str(error)) from error
    return parse_config(recorded, str(file)), seeds


def _seed_directory(directory: Path, seed: int) -> Path:
    """Where the run of a seed is."""
    return directory / f"seed-{seed}"


def _with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The configuration of one run."""
    return config.model_copy(update={"options": {**config.options, "seed": seed}})


def _run_series(directory: Path, seeds: tuple[int, ...], one: Callable[[int, Path], None], *, as_json: bool) -> None:
    """Train with each seed in turn, and print the runs together at the end.

    Args:
        directory: the folder of the runs.
        seeds: in the order they are run.
        one: trains or resumes the run of a seed.
        as_json: print records to standard output, and nothing else.

    Raises:
        typer.Exit: a run was interrupted or its budget is spent; the series can be resumed.
    """
    for number, seed in enumerate(seeds, 1):
        err().print(safe(f"seed {seed} ({number} of {len(seeds)})"))
        try:
            one(seed, _seed_directory(directory, seed))
        except typer.Exit as leaving:
            if leaving.exit_code:
                err().print(safe(f"resume all seeds: dln resume {shlex.quote(str(directory))}"), soft_wrap=True)
            raise
    tell_together(read_together([_seed_directory(directory, seed) for seed in seeds]), as_json=as_json)
