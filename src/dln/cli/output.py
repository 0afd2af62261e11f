"""What is printed: results on standard output, everything else on standard error, foreign text made harmless.

SIGTERM ends a command as Ctrl-C does: the run is left resumable.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dln.view.text import clean

if TYPE_CHECKING:
    from dln.train.events import Evaluated

__all__ = [
    "Terminated",
    "duration",
    "err",
    "evaluation_table",
    "note",
    "one_line",
    "out",
    "p_value",
    "percent",
    "print_record",
    "safe",
    "sparkline",
    "terminable",
]

_BARS = "▁▂▃▄▅▆▇█"


def out() -> Console:
    """Standard output, for results."""
    # off a terminal nothing is gained by folding lines
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def err() -> Console:
    """Standard error, for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


def safe(text: object) -> str:
    """Text of a model, a file or the user, without terminal escapes and with markup shown as it is."""
    return escape(clean(str(text)))


def one_line(text: object, length: int = 100) -> str:
    """The same on one line, shortened."""
    flat = " ".join(clean(str(text)).split())
    return escape(flat if len(flat) <= length else flat[: length - 1] + "…")


def note(text: object) -> None:
    """A line on standard error."""
    err().print(safe(text), style="dim", soft_wrap=True)


def print_record(record: dict[str, Any]) -> None:
    """One JSON record on a line of standard output, at once."""
    sys.stdout.write(json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def percent(value: float | None) -> str:
    """0.8312 as 83.1 %."""
    return "–" if value is None else f"{100 * value:.1f} %"


def p_value(value: float | None) -> str:
    """A p-value with two digits."""
    return "–" if value is None else "< 1e-12" if value < 1e-12 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3:05 or 2:03:05."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last values as a line of bars between their least and greatest."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[min(7, int(8 * (value - low) / span))] for value in shown)


def evaluation_table(event: Evaluated, names: tuple[str, str] = ("before", "after")) -> Table:
    """Accuracies with their intervals, the difference and its test."""
    table = Table(title=f"{safe(event.split)} accuracy, n = {event.after.n}", title_justify="left")
    for heading in ("", "accuracy", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = ((names[0], event.before), ("… output layer fitted", event.fitted), (names[1], event.after))
    for name, result in rows:
        if result is not None:
            table.add_row(name, percent(result.accuracy), f"{percent(result.low)} … {percent(result.high)}")
    if event.difference is not None:
        mean, low, high = (f"{100 * value:+.1f}" for value in event.difference)
        table.add_row("difference", f"{mean} points", f"{low} … {high}")
        table.add_row("paired test", f"p = {p_value(event.p_value)}", f"{event.fixed} fixed, {event.broken} broken")
    if event.fitted is not None:
        table.add_row("prompts alone", f"p = {p_value(event.fitted_p_value)}", "after against fitted")
    if event.after.unscored:
        table.add_row("unscored", str(event.after.unscored), "counted as wrong")
    return table


class Terminated(KeyboardInterrupt):
    """The process was asked to end."""


@contextmanager
def terminable() -> Generator[None]:
    """Let SIGTERM raise `Terminated` within this block; elsewhere than in the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated(f"signal {number}")
