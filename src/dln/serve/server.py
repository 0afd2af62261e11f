"""The server: binds a socket before anything is announced, and runs uvicorn on it until it is stopped."""

from __future__ import annotations

import errno
import math
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dln.errors import InputError, RunFailed
from dln.serve.app import build_app, is_loopback
from dln.serve.batching import Served

if TYPE_CHECKING:
    from uvicorn import Server

__all__ = ["STOP_SECONDS", "bind", "check_address", "need_serve_extra", "run_server", "serving"]

STOP_SECONDS = 5.0
"""Seconds that running requests get to finish when the server is stopped."""


def run_server(
    served: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
    drain: float = STOP_SECONDS,
    workers: Callable[[], int] = lambda: 0,
) -> None:
    """Serve until SIGINT or SIGTERM; then accept nothing more and finish the running requests.

    Args:
        served: the model.
        host: address to listen on.
        port: 0 = any free port.
        key: API key of the clients; required for non-local hosts.
        on_ready: called with the base URL ("http://127.0.0.1:8000/v1") once requests are accepted.
        drain: seconds that running requests get to finish.
        workers: number of the model's workers, for the metrics.

    Raises:
        InputError: the port is in use, the host is invalid, or a key is missing.
    """
    server, bound, url = _prepare(served, host, port, key, drain, workers)
    with bound:
        watch = threading.Thread(target=_tell, args=(server, url, on_ready), daemon=True)
        watch.start()
        try:
            server.run(sockets=[bound])
        finally:
            served.batcher.close()


@contextmanager
def serving(served: Served, *, host: str = "127.0.0.1", port: int = 0, key: str | None = None) -> Generator[str]:
    """Serve in a thread during a `with` block; yields the base URL.

    Raises:
        InputError: as `run_server`.
        RunFailed: the server did not start.
    """
    server, bound, url = _prepare(served, host, port, key, STOP_SECONDS, lambda: 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    with bound:
        thread.start()
        try:
            if not _wait(server, thread):
                raise RunFailed("the server did not start", where=url)
            yield url
        finally:
            server.should_exit = True
            served.batcher.close()
            thread.join(STOP_SECONDS + 5)


def need_serve_extra() -> None:
    """Check that the server's packages are installed.

    Raises:
        InputError: they are not; has the install command.
    """
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise InputError(
            "the packages for serving are not installed", got=error.name, fix="pip install 'dln[serve]'"
        ) from error
    del starlette, uvicorn


def check_address(host: str, port: int, key: str | None) -> None:
    """Check the packages, the key and that the port is free, before a model is loaded.

    Raises:
        InputError: as `run_server`.
    """
    need_serve_extra()
    _check_key(host, key)
    bind(host, port).close()


def _check_key(host: str, key: str | None) -> None:
    if not is_loopback(host) and not key:
        raise InputError(
            "non-local hosts need an API key",
            where=f"--host {host}",
            fix="set DLN_SERVE_API_KEY, or another variable with --client-key-env; or serve on 127.0.0.1",
        )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError("the API key must be printable ASCII without blanks", where="the server's key")


def _prepare(
    served: Served,
    host: str,
    port: int,
    key: str | None,
    drain: float,
    workers: Callable[[], int],
) -> tuple[Server, socket.socket, str]:
    need_serve_extra()
    import uvicorn

    _check_key(host, key)
    bound = bind(host, port)
    shown = bound.getsockname()[1]
    names = frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if is_loopback(host) else None
    config = uvicorn.Config(
        build_app(served, key=key, hosts=names, workers=workers),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(drain),
    )
    address = f"[{host}]" if ":" in host else host
    return uvicorn.Server(config), bound, f"http://{address}:{shown}/v1"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError: the port is in use, or the host is invalid.
    """
    if not 0 <= port < 65536:
        raise InputError("invalid port", where="--port", got=port, expected="0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                "this port is in use", where=f"{host}:{port}", fix="use another --port, or --port 0 for any free port"
            ) from error
        raise InputError("cannot listen here", where=f"{host}:{port}", got=error.strerror or str(error)) from error
    return bound


def _wait(server: Server, thread: threading.Thread) -> bool:
    pause = threading.Event()
    while thread.is_alive() and not server.started:
        pause.wait(0.005)
    return server.started


def _tell(server: Server, url: str, on_ready: Callable[[str], None]) -> None:
    pause = threading.Event()
    while not server.started and not server.should_exit:
        pause.wait(0.01)
    if server.started:
        on_ready(url)
