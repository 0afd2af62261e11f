"""A run in one line: what `dln runs` lists, and what a report opens with.

What a run used: calls, tokens, seconds and money, by step and altogether, beside what was expected.

Final results in tables: classes, confusions, and the examples that training fixed or broke.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from dln.errors import InputError
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
    "class_rows",
    "confusion",
    "cost",
    "example_tables",
    "holding",
    "layers_of",
    "main_evaluation",
    "started_of",
    "summarize",
    "wilson",
]

COLUMNS = ("calls", "prompt_tokens", "completion_tokens", "seconds", "usd")


@dataclass(frozen=True, slots=True)
class CostRow:
    """What a step or an evaluation used.

    Attributes:
        name: which one.
        step: updates done by then, None for what comes after training.
        used: one number per entry of `COLUMNS`, None where it is not known.
        wall: wall-clock seconds; None where nobody wrote them down (0 in the event).
        excluded: examples without a usable score, None where none are counted.
    """

    name: str
    step: int | None
    used: tuple[float | None, ...]
    wall: float | None
    excluded: int | None

    @property
    def tokens(self) -> float | None:
        """Tokens read and drawn."""
        return _sum(self.used[1:3])


@dataclass(frozen=True, slots=True)
class Cost:
    """All rows, the run altogether, and what was expected of it.

    Attributes:
        rows: by step and evaluation.
        total: all together.
        expected: what the run was expected to use at most, None where nobody estimated it.
        tokens_by: how the tokens of the estimate were counted.
    """

    rows: tuple[CostRow, ...]
    total: CostRow
    expected: CostRow | None = None
    tokens_by: str = ""


def cost(events: Sequence[Event]) -> Cost:
    """Differences of neighbouring counts: an event's own part; a step and its validation are one row.

    Where a count falls, a new counter began (a later evaluation): what it says is that event's part.
    """
    rows: list[CostRow] = []
    before: dict[str, float] = dict.fromkeys(COLUMNS, 0.0)
    for event in events:
        if not isinstance(event, StepDone | Validated | Evaluated):
            continue
        used = tuple(_part(event.usage, before, name) for name in COLUMNS)
        before |= {name: value for name in COLUMNS if (value := finite(event.usage.get(name))) is not None}
        row = CostRow(_name(event), _step(event), used, finite(event.seconds) or None, _excluded(event))
        if rows and row.step is not None and row.step == rows[-1].step:
            rows[-1] = _together(rows[-1], row)
        else:
            rows.append(row)
    estimate = next((event.estimate for event in of_kind(events, Started) if event.estimate is not None), None)
    if estimate is None:
        return Cost(tuple(rows), _total(events, rows))
    used = (estimate.calls, estimate.prompt_tokens, estimate.completion_tokens, None, estimate.usd)
    expected = CostRow("estimated, at most", None, used, estimate.seconds, None)
    return Cost(tuple(rows), _total(events, rows), expected, estimate.tokens_by)


def _together(step: CostRow, validation: CostRow) -> CostRow:
    """The time of a step includes its validation's."""
    used = tuple(_sum(pair) for pair in zip(step.used, validation.used, strict=True))
    return replace(step, name=f"{step.name} and its validation", used=used)


def _total(events: Sequence[Event], rows: Sequence[CostRow]) -> CostRow:
    return CostRow(
        name="altogether",
        step=None,
        used=tuple(_sum(row.used[i] for row in rows) for i in range(len(COLUMNS))),
        wall=_sum(row.wall for row in rows),
        excluded=sum(event.excluded for event in of_kind(events, StepDone)),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _part(usage: dict[str, float], before: dict[str, float], name: str) -> float | None:
    now = finite(usage.get(name))
    if now is None:
        return None
    return now if now < before[name] else now - before[name]


def _name(event: StepDone | Validated | Evaluated) -> str:
    if isinstance(event, StepDone):
        return f"step {event.step}"
    return f"validation after step {event.step}" if isinstance(event, Validated) else f"evaluation: {event.split}"


def _step(event: StepDone | Validated | Evaluated) -> int | None:
    return None if isinstance(event, Evaluated) else event.step


def _excluded(event: StepDone | Validated | Evaluated) -> int:
    if isinstance(event, StepDone):
        return event.excluded
    return event.result.unscored if isinstance(event, Validated) else event.after.unscored


@dataclass(frozen=True, slots=True)
class Recall:
    """Counts of one class, and its recall with Wilson's 95 % interval (None where the class has no example)."""

    n: int
    correct: int
    predicted: int
    recall: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class before and after training."""

    label: str
    before: Recall | None
    after: Recall | None


@dataclass(frozen=True, slots=True)
class Cell:
    """A count, and its part of the row."""

    count: int
    share: float
    diagonal: bool


@dataclass(frozen=True, slots=True)
class Confusion:
    """Rows are what was wanted, columns what was predicted; an empty column name is "no label"."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """A table of examples: the first of them, and how many there are."""

    name: str
    title: str
    about: str
    rows: tuple[ComparedRecord, ...]
    total: int


def class_rows(event: Evaluated, labels: Sequence[str] | None) -> tuple[ClassRow, ...]:
    """One row per class, in the order of the labels; none for free text."""
    before = event.before.per_class if event.before else {}
    after = event.after.per_class
    names = dict.fromkeys([*(labels or ()), *after, *before])
    return tuple(
        ClassRow(label, _recall(before.get(label)), _recall(after.get(label)))
        for label in names
        if label in before or label in after
    )


def confusion(result: ResultRecord | None, labels: Sequence[str] | None) -> Confusion | None:
    """The confusion matrix, or None where there are no classes."""
    if result is None or not result.confusion:
        return None
    table = result.confusion
    targets = [label for label in dict.fromkeys([*(labels or ()), *table]) if label in table]
    said = dict.fromkeys(label for row in table.values() for label in row if label)
    columns = list(dict.fromkeys([*(labels or targets), *said]))
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
    """Fixed, broken, and those that are wrong as before."""
    fixed = [e for e in event.examples if e.before_correct is False and e.after_correct]
    broken = [e for e in event.examples if e.before_correct is True and not e.after_correct]
    wrong = [e for e in event.examples if not e.before_correct and not e.after_correct]
    still = "Wrong before and after" if event.before else "Wrong"
    tables = (
        _examples("fixed", "Fixed", "Wrong before training, right now.", fixed, limits),
        _examples("broken", "Broken", "Right before training, wrong now.", broken, limits),
        _examples("wrong", still, "What is left to learn, or mislabelled.", wrong, limits),
    )
    return tables if event.before else tables[2:]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a part: (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = Φ⁻¹(0.975)."""
    z, p = 1.959963984540054, correct / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _examples(name: str, title: str, about: str, rows: Sequence[ComparedRecord], limits: Limits) -> Examples:
    return Examples(name, title, about, tuple(rows[: limits.changed]), len(rows))


def _recall(counts: dict[str, int] | None) -> Recall | None:
    if counts is None:
        return None
    n, correct, predicted = counts.get("n", 0), counts.get("correct", 0), counts.get("predicted", 0)
    if not 0 <= correct <= n or n == 0:
        return Recall(n, correct, predicted, None, None, None)
    return Recall(n, correct, predicted, correct / n, *wilson(correct, n))


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
