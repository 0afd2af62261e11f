"""`dln bench`: the paper's comparison for any model, cell by cell."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dln.bench.paper.cell import Cell, CellResult, Cells
from dln.bench.paper.methods import METHODS, in_order
from dln.bench.paper.protocol import Protocol
from dln.bench.paper.runner import Bench
from dln.bench.paper.summary import summarize
from dln.bench.paper.write import markdown, write_table
from dln.cli import flags
from dln.cli.compose import build_models, known_task
from dln.cli.flags import examples
from dln.cli.lists import names_of, seeds_of
from dln.cli.show import duration, err, note, out, print_record, safe
from dln.cli.sources import lm_settings, load_config
from dln.lm.metered import Meter

__all__ = ["EPILOG", "app"]

EPILOG = examples(
    "dln bench paper --data data",
    "dln bench paper --tasks mpqa,subj --methods 0-shot,icl-5,dln-1 --seeds 13",
    "dln bench paper --lm vllm/llama --base-url http://localhost:8000/v1 --jobs 8 --max-usd 5",
    "dln bench paper --tasks questions --methods 0-shot-line,random-demonstrations,dln-1 --equal-tokens 200000",
)

PAPER_NINE = "mpqa,trec,subj,disaster,airline,hyperbaton,navigate,date,logic7"
DEFAULT_METHODS = (
    "majority,0-shot,0-shot-line,0-shot-fitted,icl-5,icl-5-fitted,kate-5,cot,ape-15,cot+ape,random-demonstrations,"
    "dln-1-paper,dln-1,dln-2-fix,dln-2-tune,dln-2"
)

app = typer.Typer(
    help="Compare methods under one protocol.", epilog=EPILOG, no_args_is_help=True, rich_markup_mode="rich"
)


@app.callback()
def group() -> None:
    """Compare methods under one protocol."""


@app.command("paper", epilog=EPILOG)
def paper(
    tasks: Annotated[
        str, typer.Option(metavar="A,B,…", help="Tasks, by name; default the paper's nine.", rich_help_panel=flags.DATA)
    ] = PAPER_NINE,
    methods: Annotated[str, typer.Option(metavar="A,B,…", help=f"Of: {', '.join(METHODS)}.")] = DEFAULT_METHODS,
    seeds: Annotated[str, typer.Option(metavar="A,B,…", help="One cell per task, method and seed.")] = "13,42,25",
    data: flags.DataDirectory = None,
    leaky: flags.Leaky = None,
    train_size: Annotated[int, typer.Option(min=1, help="Train examples.", rich_help_panel=flags.DATA)] = 400,
    dev_size: Annotated[
        int, typer.Option(min=1, help="Dev examples; fewer than 120 mislead.", rich_help_panel=flags.DATA)
    ] = 128,
    test_size: Annotated[int, typer.Option(min=1, help="Test examples.", rich_help_panel=flags.DATA)] = 250,
    equal_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Every method that trains may use N tokens for it.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(metavar="words|NAME|DIR", help="KATE's sentence encoder; a sentence-transformers model.")
    ] = "words",
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A training option, for every network.")
    ] = None,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    prices: flags.Prices = None,
    price: flags.PriceOf = None,
    jobs: Annotated[int, typer.Option(min=1, help="Tasks and seeds side by side; for models behind a server.")] = 1,
    max_calls: flags.MaxCalls = None,
    max_tokens: flags.MaxTokens = None,
    max_minutes: flags.MaxMinutes = None,
    max_usd: flags.MaxUsd = None,
    directory: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Cells and tables; the same directory goes on.")
    ] = Path("bench"),
    config: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Reproduce the paper's tables: methods by tasks, with seeds, intervals, costs and paired tests."""
    given: dict[str, Any] = {
        "data": {"directory": data, "leaky": leaky},
        "lm": lm_settings(
            lm, base_url, api_key_env, lm_option, prices, price, str(directory / "answers.sqlite"), no_cache=False
        ),
        "budget": {
            "max_calls": max_calls,
            "max_tokens": max_tokens,
            "max_minutes": max_minutes,
            "max_usd": max_usd,
        },
    }
    chosen = load_config(given, config, setting or ())
    wanted, added = in_order(names_of(methods, "--methods"))
    numbers = seeds_of(seeds)
    if added:
        note(f"note: added, because others build upon them: {', '.join(added)}")
    protocol = Protocol(train_size, dev_size, test_size, chosen.options, equal_tokens, encoder, chosen.data.leaky)
    source = chosen.data
    loaded = [known_task(name, source.directory, leaky=source.leaky) for name in names_of(tasks, "--tasks")]
    for task in loaded:
        if len(task.dev) < 120:
            note(f"note: {task.name} has only {len(task.dev)} dev examples")
    meter = Meter()
    started = time.perf_counter()
    with ExitStack() as stack:
        cells = Cells(directory, protocol.record(chosen.lm.spec))
        models = build_models(chosen, stack, meter)
        bench = Bench(models.lm, loaded, wanted, numbers, protocol, cells, jobs)
        watch = _Watch(len(loaded) * len(wanted) * len(numbers), as_json=as_json)
        with watch:
            results = bench.run(watch)
    summary = summarize(results)
    files = write_table(summary, directory, _heading(time.perf_counter() - started))
    if as_json:
        print_record({"kind": "table", "files": [str(path) for path in files], "tokens": meter.snapshot().tokens})
        return
    out().print(safe(markdown(summary)), soft_wrap=True)
    note(f"written: {', '.join(str(path) for path in files)}")


class _Watch:
    """A progress bar on a terminal, a line per cell off it, a record per cell with --json."""

    def __init__(self, total: int, *, as_json: bool) -> None:
        self._json = as_json
        console = err()
        self._plain = as_json or not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=self._plain,
        )
        self._task = self._bar.add_task("cells", total=total)

    def __enter__(self) -> _Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, cell: Cell, result: CellResult | None) -> None:
        """See `dln.bench.paper.runner.Progress`."""
        if what == "begins":
            self._bar.update(self._task, description=safe(cell))
            return
        self._bar.advance(self._task)
        if result is None:
            return
        if self._json:
            print_record({"kind": "cell", **result.model_dump(mode="json", exclude={"correct", "prompts"})})
        elif what == "done":
            text = f"{cell}: {100 * result.accuracy:.1f} %, {result.train.tokens:,} training tokens"
            if self._plain:
                note(text)
            else:
                self._bar.console.print(safe(text), style="dim")


def _heading(seconds: float) -> str:
    return f"Made by `{shlex.join(['dln', *sys.argv[1:]])}`; the last call took {duration(seconds)}."
