"""A run in one line: what `dln runs` lists, and what a report opens with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from dln.errors import InputError
from dln.train.event_log import current, of_kind
from dln.train.events import Evaluated, Event, Finished, Interrupted, Resumed, Started, StepDone, Validated
from dln.train.records import ScoringModesRecord
from dln.view.cost import cost
from dln.view.numbers import finite

__all__ = ["Measured", "RunSummary", "State", "holding", "layers_of", "main_evaluation", "started_of", "summarize"]

State = Literal["running?", "finished", "interrupted"]


@dataclass(frozen=True, slots=True)
class Measured:
    """An accuracy with its 95 % interval; NaN where it could not be measured."""

    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What one wants to know of a run at a glance.

    Attributes:
        run: id of the run.
        task: name of the task.
        models: names of its models, each once.
        state: "running?" where the events just end: it goes on, or it was killed.
        reason: why it finished or stopped; None while it runs.
        started: seconds since 1970.
        depth: layers.
        steps_done: the last step that holds.
        steps_planned: as asked for.
        best_step: the step with the best validation score, None without one.
        best_score: that score, None without a dev set.
        select_by: what the score is; None without a dev set.
        test: of the trained network in its main final evaluation, None if there is none.
        test_split: what it was evaluated on.
        tokens: read and drawn so far, None if nothing was counted.
        scoring_modes: how texts and outputs are scored, and what weaker modes cost; None where it was not recorded.
    """

    run: str
    task: str
    models: tuple[str, ...]
    state: State
    reason: str | None
    started: float
    depth: int
    steps_done: int
    steps_planned: int
    best_step: int | None
    best_score: float | None
    select_by: str | None
    test: Measured | None
    test_split: str | None
    tokens: float | None
    scoring_modes: ScoringModesRecord | None = None


def summarize(events: Sequence[Event]) -> RunSummary:
    """The summary of a run, finished or not.

    Raises:
        InputError: the run has no `started` event.
    """
    events = holding(events)
    started = started_of(events)
    layers = layers_of(started.network)
    state, reason = _state(events)
    best = _best(of_kind(events, Validated))
    evaluation = main_evaluation(events)
    finished = of_kind(events, Finished)
    modes = [event.scoring_modes for event in of_kind(events, StepDone) if event.scoring_modes is not None]
    return RunSummary(
        run=started.run,
        task=started.task,
        models=tuple(dict.fromkeys(str(layer.get("model", "")) for layer in layers)),
        state=state,
        reason=reason,
        started=started.time,
        depth=len(layers),
        steps_done=max((event.step for event in of_kind(events, StepDone)), default=0),
        steps_planned=started.steps,
        best_step=finished[-1].best_step if finished else best.step if best else None,
        best_score=best.score if best else None,
        select_by=best.select_by if best else None,
        test=_measured(evaluation) if evaluation else None,
        test_split=evaluation.split if evaluation else None,
        tokens=cost(events).total.tokens,
        scoring_modes=modes[-1] if modes else None,
    )


def holding(events: Sequence[Event]) -> list[Event]:
    """The events that hold: what a resumed run went back behind, or began again, is void."""
    held = current(events)
    starts = [i for i, event in enumerate(held) if isinstance(event, Started)]
    return held[starts[-1] :] if starts else held


def started_of(events: Sequence[Event]) -> Started:
    """The event that opens a run.

    Raises:
        InputError: there is none.
    """
    found = of_kind(events, Started)
    if not found:
        raise InputError(
            "this run did not start: its events have no `started` record",
            got=f"{len(events)} events",
            fix="start a new run, or remove the directory",
        )
    return found[0]


def main_evaluation(events: Sequence[Event]) -> Evaluated | None:
    """The newest evaluation of the test examples, or else the newest of any examples."""
    found = of_kind(events, Evaluated)
    tests = [event for event in found if event.split == "test"]
    return (tests or found or [None])[-1]


def layers_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers of a network file or of a `state_dict`."""
    return cast(list[dict[str, Any]], data.get("layers") or [])


def _state(events: Sequence[Event]) -> tuple[State, str | None]:
    finished = of_kind(events, Finished)
    if finished:
        return "finished", finished[-1].reason
    turns = [event for event in events if isinstance(event, Interrupted | Resumed)]
    if turns and isinstance(turns[-1], Interrupted):
        return "interrupted", turns[-1].reason
    return "running?", None


def _best(validations: Sequence[Validated]) -> Validated | None:
    scored = [event for event in validations if finite(event.score) is not None]
    return max(scored, key=lambda event: (event.score, -event.step), default=None)


def _measured(event: Evaluated) -> Measured:
    after = event.after
    return Measured(after.accuracy, after.low, after.high, after.n)
