"""Workers on a Ray cluster: one actor per GPU, or per so many cores, each of which keeps the models that it loads."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, cast

from dln.arguments import Count, Size, checked
from dln.errors import InputError, ProviderError

__all__ = ["RayExecutor"]

T = TypeVar("T")
P = ParamSpec("P")

FIRST_ACTOR_SECONDS = 60.0


class _Worker:
    """An actor: runs functions, one after another, in a process that stays."""

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)


@checked
class RayExecutor(Executor):
    """Actors of a Ray cluster as an executor.

    An actor that dies is started anew by Ray; what it was computing fails with `BrokenExecutor`, and `dln.lm.workers`
    gives it to another one.

    Args:
        address: of the cluster, "auto" for the one that this machine belongs to; None starts one on this machine,
            unless `ray.init` was called.
        workers: number of actors; None takes as many as the cluster has room for.
        cpus: cores of an actor.
        gpus: GPUs of an actor; None is one where the cluster has any.

    Raises:
        InputError: Ray is not installed.
        ProviderError: there is no cluster at this address, or it has no room for an actor.
    """

    def __init__(
        self, address: str | None = None, *, workers: Count | None = None, cpus: Count = 1, gpus: Size | None = None
    ) -> None:
        self._ray = ray = _ray()
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ProviderError(
                    "there is no Ray cluster", where="ray", got=str(error), expected="an address, or auto"
                ) from error
        found = cast("dict[str, float]", ray.cluster_resources())
        each = gpus if gpus is not None else min(1, int(found.get("GPU", 0)))
        room = int(found.get("GPU", 0)) // each if each else int(found.get("CPU", 0)) // cpus
        self.workers = workers or max(1, room)
        actor = ray.remote(num_cpus=cpus, num_gpus=each, max_restarts=-1)(_Worker)
        self._actors = [actor.remote() for _ in range(self.workers)]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for one in self._actors:
            self._idle.put(one)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="dln-ray")
        self._check(cpus, each)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in an actor that is idle."""
        return self._threads.submit(self._run, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the actors after what they are computing; the cluster stays."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for one in self._actors:
            self._ray.kill(one)

    def _run(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        actor = self._idle.get()
        errors = self._ray.exceptions
        try:
            return self._ray.get(actor.run.remote(function, args, kwargs))
        except errors.RayTaskError as error:  # raised by the function itself
            raise error.cause from None
        except errors.RayError as error:
            raise BrokenExecutor(str(error)) from error
        finally:
            self._idle.put(actor)

    def _check(self, cpus: int, gpus: int) -> None:
        """Wait for the first actor, which a cluster without room never starts."""
        first = [actor.run.remote(int, (), {}) for actor in self._actors]
        ready, _ = self._ray.wait(first, num_returns=1, timeout=FIRST_ACTOR_SECONDS)
        if not ready:
            raise ProviderError(
                "the Ray cluster has no room for a worker", where="ray", expected=f"{cpus} CPUs and {gpus} GPUs free"
            )


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise InputError("Ray is not installed", where="ray", fix="pip install 'dln[ray]'") from error
