"""Callbacks: what is told of every event of a run, and the progress bar that `fit` shows.

A callback is a function of an event, or an object with the method `on_event`. It is called right after the event was
written, in the order of the events; what it returns is ignored, and what it raises ends the run, which can be resumed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from dln.errors import InputError
from dln.extensions import create
from dln.train.events import Event, Finished, Interrupted, Started, StepDone, Validated

__all__ = ["Callback", "Listener", "ProgressBar", "interactive", "listeners"]


class Callback(Protocol):
    """Is told of the events of a run."""

    def on_event(self, event: Event) -> object:
        """Called with every event, right after it was written."""
        ...


Listener = Callable[[Event], object]
"""A callback as a function."""


def listeners(callbacks: Iterable[Callback | Listener | str]) -> list[Listener]:
    """The callbacks as functions; a text is a registered name or package.module:factory.

    Raises:
        InputError: an object that is neither a function nor has `on_event`, or a name that nobody registers.
    """
    found: list[Listener] = []
    for position, callback in enumerate(callbacks):
        if isinstance(callback, str):
            made: Any = create("callback", callback, where=f"callbacks[{position}]")
        else:
            made = callback
        listener = getattr(made, "on_event", made)
        if isinstance(made, type) or not callable(listener):
            raise InputError(
                "this is no callback",
                where=f"callbacks[{position}]",
                got=repr(made),
                expected="a function (event) -> None, or an object with the method on_event(event)",
                fix=f"{made.__name__}()" if isinstance(made, type) else None,
            )
        found.append(listener)
    return found


def interactive() -> bool:
    """Whether somebody is watching: standard error is a terminal, or this is a notebook."""
    shell = type(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()).__name__
    return sys.stderr.isatty() or shell == "ZMQInteractiveShell"


class ProgressBar:
    """Steps done, with the last ELBO and dev score, on standard error or in a notebook's cell."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("step"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("")
        self._said: dict[str, str] = {}

    def on_event(self, event: Event) -> None:
        """Move the bar."""
        if isinstance(event, Started):
            self._bar.update(self._task, total=event.steps)
        elif isinstance(event, StepDone):
            if event.elbo is not None:
                self._said["ELBO"] = f"{event.elbo:.2f}"
            self._said["batch"] = f"{event.accuracy:.0%}"
            self._bar.update(self._task, completed=event.step)
        elif isinstance(event, Validated):
            self._said["dev"] = f"{event.result.accuracy:.1%}"
        elif isinstance(event, Finished | Interrupted):
            self._said["ended"] = event.reason.splitlines()[0]
        self._bar.update(self._task, description="  ".join(f"{name} {value}" for name, value in self._said.items()))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
