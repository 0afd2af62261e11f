"""Commands that read runs and call no model.

`dln runs` lists them, `dln compare` reads several together, `dln report` writes a page, and `dln show` prints trained
prompts for use elsewhere.
"""

from __future__ import annotations

import fcntl
import shlex
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dln.cli import flags
from dln.cli.build import open_network, recorded_config
from dln.cli.config import command_of
from dln.cli.export import heaviest_note, print_prompts, stand_in
from dln.cli.output import examples, note, one_line, out, percent, print_record, safe
from dln.errors import DlnError, InputError
from dln.integrations.exports import PROMPT_FORMS, prompt_text
from dln.nn.saving import resign_network
from dln.train.evaluate import Interval
from dln.train.events import Event, StepDone
from dln.train.run import of_kind, read_events, read_meta
from dln.view.report import write_report
from dln.view.seeds import Together, read_together
from dln.view.summary import RunSummary, summarize

__all__ = [
    "COMPARE_EPILOG",
    "REPORT_EPILOG",
    "RUNS_EPILOG",
    "SHOW_EPILOG",
    "compare",
    "report",
    "runs",
    "show",
    "tell_together",
]

RUNS_EPILOG = examples("dln runs", "dln runs experiments --json")


def runs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of run directories.")] = Path("runs"),
    as_json: flags.Json = False,
) -> None:
    """List the runs of a folder, the newest first."""
    if not directory.is_dir():
        raise InputError("there is no such directory", where=directory, fix="dln train --task questions makes a run")
    found: list[tuple[Path, RunSummary, str]] = []
    series = [file.parent for file in directory.glob("*/seeds.yaml")]
    for file in sorted(file for place in (directory, *series) for file in place.glob("*/run.yaml")):
        try:
            summary = summarize(read_events(file.parent / "events.jsonl"))
        except DlnError as error:
            note(f"{file.parent}: {error.message}")
            continue
        found.append((file.parent, summary, _state(file.parent, summary)))
    found.sort(key=lambda row: row[1].started, reverse=True)
    if as_json:
        for path, summary, state in found:
            modes = None if summary.scoring_modes is None else summary.scoring_modes.model_dump(mode="json")
            print_record({**asdict(summary), "scoring_modes": modes, "run_dir": str(path), "state": state})
        return
    if not found:
        note(f"no runs in {directory}")
        return
    for path, summary, state in found:
        _print_run(path, summary, state)


def _print_run(path: Path, summary: RunSummary, state: str) -> None:
    """Two lines that fit a terminal of 80 columns unless the name of the run does not."""
    depth = f"{summary.depth} layer{'s' if summary.depth != 1 else ''}"
    models = ", ".join(one_line(model, 24) for model in summary.models)
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.started))
    facts = [f"{summary.steps_done}/{summary.steps_planned} steps"]
    if summary.best_score is not None:
        facts.append(f"dev {summary.best_score:.3f}")
    if summary.test is not None:
        facts.append(f"test {percent(summary.test.accuracy)} (n={summary.test.n})")
    if summary.tokens is not None:
        facts.append(f"{_short(summary.tokens)} tokens")
    out().print(f"[bold]{safe(path)}[/]  {safe(state)}", soft_wrap=True)
    out().print(f"  {one_line(summary.task, 20)}, {depth}, {models}, {began}", soft_wrap=True)
    out().print(f"  {', '.join(facts)}", soft_wrap=True)


def _short(count: float) -> str:
    """A count with three digits.

    >>> _short(950), _short(12_345), _short(6_543_210)
    ('950', '12.3k', '6.54M')
    """
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _state(run: Path, summary: RunSummary) -> str:
    """A run whose events have no end is running if a process holds its lock, and was killed otherwise."""
    if summary.state != "running?":
        return summary.state if summary.reason in (None, "steps") else f"{summary.state} ({safe(summary.reason)})"
    with (run / "events.jsonl").open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return "running"
    return "killed"


REPORT_EPILOG = examples("dln report runs/questions", "dln report runs/questions --open")


def report(
    run: flags.RunDirectory,
    show_it: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write report.html of a run, finished or not, and print its path."""
    command = command_of(recorded_config(run)) if read_meta(run).get("config") else None
    path = write_report(run, command=command)
    out().print(safe(path), soft_wrap=True)
    if show_it:
        webbrowser.open(path.resolve().as_uri())


COMPARE_EPILOG = examples(
    "dln compare runs/mail-seeds",
    "dln compare runs/mail-a runs/mail-b runs/mail-c --json",
)


def compare(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|DIR...", help="Run directories, or folders of run directories.", autocompletion=flags.runs
        ),
    ],
    as_json: flags.Json = False,
) -> None:
    """Compare runs of one task: mean and 95 % interval over them, and the best by dev score."""
    tell_together(read_together(places), as_json=as_json)


def tell_together(together: Together, *, as_json: bool) -> None:
    """Print a table of the runs, or one record."""
    if as_json:
        print_record(together.to_record())
        return
    if together.differences:
        note(f"note: these runs differ in more than their seed: {', '.join(together.differences)}")
    left_out = len(together.runs) - len(together.finished)
    if left_out:
        note(f"note: {left_out} of {len(together.runs)} runs are not finished and are left out of the means")
    out().print(_together_table(together))
    if together.best is not None:
        out().print(safe(f"best by dev score: {together.best.path}"), soft_wrap=True)


def _together_table(together: Together) -> Table:
    table = Table(box=None, pad_edge=False, title=safe(together.task), title_justify="left")
    dev = "dev score" if together.select_by is None else f"dev {together.select_by.replace('_', '-')}"
    for heading in ("seed", "run", "state", dev, "test accuracy"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for run in together.runs:
        summary = run.summary
        table.add_row(
            str(run.seed),
            safe(run.path),
            summary.state if summary.reason in (None, "steps") else f"{summary.state} ({safe(summary.reason)})",
            "–" if summary.best_score is None else f"{summary.best_score:.3f}",
            "–" if summary.test is None else f"{percent(summary.test.accuracy)} (n = {summary.test.n})",
        )
    count = len(together.finished)
    table.add_row("mean", f"{count} run{'s' if count != 1 else ''}", "", _mean(together.dev), _mean(together.test, 100))
    return table


def _mean(value: Interval | None, factor: float = 1) -> str:
    """`mean ± half-width of the 95 % CI`; one run has no interval."""
    if value is None:
        return "–"
    digits, unit = (1, " %") if factor == 100 else (3, "")
    mean = f"{factor * value.mean:.{digits}f}"
    several = value.low == value.low  # NaN: one run
    return f"{mean} ± {factor * (value.high - value.mean):.{digits}f}{unit}" if several else f"{mean}{unit}"


SHOW_EPILOG = examples(
    "dln show runs/questions",
    "dln show runs/questions --format python > classify.py",
    "dln show network.json --format openai",
    "dln show network.json --resign",
)


def show(
    network: flags.NetworkOrRun,
    form: flags.Form = "text",
    resign: Annotated[
        bool, typer.Option("--resign", help="Check a network file that was edited by hand, and write its hash.")
    ] = False,
) -> None:
    """Print the trained prompts, for use without this program.

    {input} stands for the input of the network, {output 1} for the output of layer 1. Of an ensemble, openai, anthropic
    and python print the member with the largest weight.
    """
    if form not in PROMPT_FORMS:
        fix = f"dln export {shlex.quote(str(network))} --format {form}"
        raise InputError("not a form of the prompts only", where="--format", got=form, fix=fix)
    if resign:
        resign_network(network, stand_in)
        note(f"checked, and its hash written: {network}")
    trained = open_network(network, stand_in, told=False)
    if form == "text" and (network / "events.jsonl").exists():
        _tell_weights(read_events(network / "events.jsonl"))
    if form not in ("text", "json"):
        heaviest_note(trained)
    print_prompts(prompt_text(trained, form), form)


def _tell_weights(events: Sequence[Event]) -> None:
    """How the hidden texts of a run were weighed, and the τ of the last step where that was by a reward."""
    steps = [event for event in of_kind(events, StepDone) if event.scoring_modes is not None]
    modes = steps[-1].scoring_modes if steps else None
    if modes is None or modes.weights is None:
        return
    taus = [f"{tau:.3g}" for tau in dict.fromkeys(row.tau for row in steps[-1].hidden) if tau is not None]
    by = f" R/τ, τ = {', '.join(taus)} in the last step" if taus else ""
    note(f"hidden texts were weighed by: {modes.weights}{by}")
