"""What a run used: calls, tokens and seconds, by step and altogether."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dln.train.event_log import of_kind
from dln.train.events import Evaluated, Event, StepDone, Validated
from dln.view.numbers import finite

__all__ = ["COLUMNS", "Cost", "CostRow", "cost"]

COLUMNS = ("calls", "prompt_tokens", "completion_tokens", "seconds")


@dataclass(frozen=True, slots=True)
class CostRow:
    """What one event used.

    Attributes:
        name: which event.
        used: one number per entry of `COLUMNS`, None where it is not known.
        wall: wall-clock seconds.
        excluded: examples without a usable score, None where none are counted.
    """

    name: str
    used: tuple[float | None, ...]
    wall: float | None
    excluded: int | None


@dataclass(frozen=True, slots=True)
class Cost:
    """All rows, and the run altogether."""

    rows: tuple[CostRow, ...]
    total: CostRow


def cost(events: Sequence[Event]) -> Cost:
    """Differences of neighbouring counts: an event's own part.

    A row that has fewer than the one before it (the counter began anew) has no known part.
    """
    rows: list[CostRow] = []
    before: dict[str, float] = dict.fromkeys(COLUMNS, 0.0)
    for event in events:
        if not isinstance(event, StepDone | Validated | Evaluated):
            continue
        used = tuple(_part(event.usage, before, name) for name in COLUMNS)
        before |= {name: value for name in COLUMNS if (value := finite(event.usage.get(name))) is not None}
        rows.append(CostRow(_name(event), used, finite(event.seconds), _excluded(event)))
    return Cost(tuple(rows), _total(events, rows))


def _total(events: Sequence[Event], rows: Sequence[CostRow]) -> CostRow:
    counted = [event.usage for event in events if isinstance(event, StepDone | Validated | Evaluated)]
    newest = [[v for usage in counted if (v := finite(usage.get(name))) is not None] for name in COLUMNS]
    walls = [row.wall for row in rows if row.wall is not None]
    return CostRow(
        name="altogether",
        used=tuple(values[-1] if values else None for values in newest),
        wall=sum(walls) if walls else None,
        excluded=sum(event.excluded for event in of_kind(events, StepDone)),
    )


def _part(usage: dict[str, float], before: dict[str, float], name: str) -> float | None:
    now = finite(usage.get(name))
    if now is None or now < before[name]:
        return None
    return now - before[name]


def _name(event: StepDone | Validated | Evaluated) -> str:
    if isinstance(event, StepDone):
        return f"step {event.step}"
    return f"dev set after step {event.step}" if isinstance(event, Validated) else f"evaluation: {event.split}"


def _excluded(event: StepDone | Validated | Evaluated) -> int:
    if isinstance(event, StepDone):
        return event.excluded
    return event.result.unscored if isinstance(event, Validated) else event.after.unscored
