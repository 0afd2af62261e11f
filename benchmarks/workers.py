"""`python -m benchmarks.workers`: two worker processes against one, on the scoring of DLN-1 and DLN-2 steps.

Ways: this process with one thread and with two, one worker process, two worker processes, and two workers of Dask and
Ray where these are installed; workers have one thread each. Every way is warmed up, then measured `--repeat` times in
turn, and the answers of all workers must be the same bits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.workload import Workload, answers, choose_subject, find_data, one_layer, two_layers
from dln.errors import RunFailed
from dln.integrations.ray import RayExecutor
from dln.lm.base import LanguageModel
from dln.lm.load import load_lm
from dln.lm.local.threads import use_threads
from dln.lm.workers import Processes
from dln.numerics import Floats

__all__ = ["main"]


@contextmanager
def _dask() -> Generator[Executor]:
    distributed: Any = import_module("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client.get_executor()


@contextmanager
def _ray() -> Generator[Executor]:
    ray: Any = import_module("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with RayExecutor(workers=2) as executor:
        yield executor
    ray.shutdown()


def _ways(model: str, names: Sequence[str], stack: ExitStack) -> dict[str, Callable[[Workload], Floats]]:
    """What computes a workload, by name."""

    def here(threads: int) -> Callable[[Workload], Floats]:
        lm = load_lm(model, device="cpu")

        def compute(workload: Workload) -> Floats:
            use_threads(threads)
            return answers(lm, workload)

        return compute

    def pooled(executor: Executor) -> Callable[[Workload], Floats]:
        lm: LanguageModel = load_lm(model, executor=executor, device="cpu")
        return lambda workload: answers(lm, workload)

    made: dict[str, Callable[[], Callable[[Workload], Floats]]] = {
        "this process, 1 thread": lambda: here(1),
        "this process, 2 threads": lambda: here(2),
        "1 process": lambda: pooled(stack.enter_context(Processes(1))),
        "2 processes": lambda: pooled(stack.enter_context(Processes(2))),
        "2 Dask workers": lambda: pooled(stack.enter_context(_dask())),
        "2 Ray actors": lambda: pooled(stack.enter_context(_ray())),
    }
    missing = {"2 Dask workers": "distributed", "2 Ray actors": "ray"}
    return {
        name: make()
        for name, make in made.items()
        if any(part in name for part in names) and (name not in missing or find_spec(missing[name]) is not None)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", default="smollm2", help="smollm2 or hf/…")
    parser.add_argument("--ways", nargs="+", default=["process", "Dask", "Ray"], help="parts of their names")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny workloads: a check that everything runs")
    chosen = parser.parse_args(arguments)
    subject = choose_subject(2, find_data(None))
    drawing = load_lm(chosen.model, device="cpu", threads=1)
    sizes: tuple[int, ...] = (2, 2, 2, 4) if chosen.quick else (8, 16, 3, 24)
    prompts, batch, hidden, tokens = sizes
    workloads = [
        one_layer(drawing, subject, prompts, batch, "default"),
        two_layers(drawing, subject, prompts // 2 + 1, batch // 2, hidden, tokens).workload(),
    ]
    warm = one_layer(drawing, subject, 2, 2, "default")
    table = Table("workload", "way", "seconds", "speed-up", "same bits")
    with ExitStack() as stack:
        ways = _ways(chosen.model, chosen.ways, stack)
        for compute in ways.values():
            compute(warm)
            compute(warm)
        for workload in workloads:
            times: dict[str, list[float]] = {name: [] for name in ways}
            found: dict[str, Floats] = {}
            for _ in range(chosen.repeat):
                for name, compute in ways.items():
                    began = time.perf_counter()
                    found[name] = compute(workload)
                    times[name].append(time.perf_counter() - began)
            pooled = [name for name in ways if not name.startswith("this")]
            for name in ways:
                same = name in pooled and np.array_equal(found[name], found[pooled[0]])
                if name in pooled and not same:
                    raise RunFailed("two ways give different bits", where=name, got=workload.name)
                base = min(times.get("1 process") or times[next(iter(ways))])
                seconds = min(times[name])
                mark = "yes" if same else ""
                table.add_row(workload.name, name, f"{seconds:.2f}", f"{base / seconds:.2f}", mark)
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
