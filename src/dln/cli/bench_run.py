"""Running a bench from the command line: the same for every table that is made of cells."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from dln.bench.paper.cell import CellResult, Cells
from dln.bench.paper.method import Method
from dln.bench.paper.picture import picture
from dln.bench.paper.protocol import Protocol
from dln.bench.paper.publish import circumstances, full_section, reductions, short_section
from dln.bench.paper.runner import Bench
from dln.bench.paper.summary import Summary
from dln.bench.paper.write import write_table
from dln.cli.bench_page import Place, typed, write_places
from dln.cli.bench_progress import Watch
from dln.cli.compose import build_models, known_task
from dln.cli.config import RunConfig
from dln.cli.endpoints import remote
from dln.cli.show import duration, note, out, print_record, safe
from dln.data import Task
from dln.errors import DlnError
from dln.lm.metered import Meter
from dln.lm.prices import FREE

__all__ = ["Table", "load_tasks", "make_table"]

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
    protocol: Protocol
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
            note(f"note: all methods spend from one model; the configured {side} is not used")
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
    note(f"this call took {duration(time.perf_counter() - started)}")
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
            f"{len(done)} of {len(bench.wanted)} cells are finished and kept in {directory}"
            + (", with the table of these; " if done else "; ")
            + "the same command goes on with the others"
        )
        raise


def _texts(
    context: typer.Context, table: Table, config: RunConfig, summary: Summary, cells: Sequence[CellResult]
) -> tuple[str, str]:
    """The full form and the short one."""
    about = circumstances(typed(context, config), config.lm.spec, cells)
    less = reductions(summary, judged=table.judged)
    return full_section(table.show(summary), about, less), short_section(summary, about, less)
