"""The workers of a command: processes of this machine, a Dask or a Ray cluster."""

from __future__ import annotations

import atexit
from concurrent.futures import Executor
from functools import cache

from dln.cli.config import ModelConfig
from dln.errors import InputError
from dln.lm.workers import Processes

__all__ = ["executor_of", "shown_workers", "with_workers"]


def executor_of(config: ModelConfig) -> Executor | None:
    """The executor of the models of this command, one for all; None if they are computed in this process.

    Raises:
        InputError: two kinds of workers, or a package is not installed.
        ProviderError: there is no such cluster.
    """
    if config.dask is not None and (config.workers is not None or config.ray is not None):
        raise InputError(
            "a Dask cluster has its own workers",
            where="--dask",
            got="--workers" if config.ray is None else "--ray",
            fix="leave out one of them",
        )
    if not with_workers(config):
        return None
    return _executor(config.workers, config.dask, config.ray, config.threads or 1)


def with_workers(config: ModelConfig) -> bool:
    """Whether models are computed by workers."""
    return (config.workers, config.dask, config.ray) != (None, None, None)


@cache
def _executor(workers: int | None, dask: str | None, ray: str | None, threads: int) -> Executor:
    """Made once; ends with this process."""
    if ray is not None:
        from dln.integrations.ray import RayExecutor

        made: Executor = RayExecutor(ray, workers=workers, cpus=threads)
    elif dask is not None:
        from dln.integrations.dask import dask_executor

        made = dask_executor(dask)
    else:
        made = Processes(workers or 1)
    atexit.register(made.shutdown, wait=False, cancel_futures=True)
    return made


def shown_workers(config: ModelConfig, count: int) -> str:
    """What computes a model, in words."""
    kind = "on Ray" if config.ray is not None else "on Dask" if config.dask is not None else "of this machine"
    threads = config.threads or 1
    return f"{count} {kind}, {threads} thread{'s' if threads > 1 else ''} each"
