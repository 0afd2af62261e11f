"""`dln tune`: search training options on the dev set, then train the best setting anew over seeds.

`dln probe-task`: whether training prompts can pay on a task with a model, before it is paid for.
"""

from __future__ import annotations

import csv
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
import yaml
from rich.table import Table

from dln.cli import flags
from dln.cli import flags as complete
from dln.cli.bench import checked_places, typed, write_places
from dln.cli.build import Models, build_models, build_network, build_task
from dln.cli.config import RunConfig
from dln.cli.flags import examples, names_of, seeds_of
from dln.cli.output import err, note, out, print_record, safe
from dln.cli.sources import lm_settings, load_config
from dln.data import Task
from dln.errors import BudgetReached
from dln.experiments.cells import made_here
from dln.experiments.headroom import Headroom, Measured, headroom_markdown, measure_headroom
from dln.experiments.tables import Circumstances, full_section
from dln.experiments.tuning import Space, Trial, paper_space, read_space, search, size
from dln.lm.meter import Meter
from dln.train import FitResult, conclude, fit, fitted_initial, resolve_options
from dln.train.build import calibrator
from dln.train.evaluate import validate
from dln.train.options import merge_options, nested

__all__ = ["PROBE_TASK_EPILOG", "TUNE_EPILOG", "probe_task", "tune"]

TUNE_EPILOG = examples(
    "dln tune --task questions --trials 8 --set steps=4",
    "dln tune --task subj --data data --layers 2 --preset paper --max-tokens 5000000",
    "dln tune --csv mail.csv --space space.yaml --seeds 13,42,25",
)


def tune(
    context: typer.Context,
    task: flags.OneTask = None,
    csv_file: flags.Csv = None,
    jsonl: flags.Jsonl = None,
    input_column: flags.Input = None,
    target: flags.Target = None,
    data: flags.DataDirectory = None,
    leaky: flags.Leaky = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Depth of the network.")] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Options to start from: default or paper.")] = None,
    space: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML of option: [values]; default the paper's space for this depth."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Settings that are tried at most.")] = 12,
    judge: Annotated[
        Literal["log_likelihood", "accuracy"], typer.Option(help="What settings are compared by, on the dev set.")
    ] = "log_likelihood",
    seed: Annotated[int, typer.Option(help="Of the search and of each trial.")] = 13,
    seeds: Annotated[
        str, typer.Option(metavar="A,B,…", help="The best setting is trained anew with these.")
    ] = "13,42,25",
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A training option of every trial.")
    ] = None,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    threads: flags.Threads = None,
    prices: flags.Prices = None,
    price: flags.PriceOf = None,
    max_calls: flags.MaxCalls = None,
    max_tokens: flags.MaxTokens = None,
    max_minutes: flags.MaxMinutes = None,
    max_usd: flags.MaxUsd = None,
    directory: Annotated[Path, typer.Option("--out", metavar="DIR", help="The study; the same one goes on.")] = Path(
        "tune"
    ),
    config: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Search training options: every trial is judged on the dev set, the test set is for the best one alone."""
    given: dict[str, Any] = {
        "task": {
            "name": flags.named_task(context, task, csv_file, jsonl),
            "csv": csv_file,
            "jsonl": jsonl,
            "input": input_column,
            "target": target,
        },
        "data": {"directory": data, "leaky": leaky},
        "network": {"layers": layers},
        "lm": lm_settings(lm, base_url, api_key_env, lm_option, prices, price, None, no_cache=False, threads=threads),
        "options": {"preset": preset},
        "budget": {"max_calls": max_calls, "max_tokens": max_tokens, "max_minutes": max_minutes, "max_usd": max_usd},
    }
    chosen = load_config(given, config, setting or ())
    searched = paper_space(chosen.network.layers) if space is None else read_space(space)
    again = seeds_of(seeds)
    note(f"{size(searched)} settings, at most {trials} of them are tried; study in {directory}")
    with ExitStack() as stack:
        models = build_models(chosen, stack, Meter())
        study = _Study(chosen, build_task(chosen), models, seed, judge)
        found = search(
            study.score, searched, trials, seed=seed, journal=directory / "study.log", progress=_teller(as_json)
        )
        best = nested(found[0].settings)
        rows = [study.final(best, number) for number in again]
    _write(directory, chosen, searched, found, best)
    if as_json:
        print_record({"kind": "best", "settings": found[0].settings, "score": found[0].score, "test": rows})
        return
    out().print(_table(searched, found))
    accuracies, numbers = [row["accuracy"] for row in rows], ", ".join(map(str, again))
    out().print(
        f"best setting, trained anew with seeds {numbers}: test accuracy "
        f"{100 * np.mean(accuracies):.1f} % ({', '.join(f'{100 * a:.1f}' for a in accuracies)})"
    )
    note(f"dln train --config {directory / 'best.yaml'} trains with it")


class _Study:
    """What every trial has in common."""

    def __init__(self, config: RunConfig, task: Task, models: Models, seed: int, judge: str) -> None:
        self._config, self._task, self._models, self._seed, self._judge = config, task, models, seed, judge

    def score(self, settings: dict[str, Any]) -> float:
        """The dev score of a network trained under `settings`, measured alike for all settings."""
        result, inference = self._train(settings, self._seed)
        validation = validate(result.network, self._task.dev, self._task.metric, calibrator(inference))
        return validation.score(self._judge)[0]

    def final(self, settings: dict[str, Any], seed: int) -> dict[str, Any]:
        """The test result of the setting under another seed."""
        result, _ = self._train(settings, seed)
        options = resolve_options(self._preset, self._config.options, settings)
        fitted = fitted_initial(result.initial, self._task.dev, self._task.metric, options)
        event = conclude(result.initial, result.predictor, self._task.test, fitted=fitted, metric=self._task.metric)
        return {"seed": seed, "accuracy": event.after.accuracy, "low": event.after.low, "high": event.after.high}

    @property
    def _preset(self) -> str:
        return str(self._config.options.get("preset", "default"))

    def _train(self, settings: dict[str, Any], seed: int) -> tuple[FitResult, Any]:
        options = resolve_options(self._preset, self._config.options, settings, {"seed": seed})
        result = fit(
            build_network(self._config, self._task, self._models.lm),
            self._task.train,
            self._task.dev,
            options=options,
            metric=self._task.metric,
            prompt_lm=self._models.prompt_lm,
            hidden_lm=self._models.hidden_lm,
            readable=self._task.test.inputs,
        )
        if result.reason == "budget":
            raise BudgetReached("the budget ended within a trial", where="dln tune", fix="raise it; the study goes on")
        return result, options.inference


def _teller(as_json: bool) -> Any:
    def tell(trial: Trial) -> None:
        if as_json:
            print_record({"kind": "trial", "number": trial.number, "settings": trial.settings, "score": trial.score})
        else:
            note(f"trial {trial.number}: {trial.score:.4f}  {trial.settings}")

    return tell


def _write(directory: Path, config: RunConfig, space: Space, trials: list[Trial], best: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    document = config.model_dump(mode="json", exclude_defaults=True)
    document["options"] = merge_options(document.get("options", {}), best)
    (directory / "best.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    with (directory / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", *space, "score"])
        writer.writerows([t.number, *(t.settings[name] for name in space), t.score] for t in trials)


def _table(space: Space, trials: list[Trial]) -> Table:
    table = Table(title="Trials, the best first", title_justify="left")
    for heading in ("trial", *space, "dev score"):
        table.add_column(heading.removeprefix("inference."))
    for trial in trials[:10]:
        table.add_row(str(trial.number), *(safe(trial.settings[name]) for name in space), f"{trial.score:.4f}")
    return table


PROBE_TASK_EPILOG = examples(
    "dln probe-task --task questions",
    "dln probe-task --task subj --data data --prompts 12 --shots 24",
    "dln probe-task --csv mail.csv --lm openai/gpt-4o-mini --draws 0 --json",
    "dln probe-task --task mpqa,trec,subj --data data --write docs/results.md",
)


def probe_task(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(
            envvar="DLN_TASK",
            metavar="A,B,…|FILE",
            help="Known tasks (questions, subj, …), with commas between, or a .csv, .tsv or .jsonl file.",
            autocompletion=complete.tasks,
            rich_help_panel=flags.DATA,
        ),
    ] = None,
    csv: flags.Csv = None,
    jsonl: flags.Jsonl = None,
    input_column: flags.Input = None,
    target: flags.Target = None,
    instruction: flags.Instruction = None,
    data: flags.DataDirectory = None,
    prompts: Annotated[int, typer.Option(min=2, help="Random prompts that are measured.")] = 8,
    shots: Annotated[int, typer.Option(min=1, help="Random examples in each.")] = 16,
    draws: Annotated[int, typer.Option(min=0, help="Draws of thoughts, for depth; 0 leaves it out.")] = 3,
    dev_size: Annotated[int, typer.Option(min=20, help="Dev examples.", rich_help_panel=flags.DATA)] = 128,
    candidates: Annotated[int, typer.Option(min=2, help="Candidate prompts that training would see.")] = 32,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 13,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    threads: flags.Threads = None,
    cache: flags.Cache = None,
    no_cache: flags.NoCache = False,
    write: Annotated[
        list[Path] | None,
        typer.Option(metavar="PAGE", help="Put the table between the markers of this page.", show_default=False),
    ] = None,
    region: Annotated[str | None, typer.Option(metavar="NAME", help="The markers; default headroom.")] = None,
    config: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Say whether prompt training, and a second layer, can be expected to pay."""
    named = flags.named_task(context, task, csv, jsonl)
    given: dict[str, Any] = {
        "task": {
            "csv": csv,
            "jsonl": jsonl,
            "input": input_column,
            "target": target,
            "instruction": instruction,
        },
        "data": {"directory": data},
        "lm": lm_settings(lm, base_url, api_key_env, lm_option, None, None, cache, no_cache, threads),
    }
    places = checked_places(write, region, "headroom")
    names: list[str | None] = [None] if named is None else [*names_of(named, "--task")]
    configs = [load_config({**given, "task": {**given["task"], "name": name}}, config) for name in names]
    loaded = [build_task(chosen) for chosen in configs]
    found: list[tuple[str, Headroom]] = []
    started = time.perf_counter()
    with ExitStack() as stack:
        models = build_models(configs[0], stack, Meter())
        for known in loaded:
            with err().status("measuring", spinner="dots") as status:
                headroom = measure_headroom(
                    known,
                    models.lm,
                    prompts=prompts,
                    shots=shots,
                    draws=draws,
                    dev_size=dev_size,
                    seed=seed,
                    candidates=candidates,
                    progress=lambda what, name=known.name: status.update(f"{safe(name)}: measuring {what}"),
                )
            found.append((known.name, headroom))
            _tell(headroom, known.name, alone=len(loaded) == 1, as_json=as_json)
    if places:
        about = Circumstances(
            typed(context, configs[0]), configs[0].lm.spec, time.perf_counter() - started, (made_here(),)
        )
        less = f"Seed {seed}; at most {dev_size} dev examples per task. No test example is looked at."
        files = write_places(places, full_section(headroom_markdown(found), about, less))
        note(f"written: {', '.join(map(str, files))}")


def _tell(found: Headroom, name: str, *, alone: bool, as_json: bool) -> None:
    if as_json:
        print_record({"kind": "headroom", "task": name, **_record(found)})
        return
    if not alone:
        out().print(f"[bold]{safe(name)}[/]")
    out().print(_headroom_table(found))
    out().print(safe(answer(found)) + ("" if alone else "\n"), soft_wrap=True)


def answer(found: Headroom) -> str:
    """Plain sentences."""
    gain, noise = found.expected_gain, found.noise
    lines = [
        f"Random prompts differ by {found.spread:.3f} nats beyond the noise of measuring one ({noise:.3f}).",
        (
            f"Prompt training can be expected to pay: the best of {found.candidates} candidates should reach "
            f"{gain:+.3f} nats per example over what is there without training."
            if found.pays
            else f"Prompt training cannot be expected to pay here: the best of {found.candidates} candidates would be "
            f"{gain:+.3f} nats per example from what is there without training, which is within the noise. "
            "Try a larger model, another wording of the labels, or more examples per prompt (--shots)."
        ),
    ]
    if found.depth_pays is None:
        lines.append("Depth was not measured.")
    elif found.depth_pays:
        lines.append(
            "A second layer can pay: the model's thoughts tell the answer apart better than the input alone. "
            f"Begin with them: dln train --layers 2{'' if found.staged else ' --hidden think'}"
        )
    else:
        lines.append(
            "A second layer cannot be expected to pay: the model's own thoughts do not help it to the answer "
            f"({found.depth_gain:+.3f} nats)."
        )
    return "\n".join(lines)


def _headroom_table(found: Headroom) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("on the dev examples", "accuracy", "without the fitted output", "log p(y|x)"):
        table.add_column(heading, justify="right" if heading != "on the dev examples" else "left")
    table.add_row("majority class", f"{found.majority:.3f}", "", f"{found.majority_log_likelihood:.3f}")
    rows: list[tuple[str, tuple[Measured, ...]]] = [("the instruction alone", (found.instruction,))]
    rows += [(f"{len(found.prompts)} random prompts, mean", found.prompts)]
    best = max(found.prompts, key=lambda m: m.log_likelihood)
    rows += [("the best of them", (best,))]
    if found.thoughts:
        rows += [(f"with thoughts, mean of {len(found.thoughts)} draws", found.thoughts)]
    for name, measured in rows:
        table.add_row(
            name,
            f"{np.mean([m.accuracy for m in measured]):.3f}",
            f"{np.mean([m.raw_accuracy for m in measured]):.3f}",
            f"{np.mean([m.log_likelihood for m in measured]):.3f}",
        )
    return table


def _record(found: Headroom) -> dict[str, Any]:
    def plain(measured: Measured) -> dict[str, float]:
        return {
            "accuracy": measured.accuracy,
            "raw_accuracy": measured.raw_accuracy,
            "log_likelihood": measured.log_likelihood,
        }

    return {
        "majority": found.majority,
        "majority_log_likelihood": found.majority_log_likelihood,
        "instruction": plain(found.instruction),
        "prompts": [plain(m) for m in found.prompts],
        "thoughts": [plain(m) for m in found.thoughts],
        "spread": found.spread,
        "noise": found.noise,
        "expected_gain": found.expected_gain,
        "pays": found.pays,
        "depth_gain": found.depth_gain,
        "depth_pays": found.depth_pays,
    }
