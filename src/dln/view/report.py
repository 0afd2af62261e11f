"""The report of a run: one HTML page that needs nothing else, neither a network nor JavaScript.

Everything a report shows, as one value: pure, from the events of a run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dln.errors import InputError
from dln.train.events import Backtracked, Evaluated, Event, Interrupted, Resumed, Started, Validated
from dln.train.run import of_kind, read_events
from dln.view import format as numbers
from dln.view.charts import Chart, curves
from dln.view.format import Limits, difference_of, finite, verdict
from dln.view.steps import Change, Layer, Member, Moment, Step, changes, final_network, history, members, steps
from dln.view.summary import (
    ClassRow,
    Confusion,
    Cost,
    Examples,
    RunSummary,
    class_rows,
    confusion,
    cost,
    example_tables,
    holding,
    main_evaluation,
    started_of,
    summarize,
)
from dln.view.text import clean, clip, plain

__all__ = ["Page", "build_page", "render_report", "with_limits", "write_report"]


@dataclass(frozen=True, slots=True)
class Page:
    """The parts of a report, in the order they are shown."""

    title: str
    command: str | None
    summary: RunSummary
    started: Started
    evaluation: Evaluated | None
    other_evaluations: tuple[Evaluated, ...]
    difference: float | None
    verdict: str
    dev_first: Validated | None
    dev_best: Validated | None
    turns: tuple[str, ...]
    network_name: str
    layers: tuple[Layer, ...]
    members: tuple[Member, ...]
    charts: tuple[Chart, ...]
    steps: tuple[Step, ...]
    overall: Change | None
    changes: tuple[Change, ...]
    classes: tuple[ClassRow, ...]
    confusion_before: Confusion | None
    confusion_after: Confusion | None
    examples: tuple[Examples, ...]
    cost: Cost
    options: str
    seed: object


def build_page(events: Sequence[Event], title: str, command: str | None) -> Page:
    """The page of those events that hold (see `dln.view.summary.holding`), but for its long tables."""
    started, evaluation = started_of(events), main_evaluation(events)
    labels = started.labels
    moments = history(events)
    name, layers = final_network(events)
    first, best = _dev(events)
    options: dict[str, Any] = plain(started.options)
    whole = changes((moments[0], Moment("initial network → final network", moments[-1].layers)))
    return Page(
        title=title,
        command=command,
        summary=summarize(events),
        started=started,
        evaluation=evaluation,
        other_evaluations=tuple(e for e in of_kind(events, Evaluated) if e is not evaluation),
        difference=difference_of(evaluation) if evaluation else None,
        verdict=verdict(evaluation) if evaluation else _without_test(best, started.dev_size),
        dev_first=first,
        dev_best=best,
        turns=_turns(events),
        network_name=name,
        layers=layers,
        members=members(events),
        charts=curves(events),
        steps=(),
        overall=whole[0] if whole else None,
        changes=changes(moments),
        classes=class_rows(evaluation, labels) if evaluation else (),
        confusion_before=confusion(evaluation.before, labels) if evaluation else None,
        confusion_after=confusion(evaluation.after, labels) if evaluation else None,
        examples=(),
        cost=cost(events),
        options=yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=100) if options else "",
        seed=_find(options, "seed"),
    )


def with_limits(page: Page, events: Sequence[Event], limits: Limits) -> Page:
    """The page with its long tables: steps and examples, cut to `limits`."""
    examples = example_tables(page.evaluation, limits) if page.evaluation else ()
    return replace(page, steps=steps(events, limits), examples=examples)


def _dev(events: Sequence[Event]) -> tuple[Validated | None, Validated | None]:
    """The validation of the initial network, and the best one."""
    validated = of_kind(events, Validated)
    scored = [event for event in validated if finite(event.score) is not None]
    first = next((event for event in validated if event.step == 0), None)
    return first, max(scored, key=lambda event: (event.score, -event.step), default=None)


def _without_test(best: Validated | None, dev_size: int) -> str:
    if best is None and dev_size:
        return "No test evaluation was run, and the dev set was not measured yet."
    if best is None:
        return "No test evaluation was run, and there is no dev set: only the accuracy of the batches is known."
    return (
        "No test evaluation was run. The accuracy on the dev set is what the prompts were selected by, "
        "so it flatters the trained network."
    )


def _turns(events: Sequence[Event]) -> tuple[str, ...]:
    """What happened beside the steps, in order."""
    found: list[str] = []
    for event in events:
        if isinstance(event, Interrupted):
            found.append(f"Interrupted after step {event.step}: {event.reason}.")
        elif isinstance(event, Resumed):
            found.append(f"Resumed after step {event.step}.")
        elif isinstance(event, Backtracked):
            found.append(f"No gain for a while: after step {event.step} back to the prompts of step {event.to_step}.")
    return tuple(found)


def _find(options: object, name: str) -> object:
    """The first value under `name`, however deep."""
    if not isinstance(options, dict):
        return None
    table = cast(dict[str, object], options)
    if name in table:
        return table[name]
    return next((found for value in table.values() if (found := _find(value, name)) is not None), None)


LARGEST = 9_000_000
"""Bytes: a page above this is drawn again with shorter texts and tables."""

MOST_DRAWINGS = 8
"""So often at most."""


def render_report(events: Sequence[Event], *, title: str, command: str | None = None) -> str:
    """The page as HTML; the same events give the same page.

    Texts of data and models are escaped, and freed of control characters and terminal escapes. Long runs
    are shown with shortened texts, and the page says so.

    Args:
        events: of one run, finished or not.
        title: of the page.
        command: the shell command that repeats the run.

    Raises:
        InputError: the run has no `started` event.
    """
    held = holding(events)
    template = _environment().get_template("report.html.j2")
    limits, page, html = Limits(), build_page(held, title, command), ""
    for _ in range(MOST_DRAWINGS):
        html = template.render(page=with_limits(page, held, limits), limits=limits, shortened=limits != Limits())
        excess = len(html.encode()) / LARGEST
        if excess <= 1:
            break
        for _ in range(max(1, int(math.log2(excess)))):
            limits = limits.tighter()
    return html


def write_report(run_dir: Path, *, command: str | None = None) -> Path:
    """Write `report.html` of the run in `run_dir`, as a whole or not at all, and return its path.

    Raises:
        InputError: there are no events, or the file cannot be written.
        CorruptDataError: the events are damaged.
    """
    run_dir = Path(run_dir)
    events = holding(read_events(run_dir / "events.jsonl"))
    started = started_of(events)
    html = render_report(events, title=" · ".join(filter(None, (started.task, started.run))), command=command)
    target = run_dir / "report.html"
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(html, encoding="utf-8", newline="\n")
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError("the report cannot be written", where=target, got=error.strerror) from error
    return target


def _shown(value: object) -> object:
    """Every value on its way to the page; what is markup already was made of values that came this way."""
    if value is None:
        return numbers.MISSING
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dln.view"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    filters = cast(dict[str, Callable[..., object]], environment.filters)
    filters["clip"] = clip
    for name in ("count", "date", "duration", "interval", "number", "p_value", "percent", "points"):
        filters[f"as_{name}"] = getattr(numbers, name)
    return environment
