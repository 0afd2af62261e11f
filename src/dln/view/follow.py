"""Following a run: reads what was appended to `events.jsonl`, and keeps of long steps only what the curves need.

The texts of a step (its batch, hidden texts and candidates) stay on disk; `FollowedRun.step` reads one step again by
its position in the file.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic_core import from_json

from dln.errors import CorruptDataError
from dln.train.control import ON_TEXTS
from dln.train.events import Controlled, Event, ExampleRecord, Resumed, Started, StepDone
from dln.train.run import of_kind, parse_line
from dln.view.summary import holding, layers_of

__all__ = ["Facts", "FollowedRun", "Seen", "Source", "brief", "facts_of", "paused", "running"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the curves and the list of steps show of a step's M-steps.

    Attributes:
        changed: layers whose prompt changed, 1 for the one that reads x.
        sources: where each winner of these came from.
        candidates: number of candidates of all layers.
    """

    changed: tuple[int, ...]
    sources: tuple[str, ...]
    candidates: int


@dataclass(frozen=True, slots=True)
class Seen:
    """An example in an earlier step."""

    step: int
    prediction: str
    correct: bool


class Source(Protocol):
    """A run that can be shown."""

    @property
    def name(self) -> str:
        """What the list of runs calls it."""
        ...

    @property
    def folder(self) -> Path | None:
        """Its run directory; None where there is none."""
        ...

    @property
    def count(self) -> int:
        """Events read so far; grows with the run."""
        ...

    def refresh(self) -> bool:
        """Read what is new; whether there was anything."""
        ...

    def events(self) -> list[Event]:
        """The events that hold; steps without their texts."""
        ...

    def facts(self, step: int) -> Facts | None:
        """Of a step; None where it is not known."""
        ...

    def step(self, step: int) -> StepDone | None:
        """A step with all its texts; None if there is no such step."""
        ...

    def before(self, example: ExampleRecord, step: int) -> Seen | None:
        """The last time that an example was in a batch before `step`."""
        ...


@dataclass(slots=True)
class _Position:
    start: int
    length: int


@dataclass(slots=True)
class _Index:
    """What was read so far."""

    end: int = 0
    line: int = 0
    events: list[Event] = field(default_factory=list[Event])
    positions: dict[int, _Position] = field(default_factory=dict[int, _Position])
    facts: dict[int, Facts] = field(default_factory=dict[int, Facts])
    seen: dict[int, list[Seen]] = field(default_factory=dict[int, list[Seen]])


class FollowedRun:
    """The run in a directory.

    Args:
        folder: the run directory.
        name: what the list of runs calls it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._log = folder / "events.jsonl"
        self._lock = threading.Lock()
        self._index = _Index()

    @property
    def name(self) -> str:
        """What the list of runs calls it."""
        return self._name

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self._folder

    @property
    def count(self) -> int:
        """Events read so far."""
        return len(self._index.events)

    @property
    def size(self) -> int:
        """Bytes of the log; 0 without one."""
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    @property
    def stale(self) -> bool:
        """Whether the log has grown, or shrunk, since it was read."""
        return self.size != self._index.end

    def refresh(self) -> bool:
        """Read the complete lines that were appended; whether there were any.

        Raises:
            CorruptDataError: a complete line is not an event.
        """
        with self._lock:
            if self.size < self._index.end:  # another run took the place of this one
                self._index = _Index()
            index, before = self._index, len(self._index.events)
            if not self.size:
                return False
            with self._log.open("rb") as file:
                file.seek(index.end)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    index.line += 1
                    if line.strip():
                        self._add(index, line)
                    index.end += len(line)
            return len(index.events) > before

    def _add(self, index: _Index, line: bytes) -> None:
        where = f"{self._log}:{index.line}"
        step = _step_fields(line)
        if step is None:
            index.events.append(parse_line(line.decode("utf-8", "surrogateescape"), where))
            return
        try:
            examples, layers = step.pop("examples"), step.pop("layers")
            layout = {"layers": [{"prompt": layer.get("prompt", "")} for layer in layers_of(step.pop("parameters"))]}
            event = StepDone.model_validate({**step, **_NO_TEXTS, "parameters": layout})
            facts = _facts(layers)
            seen = [(hash(e["x"]), Seen(event.step, e["prediction"], e["correct"])) for e in examples]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            parse_line(line.decode("utf-8", "surrogateescape"), where)  # says what is wrong
            raise CorruptDataError("this line is not a step of a run", where=where) from None
        index.positions[event.step] = _Position(index.end, len(line))
        index.facts[event.step] = facts
        for key, found in seen:
            index.seen.setdefault(key, []).append(found)
        index.events.append(event)

    def events(self) -> list[Event]:
        """The events that hold; steps without their texts."""
        return holding(self._index.events)

    def since(self, count: int) -> list[Event]:
        """All events after the first `count`, as they were written."""
        return self._index.events[count:]

    def facts(self, step: int) -> Facts | None:
        """Of a step; None where it is not known."""
        return self._index.facts.get(step)

    def step(self, step: int) -> StepDone | None:
        """A step with all its texts; None if there is no such step."""
        position = self._index.positions.get(step)
        if position is None:
            return None
        with self._log.open("rb") as file:
            file.seek(position.start)
            line = file.read(position.length)
        event = parse_line(line.decode("utf-8", "surrogateescape"), str(self._log))
        return event if isinstance(event, StepDone) else None

    def before(self, example: ExampleRecord, step: int) -> Seen | None:
        """The last time that an example was in a batch before `step`."""
        known = self._index.seen.get(hash(example.x), ())
        return max((seen for seen in known if seen.step < step), key=lambda seen: seen.step, default=None)


def brief(event: StepDone) -> StepDone:
    """A step without its texts, and of the parameters only the prompts."""
    prompts = {"layers": [{"prompt": layer.get("prompt", "")} for layer in layers_of(event.parameters)]}
    return event.model_copy(update={**_NO_TEXTS, "parameters": prompts})


def facts_of(event: StepDone) -> Facts:
    """What the list of steps shows of the M-steps."""
    return _facts([record.model_dump() for record in event.layers])


def _facts(layers: Sequence[Mapping[str, Any]]) -> Facts:
    changed = [record for record in layers if record["winner"]]
    return Facts(
        changed=tuple(dict.fromkeys(int(record["layer"]) + 1 for record in changed)),
        sources=tuple(dict.fromkeys(str(record["candidates"][record["winner"]]["source"]) for record in changed)),
        candidates=sum(len(record["candidates"]) for record in layers),
    )


_NO_TEXTS: dict[str, Any] = {"examples": [], "hidden": [], "layers": []}


def _step_fields(line: bytes) -> dict[str, Any] | None:
    """The fields of a step, not validated: its texts are many and are read again when they are shown."""
    if b'"step"' not in line[:200]:
        return None
    try:
        data: object = from_json(line, cache_strings="keys")
    except ValueError:
        return None
    fields = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    return fields if fields.get("kind") == "step" else None


def running(folder: Path) -> bool:
    """Whether a process works on a run: it holds the lock of the log."""
    try:
        with (folder / "events.jsonl").open("rb") as log:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def paused(events: Sequence[Event]) -> bool:
    """Whether a person has paused the run and nobody has resumed it."""
    turns = [
        event
        for event in events
        if isinstance(event, Started | Resumed) or (isinstance(event, Controlled) and not event.refused)
    ]
    last = [e for e in turns if not (isinstance(e, Controlled) and e.action in ON_TEXTS)][-1:]
    return any(event.action == "pause" for event in of_kind(last, Controlled))
