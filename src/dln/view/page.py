"""Everything a report shows, as one value: pure, from the events of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import yaml

from dln.train.event_log import of_kind
from dln.train.events import Backtracked, Evaluated, Event, Interrupted, Resumed, Started, Validated
from dln.view.charts import Chart
from dln.view.cost import Cost, cost
from dln.view.curves import curves
from dln.view.explanations import difference_of, verdict
from dln.view.history import Change, Layer, Moment, changes, final_network, history
from dln.view.limits import Limits
from dln.view.members import Member, members
from dln.view.numbers import finite
from dln.view.results import ClassRow, Confusion, Examples, class_rows, confusion, example_tables
from dln.view.steps import Step, steps
from dln.view.summary import RunSummary, main_evaluation, started_of, summarize
from dln.view.text import plain

__all__ = ["Page", "build_page", "with_limits"]


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
