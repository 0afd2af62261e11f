"""The report of a run: one HTML page that needs nothing else, neither a network nor JavaScript."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dln.errors import InputError
from dln.train.event_log import read_events
from dln.train.events import Event
from dln.view import numbers
from dln.view.limits import Limits
from dln.view.page import build_page, with_limits
from dln.view.summary import holding, started_of
from dln.view.text import clean, clip

__all__ = ["render_report", "write_report"]

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
