"""A run is a directory: configuration, events, checkpoint and the trained network.

    run.yaml         resolved options, custom objects, versions, hash of the data, fingerprint of the model
    events.jsonl     append-only, one record a line; every event is on disk before the next step begins
    controls.jsonl   what a person asks of the running training, read between steps
    checkpoint.json  replaced atomically after each step
    network.json     the trained network
    report.html      made from the events

Nothing here is a pickle, and no file is ever half-replaced: a kill at any moment leaves a run that can be resumed and
repeats at most the step in hand. A resumed run repeats the steps after its checkpoint; `current` leaves out the events
that this makes void. Before it goes on, `check_unchanged` compares what it computes with to run.yaml.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from dln.arguments import checked, shown
from dln.data import Dataset, FunctionMetric, NamedMetric
from dln.data.resolve import row_hash
from dln.errors import CorruptDataError, InputError
from dln.extensions import described
from dln.lm.local.threads import chosen_threads
from dln.nn import AnyNetwork, Sequential, save_network
from dln.nn.saving import network_to_json
from dln.train.events import AnyEvent, Backtracked, Evaluated, Event, Finished, Resumed, StepDone, Validated
from dln.train.options import Options

__all__ = [
    "Run",
    "check_data",
    "check_unchanged",
    "current",
    "extend_run",
    "of_kind",
    "parse_line",
    "provenance",
    "read_checkpoint",
    "read_events",
    "to_line",
    "versions",
]

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


def provenance(
    network: Sequential,
    train: Dataset,
    dev: Dataset | None,
    options: Options,
    metric: NamedMetric,
    task: str,
    config: Mapping[str, Any] | None,
    algorithm: object = None,
) -> dict[str, Any]:
    """The content of run.yaml; what a resumed run must have in common with its beginning is in `SAME`.

    Custom objects are described by their qualified names and parameters (`dln.extensions.described`).

    Args:
        network: layout and initial prompts.
        train: examples to train on.
        dev: examples to select by.
        options: resolved options.
        metric: whose name is recorded, and the function that it calls.
        task: a name for reports; default that of the train set.
        config: what the command line was given.
        algorithm: the description of an algorithm that was given in the place of options.
    """
    threads = chosen_threads()
    content = "".join(d.content_hash() for d in (train, dev) if d is not None)
    return {
        "schema": 1,
        "task": task or train.name,
        "config": dict(config or {}),
        "metric": metric.name,
        **({"metric_function": described(metric.function)} if isinstance(metric, FunctionMetric) else {}),
        **({"algorithm": algorithm} if algorithm is not None else {}),
        "options": options.model_dump(mode="json"),
        "network": network_to_json(network),
        "models": {lm.name: lm.fingerprint() for layer in network for lm in layer.models},
        "data_hash": hashlib.sha256(content.encode()).hexdigest(),
        "seen": {
            part: " ".join(sorted(set(map(row_hash, dataset.inputs))))
            for part, dataset in (("train", train), ("dev", dev))
            if dataset is not None
        },
        "versions": versions(),
        "threads": None if threads is None else threads.count,
    }


def versions() -> dict[str, str]:
    """Those of Python, of dln, and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in ("dln", "numpy", "scipy", "torch", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


SCHEMA = 1
GRADES = "grades.jsonl"
"""The file of a run directory that holds what the metric has returned (see `dln.train.grades`)."""


@checked
class Run:
    """An open run directory; one process at a time.

    Use `Run.create` for a new run and `Run.open` to go on with one, both as context managers.
    """

    def __init__(self, path: Path, log: IO[bytes]) -> None:
        self.path = path
        self._log = log

    @classmethod
    def create(cls, path: str | Path, meta: Mapping[str, object]) -> Run:
        """A new run directory with `meta` in its run.yaml.

        Raises:
            InputError: there is a run already, or the directory cannot be made.
        """
        directory = Path(path)
        if (directory / "run.yaml").exists():
            raise InputError(
                "there is a run in this directory already",
                where=directory,
                fix=f"dln resume {shlex.quote(str(directory))}, or another --run-dir",
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            run = cls(directory, _lock(directory))
            _replace(directory / "run.yaml", yaml.safe_dump(dict(meta), sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise InputError("the run directory cannot be written", where=directory, got=error.strerror) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run, to go on with it; a torn last event is cut off.

        Raises:
            InputError: there is no run, or another process works on it.
        """
        directory = Path(path)
        if not (directory / "run.yaml").exists():
            raise InputError("there is no run here", where=directory, expected="a directory that `dln train` made")
        run = cls(directory, _lock(directory))
        run._cut_torn_line()
        return run

    @property
    def meta(self) -> dict[str, Any]:
        """What run.yaml says."""
        return read_meta(self.path)

    def events(self) -> list[Event]:
        """All events so far."""
        return read_events(self.path / "events.jsonl")

    def append(self, *events: Event) -> None:
        """Write events, and have them on disk before returning."""
        for event in events:
            line = to_line(event.model_copy(update={"time": event.time or time.time()}))
            self._log.write(line.encode("utf-8", errors="backslashreplace"))
        self._log.flush()
        os.fsync(self._log.fileno())

    def save_checkpoint(self, progress: Mapping[str, object]) -> None:
        """Replace checkpoint.json atomically."""
        body = json.dumps(progress, ensure_ascii=False, sort_keys=True)
        document = {"schema": SCHEMA, "sha256": hashlib.sha256(body.encode()).hexdigest(), "progress": progress}
        _replace(self.path / "checkpoint.json", json.dumps(document, ensure_ascii=False, sort_keys=True) + "\n")

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint (see `read_checkpoint`)."""
        return read_checkpoint(self.path)

    def save_network(self, network: AnyNetwork, provenance: Mapping[str, object]) -> Path:
        """Write network.json, the product of the run: what answers, one network or several together."""
        path = self.path / "network.json"
        save_network(network, path, provenance)
        return path

    def view(self) -> Any:
        """The report of the run, for a notebook's cell."""
        return import_module("dln.view.notebook").embedded(self.path)  # by name: `dln.view` reads runs

    def close(self) -> None:
        """Give the directory free for another process."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        path = self.path / "events.jsonl"
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(path, end)


def read_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run, or None if the run was stopped before its first.

    Raises:
        CorruptDataError: the file is damaged, or it is of a later step than the last event: events are written
            first, so some have been lost since.
    """
    path = directory / "checkpoint.json"
    if not path.exists():
        return None
    try:
        document = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
        progress = cast(dict[str, Any], document["progress"])
        body = json.dumps(progress, ensure_ascii=False, sort_keys=True)
        intact = document["schema"] == SCHEMA and document["sha256"] == hashlib.sha256(body.encode()).hexdigest()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if not intact:
        raise _damaged(path, "content and hash differ, or another schema")
    last = _last_step(read_events(directory / "events.jsonl"))
    if last < int(progress.get("step", 0)):
        raise CorruptDataError(
            "events are missing at the end of this file",
            where=directory / "events.jsonl",
            got=f"events up to step {last}",
            expected=f"up to step {progress['step']}, as in checkpoint.json",
            fix="restore the file, or remove checkpoint.json to train again from the start",
        )
    return progress


def _last_step(events: Iterable[Event]) -> int:
    return max((event.step for event in of_kind(events, StepDone)), default=0)


def extend_run(path: str | Path, steps: int) -> None:
    """Change the number of steps that a run is resumed to; a finished run can be resumed after that.

    Args:
        path: of the run.
        steps: the total number, at least as many as are done.

    Raises:
        InputError: there is no run, another process works on it, or more steps than these are done.
    """
    with Run.open(path) as run:
        meta, done = run.meta, _last_step(current(run.events()))
        if steps < done:
            raise InputError(
                "this run has done more steps than these",
                where="steps",
                got=steps,
                expected=f"a number ≥ {done}",
                fix=f"--steps {done + 1}, or start a new run",
            )
        if steps == meta["options"]["steps"]:
            return
        meta["options"]["steps"] = steps
        if meta.get("config"):
            meta["config"].setdefault("options", {})["steps"] = steps
        _replace(run.path / "run.yaml", yaml.safe_dump(meta, sort_keys=False, allow_unicode=True))


# libyaml reads ten times faster; not every build of PyYAML has it
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_meta(path: str | Path) -> dict[str, Any]:
    """run.yaml of a run directory.

    Raises:
        InputError: it is not there.
        CorruptDataError: it is damaged.
    """
    source = Path(path) / "run.yaml"
    try:
        meta: object = yaml.load(source.read_text(encoding="utf-8"), _LOADER)  # noqa: S506 - it is a safe one
    except OSError as error:
        raise InputError("there is no run here", where=path, got=error.strerror) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _damaged(source, " ".join(str(error).split())) from error
    if not isinstance(meta, dict):
        raise _damaged(source, "not a mapping")
    return cast(dict[str, Any], meta)


def _lock(directory: Path) -> IO[bytes]:
    log = (directory / "events.jsonl").open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        log.close()
        raise InputError("another process works on this run", where=directory, fix="wait for it to end") from error
    return log


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _damaged(path: Path, got: str) -> CorruptDataError:
    return CorruptDataError("this file of the run is damaged", where=path, got=got, fix="start a new run")


def check_data(network: Sequential, train: Dataset, dev: Dataset | None) -> None:
    """Refuse data that is empty, or whose targets the network does not know.

    Raises:
        InputError: naming the part of the data.
    """
    for name, dataset in (("train", train), ("dev", dev)):
        if dataset is None:
            continue
        if not len(dataset):
            raise InputError(
                "there are no examples",
                where=name,
                got="an empty dataset",
                expected="one example or more",
                fix='dln.Dataset.from_pairs([("an input", "its target"), …])',
            )
        unknown = sorted(set(dataset.targets) - set(network.labels or dataset.targets))
        if unknown:
            raise InputError(
                "the data has targets that the network does not know",
                where=name,
                got=unknown[:10],
                expected=list(network.labels or ()),
                fix="name the labels the same, or map them: dataset.with_labels({…})",
            )


SAME = ("options", "algorithm", "metric", "metric_function", "data_hash", "network", "models")
"""What a resumed run must compute with as it began."""


def check_unchanged(run: Run, meta: Mapping[str, Any]) -> None:
    """A resumed run must compute with what it began with.

    Raises:
        InputError: naming what has changed, from what to what.
    """
    before = run.meta
    for name in SAME:
        # run.yaml holds plain data: tuples are lists there, and keys are texts
        was, now = before.get(name), json.loads(json.dumps(meta.get(name)))
        if was != now:
            changes = _changes(was, now)
            raise InputError(
                f"the run cannot be resumed: its {name.replace('_', ' ')} has changed",
                where=run.path,
                got="; ".join(f"{place}{shown(new, 60)}" for place, _, new in changes[:3]),
                expected="; ".join(f"{place}{shown(old, 60)}" for place, old, _ in changes[:3]),
                fix="restore what it was, or start a new run",
            )


def _changes(was: object, now: object, place: str = "") -> list[tuple[str, object, object]]:
    """(place, old, new) of what differs, as deep inside as can be said."""
    if isinstance(was, dict) and isinstance(now, dict):
        old, new = cast("dict[str, object]", was), cast("dict[str, object]", now)
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return [row for name in names for row in _changes(old.get(name), new.get(name), _below(place, name))]
    if isinstance(was, list) and isinstance(now, list):
        before, after = cast("list[object]", was), cast("list[object]", now)
        if len(before) == len(after):
            pairs = enumerate(zip(before, after, strict=True))
            return [row for i, (o, n) in pairs if o != n for row in _changes(o, n, _below(place, str(i)))]
    return [(f"{place} = " if place else "", was, now)]


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
