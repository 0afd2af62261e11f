"""A run in a notebook's cell: its report in a frame, without a server and without scripts."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from dln.errors import InputError
from dln.train.run import read_events
from dln.view.report import render_report

__all__ = ["Embedded", "embedded"]


@dataclass(frozen=True)
class Embedded:
    """A page that a notebook shows in a frame.

    Attributes:
        title: of the page.
        page: its HTML.
        height: of the frame, in pixels.
    """

    title: str
    page: str
    height: int = 640

    def __repr__(self) -> str:
        return f"Embedded({self.title!r}, {len(self.page)} characters)"

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{self.height}px;border:1px solid #8888;border-radius:8px"
        return f'<iframe sandbox title="{escape(self.title)}" style="{style}" srcdoc="{escape(self.page)}"></iframe>'


def embedded(run_dir: Path | None) -> Embedded:
    """The report of a run, finished or not, for a cell.

    Raises:
        InputError: the run was not saved, or did not start.
    """
    if run_dir is None:
        raise InputError("this run was not saved", where="view()", fix='dln.fit(…, run_dir="runs/a")')
    return Embedded(run_dir.name, render_report(read_events(run_dir / "events.jsonl"), title=run_dir.name))
