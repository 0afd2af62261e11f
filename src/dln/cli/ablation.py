"""`dln bench ablation`: which training options give most accuracy per token, found out without a test example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dln.bench.paper.ablation_table import ablation_markdown
from dln.bench.paper.development import DevelopmentProtocol
from dln.bench.paper.summary import summarize
from dln.bench.paper.variants import BASE, variants, with_base
from dln.cli import bench_flags, flags
from dln.cli.bench_flags import budget_settings
from dln.cli.bench_page import checked_places
from dln.cli.bench_run import Table, load_tasks, make_table
from dln.cli.flags import examples
from dln.cli.lists import names_of, seeds_of
from dln.cli.show import note
from dln.cli.sources import lm_settings, load_config

__all__ = ["EPILOG", "ablation"]

EPILOG = examples(
    "dln bench ablation --data data",
    "dln bench ablation --data data --tasks mpqa,trec --variants k6,k24,batch-40 --seeds 13",
    "dln bench ablation --tasks questions --variants variants.yaml --set steps=4",
    "dln bench ablation --data data --variants all --write docs/results.md",
)


def ablation(
    context: typer.Context,
    tasks: bench_flags.Tasks = bench_flags.NLU,
    chosen_variants: Annotated[
        str,
        typer.Option(
            "--variants",
            metavar="FILE|A,B,…",
            help="A YAML file of name: {option: value}, built-in ones by name, or all of these.",
        ),
    ] = "all",
    preset: Annotated[str, typer.Option(help="The base, which every variant changes.")] = "default",
    layers: Annotated[int, typer.Option(min=1, help="Depth of the base.")] = 1,
    seeds: bench_flags.Seeds = "13,42,25",
    data: flags.DataDirectory = None,
    leaky: flags.Leaky = None,
    train_size: bench_flags.TrainSize = 400,
    dev_size: bench_flags.DevSize = 128,
    judge_size: Annotated[
        int, typer.Option(min=1, help="Examples of the dev set's other half that judge.", rich_help_panel=flags.DATA)
    ] = 250,
    equal_tokens: bench_flags.EqualTokens = None,
    setting: bench_flags.Setting = None,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    prices: flags.Prices = None,
    price: flags.PriceOf = None,
    jobs: bench_flags.Jobs = None,
    budget: bench_flags.BudgetOf = None,
    max_calls: flags.MaxCalls = None,
    max_tokens: flags.MaxTokens = None,
    max_minutes: flags.MaxMinutes = None,
    max_usd: flags.MaxUsd = None,
    directory: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Cells and tables; the same directory goes on.")
    ] = Path("ablation"),
    write: bench_flags.Page = None,
    region: bench_flags.Region = None,
    config: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Change one training option at a time, on train and dev examples only: half of the dev set judges."""
    cache = str(directory / "answers.sqlite")
    limits = {"max_calls": max_calls, "max_tokens": max_tokens, "max_minutes": max_minutes, "max_usd": max_usd}
    given: dict[str, Any] = {
        "data": {"directory": data, "leaky": leaky},
        "lm": lm_settings(lm, base_url, api_key_env, lm_option, prices, price, cache, no_cache=False),
        "budget": budget_settings(budget, **limits),
    }
    chosen = load_config(given, config, setting or ())
    options = dict(chosen.options)
    if str(options.pop("preset", preset)) != preset:
        note(f"note: the base is preset {preset} (--preset); the configured one is not used")
    candidates = variants(chosen_variants, preset, layers)
    numbers = seeds_of(seeds)
    places = checked_places(write, region, "ablation")
    loaded = load_tasks(names_of(tasks, "--tasks"), chosen, least_dev=240)
    methods, same = with_base(candidates, options, loaded[0], preset, layers)
    if same:
        note(f"note: left out, because the base does the same: {', '.join(same)}")
    pairs = [(BASE, method.name) for method in methods[1:]]
    abouts = {method.name: method.about for method in methods}
    table = Table(
        tasks=loaded,
        methods=methods,
        seeds=numbers,
        protocol=DevelopmentProtocol(train_size, dev_size, judge_size, options, equal_tokens, leaky=chosen.data.leaky),
        summarize=lambda cells: summarize(cells, pairs),
        show=lambda summary: ablation_markdown(summary, abouts),
        title="Accuracy on held-out dev examples",
        judged="held-out dev",
        places=places,
    )
    make_table(context, table, chosen, directory, jobs, as_json=as_json)
