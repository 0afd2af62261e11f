"""Following a run: reads what was appended to `events.jsonl`, and keeps of long steps only what the curves need.

The texts of a step (its batch, hidden texts and candidates) stay on disk and are not even parsed: their places in the
line are found by the keys that stand between them, and `FollowedRun.step` reads one step by its position in the file.
"""

from __future__ import annotations

import fcntl
import re
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
    """Where in the file a step is, and its batch."""

    start: int
    length: int
    batch: tuple[int, int] | None


@dataclass(slots=True)
class _Outline:
    """A step without its texts.

    Attributes:
        fields: all others.
        facts: of its M-steps.
        batch: where in the line the examples begin and end.
    """

    fields: dict[str, Any]
    facts: Facts
    batch: tuple[int, int]


@dataclass(slots=True)
class _Index:
    """What was read so far."""

    end: int = 0
    line: int = 0
    events: list[Event] = field(default_factory=list[Event])
    positions: dict[int, _Position] = field(default_factory=dict[int, _Position])
    facts: dict[int, Facts] = field(default_factory=dict[int, Facts])
    seen: dict[int, dict[int, Seen]] = field(default_factory=dict[int, dict[int, Seen]])


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
            CorruptDataError: a complete line is not an event. Damage in the texts of a step shows when they are read.
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
        outline = _outline(line)
        if outline is None:  # no step, or not written as steps are now
            event = parse_line(line.decode("utf-8", "surrogateescape"), where)
            if isinstance(event, StepDone):
                index.facts[event.step] = facts_of(event)
                index.positions[event.step] = _Position(index.end, len(line), None)
                index.seen[event.step] = _seen(event.step, [example.model_dump() for example in event.examples])
                event = brief(event)
            index.events.append(event)
            return
        try:
            layers = layers_of(outline.fields.pop("parameters"))
            layout = {"layers": [{"prompt": layer.get("prompt", "")} for layer in layers]}
            step = StepDone.model_validate({**outline.fields, **_NO_TEXTS, "parameters": layout})
        except (ValueError, KeyError, TypeError, AttributeError):
            parse_line(line.decode("utf-8", "surrogateescape"), where)  # says what is wrong
            raise CorruptDataError("this line is not a step of a run", where=where) from None
        index.positions[step.step] = _Position(index.end, len(line), outline.batch)
        index.facts[step.step] = outline.facts
        index.seen.pop(step.step, None)
        index.events.append(step)

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
        key = hash(example.x)
        earlier = sorted((known for known in list(self._index.positions) if known < step), reverse=True)
        return next((seen for known in earlier if (seen := self._batch(known).get(key)) is not None), None)

    def _batch(self, step: int) -> dict[int, Seen]:
        """The examples of a step by the hash of their input; read once."""
        index = self._index
        if step not in index.seen:
            position = index.positions[step]
            start, end = position.batch or (0, 0)
            with self._log.open("rb") as file:
                file.seek(position.start + start)
                text = file.read(end - start)
            try:
                index.seen[step] = _seen(step, from_json(text, cache_strings="keys"))
            except (ValueError, KeyError, TypeError):
                raise CorruptDataError("the batch of this step is damaged", where=f"{self._log}, step {step}") from None
        return index.seen[step]


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


_TEXT = re.compile(rb'(?:[^"\\]|\\.)*"')
"""The rest of a text of JSON."""


def _outline(line: bytes) -> _Outline | None:
    """A step without its texts; None for other lines, and where its fields are in another order.

    A quotation mark inside a text has a backslash before it: what is looked for here can only be keys.
    """
    first = line.find(b',"examples":[', 0, 4096)
    hidden = line.find(b'],"hidden":[', first)
    layers = line.find(b'],"layers":[', hidden)
    end = line.rfind(b'],"parameters":{', layers)
    if min(first, hidden, layers, end) < 0:
        return None
    try:
        head = cast("dict[str, Any]", from_json(line[:first] + b"}"))
        tail = cast("dict[str, Any]", from_json(b"{" + line[end + 2 :]))
        facts = _outlined(line, layers, end)
    except (ValueError, IndexError):
        return None
    if head.get("kind") != "step":
        return None
    return _Outline({**head, **tail}, facts, (first + len(b',"examples":'), hidden + 1))


def _outlined(line: bytes, start: int, end: int) -> Facts:
    """What the list of steps shows of the M-steps between two places of a line.

    Raises:
        ValueError, IndexError: they are not written as M-steps are.
    """
    changed: list[tuple[int, str]] = []
    candidates = 0
    for record in line[start:end].split(b'{"layer":')[1:]:
        layer, between, rest = record.partition(b',"candidates":[')
        rows, found, more = rest.rpartition(b'],"winner":')
        sources = rows.split(b'},"source":"')[1:]
        if not between or not found:
            raise ValueError("no M-step")
        winner = int(more.partition(b",")[0])
        candidates += len(sources)
        if winner and (text := _TEXT.match(sources[winner])):
            changed.append((int(layer) + 1, from_json(b'"' + text[0])))
    return Facts(
        changed=tuple(dict.fromkeys(layer for layer, _ in changed)),
        sources=tuple(dict.fromkeys(source for _, source in changed)),
        candidates=candidates,
    )


def _seen(step: int, examples: Sequence[Mapping[str, Any]]) -> dict[int, Seen]:
    return {hash(e["x"]): Seen(step, e["prediction"], e["correct"]) for e in examples}


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
