"""Results as plain data, and what a run was: device, versions, date, command.

A table with its title and notes, printed on a terminal or written as Markdown from the same rows.

Results as tables: what each benchmark shows, in the units a reader expects.
"""

from __future__ import annotations

import dataclasses
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from benchmarks.scoring import Growth, SavingResult, ScoringResult
from benchmarks.step import StepResult
from dln.experiments.cells import processor
from dln.lm.local.engine import TransformersLM

__all__ = [
    "RunFacts",
    "Section",
    "about_run",
    "as_markdown",
    "as_record",
    "saving_section",
    "scaling_section",
    "scoring_section",
    "show",
    "step_section",
]


@dataclass(frozen=True)
class RunFacts:
    """What a reader must know to measure the same again."""

    command: str
    date: str
    model: str
    dtype: str
    device: str
    threads: int
    versions: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The facts in two lines."""
        threads = f", {self.threads} threads" if self.threads else ""
        return (
            f"`{self.command}`, {self.date}",
            f"{self.model} in {self.dtype} on {self.device}{threads}; {self.versions}",
        )


def about_run(lm: TransformersLM, words: Sequence[str]) -> RunFacts:
    """The facts of a run with these command-line words."""
    import torch
    import transformers

    device = lm.network.device
    on_cpu = device.type == "cpu"
    return RunFacts(
        command=shlex.join(["python", "-m", "benchmarks", *words]),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        model=lm.name,
        dtype=lm.network.dtype,
        device=processor() if on_cpu else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads() if on_cpu else 0,
        versions=(
            f"dln {version('dln')}, torch {torch.__version__}, transformers {transformers.__version__}, "
            f"Python {platform.python_version()}"
        ),
    )


def as_record(value: object) -> Any:
    """Dataclasses as dictionaries, with their properties (the derived figures) beside the fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {field.name: as_record(getattr(value, field.name)) for field in dataclasses.fields(value)}
        derived = [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return record | {name: as_record(getattr(value, name)) for name in derived}
    if isinstance(value, list | tuple):
        return [as_record(item) for item in cast("Sequence[object]", value)]
    return None if value != value else value  # noqa: PLR0124 - NaN is no JSON


@dataclass(frozen=True)
class Section:
    """What one benchmark has to say.

    Attributes:
        name: which benchmark; the page's markers are called after it.
        title: one line.
        columns: headings; the first column is words, the others are numbers.
        rows: cells as text.
        notes: sentences under the table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def show(console: Console, section: Section) -> None:
    """Print the table."""
    table = Table(title=section.title, title_justify="left", caption_justify="left")
    for i, column in enumerate(section.columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*row)
    console.print(table)
    for note in section.notes:
        console.print(f"  {note}", highlight=False, markup=False)


def as_markdown(section: Section) -> str:
    """The table as Markdown, its title in bold above it."""
    lines = [
        f"**{section.title}**",
        "",
        "| " + " | ".join(map(_cell, section.columns)) + " |",
        "|" + "|".join("---" if i == 0 else "---:" for i in range(len(section.columns))) + "|",
        *("| " + " | ".join(map(_cell, row)) + " |" for row in section.rows),
    ]
    if section.notes:
        lines += ["", *(f"- {note}" for note in section.notes)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


MEGABYTE = 2.0**20


def scoring_section(results: Sequence[ScoringResult]) -> Section:
    """One column per workload."""

    def row(name: str, cells: Sequence[str]) -> tuple[str, ...]:
        return (name, *cells)

    def times(seconds: Sequence[tuple[float, float]]) -> list[str]:
        return [f"{best:.2f} / {median:.2f}" for best, median in seconds]

    rows = (
        row("pairs", [f"{r.work.pairs:,}" for r in results]),
        row("tokens asked", [f"{r.work.asked:,}" for r in results]),
        row("tokens needed (trie nodes)", [f"{r.work.needed:,}" for r in results]),
        row("tokens evaluated", [f"{r.evaluated:,}" for r in results]),
        row("planner efficiency (needed / evaluated)", [f"{r.planner_efficiency:.3f}" for r in results]),
        row("engine, s (best / median)", times([(r.engine.best, r.engine.median) for r in results])),
        row("(a) plain padded batches, s", times([(r.plain.best, r.plain.median) for r in results])),
        row("(b) the same deduplicated, s", times([(r.deduplicated.best, r.deduplicated.median) for r in results])),
        row("(c) limit: 2 × nodes × parameters, s", [f"{r.limit:.2f}" for r in results]),
        row("strict limit: weights that are multiplied, s", [f"{r.strict_limit:.2f}" for r in results]),
        row("speed-up over (a)", [f"{r.speed_up:.1f} ×" for r in results]),
        row("speed-up over (b)", [f"{r.speed_up_deduplicated:.1f} ×" for r in results]),
        row("hardware efficiency (limit / engine)", [f"{r.hardware_efficiency:.2f}" for r in results]),
        row("the same of the strict limit", [f"{r.strict_efficiency:.2f}" for r in results]),
        row("processor time, s: engine / (a)", times([(r.engine.cpu, r.plain.cpu) for r in results])),
        row("peak memory of the engine, MB", [_megabytes(r.engine.memory) for r in results]),
        row("peak memory of (a), MB", [_megabytes(r.plain.memory) for r in results]),
        row("largest log-prob difference to (a), nats", [f"{r.largest_difference:.1e}" for r in results]),
    )
    notes = (
        *(f"{r.name}: {r.about}." for r in results),
        *(
            f"{r.name}: (a) and (b) scored {r.plain_part:.1%} of it, spread evenly, and their seconds are scaled up "
            "by the tokens asked."
            for r in results
            if r.plain_part < 1
        ),
        *(
            f"{r.name}: batches of {r.plain_rows} rows were the fastest for (a), of {r.deduplicated_rows} for (b)."
            for r in results
        ),
        *(
            f"{r.name}: matrix products of the model's shapes with {r.machine.tokens} rows ran at "
            f"{r.machine.flops / 1e9:,.0f} GFLOP/s around it; a plain forward of one sequence of as many tokens, head "
            f"aside, reached {r.machine.forward_flops / r.machine.flops:.2f} of that."
            for r in results
        ),
    )
    title = "Scoring: the engine against plain padded batches, one process"
    return Section("scoring", title, ("", *(r.name for r in results)), rows, notes)


def saving_section(result: SavingResult) -> Section:
    """The work-saving rules on the DLN-2 workload."""
    shares = ", ".join(f"{share:.2f}" for share in result.share)
    same = ", ".join("yes" if same else f"no ({a}, {b})" for same, (a, b) in zip(result.same_winner, result.winners))  # noqa: B905
    rows = (
        ("(a) plain batches in full, s", f"{result.plain_seconds:.2f}"),
        ("engine in full, s (best / median)", f"{result.full.best:.2f} / {result.full.median:.2f}"),
        ("engine under the default rules, s", f"{result.saving.best:.2f} / {result.saving.median:.2f}"),
        ("speed-up over (a)", f"{result.speed_up:.1f} ×"),
        ("hidden texts that keep their weight", f"{result.particles:.2f}"),
        ("scores asked for in the races, per layer", shares),
        ("same winner as in full, per layer", same),
    )
    return Section("saving", f"Work-saving rules: both M-steps of {result.name}", ("", "value"), rows)


def step_section(results: Sequence[StepResult]) -> Section:
    """One row per way of taking the step."""
    rows = tuple(
        (
            f"{result.preset}: {time.way}",
            f"{time.seconds:.1f}",
            f"{result.plain.seconds / time.seconds:.1f} ×",
            f"{time.flops / 1e9:.0f}",
            f"{result.at_equal_speed(time):.1f} ×",
            f"{time.hidden_tokens:.0f}",
            str(time.candidates),
            _megabytes(time.memory),
        )
        for result in results
        for time in (result.plain, result.full, result.saving)
    )
    speed = ("GFLOP/s around it", "speed-up at equal speed")
    columns = ("preset: way", "seconds", "speed-up", *speed, "tokens per hidden text", "candidates", "memory, MB")
    notes = tuple(f"{result.preset}: {result.about}." for result in results)
    return Section("step", "A whole DLN-2 training step, forward to both M-steps", columns, rows, notes)


def scaling_section(points: Sequence[Growth]) -> Section:
    """One row per size, with the ratio to the row before of the same dimension."""
    rows: list[tuple[str, ...]] = []
    before: Growth | None = None
    for point in points:
        first = before is None or before.what != point.what
        rows.append(
            (
                f"{point.what} = {point.size}",
                f"{point.asked:,}",
                f"{point.needed:,}",
                f"{point.seconds:.2f}",
                "" if first or before is None else f"{point.needed / before.needed:.2f} ×",
                "" if first or before is None else f"{point.seconds / before.seconds:.2f} ×",
            )
        )
        before = point
    columns = ("size", "tokens asked", "tokens needed", "engine, s", "needed grows by", "time grows by")
    return Section("scaling", "How scoring time grows when one size doubles", columns, tuple(rows))


def _megabytes(value: float) -> str:
    return f"{value / MEGABYTE:,.0f}"
