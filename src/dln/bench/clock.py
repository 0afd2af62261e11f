"""Seconds and memory of a piece of work: best and median of repetitions, and the growth while it runs."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["LONG", "Measured", "measure"]

T = TypeVar("T")

_log = logging.getLogger("dln.bench")

LONG = 30.0
"""Seconds; work that takes longer is not repeated."""

STATUS = Path("/proc/self/statm")
INTERVAL = 0.005


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What a measurement gave.

    Attributes:
        value: what the first run returned.
        seconds: one entry per run.
        processor: for each, the processor's time that the process got, all its threads together, in seconds.
        memory: most bytes in use above those before, during the first run: resident set of the process on the
            CPU (sampled every 5 ms), torch's allocations on an accelerator. NaN where it cannot be had.
    """

    value: T
    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    memory: float

    @property
    def best(self) -> float:
        """Shortest run, in seconds."""
        return min(self.seconds)

    @property
    def cpu(self) -> float:
        """Processor time of the run that took least of it, in seconds."""
        return min(self.processor)

    @property
    def median(self) -> float:
        """Median run, in seconds."""
        return statistics.median(self.seconds)


def measure(run: Callable[[], T], device: torch.device, repeat: int, long: float = LONG, name: str = "") -> Measured[T]:
    """Run `repeat` times, but only once if that takes more than `long` seconds; what has a name is logged."""
    with _Memory(device) as memory:
        value, first, cpu = _timed(run, device)
    times = [(first, cpu)]
    while len(times) < repeat and first <= long:
        times.append(_timed(run, device)[1:])
    if name:
        _log.info("%s: %.2f s", name, min(wall for wall, _ in times))
    return Measured(value, tuple(wall for wall, _ in times), tuple(cpu for _, cpu in times), memory.growth)


def _timed(run: Callable[[], T], device: torch.device) -> tuple[T, float, float]:
    _wait_for(device)
    started, got = time.perf_counter(), time.process_time()
    value = run()
    _wait_for(device)
    return value, time.perf_counter() - started, time.process_time() - got


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


class _Memory:
    """Watches the memory in use while it is open."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.growth = float("nan")
        self._peak = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._before = 0

    def __enter__(self) -> _Memory:
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif STATUS.is_file():
            _give_back_freed_memory()
            self._before = self._peak = _resident()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            import torch

            self.growth = float(torch.cuda.max_memory_allocated(self.device) - self._before)
        elif self._thread is not None:
            self._done.set()
            self._thread.join()
            self.growth = float(max(self._peak, _resident()) - self._before)

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    """Bytes of the process in physical memory."""
    return int(STATUS.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _give_back_freed_memory() -> None:
    """Otherwise what an earlier run freed would be used again, and its growth would not be seen."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
