"""What a person asks of a running training: pause, resume, stop after this step, instructions to try, and opinions.

Requests are lines of `controls.jsonl` in the run directory, which any process may append (`request`). The training loop
reads them between two steps and records each as an event, so that a resumed or repeated run tries the same
instructions and shows the same opinions in the same steps without the file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dln.errors import InputError
from dln.infer.memory import Opinion
from dln.train.events import Controlled, Event, Record
from dln.train.run import of_kind

__all__ = ["CONTROLS", "ON_TEXTS", "Controls", "Request", "append_line", "request"]

CONTROLS = "controls.jsonl"
POLL_SECONDS = 0.2
LONGEST = 100_000
"""Characters of an instruction, or of a comment."""
OPINIONS = 8
"""The newest opinions on a layer that its proposals are shown."""
ON_TEXTS = ("prompt", "like", "dislike")


class Request(Record):
    """A line of the file.

    Attributes:
        action: "prompt" makes `text` a candidate of the next step; "like" and "dislike" are opinions on `text`, which
            the models that write instructions read in all steps from then on.
        layer: 0-based number of the layer whose instruction `text` is.
        text: the instruction; the layer's present demonstrations are shown with it.
        comment: why it is liked or disliked.
    """

    action: Literal["pause", "resume", "stop", "prompt", "like", "dislike"]
    layer: int | None = None
    text: str = ""
    comment: str = ""


def request(run_dir: str | Path, wanted: Request) -> int:
    """Append a request to the run's file, and return its line number.

    Raises:
        InputError: there is no run, or the file cannot be written.
    """
    directory = Path(run_dir)
    if not (directory / "run.yaml").exists():
        raise InputError("there is no run here", where=directory, expected="a directory that `dln train` made")
    return append_line(directory / CONTROLS, wanted.model_dump_json())


def append_line(path: Path, text: str) -> int:
    """Append a line to a file that several processes write, and return its number; a torn last line is ended first.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = file.read()
            torn = b"\n" if known and not known.endswith(b"\n") else b""
            file.write(torn + text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return known.count(b"\n") + len(torn) + 1
    except OSError as error:
        raise InputError("the line cannot be written", where=path, got=error.strerror) from error


class Controls:
    """The requests that a training loop reads.

    Args:
        run_dir: of the run; None where it keeps nothing, and nobody can ask anything.
        before: its events so far; requests among them are not read again.
        num_layers: those side by side counted one by one.
        emit: records an event.
    """

    def __init__(
        self, run_dir: Path | None, before: Sequence[Event], num_layers: int, emit: Callable[[Event], object]
    ) -> None:
        self._path = None if run_dir is None else run_dir / CONTROLS
        self._emit = emit
        self._num_layers = num_layers
        taken = of_kind(before, Controlled)
        self._read = max((event.request for event in taken), default=0)
        self._kept = [event for event in taken if not event.refused]

    def stop(self, step: int) -> bool:
        """Whether to stop after `step` updates; returns when the run is not paused any more."""
        paused = False
        while True:
            for event in self._new(step):
                self._emit(event)
                if event.refused:
                    continue
                self._kept.append(event)
                if event.action == "stop":
                    return True
                if event.action not in ON_TEXTS:
                    paused = event.action == "pause"
            if not paused:
                return False
            time.sleep(POLL_SECONDS)

    def tried(self, step: int) -> Mapping[int, tuple[str, ...]]:
        """By layer, the instructions to try in the update after `step` ones."""
        found: dict[int, tuple[str, ...]] = {}
        for event in self._kept:
            if event.action == "prompt" and event.step == step and event.layer is not None:
                found[event.layer] = (*found.get(event.layer, ()), event.text)
        return found

    def opinions(self, step: int) -> Mapping[int, tuple[Opinion, ...]]:
        """By layer, the newest opinions up to the update after `step` ones; of two on one instruction the later."""
        found: dict[int, dict[str, Opinion]] = {}
        for event in self._kept:
            if event.action in ("like", "dislike") and event.step <= step and event.layer is not None:
                row = found.setdefault(event.layer, {})
                row.pop(event.text, None)
                row[event.text] = Opinion(event.text, event.action == "like", event.comment)
        return {layer: tuple(row.values())[-OPINIONS:] for layer, row in found.items()}

    def _new(self, step: int) -> list[Controlled]:
        """The complete lines that were not read yet."""
        if self._path is None or not self._path.exists():
            return []
        lines = self._path.read_bytes().split(b"\n")[:-1]
        found = [self._event(step, number, line) for number, line in enumerate(lines, 1) if number > self._read]
        self._read = max(self._read, len(lines))
        return found

    def _event(self, step: int, number: int, line: bytes) -> Controlled:
        try:
            asked = Request.model_validate_json(line)
        except ValidationError as error:
            why = error.errors(include_url=False)[0]["msg"]
            return Controlled(step=step, request=number, action="unknown", refused=f"not a request: {why}")
        return Controlled(
            step=step,
            request=number,
            action=asked.action,
            layer=asked.layer,
            text=asked.text[:LONGEST],
            comment=asked.comment[:LONGEST],
            refused=self._refused(asked),
        )

    def _refused(self, asked: Request) -> str:
        if asked.action not in ON_TEXTS:
            return ""
        if asked.layer is None or not 0 <= asked.layer < self._num_layers:
            return f"there is no layer {asked.layer}: this network has {self._num_layers}"
        if not asked.text.strip():
            return "the instruction is empty"
        return f"longer than {LONGEST} characters" if max(len(asked.text), len(asked.comment)) > LONGEST else ""
