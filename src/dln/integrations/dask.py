"""Workers of a Dask cluster, as `Client.get_executor()` gives them."""

from __future__ import annotations

from concurrent.futures import Executor
from importlib import import_module
from typing import Any, cast

from dln.errors import InputError, ProviderError

__all__ = ["dask_executor"]


def dask_executor(address: str) -> Executor:
    """The workers of the scheduler at `address`, as tcp://10.0.0.1:8786; start them with one thread each.

    Raises:
        InputError: Dask is not installed.
        ProviderError: there is no scheduler at this address.
    """
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise InputError("Dask is not installed", where="dask", fix="pip install 'dln[dask]'") from error
    try:
        return cast("Executor", distributed.Client(address, set_as_default=False).get_executor())
    except (OSError, ValueError) as error:
        raise ProviderError("there is no Dask scheduler", where="dask", got=f"{address}: {error}") from error
