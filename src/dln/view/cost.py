"""What a run used: calls, tokens, seconds and money, by step and altogether, beside what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dln.train.event_log import of_kind
from dln.train.events import Evaluated, Event, Started, StepDone, Validated
from dln.view.numbers import finite

__all__ = ["COLUMNS", "Cost", "CostRow", "cost"]

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
