"""Reading and writing `events.jsonl`: append-only, one record a line, a torn last line tolerated.

A run that was resumed repeats the steps after its checkpoint: `current` leaves out what a `Resumed`
record made void.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from dln.errors import CorruptDataError, InputError
from dln.train.events import AnyEvent, Backtracked, Evaluated, Event, Finished, Resumed, StepDone, Validated

__all__ = ["current", "of_kind", "parse_line", "read_events", "to_line"]

EventT = TypeVar("EventT", bound=Event)
_ADAPTER: TypeAdapter[Event] = TypeAdapter(AnyEvent)


def parse_line(line: str, where: str) -> Event:
    """One record.

    Raises:
        CorruptDataError: it is not one of the known events.
    """
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CorruptDataError(
            "this line is not an event of a run",
            where=where,
            got=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="restore the file, or start a new run",
        ) from error


def read_events(path: str | Path) -> list[Event]:
    """All records of a file; a torn last line (the process was killed while writing) is left out.

    Raises:
        InputError: the file is not there.
        CorruptDataError: a complete line is not an event.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError("this run has no events", where=source, got=error.strerror) from error
    lines = text.split("\n")
    # what follows the last newline was not written to its end
    return [parse_line(line, f"{source}:{i}") for i, line in enumerate(lines[:-1], 1) if line.strip()]


def current(events: Sequence[Event]) -> list[Event]:
    """The events that still hold: those after a checkpoint that a resumed run went back to are void."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Resumed):
            kept = [e for e in kept if not (isinstance(e, StepDone | Validated | Backtracked) and e.step > event.step)]
            kept = [e for e in kept if not isinstance(e, Finished | Evaluated)]
        kept.append(event)
    return kept


def of_kind(events: Iterable[Event], kind: type[EventT]) -> list[EventT]:
    """Those events that are of one kind, in order."""
    return [event for event in events if isinstance(event, kind)]


def to_line(event: Event) -> str:
    """One line of JSON, newline included; equal events give equal lines."""
    return json.dumps(json.loads(event.model_dump_json()), ensure_ascii=False, separators=(",", ":")) + "\n"
