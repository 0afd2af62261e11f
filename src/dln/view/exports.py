"""Files that the dashboard offers of a run: its network, prompts, report, events, and tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dln.errors import InputError
from dln.train.events import StepDone
from dln.train.result import COLUMNS, History
from dln.train.run import read_events
from dln.view.folder import Named
from dln.view.records import example_rows
from dln.view.report import render_report
from dln.view.steps import final_network
from dln.view.summary import started_of
from dln.view.text import clean

__all__ = ["EXPORTS", "export"]


@dataclass(frozen=True, slots=True)
class _Export:
    kind: str
    make: Callable[[Named], bytes]


def export(run: Named, name: str) -> tuple[str, bytes]:
    """The media type and the content of a file.

    Raises:
        InputError: there is no such file, or the run does not have it yet.
    """
    if name not in EXPORTS:
        raise InputError("there is no such export", got=name, expected=", ".join(EXPORTS))
    chosen = EXPORTS[name]
    return chosen.kind, chosen.make(run)


def _stored(name: str) -> Callable[[Named], bytes]:
    def read(run: Named) -> bytes:
        folder = run.source.folder
        try:
            if folder is not None:
                return (folder / name).read_bytes()
        except OSError:
            pass  # told below: the run has not come so far
        raise InputError(f"this run has no {name} yet", where=run.name)

    return read


def _report(run: Named) -> bytes:
    if run.source.folder is None:
        brief = run.source.events()
        events = [(run.source.step(event.step) or event) if isinstance(event, StepDone) else event for event in brief]
    else:
        events = read_events(run.source.folder / "events.jsonl")
    started = started_of(events)
    title = " · ".join(filter(None, (started.task, started.run)))
    return render_report(events, title=title, command=run.command).encode()


def _prompts(run: Named) -> bytes:
    name, layers = final_network(run.source.events())
    parts = [f"{run.name}: {name}"]
    for layer in layers:
        prompt = layer.parameters.prompt
        shown = [f"{d.h}\n→ {d.y}" for d in prompt.demonstrations]
        parts.append("\n\n".join([f"---- layer {layer.number} ----", prompt.instruction, *shown]))
    return clean("\n\n".join(parts) + "\n").encode()


def _curves(run: Named) -> bytes:
    history = History.of(run.source.events())
    return table(COLUMNS, ([row[name] for name in COLUMNS] for row in history))


def _predictions(run: Named) -> bytes:
    rows = example_rows(run.source.events())
    if not rows:
        raise InputError("this run was not evaluated yet", where=run.name)
    columns = ("x", "y", "before", "after", "before_correct", "after_correct", "probability", "turn")
    return table(columns, ([row[name] for name in columns] for row in rows))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file; a text that a spreadsheet would read as a formula gets an apostrophe before it."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue().encode()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text


EXPORTS = {
    "network.json": _Export("application/json", _stored("network.json")),
    "prompts.txt": _Export("text/plain; charset=utf-8", _prompts),
    "report.html": _Export("text/html; charset=utf-8", _report),
    "steps.csv": _Export("text/csv; charset=utf-8", _curves),
    "predictions.csv": _Export("text/csv; charset=utf-8", _predictions),
    "events.jsonl": _Export("application/x-ndjson", _stored("events.jsonl")),
}
"""By the name of the file."""
