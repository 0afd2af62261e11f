"""`dln bench`: tables of cells (task × method × seed), computed once, resumable, and written into Markdown pages.

`paper` compares methods on test examples, `ablation` compares training options on held-out dev examples.
"""

from __future__ import annotations

import difflib
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dln.cli import flags
from dln.cli.build import known_task
from dln.cli.config import ENGINE, LIMITS, PRICES, SIZES, RunConfig
from dln.cli.flags import names_of, seeds_of
from dln.cli.models import build_models, remote
from dln.cli.output import duration, err, examples, note, out, print_record, safe
from dln.cli.sources import configured
from dln.data import Task
from dln.errors import DlnError, InputError
from dln.experiments.cells import Bench, Cell, CellResult, Cells
from dln.experiments.encoders import PACKAGE, installed_encoder
from dln.experiments.method import DevelopmentProtocol, EvaluationProtocol, Method
from dln.experiments.methods import BASE, METHODS, in_order, variants, with_base
from dln.experiments.summary import Summary, summarize
from dln.experiments.tables import (
    REGIONS,
    SHORT,
    ablation_markdown,
    check_section,
    circumstances,
    full_section,
    markdown,
    picture,
    reductions,
    remaining,
    short_section,
    write_section,
    write_table,
)
from dln.lm.meter import Meter
from dln.lm.prices import FREE

__all__ = [
    "ABLATION_EPILOG",
    "DEFAULT_METHODS",
    "PAPER_EPILOG",
    "Place",
    "Table",
    "Watch",
    "ablation",
    "app",
    "checked_places",
    "load_tasks",
    "make_table",
    "typed",
    "write_places",
]


@dataclass(frozen=True)
class Place:
    """A region of a page."""

    page: Path
    region: str

    @property
    def short(self) -> bool:
        """Whether it takes the short form of a table."""
        return self.region == SHORT


def checked_places(pages: Sequence[Path] | None, region: str | None, usual: str) -> list[Place]:
    """Where `--write` and `--region` say that a table shall go: README.md takes the short one.

    Raises:
        InputError: no such region, or a page without its markers.
    """
    if region is not None and region not in REGIONS:
        close = difflib.get_close_matches(region, REGIONS, n=1)
        raise InputError(
            "there is no such region",
            where="--region",
            got=region,
            expected=", ".join(REGIONS),
            fix=f"did you mean {close[0]!r}?" if close else None,
        )
    if region is not None and not pages:
        raise InputError("a region is of a page", where="--region", got=region, fix="--write docs/results.md")
    front = usual in ("paper", "equal tokens")
    places = [
        Place(page, SHORT if front and page.name == "README.md" else region or usual)
        for page in dict.fromkeys(pages or ())
    ]
    for place in places:
        if place.short and not front:
            raise InputError("the short table is that of `dln bench paper`", where="--region", got=place.region)
        check_section(place.page, place.region)
    return places


def write_places(places: Sequence[Place], full: str, short: str = "", picture: str = "") -> list[Path]:
    """Fill the regions; `picture`, an SVG, lies beside the page and is shown under the full table."""
    written: list[Path] = []
    for place in places:
        text = short if place.short else full
        if picture and not place.short:
            path = place.page.parent / "images" / f"results-{place.region.replace(' ', '-')}.svg"
            try:
                path.parent.mkdir(exist_ok=True)
                path.write_text(picture, encoding="utf-8")
            except OSError as error:
                raise InputError("the picture cannot be written", where=path, got=error.strerror) from error
            text = f"{text.rstrip()}\n\n![Accuracy against training tokens](images/{path.name})"
            written.append(path)
        write_section(place.page, place.region, text)
        written.append(place.page)
    return written


def typed(context: typer.Context, config: RunConfig) -> str:
    """The command with the flags that were given, here or by the environment; no secret is repeated."""
    recorded = cast(dict[str, Any], config.model_dump(mode="json")["lm"])  # addresses without credentials, no keys
    words = context.command_path.split()
    for parameter in cast(Sequence[Any], context.command.params):
        source = context.get_parameter_source(parameter.name)
        if source is None or source.name not in ("COMMANDLINE", "ENVIRONMENT"):
            continue
        value = context.params[parameter.name]
        if parameter.name == "lm_option":
            value = [f"{name}={option}" for name, option in recorded["options"].items()]
        elif parameter.name == "base_url":
            value = recorded["base_url"]
        words += _flag(parameter, value)
    return shlex.join(words)


def _flag(parameter: Any, value: Any) -> list[str]:
    flag = max(parameter.opts, key=len)
    if value is None:
        return []
    if isinstance(value, bool):
        off = list(parameter.secondary_opts)
        return [flag] if value else off[:1]
    values = cast(Sequence[object], value if isinstance(value, list | tuple) else [value])
    return [word for one in values for word in (flag, str(one))]


class Watch:
    """A progress bar on a terminal, a line per cell off it, a record per cell with --json.

    Args:
        wanted: all cells of the table.
        known: those that were finished before.
        jobs: cells that are made side by side.
        as_json: records on standard output.
    """

    def __init__(
        self, wanted: Sequence[Cell], known: Mapping[Cell, CellResult], jobs: int = 1, *, as_json: bool = False
    ) -> None:
        self._json, self._jobs = as_json, jobs
        self._missing = [cell for cell in wanted if cell not in known]
        self._finished = list(known.values())
        self._total = len(self._missing)
        self._lock = threading.Lock()
        console = err()
        self._plain = as_json or not console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=self._plain,
        )
        self._task = self._bar.add_task("cells", total=self._total, left=self._left())
        counts = f"{len(wanted)} cells, {len(wanted) - self._total} of them done, {self._total} to compute"
        if as_json:
            begin = {"cells": len(wanted), "known": len(wanted) - self._total, "missing": self._total}
            print_record({"kind": "begin", **begin, "seconds_left": remaining(self._missing, self._finished, jobs)})
        else:
            left = self._left()
            note(f"{counts}, {left}" if left and self._total else counts)

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, cell: Cell, result: CellResult | None) -> None:
        """See `dln.experiments.cells.Progress`."""
        with self._lock:
            if what == "begins":
                self._bar.update(self._task, description=safe(cell))
            elif result is not None:
                self._ended(what, cell, result)

    def _ended(self, what: str, cell: Cell, result: CellResult) -> None:
        if what == "done":
            self._missing.remove(cell)
            self._finished.append(result)
            self._bar.update(self._task, advance=1, left=self._left())
        if self._json:
            hidden = {"correct", "prompts", "log_probs", "tested", "recipe"}
            print_record({"kind": "cell", **result.model_dump(mode="json", exclude=hidden)})
        elif what == "done":
            text = f"{cell}: {100 * result.accuracy:.1f} %, {result.train.tokens:,} training tokens"
            if self._plain:
                done = f"{self._total - len(self._missing)} of {self._total}"
                left = self._left()
                note(f"{text} ({done}, {left})" if left else f"{text} ({done})")
            else:
                self._bar.console.print(safe(text), style="dim")

    def _left(self) -> str:
        seconds = remaining(self._missing, self._finished, self._jobs) if self._missing else None
        return "" if seconds is None else f"about {duration(seconds)} left"


SIDE_BY_SIDE = 4
"""Cells at a time of a model behind a server, unless the user says."""


@dataclass(frozen=True)
class Table:
    """A table to be made, and how it is shown.

    Args:
        tasks: with their full splits.
        methods: each after those it builds upon.
        seeds: one cell per task, method and seed.
        protocol: what all cells share.
        summarize: cells → numbers.
        show: numbers → Markdown.
        title: of the picture.
        judged: what the examples are called that judge.
        places: regions of pages that it is written into.
    """

    tasks: Sequence[Task]
    methods: Sequence[Method]
    seeds: Sequence[int]
    protocol: EvaluationProtocol
    summarize: Callable[[Sequence[CellResult]], Summary]
    show: Callable[[Summary], str]
    title: str
    judged: str = "test"
    places: Sequence[Place] = ()


def load_tasks(names: Sequence[str], config: RunConfig, least_dev: int = 120) -> list[Task]:
    """The tasks by name; said aloud where a dev set is small."""
    source = config.data
    loaded = [known_task(name, source.directory, leaky=source.leaky) for name in names]
    for task in loaded:
        if len(task.dev) < least_dev:
            note(f"note: {task.name} has only {len(task.dev)} dev examples")
    return loaded


def make_table(
    context: typer.Context, table: Table, config: RunConfig, directory: Path, jobs: int | None, *, as_json: bool
) -> None:
    """Make the missing cells, print the table and write its files and pages.

    Raises:
        DlnError: and `KeyboardInterrupt`: passed on, after the table of the finished cells was written.
    """
    for side in ("prompt_lm", "hidden_lm"):
        if getattr(config.lm, side) is not None:
            note(f"note: all methods use the same model; the configured {side} is not used")
    started, meter = time.perf_counter(), Meter()
    with ExitStack() as stack:
        # the directory first: whether it can be gone on with is known at once, a model takes its time
        cells = Cells(directory, table.protocol.record(config.lm.spec))
        models = build_models(config, stack, meter)
        for line in models.notes:
            note(f"note: {line}")
        quote = models.quotes.get(config.lm.spec)
        bench = Bench(
            models.lm,
            table.tasks,
            table.methods,
            table.seeds,
            table.protocol,
            cells,
            jobs or (SIDE_BY_SIDE if remote(config.lm.spec) else 1),
            FREE if quote is None else quote.price,
        )
        results = _finished(bench, context, table, config, as_json=as_json)
    summary = table.summarize(results)
    text, short = _texts(context, table, config, summary, results)
    files = write_table(summary, directory, text, table.title)
    files += write_places(table.places, text, short, picture(summary, table.title))
    if as_json:
        rows = [asdict(row) for row in summary.rows]
        names = [str(path) for path in files]
        print_record({"kind": "table", "files": names, "tokens": meter.snapshot().tokens, "rows": rows})
        return
    out().print(safe(text), soft_wrap=True)
    note(f"done in {duration(time.perf_counter() - started)}")
    note(f"written: {', '.join(str(path) for path in files)}")


def _finished(
    bench: Bench, context: typer.Context, table: Table, config: RunConfig, *, as_json: bool
) -> list[CellResult]:
    """All cells; of a bench that ends early, the table of those that are finished is written all the same."""
    watch = Watch(bench.wanted, bench.known(), bench.jobs, as_json=as_json)
    try:
        with watch:
            return bench.run(watch)
    except (KeyboardInterrupt, DlnError):
        done = list(bench.known().values())
        directory = bench.cells.directory
        if done:
            summary = table.summarize(done)
            text, _ = _texts(context, table, config, summary, done)
            write_table(summary, directory, text, table.title)
        note(
            f"{len(done)} of {len(bench.wanted)} cells are finished and stored in {directory}"
            + (", with their table; " if done else "; ")
            + "the same command resumes"
        )
        raise


def _texts(
    context: typer.Context, table: Table, config: RunConfig, summary: Summary, cells: Sequence[CellResult]
) -> tuple[str, str]:
    """The full form and the short one."""
    about = circumstances(typed(context, config), config.lm.spec, cells)
    less = reductions(summary, judged=table.judged)
    return full_section(table.show(summary), about, less), short_section(summary, about, less)


NLU, BIG_BENCH = "mpqa,trec,subj,disaster,airline", "hyperbaton,navigate,date,logic7"
PAPER_NINE = f"{NLU},{BIG_BENCH}"
DEFAULT_METHODS = (
    "majority,tfidf-lr,encoder-lr,0-shot,0-shot-line,0-shot-fitted,icl-5,icl-5-fitted,kate-5,cot,ape-15,ape-400,cot+ape,"
    "random-demonstrations,dln-1-paper,dln-1,dln-1-ensemble,dln-2-fix,dln-2-tune,dln-2,dln-3"
)
SHARED = f"set lm {ENGINE} {PRICES} {LIMITS} run_dir"
"""Settings of both commands, besides the data. Each table has a cache of its own in its directory."""

EqualTokens = Annotated[
    int | None, typer.Option("--equal-tokens", min=1, metavar="N", help="Training budget of every method, in tokens.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Number of concurrent cells (default: 4 for models behind a server, 1 in this process).",
        rich_help_panel=flags.MODEL,
    ),
]

PAPER_EPILOG = examples(
    "dln bench paper --data data",
    "dln bench paper --tasks mpqa,subj --methods 0-shot,icl-5,dln-1 --seeds 13",
    "dln bench paper --lm vllm/llama --base-url http://localhost:8000/v1 --jobs 8 --max-usd 5",
    "dln bench paper --tasks questions --methods 0-shot-line,random-demonstrations,dln-1 --equal-tokens 200000",
    "dln bench paper --data data --write docs/results.md --write README.md",
)
ABLATION_EPILOG = examples(
    "dln bench ablation --data data",
    "dln bench ablation --data data --tasks mpqa,trec --variants k6,k24,batch-40 --seeds 13",
    "dln bench ablation --tasks questions --variants variants.yaml --set steps=4",
    "dln bench ablation --data data --variants all --write docs/results.md",
)

app = typer.Typer(
    help="Compare methods under one protocol.", epilog=PAPER_EPILOG, no_args_is_help=True, rich_markup_mode="rich"
)


@app.callback()
def group() -> None:
    """Compare methods under one protocol."""


@app.command("paper", epilog=PAPER_EPILOG)
@configured("data leaky", SIZES, SHARED, train_size=400, dev_size=128, test_size=250, run_dir="bench")
def paper(
    context: typer.Context,
    config: RunConfig,
    tasks: flags.TaskNames = PAPER_NINE,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="A,B,…",
            help=f"Comma-separated methods: {', '.join(METHODS)}; and icl-K, kate-K, ape-M of any size.",
        ),
    ] = DEFAULT_METHODS,
    seeds: flags.Seeds = "13,42,25",
    equal_tokens: EqualTokens = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="words|NAME|DIR",
            help=f"Sentence encoder, {PACKAGE} or a sentence-transformers model "
            "(default: words for kate-K, the package for encoder-lr).",
        ),
    ] = None,
    jobs: Jobs = None,
    write: flags.Page = None,
    region: flags.Region = None,
    as_json: flags.Json = False,
) -> None:
    """Reproduce the paper's tables: methods by tasks, with seeds, intervals, costs and paired tests.

    Cells that the output directory holds are not computed again.
    """
    config, directory, options = _prepared(config)
    if options.pop("preset", "default") != "default":
        note("note: every row of the table has its own preset; the configured one is not used")
    names = names_of(methods, "--methods")
    if methods == DEFAULT_METHODS and encoder is None and installed_encoder() is None:
        names.remove("encoder-lr")
        note("note: encoder-lr is left out, because its encoder is not installed: pip install 'dln[encoder]'")
    wanted, added = in_order(names)
    if added:
        note(f"note: added, because other methods need them: {', '.join(added)}")
    numbers, data = seeds_of(seeds or ""), config.data
    places = checked_places(write, region, "paper" if equal_tokens is None else "equal tokens")
    abouts = {method.name: method.about for method in wanted}
    sizes = (data.train_size or 0, data.dev_size or 0, data.test_size or 0)
    table = Table(
        tasks=load_tasks(names_of(tasks or "", "--tasks"), config),
        methods=wanted,
        seeds=numbers,
        protocol=EvaluationProtocol(*sizes, options, equal_tokens, encoder, data.leaky),
        summarize=summarize,
        show=lambda summary: markdown(summary, abouts),
        title="Test accuracy",
        places=places,
    )
    make_table(context, table, config, directory, jobs, as_json=as_json)


@app.command("ablation", epilog=ABLATION_EPILOG)
@configured(
    *("data leaky train_size dev_size layers preset", SHARED),
    **{"train_size": 400, "dev_size": 128, "layers": 1, "preset": "default", "run_dir": "ablation"},
)
def ablation(
    context: typer.Context,
    config: RunConfig,
    tasks: flags.TaskNames = NLU,
    chosen_variants: Annotated[
        str,
        typer.Option(
            "--variants",
            metavar="FILE|A,B,…",
            help="YAML file of name: {option: value}, comma-separated built-in variants, or all of these.",
        ),
    ] = "all",
    seeds: flags.Seeds = "13,42,25",
    judge_size: Annotated[
        int,
        typer.Option(
            "--judge-size", min=1, help="Maximum number of held-out dev examples.", rich_help_panel=flags.DATA
        ),
    ] = 250,
    equal_tokens: EqualTokens = None,
    jobs: Jobs = None,
    write: flags.Page = None,
    region: flags.Region = None,
    as_json: flags.Json = False,
) -> None:
    """Change one training option at a time; results are measured on half of the dev set, never on test examples.

    Cells that the output directory holds are not computed again.
    """
    config, directory, options = _prepared(config)
    preset, layers = str(options.pop("preset")), config.network.layers
    candidates = variants(chosen_variants, preset, layers)
    numbers, data = seeds_of(seeds or ""), config.data
    places = checked_places(write, region, "ablation")
    loaded = load_tasks(names_of(tasks or "", "--tasks"), config, least_dev=240)
    methods, same = with_base(candidates, options, loaded[0], preset, layers)
    if same:
        note(f"note: left out, because they equal the base: {', '.join(same)}")
    pairs = [(BASE, method.name) for method in methods[1:]]
    abouts = {method.name: method.about for method in methods}
    sizes = (data.train_size or 0, data.dev_size or 0, judge_size)
    table = Table(
        tasks=loaded,
        methods=methods,
        seeds=numbers,
        protocol=DevelopmentProtocol(*sizes, options, equal_tokens, leaky=data.leaky),
        summarize=lambda cells: summarize(cells, pairs),
        show=lambda summary: ablation_markdown(summary, abouts),
        title="Accuracy on held-out dev examples",
        judged="held-out dev",
        places=places,
    )
    make_table(context, table, config, directory, jobs, as_json=as_json)


def _prepared(config: RunConfig) -> tuple[RunConfig, Path, dict[str, Any]]:
    """The configuration with the table's own cache, its directory, and the training options."""
    directory = Path(config.run_dir or "")
    lm = config.lm.model_copy(update={"cache": True, "cache_path": str((directory / "answers.sqlite").absolute())})
    return config.model_copy(update={"lm": lm}), directory, dict(config.options)
