"""`dln tune`: search training options on the dev set, then train the best setting anew over seeds."""

from __future__ import annotations

import csv
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
import yaml
from rich.table import Table

from dln.bench.tuning.search import Trial, search
from dln.bench.tuning.space import Space, paper_space, read_space, size
from dln.cli import flags
from dln.cli.compose import Models, build_models, build_network, build_task
from dln.cli.config import RunConfig
from dln.cli.flags import examples
from dln.cli.lists import seeds_of
from dln.cli.show import note, out, print_record, safe
from dln.cli.sources import lm_settings, load_config
from dln.data import Task
from dln.errors import BudgetReached
from dln.lm.metered import Meter
from dln.train import FitResult, conclude, fit, fitted_initial, resolve_options
from dln.train.assemble import calibrator
from dln.train.options import merge_options, nested
from dln.train.validate import validate

__all__ = ["EPILOG", "tune"]

EPILOG = examples(
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
        "lm": lm_settings(lm, base_url, api_key_env, lm_option, prices, price, None, no_cache=False),
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
