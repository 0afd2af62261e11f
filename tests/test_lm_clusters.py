"""Workers of the real Dask and Ray: the bits of one process, also when one is killed, and an error if all are."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from dln.errors import InputError, ProviderError, RunFailed
from dln.integrations import dask as dask_workers
from dln.integrations import ray as ray_workers
from dln.lm.base import Sampling
from dln.lm.load import load_lm
from dln.lm.workers import Processes, run_items, workers_of

CONTEXTS = [f"Text {n % 3} of a few words. Answer {n}:" for n in range(24)]


def everything(spec: str, executor: Executor) -> list[Any]:
    lm = load_lm(spec, executor=executor, item_tokens=32)
    draws = lm.sample(CONTEXTS, Sampling(temperature=1.0, max_tokens=4), range(24))
    return [draws, [score.values.tobytes() for score in lm.log_prob(CONTEXTS, draws)]]


@pytest.fixture(scope="module")
def expected(tiny_folder: Path) -> list[Any]:
    with Processes(1) as one:
        return everything(f"hf/{tiny_folder}", one)


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="pip install -r requirements-clusters.lock")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def ray() -> Iterator[Executor]:
    package = pytest.importorskip("ray", reason="pip install -r requirements-clusters.lock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        with ray_workers.RayExecutor() as executor:
            yield executor
        package.shutdown()


def die_once(flag: str, number: int) -> int:
    """`number`, after the death of the first worker that gets number 3."""
    path = Path(flag)
    if number == 3 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
class TestDask:
    def test_the_bits_are_those_of_one_process(self, dask: Any, expected: list[Any], tiny_folder: Path) -> None:
        executor = dask.get_executor()
        assert workers_of(executor) == 2
        assert everything(f"hf/{tiny_folder}", executor) == expected

    def test_the_address_is_enough(self, dask: Any) -> None:
        executor = dask_workers.dask_executor(dask.scheduler.address)
        assert run_items(executor, abs, [(-n,) for n in range(9)]) == list(range(9))
        executor.shutdown()

    def test_a_killed_worker_and_then_all(self, dask: Any, tmp_path: Path) -> None:
        items = [(str(tmp_path / "died"), n) for n in range(9)]
        assert run_items(dask.get_executor(), die_once, items) == list(range(9))
        with pytest.raises(RunFailed, match="all workers were lost"):
            run_items(dask.get_executor(), die, [(1,)])


@pytest.mark.slow
class TestRay:
    def test_the_bits_are_those_of_one_process(self, ray: Executor, expected: list[Any], tiny_folder: Path) -> None:
        assert workers_of(ray) == 2
        assert everything(f"hf/{tiny_folder}", ray) == expected

    def test_a_killed_worker_and_then_all(self, ray: Executor, tmp_path: Path) -> None:
        items = [(str(tmp_path / "died"), n) for n in range(9)]
        assert run_items(ray, die_once, items) == list(range(9))
        with pytest.raises(RunFailed, match="all workers were lost"):
            run_items(ray, die, [(1,)])

    def test_errors_of_the_function_are_raised_as_they_are(self, ray: Executor) -> None:
        with pytest.raises(InputError) as caught:
            run_items(ray, load_lm, [("no such model",)])
        assert caught.value.where == "lm"


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, package in ((ray_workers, "ray"), (dask_workers, "dask")):

        def missing(name: str) -> Any:
            raise ImportError(name)

        monkeypatch.setattr(module, "import_module", missing)
        with pytest.raises(InputError, match=rf"dln\[{package}\]"):
            ray_workers.RayExecutor() if package == "ray" else dask_workers.dask_executor("tcp://x:1")


class NoScheduler:
    class Client:
        def __init__(self, address: str, set_as_default: bool) -> None:
            raise OSError("timed out")


def test_a_scheduler_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_workers, "import_module", lambda _: NoScheduler)
    with pytest.raises(ProviderError, match=r"there is no Dask scheduler(?s:.*)tcp://x:1"):
        dask_workers.dask_executor("tcp://x:1")
