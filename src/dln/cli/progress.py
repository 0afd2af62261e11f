"""Progress of a running training: a live panel, one plain line per step, or JSON records, from the run's events."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self, cast

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dln.cli.output import duration, err, one_line, percent, print_record, sparkline
from dln.lm.meter import Meter, Usage
from dln.train.events import Backtracked, Controlled, Event, Finished, Resumed, Started, StepDone, Validated
from dln.train.run import to_line

__all__ = ["Board", "JsonWatch", "LineWatch", "PanelWatch", "Watch", "choose_watch"]


class Board:
    """State of a run that the panel and the lines show, updated by its events.

    Args:
        task: name of the task.
        steps: planned updates.
        meter: calls and tokens of the models.
        prompts: texts of the current prompts.
    """

    def __init__(self, task: str, steps: int, meter: Meter, prompts: list[str]) -> None:
        self.task = task
        self.planned = steps
        self.meter = meter
        self.prompts = prompts
        self.step = 0
        self.elbos: list[float] = []
        self.batch_accuracy: float | None = None
        self.dev_accuracy: float | None = None
        self.best: tuple[int, float, float] | None = None
        self.phase = "starting"
        self._began = time.monotonic()
        self._used = meter.snapshot()
        self._durations: list[float] = []

    def see(self, event: Event) -> None:
        """Update the state from an event."""
        if isinstance(event, Started):
            self.phase = "first validation" if event.dev_size else "step 1"
        elif isinstance(event, Resumed):
            self.step = max(0, event.step)
            self.phase = f"step {self.step + 1}"
        elif isinstance(event, StepDone):
            self.step, self.batch_accuracy = event.step, event.accuracy
            self._durations.append(event.seconds)
            if event.elbo is not None:
                self.elbos.append(event.elbo)
            rows = cast(list[dict[str, Any]], event.parameters["layers"])
            layers = [branch for row in rows for branch in cast(list[dict[str, Any]], row.get("branches") or [row])]
            self.prompts = [_prompt(layer) for layer in layers if "prompt" in layer]
            self.phase = f"step {event.step + 1}"
        elif isinstance(event, Validated):
            self.dev_accuracy = event.result.accuracy
            if event.best:
                self.best = (event.step, event.result.accuracy, event.score)
            self.phase = f"step {event.step + 1}"
        elif isinstance(event, Backtracked):
            self.phase = f"step {event.step + 1}, from the prompts of step {event.to_step}"
        elif isinstance(event, Controlled) and event.action in ("pause", "resume"):
            self.phase = "paused" if event.action == "pause" else f"step {event.step + 1}"
        elif isinstance(event, Finished):
            self.phase = "done"

    @property
    def elapsed(self) -> float:
        """Seconds since this process started."""
        return time.monotonic() - self._began

    @property
    def used(self) -> Usage:
        """Calls and tokens of the whole run, earlier processes included."""
        return self.meter.snapshot()

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this process per second."""
        return (self.used.tokens - self._used.tokens) / max(self.elapsed, 1e-9)

    @property
    def left(self) -> float | None:
        """Estimated seconds to the last step, from the mean step time of this process; None before the first step."""
        if not self._durations:
            return None
        return sum(self._durations) / len(self._durations) * max(0, self.planned - self.step)


def _prompt(layer: dict[str, Any]) -> str:
    prompt = cast(dict[str, Any], layer["prompt"])
    shown = cast(list[Any], prompt.get("demonstrations") or [])
    return str(prompt.get("instruction", "")) + (f" [{len(shown)} demonstrations]" if shown else "")


class Watch(Protocol):
    """Receiver of the events of a run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def event(self, event: Event) -> None:
        """Handle an event of the run."""
        ...

    def progress(self, done: int, total: int) -> None:
        """Handle the progress of an evaluation: `done` of `total` predictions."""
        ...


class Quiet:
    """Base of the watches that need no set-up: a context manager that does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class JsonWatch(Quiet):
    """Every event as a line of JSON on standard output."""

    def event(self, event: Event) -> None:
        """Print the record as it is written to events.jsonl."""
        record = cast(dict[str, Any], json.loads(to_line(event.model_copy(update={"time": event.time or time.time()}))))
        print_record(record)

    def progress(self, done: int, total: int) -> None:
        """Do nothing: only events are records."""


class LineWatch(Quiet):
    """One line per step on standard error."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._console = err()

    def event(self, event: Event) -> None:
        """Print a line for a step, a validation or a return to earlier prompts."""
        board = self._board
        board.see(event)
        if isinstance(event, StepDone):
            elbo = "–" if event.elbo is None else f"{event.elbo:.3f}"
            self._print(
                f"step {event.step}/{board.planned}  elbo {elbo}  batch accuracy {percent(event.accuracy)}  "
                f"{board.used.tokens} tokens  {duration(board.elapsed)}"
                + (f"  left {duration(board.left)}" if board.left else "")
                + (f"  ({event.excluded} examples not scored)" if event.excluded else "")
            )
        elif isinstance(event, Validated):
            best = "  best so far" if event.best else ""
            score = f"  {event.select_by.replace('_', ' ')} {event.score:.4f}" if event.select_by != "accuracy" else ""
            self._print(
                f"step {event.step}/{board.planned}  dev accuracy {percent(event.result.accuracy)}{score}{best}"
            )
        elif isinstance(event, Backtracked):
            self._print(f"step {event.step}/{board.planned}  no gain: back to the prompts of step {event.to_step}")
        elif isinstance(event, Controlled):
            self._print(f"step {event.step}/{board.planned}  asked by a person: {event.refused or event.action}")

    def progress(self, done: int, total: int) -> None:
        """Print a line at the end of an evaluation."""
        if done >= total:
            self._print(f"evaluated {total} examples")

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


class PanelWatch(Quiet):
    """A live panel on a terminal, refreshed four times a second."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._stack = ExitStack()
        self._spinner = Spinner("dots")
        self._evaluation: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self._stack.enter_context(
            Live(console=err(), get_renderable=self.render, refresh_per_second=4, redirect_stdout=False)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def event(self, event: Event) -> None:
        """Update what the next refresh shows."""
        self._board.see(event)
        self._evaluation = None

    def progress(self, done: int, total: int) -> None:
        """Update what the next refresh shows."""
        self._board.phase = "evaluation"
        self._evaluation = (done, total)

    def render(self) -> RenderableType:
        """Current content of the panel."""
        board, used = self._board, self._board.used
        facts = Table.grid(padding=(0, 2))
        best = "–" if board.best is None else f"{percent(board.best[1])} at step {board.best[0]} ★"
        elbo = f"{board.elbos[-1]:.3f}  {sparkline(board.elbos)}" if board.elbos else "–"
        for name, value in (
            ("step", f"{board.step}/{board.planned}"),
            ("ELBO", elbo),
            ("batch accuracy", percent(board.batch_accuracy)),
            ("dev accuracy", f"{percent(board.dev_accuracy)}   best {best}"),
            ("used", f"{used.tokens:,} tokens in {used.calls:,} calls, {board.tokens_per_second:,.0f} tokens/s"),
            ("time", f"{duration(board.elapsed)}, left {'–' if board.left is None else duration(board.left)}"),
        ):
            facts.add_row(Text(name, style="bold"), Text(value))
        prompts = Table.grid(padding=(0, 2))
        for position, prompt in enumerate(board.prompts, 1):
            prompts.add_row(Text(f"π{position}", style="cyan"), Text.from_markup(one_line(prompt, 200)))
        doing = board.phase
        if self._evaluation is not None:
            doing = f"evaluation {self._evaluation[0]}/{self._evaluation[1]}"
        self._spinner.update(text=Text(doing))
        return Panel(
            Group(facts, Text(), prompts, Text(), self._spinner),
            title=Text.from_markup(f"dln train {one_line(board.task, 40)}"),
            title_align="left",
        )


def choose_watch(board: Board, *, as_json: bool) -> Watch:
    """Return JSON records if `as_json`, else a panel on a terminal and lines elsewhere."""
    if as_json:
        return JsonWatch()
    return PanelWatch(board) if err().is_terminal and not err().is_dumb_terminal else LineWatch(board)
