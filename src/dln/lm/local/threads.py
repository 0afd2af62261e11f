"""The number of threads that torch computes with on the CPU: measured once per process unless it is given.

OpenMP threads wait for one another at the end of every matrix product. On a machine whose cores are busy with other
work, two threads can be several times slower than one. The number changes results in the last bits, because sums are
taken in another order, so a run records it and a resumed run uses it again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from dln.errors import InputError

__all__ = ["Threads", "candidates", "chosen_threads", "fastest", "restore_threads", "settle_threads", "use_threads"]

PROBE_SECONDS = 1.0
GAIN = 0.9
"""A larger number of threads is chosen only if it needs less than this fraction of the time."""

_VARIABLE = "OMP_NUM_THREADS"
_GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Threads:
    """A number of threads and the reason for it.

    Attributes:
        count: number of threads.
        reason: "given", "recorded" (by the run that is resumed), "OMP_NUM_THREADS", "one core" or "measured".
        seconds: median time of the measured work by number of threads; empty if nothing was measured.
    """

    count: int
    reason: str
    seconds: dict[int, float] = field(default_factory=dict[int, float])

    def __str__(self) -> str:
        times = ", ".join(f"{1000 * value:.2g} ms with {count}" for count, value in self.seconds.items())
        return f"{self.count} ({self.reason}{f': {times}' if times else ''})"


_lock = threading.Lock()
_settled: list[Threads] = []
"""The choice of this process, once it is made."""


def chosen_threads() -> Threads | None:
    """The choice of this process; None before a model was loaded on the CPU."""
    return _settled[0] if _settled else None


def use_threads(count: int) -> None:
    """Compute with `count` threads from now on, also in models that are already loaded.

    Raises:
        InputError: the number is not positive.
    """
    if count < 1:
        raise InputError("the number of threads must be positive", where="threads", got=count, expected="an int ≥ 1")
    with _lock:
        _choose(Threads(count, _GIVEN))


def restore_threads(recorded: int | None) -> None:
    """Compute with the number that a run recorded, unless `use_threads` was called in this process."""
    with _lock:
        if recorded is not None and not (_settled and _settled[0].reason == _GIVEN):
            _choose(Threads(recorded, "recorded"))


def settle_threads() -> Threads:
    """The number of threads of this process, measured at the first call unless it is known already.

    It is known after `use_threads` or `restore_threads`, if OMP_NUM_THREADS is set, and on one core.
    """
    with _lock:
        if not _settled:
            cores = _cores()
            if os.environ.get(_VARIABLE):
                _settled.append(Threads(_get(), _VARIABLE))
            elif cores == 1:
                _choose(Threads(1, "one core"))
            else:
                best, seconds = fastest(candidates(cores), _work())
                _choose(Threads(best, "measured", seconds))
        return _settled[0]


def candidates(cores: int) -> tuple[int, ...]:
    """Numbers of threads to try: one, two and all cores.

    >>> candidates(2), candidates(8)
    ((1, 2), (1, 2, 8))
    """
    return tuple(sorted({1, min(2, cores), cores}))


def fastest(
    counts: Sequence[int],
    work: Callable[[int], object],
    *,
    seconds: float = PROBE_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, dict[int, float]]:
    """The number of threads to use, and the median time of `work` by number of threads.

    The numbers are timed in turn, so that a change of the machine's load affects all of them alike. A larger number
    is chosen only if it is faster by a tenth or more.

    Args:
        counts: numbers of threads, ascending.
        work: computes with the given number of threads.
        seconds: length of the measurement; each number is timed at least once, after an untimed first trial.
        clock: time in seconds.
    """
    for count in counts:
        work(count)  # starts the threads and touches the memory
    taken: dict[int, list[float]] = {count: [] for count in counts}
    start = clock()
    while True:
        for count in counts:
            before = clock()
            work(count)
            taken[count].append(clock() - before)
        if clock() - start >= seconds:
            break
    times = {count: median(values) for count, values in taken.items()}
    best = counts[0]
    for count in counts[1:]:
        if times[count] < GAIN * times[best]:
            best = count
    return best, times


def _work() -> Callable[[int], object]:
    """Matrix products of the sizes of a layer of the embedded model, on a small batch."""
    import torch

    rows, up, down = torch.ones(64, 576), torch.ones(576, 1536), torch.ones(1536, 576)

    def work(count: int) -> None:
        torch.set_num_threads(count)
        value = rows
        with torch.inference_mode():
            for _ in range(8):
                value = torch.nn.functional.silu(value @ up) @ down * 1e-3

    return work


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _get() -> int:
    import torch

    return torch.get_num_threads()


def _choose(threads: Threads) -> None:
    import torch

    _settled[:] = [threads]
    torch.set_num_threads(threads.count)
