"""What a bench says while it works: how many cells there are, which one is made, how long the rest will take."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dln.bench.paper.cell import Cell, CellResult
from dln.bench.paper.remaining import remaining
from dln.cli.show import duration, err, note, print_record, safe

__all__ = ["Watch"]


class Watch:
    """A progress bar on a terminal, a line per cell off it, a record per cell with --json.

    Args:
        wanted: all cells of the table.
        known: those that were finished before.
        jobs: cells that are made side by side.
        as_json: records on standard output.
    """

    def __init__(
        self, wanted: Sequence[Cell], known: Mapping[Cell, CellResult], jobs: int = 1, *, as_json: bool = False
    ) -> None:
        self._json, self._jobs = as_json, jobs
        self._missing = [cell for cell in wanted if cell not in known]
        self._finished = list(known.values())
        self._total = len(self._missing)
        self._lock = threading.Lock()
        console = err()
        self._plain = as_json or not console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=self._plain,
        )
        self._task = self._bar.add_task("cells", total=self._total, left=self._left())
        counts = f"{len(wanted)} cells, {len(wanted) - self._total} of them known, {self._total} to be made"
        if as_json:
            begin = {"cells": len(wanted), "known": len(wanted) - self._total, "missing": self._total}
            print_record({"kind": "begin", **begin, "seconds_left": remaining(self._missing, self._finished, jobs)})
        else:
            left = self._left()
            note(f"{counts}, {left}" if left and self._total else counts)

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, cell: Cell, result: CellResult | None) -> None:
        """See `dln.bench.paper.runner.Progress`."""
        with self._lock:
            if what == "begins":
                self._bar.update(self._task, description=safe(cell))
            elif result is not None:
                self._ended(what, cell, result)

    def _ended(self, what: str, cell: Cell, result: CellResult) -> None:
        if what == "done":
            self._missing.remove(cell)
            self._finished.append(result)
            self._bar.update(self._task, advance=1, left=self._left())
        if self._json:
            hidden = {"correct", "prompts", "log_probs", "tested", "recipe"}
            print_record({"kind": "cell", **result.model_dump(mode="json", exclude=hidden)})
        elif what == "done":
            text = f"{cell}: {100 * result.accuracy:.1f} %, {result.train.tokens:,} training tokens"
            if self._plain:
                done = f"{self._total - len(self._missing)} of {self._total}"
                left = self._left()
                note(f"{text} ({done}, {left})" if left else f"{text} ({done})")
            else:
                self._bar.console.print(safe(text), style="dim")

    def _left(self) -> str:
        seconds = remaining(self._missing, self._finished, self._jobs) if self._missing else None
        return "" if seconds is None else f"about {duration(seconds)} left"
