"""Tables of a comparison on the command line: progress, output files, and regions of Markdown pages."""

from __future__ import annotations

import difflib
import functools
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dln.cli.build import known_task
from dln.cli.config import RunConfig
from dln.cli.models import build_models, remote
from dln.cli.output import duration, err, note, out, print_record, safe
from dln.data import Task
from dln.errors import DlnError, InputError
from dln.experiments.cells import Bench, Cell, CellResult, Cells
from dln.experiments.labels_needed import labels_markdown, labels_pictures, summarize_sizes
from dln.experiments.method import EvaluationProtocol, Method
from dln.experiments.summary import Summary, summarize
from dln.experiments.tables import (
    REGIONS,
    SHORT,
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
from dln.io import write_atomically
from dln.lm.meter import Meter
from dln.lm.prices import FREE

__all__ = [
    "Place",
    "Table",
    "Watch",
    "checked_places",
    "load_tasks",
    "make_labels",
    "make_table",
    "run_bench",
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


def write_places(
    places: Sequence[Place], full: str, short: str = "", pictures: Mapping[str, tuple[str, str]] | None = None
) -> list[Path]:
    """Fill the regions.

    Args:
        places: the regions.
        full: the full text.
        short: the text of regions that take the short form.
        pictures: SVGs with their descriptions, by the end of their names; they are written beside the page and shown
            below the full text.
    """
    written: list[Path] = []
    for place in places:
        text = short if place.short else full
        for ending, (about, svg) in (pictures or {}).items() if not place.short else ():
            path = place.page.parent / "images" / f"results-{place.region.replace(' ', '-')}{ending}.svg"
            try:
                path.parent.mkdir(exist_ok=True)
                path.write_text(svg, encoding="utf-8")
            except OSError as error:
                raise InputError("the picture cannot be written", where=path, got=error.strerror) from error
            text = f"{text.rstrip()}\n\n![{about}](images/{path.name})"
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
            hidden = {"correct", "prompts", "log_probs", "confidences", "tested", "recipe"}
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
    started, meter = time.perf_counter(), Meter()

    def partial(done: Sequence[CellResult]) -> None:
        summary = table.summarize(done)
        write_table(summary, directory, _texts(context, table, config, summary, done)[0], table.title)

    results = run_bench(table, config, directory, jobs, meter, partial, as_json=as_json)
    summary = table.summarize(results)
    text, short = _texts(context, table, config, summary, results)
    files = write_table(summary, directory, text, table.title)
    pictures = {"": ("Accuracy against training tokens", picture(summary, table.title))}
    files += write_places(table.places, text, short, pictures)
    if as_json:
        rows = [asdict(row) for row in summary.rows]
        names = [str(path) for path in files]
        print_record({"kind": "table", "files": names, "tokens": meter.snapshot().tokens, "rows": rows})
        return
    out().print(safe(text), soft_wrap=True)
    note(f"done in {duration(time.perf_counter() - started)}")
    note(f"written: {', '.join(str(path) for path in files)}")


def run_bench(
    table: Table,
    config: RunConfig,
    directory: Path,
    jobs: int | None,
    meter: Meter,
    partial: Callable[[Sequence[CellResult]], None],
    *,
    as_json: bool,
) -> list[CellResult]:
    """Make the missing cells in `directory` and return all.

    Args:
        table: tasks, methods, seeds and protocol.
        config: the settings; its model is loaded.
        directory: of the cells.
        jobs: number of concurrent cells; None for the usual one.
        meter: counts the tokens.
        partial: called with the finished cells if the bench ends early.
        as_json: print records.

    Raises:
        DlnError: and `KeyboardInterrupt`: passed on, after `partial`.
    """
    for side in ("prompt_lm", "hidden_lm"):
        if getattr(config.lm, side) is not None:
            note(f"note: all methods use the same model; the configured {side} is not used")
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
        watch = Watch(bench.wanted, bench.known(), bench.jobs, as_json=as_json)
        try:
            with watch:
                return bench.run(watch)
        except (KeyboardInterrupt, DlnError):
            done = list(bench.known().values())
            if done:
                partial(done)
            note(
                f"{len(done)} of {len(bench.wanted)} cells are finished and stored in {directory}"
                + (", with their table; " if done else "; ")
                + "the same command resumes"
            )
            raise


def make_labels(
    context: typer.Context,
    config: RunConfig,
    directory: Path,
    *,
    tasks: Sequence[Task],
    methods: Sequence[Method],
    seeds: Sequence[int],
    protocols: Mapping[int, EvaluationProtocol],
    places: Sequence[Place],
    jobs: int | None,
    as_json: bool,
) -> None:
    """Make the missing cells of each number of training examples, and write tables and pictures.

    Raises:
        DlnError: and `KeyboardInterrupt`: passed on, after the tables of the finished cells were written.
    """
    meter, first = Meter(), methods[0].name
    pairs = [(method.name, first) for method in methods[1:]]
    cells: dict[int, Sequence[CellResult]] = {}

    def write(into: Sequence[Place]) -> tuple[str, list[Path]]:
        found = summarize_sizes(cells, protocols, pairs)
        about = circumstances(
            typed(context, config), config.lm.spec, [cell for group in cells.values() for cell in group]
        )
        less = reductions(list(found.summaries.values())[-1])
        text = full_section(labels_markdown(found, {method.name: method.about for method in methods}), about, less)
        pictures = labels_pictures(found, first)
        files = {directory / "table.md": text}
        files |= {directory / f"labels{ending}.svg": svg for ending, (_, svg) in pictures.items()}
        for path, content in files.items():
            write_atomically(path, content)
        return text, [*files, *write_places(into, text, pictures=pictures)]

    def partial(size: int, done: Sequence[CellResult]) -> None:
        cells[size] = done
        write(())

    for size, protocol in protocols.items():
        note(f"{size} training examples, {protocol.dev_size} dev examples")
        one = Table(tasks, methods, seeds, protocol, lambda done: summarize(done, pairs), markdown, "")
        ends = functools.partial(partial, size)
        cells[size] = run_bench(one, config, directory / str(size), jobs, meter, ends, as_json=as_json)
    text, files = write(places)
    if as_json:
        print_record({"kind": "table", "files": [str(path) for path in files], "tokens": meter.snapshot().tokens})
        return
    out().print(safe(text), soft_wrap=True)
    note(f"written: {', '.join(str(path) for path in files)}")


def _texts(
    context: typer.Context, table: Table, config: RunConfig, summary: Summary, cells: Sequence[CellResult]
) -> tuple[str, str]:
    """The full form and the short one."""
    about = circumstances(typed(context, config), config.lm.spec, cells)
    less = reductions(summary, judged=table.judged)
    return full_section(table.show(summary), about, less), short_section(summary, about, less)
