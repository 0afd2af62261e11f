"""Where and when a cell was made: what a reader must know before he compares its seconds with his own."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from dln.bench.machine import processor

__all__ = ["Made", "made_here"]


class Made(BaseModel):
    """The circumstances of a measurement.

    Attributes:
        date: day, in UTC.
        machine: the processor.
        threads: of the engine in this process, where one is loaded; else of the machine.
        version: of this package.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    machine: str
    threads: int
    version: str

    @property
    def place(self) -> str:
        """Machine and threads, to be read by people."""
        return f"{self.machine}, {self.threads} thread{'' if self.threads == 1 else 's'}"


def made_here() -> Made:
    """Now, on this machine, in this process."""
    return Made(
        date=datetime.now(UTC).strftime("%Y-%m-%d"), machine=processor(), threads=_threads(), version=version("dln")
    )


def _threads() -> int:
    """Of torch, if an engine has loaded it: it is not loaded for the sake of a number."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1
