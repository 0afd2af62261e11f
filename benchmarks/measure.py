"""Seconds and memory of a piece of work: best and median of repetitions, and the growth while it runs.

The limit: how long a workload takes if every trie node costs two operations per parameter and nothing else.

    limit        = 2 · needed · parameters / speed of plain matrix products
    strict limit = 2 (needed · weights of the layers + rows · weights of the head) / the same speed

The first is the usual rule of thumb, with every parameter counted once. The strict one counts what is
multiplied: the weights of all linear maps except the output head, which only the rows that predict a token
need; the embedding is a look-up. Attention itself, norms, activations and the planner are in neither: they are
what hardware efficiency = limit / seconds is lost to. The speed is that of the same
products in the same process: [M, in] × [in, out] for every linear map of the model, its own weights, M tokens
as in a pack, right before and right after what it is compared with, because shared machines change their speed within
minutes. It is the speed that is kept up over all repetitions, and not that of the best one: a workload takes a minute,
in which the machine is not at its best all the time.
"""

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from benchmarks.workload import Work
from dln.errors import InputError
from dln.lm.local.engine import TransformersLM

if TYPE_CHECKING:
    import torch

__all__ = ["LONG", "Machine", "Measured", "measure", "measure_machine"]

T = TypeVar("T")

_log = logging.getLogger("benchmarks")

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
            CPU (sampled every 5 ms), torch's allocations on an accelerator. NaN where it is not available.
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


REPETITIONS = 12


@dataclass(frozen=True)
class Machine:
    """What the processor does with this model's matrix products.

    Attributes:
        parameters: of the model, shared ones counted once.
        layer_weights: weights of the linear maps, the head aside.
        head_weights: weights of the output head.
        tokens: M, rows of each product.
        flops: operations per second of the products alone, over all repetitions.
        forward_flops: the same for a plain forward of one sequence of M tokens through transformers, without
            the head and counting the same operations: what the rest of the architecture leaves of `flops`.
    """

    parameters: int
    layer_weights: int
    head_weights: int
    tokens: int
    flops: float
    forward_flops: float

    def joined(self, later: Machine) -> Machine:
        """The mean speed of two measurements: what lay between them ran on a machine about as fast."""
        return replace(
            self,
            flops=(self.flops + later.flops) / 2,
            forward_flops=(self.forward_flops + later.forward_flops) / 2,
        )

    def limit(self, work: Work) -> float:
        """Seconds for two operations per trie node and parameter."""
        return 2 * work.needed * self.parameters / self.flops

    def strict_limit(self, work: Work) -> float:
        """Seconds below which the workload cannot be done on this processor without skipping trie nodes."""
        return 2 * (work.needed * self.layer_weights + work.rows * self.head_weights) / self.flops


def measure_machine(lm: TransformersLM, tokens: int | None = None) -> Machine:
    """Speed of the model's matrix products with `tokens` rows; by default those of the engine's packs."""
    import torch

    model, device = lm.network.model, lm.network.device
    rows = min(
        tokens or lm.batch_tokens or lm.network.usual_batch_tokens,
        lm.network.context_length or lm.network.usual_batch_tokens,
    )
    head = model.get_output_embeddings()
    maps: list[Any] = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    if not maps:
        raise InputError("this model has no linear maps to compare with", where=lm.name, got=type(model).__name__)
    layer_weights = sum(int(m.weight.numel()) for m in maps)
    inputs = {
        width: torch.randn((rows, width), device=device, dtype=lm.network.model.dtype)
        for width in {int(m.weight.shape[1]) for m in maps}
    }
    ids = torch.randint(0, lm.network.vocabulary, (1, rows), device=device)

    def products() -> None:
        for m in maps:
            torch.nn.functional.linear(inputs[int(m.weight.shape[1])], m.weight)

    def forward() -> None:
        model.base_model(input_ids=ids, use_cache=False)

    with torch.inference_mode():
        product_seconds, forward_seconds = (_mean(run, device) for run in (products, forward))
    operations = 2 * rows * layer_weights
    return Machine(
        parameters=sum(int(p.numel()) for p in model.parameters()),
        layer_weights=layer_weights,
        head_weights=int(head.weight.numel()),
        tokens=rows,
        flops=operations / product_seconds,
        forward_flops=operations / forward_seconds,
    )


def _mean(run: Any, device: Any) -> float:
    import torch

    seconds: list[float] = []
    for _ in range(REPETITIONS + 1):  # the first one warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return sum(seconds[1:]) / REPETITIONS
