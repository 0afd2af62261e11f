"""Summaries of a run: state and best scores, cost by step, results by class, and examples fixed or broken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from dln.errors import InputError
from dln.train.evaluate import interval
from dln.train.events import (
    ComparedRecord,
    Evaluated,
    Event,
    Finished,
    Interrupted,
    ResultRecord,
    Resumed,
    ScoringModesRecord,
    Started,
    StepDone,
    Validated,
)
from dln.train.run import current, of_kind
from dln.view.format import Limits, finite

__all__ = [
    "COLUMNS",
    "Cell",
    "ClassRow",
    "Confusion",
    "Cost",
    "CostRow",
    "Examples",
    "Measured",
    "Recall",
    "RunSummary",
    "State",
    "best_validation",
    "class_rows",
    "confusion",
    "cost",
    "example_tables",
    "holding",
    "layers_of",
    "main_evaluation",
    "started_of",
    "summarize",
]

COLUMNS = ("calls", "prompt_tokens", "completion_tokens", "seconds", "usd")


@dataclass(frozen=True, slots=True)
class CostRow:
    """The cost of a step or an evaluation.

    Attributes:
        name: of the step or evaluation.
        step: number of steps done; None after training.
        used: one number per entry of `COLUMNS`, None if unknown.
        wall: wall-clock seconds; None if not recorded.
        excluded: number of examples without a usable score; None where they are not counted.
    """

    name: str
    step: int | None
    used: tuple[float | None, ...]
    wall: float | None
    excluded: int | None

    @property
    def tokens(self) -> float | None:
        """Prompt and completion tokens."""
        return _sum(self.used[1:3])


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a run.

    Attributes:
        rows: by step and evaluation.
        total: of the run.
        expected: estimated before the run: the likely use, and an upper bound; empty without an estimate.
        tokens_by: how the estimate counted tokens.
    """

    rows: tuple[CostRow, ...]
    total: CostRow
    expected: tuple[CostRow, ...] = ()
    tokens_by: str = ""


def cost(events: Sequence[Event]) -> Cost:
    """Compute the cost of each step (with its validation) and evaluation from the cumulative counts in the events.

    A count that decreases belongs to a new counter, as in a later evaluation.
    """
    rows: list[CostRow] = []
    before: dict[str, float] = dict.fromkeys(COLUMNS, 0.0)
    for event in events:
        if isinstance(event, StepDone):
            name, step, excluded = f"step {event.step}", event.step, event.excluded
        elif isinstance(event, Validated):
            name, step, excluded = f"validation after step {event.step}", event.step, event.result.unscored
        elif isinstance(event, Evaluated):
            name, step, excluded = f"evaluation: {event.split}", None, event.after.unscored
        else:
            continue
        used: list[float | None] = []
        for column in COLUMNS:
            now, last = finite(event.usage.get(column)), before[column]
            used.append(None if now is None else now if now < last else now - last)
            before[column] = last if now is None else now
        row = CostRow(name, step, tuple(used), finite(event.seconds) or None, excluded)
        if rows and step is not None and step == rows[-1].step:  # the seconds of a step include its validation
            both = tuple(_sum(pair) for pair in zip(rows[-1].used, used, strict=True))
            rows[-1] = replace(rows[-1], name=f"{rows[-1].name} and its validation", used=both)
        else:
            rows.append(row)
    total = CostRow(
        name="total",
        step=None,
        used=tuple(_sum(row.used[i] for row in rows) for i in range(len(COLUMNS))),
        wall=_sum(row.wall for row in rows),
        excluded=sum(event.excluded for event in of_kind(events, StepDone)),
    )
    estimate = next((event.estimate for event in of_kind(events, Started) if event.estimate is not None), None)
    if estimate is None:
        return Cost(tuple(rows), total)
    named = (("estimated", estimate), ("estimated maximum", estimate.at_most))
    expected = tuple(
        CostRow(name, None, (one.calls, one.prompt_tokens, one.completion_tokens, None, one.usd), one.seconds, None)
        for name, one in named
        if one is not None
    )
    return Cost(tuple(rows), total, expected, estimate.tokens_by)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Recall:
    """Counts of a class, and its recall with Wilson's 95 % interval (None if the class has no example)."""

    n: int
    correct: int
    predicted: int
    recall: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class before and after training."""

    label: str
    before: Recall | None
    after: Recall | None


@dataclass(frozen=True, slots=True)
class Cell:
    """A count, and its share of the row."""

    count: int
    share: float
    diagonal: bool


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix: rows are true labels, columns predictions; an empty column name means "no label"."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """A table of examples: the first rows, and the total number."""

    name: str
    title: str
    about: str
    rows: tuple[ComparedRecord, ...]
    total: int


def class_rows(event: Evaluated, labels: Sequence[str] | None) -> tuple[ClassRow, ...]:
    """Return one row per class, in the order of the labels; empty for free text."""
    before = event.before.per_class if event.before else {}
    after = event.after.per_class
    names = dict.fromkeys([*(labels or ()), *after, *before])
    return tuple(
        ClassRow(label, _recall(before.get(label)), _recall(after.get(label)))
        for label in names
        if label in before or label in after
    )


def _recall(counts: dict[str, int] | None) -> Recall | None:
    if counts is None:
        return None
    n, correct, predicted = counts.get("n", 0), counts.get("correct", 0), counts.get("predicted", 0)
    if not 0 <= correct <= n or n == 0:
        return Recall(n, correct, predicted, None, None, None)
    found = interval([1.0] * correct + [0.0] * (n - correct))
    return Recall(n, correct, predicted, found.mean, found.low, found.high)


def confusion(result: ResultRecord | None, labels: Sequence[str] | None) -> Confusion | None:
    """Return the confusion matrix; None without classes."""
    if result is None or not result.confusion:
        return None
    table = result.confusion
    targets = [label for label in dict.fromkeys([*(labels or ()), *table]) if label in table]
    predicted = dict.fromkeys(label for row in table.values() for label in row if label)
    columns = list(dict.fromkeys([*(labels or targets), *predicted]))
    if any(row.get("") for row in table.values()):
        columns.append("")
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for target in targets:
        total = sum(table[target].values())
        counts = [table[target].get(column, 0) for column in columns]
        cells = [Cell(n, n / total if total else 0.0, c == target) for n, c in zip(counts, columns, strict=True)]
        rows.append((target, tuple(cells)))
    return Confusion(tuple(columns), tuple(rows))


def example_tables(event: Evaluated, limits: Limits) -> tuple[Examples, ...]:
    """Return the examples that training fixed, those it broke, and those still wrong."""
    fixed = [e for e in event.examples if e.before_correct is False and e.after_correct]
    broken = [e for e in event.examples if e.before_correct is True and not e.after_correct]
    wrong = [e for e in event.examples if not e.before_correct and not e.after_correct]
    still = "Wrong before and after" if event.before else "Wrong"
    tables = tuple(
        Examples(name, title, about, tuple(rows[: limits.changed]), len(rows))
        for name, title, about, rows in (
            ("fixed", "Fixed", "Wrong before training, correct now.", fixed),
            ("broken", "Broken", "Correct before training, wrong now.", broken),
            ("wrong", still, "Not learned, or mislabelled.", wrong),
        )
    )
    return tables if event.before else tables[2:]


State = Literal["running?", "finished", "interrupted"]


@dataclass(frozen=True, slots=True)
class Measured:
    """An accuracy with its 95 % interval; NaN if it could not be measured."""

    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Key facts of a run.

    Attributes:
        run: id of the run.
        task: name of the task.
        models: names of its models, without repeats.
        state: "running?" if the events simply end: the run is going on, or was killed.
        reason: why it finished or stopped; None while it runs.
        started: seconds since 1970.
        depth: number of layers.
        steps_done: the last step.
        steps_planned: number of steps asked for.
        best_step: the step with the best validation score; None without one.
        best_score: that score; None without a dev set.
        select_by: name of the score; None without a dev set.
        test: result of the trained network in the main final evaluation; None without one.
        test_split: name of the examples of that evaluation.
        tokens: prompt and completion tokens so far; None if they were not counted.
        scoring_modes: how texts and outputs are scored, and what weaker modes cost; None if not recorded.
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
    """Summarize a run, finished or not.

    Raises:
        InputError: the run has no `started` event.
    """
    events = holding(events)
    started = started_of(events)
    layers = layers_of(started.network)
    state, reason = _state(events)
    best = best_validation(events)
    evaluation = main_evaluation(events)
    after = evaluation.after if evaluation else None
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
        steps_planned=([event.steps for event in of_kind(events, Resumed) if event.steps] or [started.steps])[-1],
        best_step=finished[-1].best_step if finished else best.step if best else None,
        best_score=best.score if best else None,
        select_by=best.select_by if best else None,
        test=Measured(after.accuracy, after.low, after.high, after.n) if after else None,
        test_split=evaluation.split if evaluation else None,
        tokens=cost(events).total.tokens,
        scoring_modes=modes[-1] if modes else None,
    )


def holding(events: Sequence[Event]) -> list[Event]:
    """Return the valid events: those that a resumed or restarted run made void are left out."""
    held = current(events)
    starts = [i for i, event in enumerate(held) if isinstance(event, Started)]
    return held[starts[-1] :] if starts else held


def started_of(events: Sequence[Event]) -> Started:
    """Return the event that opens a run.

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
    """Return the newest evaluation on the test examples, else the newest evaluation."""
    found = of_kind(events, Evaluated)
    tests = [event for event in found if event.split == "test"]
    return (tests or found or [None])[-1]


def best_validation(events: Sequence[Event]) -> Validated | None:
    """Return the validation with the highest score, the earliest of equals."""
    scored = [event for event in of_kind(events, Validated) if finite(event.score) is not None]
    return max(scored, key=lambda event: (event.score, -event.step), default=None)


def layers_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the layers of a network file or of a `state_dict`."""
    rows = cast(list[dict[str, Any]], data.get("layers") or [])
    return [branch for row in rows for branch in cast(list[dict[str, Any]], row.get("branches") or [row])]


def _state(events: Sequence[Event]) -> tuple[State, str | None]:
    finished = of_kind(events, Finished)
    if finished:
        return "finished", finished[-1].reason
    turns = [event for event in events if isinstance(event, Interrupted | Resumed)]
    if turns and isinstance(turns[-1], Interrupted):
        return "interrupted", turns[-1].reason
    return "running?", None
