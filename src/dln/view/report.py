"""The report of a run: a single HTML page without JavaScript or external resources, built from the run's events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dln.errors import InputError
from dln.io import write_atomically
from dln.train.events import Backtracked, Evaluated, Event, Finished, Interrupted, Resumed, Started, Validated
from dln.train.run import of_kind, read_events
from dln.view import format as numbers
from dln.view.charts import Chart, curves
from dln.view.format import Limits, difference_of, verdict
from dln.view.steps import Change, Layer, Member, Moment, Step, changes, final_network, history, members, steps
from dln.view.summary import (
    ClassRow,
    Confusion,
    Cost,
    Examples,
    RunSummary,
    best_validation,
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
    """The contents of a report, in the order of the page."""

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
    product: bool
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
    """Build the page of valid events (see `dln.view.summary.holding`), without its long tables."""
    started, evaluation, best = started_of(events), main_evaluation(events), best_validation(events)
    labels = started.labels
    moments = history(events)
    name, layers = final_network(events)
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
        dev_first=next((event for event in of_kind(events, Validated) if event.step == 0), None),
        dev_best=best,
        turns=_turns(events),
        network_name=name,
        layers=layers,
        members=members(events),
        product=any(event.bias is not None for event in of_kind(events, Finished)),
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
        seed=options.get("seed"),
    )


def with_limits(page: Page, events: Sequence[Event], limits: Limits) -> Page:
    """Return the page with its long tables (steps and examples), cut to `limits`."""
    examples = example_tables(page.evaluation, limits) if page.evaluation else ()
    return replace(page, steps=steps(events, limits), examples=examples)


def _without_test(best: Validated | None, dev_size: int) -> str:
    if best is None and dev_size:
        return "No test evaluation was run, and the dev set was not evaluated yet."
    if best is None:
        return "No test evaluation was run, and there is no dev set: only the accuracy of the batches is known."
    return (
        "No test evaluation was run. The accuracy on the dev set is optimistic, because the prompts were selected "
        "on this set."
    )


def _turns(events: Sequence[Event]) -> tuple[str, ...]:
    """Interruptions, resumptions and backtracking in order, and what private prompts share with the data."""
    found: list[str] = []
    for event in events:
        if isinstance(event, Interrupted):
            found.append(f"Interrupted after step {event.step}: {event.reason}.")
        elif isinstance(event, Finished) and event.copied is not None:
            told = "; ".join(event.copied) if event.copied else "none"
            found.append(f"Runs of five words that the prompts share with training inputs: {told}.")
        elif isinstance(event, Resumed):
            found.append(f"Resumed after step {event.step}.")
        elif isinstance(event, Backtracked):
            found.append(f"Backtracked after step {event.step} to the prompts of step {event.to_step}: no improvement.")
    return tuple(found)


LARGEST = 9_000_000
"""Bytes; a larger page is rendered again with shorter texts and tables."""

MAX_ATTEMPTS = 8
"""Maximum number of renderings."""


def render_report(events: Sequence[Event], *, title: str, command: str | None = None) -> str:
    """Render the page as HTML; the same events give the same page.

    Texts from data and models are escaped; control characters and terminal escapes are removed. On pages of long runs
    texts are shortened, with a note.

    Args:
        events: of one run, finished or not.
        title: title of the page.
        command: shell command that reproduces the run.

    Raises:
        InputError: the run has no `started` event.
    """
    held = holding(events)
    template = _environment().get_template("report.html.j2")
    limits, page, html = Limits(), build_page(held, title, command), ""
    for _ in range(MAX_ATTEMPTS):
        html = template.render(page=with_limits(page, held, limits), limits=limits, shortened=limits != Limits())
        excess = len(html.encode()) / LARGEST
        if excess <= 1:
            break
        for _ in range(max(1, int(math.log2(excess)))):
            limits = limits.tighter()
    return html


def write_report(run_dir: Path, *, command: str | None = None) -> Path:
    """Write `report.html` of the run in `run_dir` atomically, and return its path.

    Raises:
        InputError: there are no events, or the file cannot be written.
        CorruptDataError: the events are damaged.
    """
    run_dir = Path(run_dir)
    events = holding(read_events(run_dir / "events.jsonl"))
    started = started_of(events)
    html = render_report(events, title=" · ".join(filter(None, (started.task, started.run))), command=command)
    target = run_dir / "report.html"
    try:
        write_atomically(target, html)
    except OSError as error:
        raise InputError("cannot write the report", where=target, got=error.strerror) from error
    return target


def _shown(value: object) -> object:
    """Clean each value that enters the page; markup consists of values that were cleaned before."""
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
