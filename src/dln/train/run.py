"""A run is a directory: events, checkpoint, configuration and the trained network.

    run.yaml         resolved options, versions, hash of the data, fingerprint of the model
    events.jsonl     append-only; every event is on disk before the next step begins
    checkpoint.json  replaced atomically after each step
    network.json     the product
    report.html      made from the events

Nothing here is a pickle, and no file is ever half-replaced: a kill at any moment leaves a run that can
be resumed and repeats at most the step in hand.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import yaml

from dln.arguments import checked
from dln.errors import CorruptDataError, InputError
from dln.nn import AnyNetwork, save_network
from dln.train.event_log import of_kind, read_events, to_line
from dln.train.events import Event, StepDone

__all__ = ["Run"]

SCHEMA = 1


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
        """The last checkpoint, or None if the run was stopped before its first.

        Raises:
            CorruptDataError: the file is damaged, or it is of a later step than the last event: events are
                written first, so some have been lost since.
        """
        path = self.path / "checkpoint.json"
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
        last = max((event.step for event in of_kind(self.events(), StepDone)), default=0)
        if last < int(progress.get("step", 0)):
            raise CorruptDataError(
                "events are missing at the end of this file",
                where=self.path / "events.jsonl",
                got=f"events up to step {last}",
                expected=f"up to step {progress['step']}, as in checkpoint.json",
                fix="restore the file, or remove checkpoint.json to train again from the start",
            )
        return progress

    def save_network(self, network: AnyNetwork, provenance: Mapping[str, object]) -> Path:
        """Write network.json, the product of the run: what answers, one network or several together."""
        path = self.path / "network.json"
        save_network(network, path, provenance)
        return path

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


def read_meta(path: str | Path) -> dict[str, Any]:
    """run.yaml of a run directory.

    Raises:
        InputError: it is not there.
        CorruptDataError: it is damaged.
    """
    source = Path(path) / "run.yaml"
    try:
        meta: object = yaml.safe_load(source.read_text(encoding="utf-8"))
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
