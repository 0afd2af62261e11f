"""`dln train`: learn the prompts of a network on labelled examples.

The command that repeats a run: the settings that differ from their defaults, as flags.

What a user is told when a training session ends, with a result or without.

A training session from configuration to report: what `dln train` and `dln resume` have in common.

`dln resume`: go on with a run that was stopped, from what its directory says.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import typer
from rich.table import Table

from dln.cli import flags
from dln.cli import run_flags as own
from dln.cli.build import Models, build_models, build_network, build_task, said_together, task_label
from dln.cli.config import FLAGS, OWN_FLAGS, RunConfig, config_schema, parse_config, training_options
from dln.cli.estimate import dry_run, estimate_record, expected, within_budget
from dln.cli.flags import examples
from dln.cli.output import Terminated, duration, err, evaluation_table, note, out, print_record, safe
from dln.cli.progress import Board, Watch, choose_watch
from dln.cli.seeds import begin_series, is_series, parse_seeds, read_series, run_series, with_seed
from dln.cli.sources import lm_settings, load_config, moved, with_secrets
from dln.data import Task
from dln.errors import BudgetReached, DlnError, InputError
from dln.lm.base import LanguageModel, Wrapper
from dln.lm.local.threads import restore_threads
from dln.lm.meter import Meter, Usage
from dln.lm.remote.engine import RemoteLM
from dln.nn import Ensemble, Sequential
from dln.nn.ensemble import best_of, members_of
from dln.nn.saving import load_network, network_from_json
from dln.train import FitResult, Options, Run, conclude, fit, fitted_initial
from dln.train.estimate import check_room, layer_sizes
from dln.train.events import Evaluated, Event, Finished, Interrupted, StepDone
from dln.train.run import current, of_kind, read_events, read_meta
from dln.view.report import write_report

__all__ = [
    "RESUME_EPILOG",
    "TRAIN_EPILOG",
    "command_of",
    "recorded_config",
    "resume",
    "run_training",
    "tell_interrupted",
    "tell_result",
    "train",
]


def command_of(config: RunConfig) -> str:
    """`dln train` with the flags that give `config`; what has no flag, and every secret, is left to its file."""
    # as they are recorded: addresses without credentials, no keys
    settings, default = (dict(c.model_dump(mode="json")) for c in (config, RunConfig.model_validate({})))
    words = ["dln", "train"]
    for (section, field), flag in FLAGS.items():
        value = settings[section][field]
        if value == default[section][field]:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            words += _side(cast(dict[str, Any], value), flag)
        else:
            for item in cast(list[object], value if isinstance(value, list) else [value]):
                words += [flag, str(item)]
    for name, value in config.model_dump(mode="json")["lm"]["options"].items():
        words += ["--lm-option", f"{name}={json.dumps(value)}"]
    for name, price in config.lm.prices.items():
        cached = "" if price.cached_input is None else f"/{price.cached_input!r}"
        words += ["--price", f"{name}={price.input!r}/{price.output!r}{cached}"]
    options = dict(config.options)
    for name in OWN_FLAGS:
        if name in options:
            words += [f"--{name}", str(options.pop(name))]
    for path, value in _leaves(options):
        words += ["--set", f"{path}={json.dumps(value)}"]
    if not config.test:
        words.append("--no-test")
    return shlex.join(words)


def _side(model: dict[str, Any], flag: str) -> list[str]:
    """The flags of a model beside that of the layers: `--prompt-lm`, `--prompt-base-url` and so on."""
    stem = flag.removesuffix("-lm")
    words = [flag, str(model["spec"])] if model["spec"] is not None else []
    for url in model["base_url"]:
        words += [f"{stem}-base-url", str(url)]
    if model["api_key_env"] is not None:
        words += [f"{stem}-api-key-env", str(model["api_key_env"])]
    return words


def _leaves(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and name != "prompt_proposals":
            yield from _leaves(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


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
    """The numbers of the final evaluation and what the run took; with `as_json` one record of it."""
    used = models.meter.snapshot()
    if result.reason == "budget":
        note("the budget is spent: this is the result so far, without a test evaluation")
        note(f"go on with: dln resume {shlex.quote(str(result.run_dir))} and a higher --max-usd, --max-tokens, ...")
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
    facts, together = Table.grid(padding=(0, 2)), said_together(result.predictor)
    for name, value in (
        ("ended by", f"{result.reason}, after step {result.steps}"),
        ("best step", f"{result.best_step}" + (" (the initial network)" if not result.best_step else "")),
        *([("answers", together)] if together is not None else []),
        ("used", f"{used.tokens:,} tokens in {used.calls:,} calls, {_money(used, models)}{duration(board.elapsed)}"),
        ("run", safe(result.run_dir)),
        ("report", safe(report)),
    ):
        facts.add_row(name, value)
    console.print(facts, soft_wrap=True)


def tell_interrupted(directory: Path) -> None:
    """How to go on."""
    if not (directory / "run.yaml").exists():
        note("interrupted before the run began; nothing was saved")
        return
    events = current(read_events(directory / "events.jsonl"))
    done = max((event.step for event in of_kind(events, StepDone)), default=0)
    err().print(
        safe(f"interrupted after step {done}; go on with: dln resume {shlex.quote(str(directory))}"), soft_wrap=True
    )


def _money(used: Usage, models: Models) -> str:
    """What it cost, where it costs anything that is known."""
    if not any(quote is None or quote.price.usd(1, 1) for quote in models.quotes.values()):
        return ""
    return f"${used.usd:.4f}" + (" and what has no known price" if None in models.quotes.values() else "") + ", "


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
    if resume:
        restore_threads(read_meta(directory).get("threads"))
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
            progress=False,
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


TRAIN_EPILOG = examples(
    "dln train --task questions",
    "dln train --csv mail.csv --input message --target kind --steps 10",
    "dln train --task questions --seeds 13,42,25 --run-dir runs/questions-seeds",
    "dln train --task subj --data data --layers 2 --max-minutes 30",
    "dln train --task mail.csv --set batch_size=32 --set inference.num_prompts=12",
    "dln train --task questions --lm vllm/Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1",
    "dln train --task mail.csv --lm openai/gpt-4o-mini --max-usd 5 --dry-run",
)


def train(
    context: typer.Context,
    task: flags.OneTask = None,
    csv: flags.Csv = None,
    jsonl: flags.Jsonl = None,
    input_column: flags.Input = None,
    target: flags.Target = None,
    free_form: flags.FreeForm = None,
    instruction: flags.Instruction = None,
    data: flags.DataDirectory = None,
    leaky: flags.Leaky = None,
    train_size: own.TrainSize = None,
    dev_size: own.DevSize = None,
    test_size: own.TestSize = None,
    layers: own.Layers = None,
    prompt: own.InitialPrompt = None,
    prompts_from: own.PromptsFrom = None,
    template: own.TemplateName = None,
    hidden: own.HiddenStart = None,
    hidden_tokens: own.HiddenTokens = None,
    freeze: own.Freeze = None,
    preset: own.Preset = None,
    steps: own.Steps = None,
    seed: own.Seed = None,
    seeds: own.Seeds = None,
    setting: own.Setting = None,
    test: own.Test = None,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    threads: flags.Threads = None,
    prompt_lm: own.PromptModel = None,
    prompt_base_url: own.PromptBaseUrl = None,
    prompt_api_key_env: own.PromptApiKeyEnv = None,
    hidden_lm: own.HiddenModel = None,
    hidden_base_url: own.HiddenBaseUrl = None,
    hidden_api_key_env: own.HiddenApiKeyEnv = None,
    batch_tokens: own.BatchTokens = None,
    cache: flags.Cache = None,
    no_cache: flags.NoCache = False,
    prices: flags.Prices = None,
    price: flags.PriceOf = None,
    max_calls: flags.MaxCalls = None,
    max_tokens: flags.MaxTokens = None,
    max_minutes: flags.MaxMinutes = None,
    max_usd: flags.MaxUsd = None,
    run_dir: own.NewRunDirectory = None,
    config: flags.Config = None,
    as_json: flags.Json = False,
    estimate: own.DryRun = False,
    print_schema: own.PrintSchema = False,
) -> None:
    """Train the prompts of a network, evaluate it, and write a report."""
    if print_schema:
        sys.stdout.write(json.dumps(config_schema(), indent=2) + "\n")
        return
    given: dict[str, Any] = {
        "task": {
            "name": flags.named_task(context, task, csv, jsonl),
            "csv": csv,
            "jsonl": jsonl,
            "input": input_column,
            "target": target,
            "free_form": free_form,
            "instruction": instruction,
        },
        "data": {
            "directory": data,
            "leaky": leaky,
            "train_size": train_size,
            "dev_size": dev_size,
            "test_size": test_size,
        },
        "lm": {
            **lm_settings(lm, base_url, api_key_env, lm_option, prices, price, cache, no_cache, threads),
            "prompt_lm": {"spec": prompt_lm, "base_url": prompt_base_url, "api_key_env": prompt_api_key_env},
            "hidden_lm": {"spec": hidden_lm, "base_url": hidden_base_url, "api_key_env": hidden_api_key_env},
            "batch_tokens": batch_tokens,
        },
        "network": {
            "layers": layers,
            "prompts": prompt,
            "prompts_from": prompts_from,
            "templates": template,
            "hidden": hidden,
            "hidden_tokens": hidden_tokens,
            "freeze": freeze,
        },
        "options": {"preset": preset, "steps": steps, "seed": seed},
        "budget": {
            "max_calls": max_calls,
            "max_tokens": max_tokens,
            "max_minutes": max_minutes,
            "max_usd": max_usd,
        },
        "run_dir": run_dir,
        "test": test,
    }
    chosen = load_config(given, config, setting or ())
    series = None if seeds is None else parse_seeds(seeds)
    source = context.get_parameter_source("seed")
    if series is not None and source is not None and source.name == "COMMANDLINE":
        raise InputError("seeds are given twice", where="--seeds", got=f"--seed {seed} and --seeds {seeds}")
    if estimate:
        dry_run(chosen, as_json=as_json)
        if series is not None:
            note(f"note: this is the estimate of one run; {len(series)} seeds take {len(series)} of them")
        return
    directory = _directory(chosen)
    if series is None:
        run_training(chosen, directory, as_json=as_json)
        return
    training_options(chosen)  # a mistake in the options is told before the folder is made
    begin_series(directory, chosen, series)
    run_series(
        directory,
        series,
        lambda seed, path: run_training(with_seed(chosen, seed), path, as_json=as_json),
        as_json=as_json,
    )


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
    "dln resume runs/questions-seeds",
    "dln resume runs/questions --max-tokens 5000000",
    "dln resume runs/mail --max-usd 10 --api-key-env MY_KEY",
)


def resume(
    run: flags.RunDirectory,
    max_calls: flags.MaxCalls = None,
    max_tokens: flags.MaxTokens = None,
    max_minutes: flags.MaxMinutes = None,
    max_usd: flags.MaxUsd = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    threads: flags.Threads = None,
    config_file: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Go on with a run, or with one run per seed; it ends exactly as if it had never been stopped."""
    limits = {"max_calls": max_calls, "max_tokens": max_tokens, "max_minutes": max_minutes, "max_usd": max_usd}

    def present(config: RunConfig) -> RunConfig:
        # what the record leaves out, keys above all, comes from the settings of now
        models = with_secrets(config.lm, load_config({}, config_file).lm)
        changes = {name: value for name, value in limits.items() if value is not None}
        budget = config.budget.model_copy(update=changes)
        models = moved(models, base_url, api_key_env)
        if threads is not None:
            models = models.model_copy(update={"threads": threads})
        return config.model_copy(update={"lm": models, "budget": budget})

    if not is_series(run):
        _resume(run, recorded_config(run), present, as_json=as_json)
        return
    shared, seeds = read_series(run)

    def one(seed: int, path: Path) -> None:
        if (path / "run.yaml").exists():
            _resume(path, recorded_config(path), present, as_json=as_json)
        else:
            run_training(with_seed(present(shared), seed), path, as_json=as_json)

    run_series(run, seeds, one, as_json=as_json)


def _resume(run: Path, recorded: RunConfig, present: Callable[[RunConfig], RunConfig], *, as_json: bool) -> None:
    """Go on with one run.

    Raises:
        typer.Exit: its budget is spent and no higher limit is given (4).
    """
    config = present(recorded)
    state = _state(run, config)
    changes = config.budget != recorded.budget
    if state == "budget" and not changes:
        command = f"dln resume {shlex.quote(str(run))} --max-tokens …"
        note(f"the budget of this run is spent; go on with a higher limit: {command}")
        raise typer.Exit(BUDGET_EXIT)
    if state == "finished":
        note(f"this run is finished; see: dln report {shlex.quote(str(run))}")
        return
    run_training(config, run, resume=True, as_json=as_json)


def recorded_config(run: Path) -> RunConfig:
    """The configuration that a run was started with.

    Raises:
        InputError: there is no run, or it was not started from the command line.
    """
    recorded = cast(dict[str, Any], read_meta(run).get("config") or {})
    if not recorded:
        raise InputError(
            "this run was not started by `dln train`: its run.yaml does not say with what",
            where=run,
            fix="go on with it from Python: dln.fit(..., run_dir=..., resume=True)",
        )
    return parse_config(recorded, str(run / "run.yaml"))


def _state(run: Path, config: RunConfig) -> str:
    log = run / "events.jsonl"
    events = current(read_events(log)) if log.exists() else []
    finished = of_kind(events, Finished)
    if not finished:
        return "unfinished"
    if finished[-1].reason == "budget":
        return "budget"
    tested = any(event.split == "test" for event in of_kind(events, Evaluated))
    complete = (tested or not config.test) and all((run / name).exists() for name in ("report.html", "network.json"))
    return "finished" if complete else "unfinished"
