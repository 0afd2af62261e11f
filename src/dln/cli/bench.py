"""`dln bench`: the paper's comparison for any model, cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dln.bench.paper.methods import METHODS, in_order
from dln.bench.paper.protocol import Protocol
from dln.bench.paper.summary import summarize
from dln.bench.paper.write import markdown
from dln.cli import ablation, bench_flags, flags
from dln.cli.bench_flags import budget_settings
from dln.cli.bench_page import checked_places
from dln.cli.bench_run import Table, load_tasks, make_table
from dln.cli.flags import examples
from dln.cli.lists import names_of, seeds_of
from dln.cli.show import note
from dln.cli.sources import lm_settings, load_config

__all__ = ["EPILOG", "app"]

EPILOG = examples(
    "dln bench paper --data data",
    "dln bench paper --tasks mpqa,subj --methods 0-shot,icl-5,dln-1 --seeds 13",
    "dln bench paper --lm vllm/llama --base-url http://localhost:8000/v1 --jobs 8 --budget usd=5",
    "dln bench paper --tasks questions --methods 0-shot-line,random-demonstrations,dln-1 --equal-tokens 200000",
    "dln bench paper --data data --write docs/results.md --write README.md",
)

DEFAULT_METHODS = (
    "majority,0-shot,0-shot-line,0-shot-fitted,icl-5,icl-5-fitted,kate-5,cot,ape-15,ape-400,cot+ape,"
    "random-demonstrations,dln-1-paper,dln-1,dln-1-ensemble,dln-2-fix,dln-2-tune,dln-2,dln-3"
)

app = typer.Typer(
    help="Compare methods under one protocol.", epilog=EPILOG, no_args_is_help=True, rich_markup_mode="rich"
)


@app.callback()
def group() -> None:
    """Compare methods under one protocol."""


@app.command("paper", epilog=EPILOG)
def paper(
    context: typer.Context,
    tasks: bench_flags.Tasks = bench_flags.PAPER_NINE,
    methods: Annotated[
        str, typer.Option(metavar="A,B,…", help=f"Of: {', '.join(METHODS)}; and icl-K, kate-K, ape-M of any size.")
    ] = DEFAULT_METHODS,
    seeds: bench_flags.Seeds = "13,42,25",
    data: flags.DataDirectory = None,
    leaky: flags.Leaky = None,
    train_size: bench_flags.TrainSize = 400,
    dev_size: bench_flags.DevSize = 128,
    test_size: Annotated[int, typer.Option(min=1, help="Test examples.", rich_help_panel=flags.DATA)] = 250,
    equal_tokens: bench_flags.EqualTokens = None,
    encoder: bench_flags.Encoder = "words",
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
    ] = Path("bench"),
    write: bench_flags.Page = None,
    region: bench_flags.Region = None,
    config: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Reproduce the paper's tables: methods by tasks, with seeds, intervals, costs and paired tests."""
    cache = str(directory / "answers.sqlite")
    limits = {"max_calls": max_calls, "max_tokens": max_tokens, "max_minutes": max_minutes, "max_usd": max_usd}
    given: dict[str, Any] = {
        "data": {"directory": data, "leaky": leaky},
        "lm": lm_settings(lm, base_url, api_key_env, lm_option, prices, price, cache, no_cache=False),
        "budget": budget_settings(budget, **limits),
    }
    chosen = load_config(given, config, setting or ())
    options = dict(chosen.options)
    if options.pop("preset", "default") != "default":
        note("note: every row of the table has its preset; the configured one is not used")
    wanted, added = in_order(names_of(methods, "--methods"))
    numbers = seeds_of(seeds)
    if added:
        note(f"note: added, because others build upon them: {', '.join(added)}")
    places = checked_places(write, region, "paper" if equal_tokens is None else "equal tokens")
    abouts = {method.name: method.about for method in wanted}
    table = Table(
        tasks=load_tasks(names_of(tasks, "--tasks"), chosen),
        methods=wanted,
        seeds=numbers,
        protocol=Protocol(train_size, dev_size, test_size, options, equal_tokens, encoder, chosen.data.leaky),
        summarize=summarize,
        show=lambda summary: markdown(summary, abouts),
        title="Test accuracy",
        places=places,
    )
    make_table(context, table, chosen, directory, jobs, as_json=as_json)


app.command("ablation", epilog=ablation.EPILOG)(ablation.ablation)
