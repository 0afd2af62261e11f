"""The dashboard's server: a socket, a token, and uvicorn until it is stopped."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dln.errors import InputError, RunFailed
from dln.serve.app import is_loopback
from dln.serve.server import bind
from dln.view.app import build_app
from dln.view.folder import Folder

if TYPE_CHECKING:
    from uvicorn import Server

__all__ = ["new_token", "run_dashboard", "showing"]

STOP_SECONDS = 1


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(24)


def run_dashboard(
    folder: Folder,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    names: Iterable[str] = (),
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Show the runs until SIGINT or SIGTERM.

    Args:
        folder: the runs.
        host: address to listen on.
        port: 0 = any free port.
        token: of the requests for data; default a new one.
        names: further host names, without port, under which browsers reach this server.
        on_ready: called with the address to open, token included, once requests are accepted.

    Raises:
        InputError: the port is in use, the host or the token is invalid, or a package is not installed.
    """
    server, bound, url = _prepare(folder, host, port, token, names)
    with bound:
        threading.Thread(target=_tell, args=(server, url, on_ready), daemon=True).start()
        threading.Thread(target=folder.rows, daemon=True).start()  # long runs are read before somebody opens them
        server.run(sockets=[bound])


@contextmanager
def showing(folder: Folder, *, token: str | None = None, port: int = 0) -> Generator[str]:
    """Show the runs in a thread during a `with` block; yields the address to open.

    Raises:
        InputError: as `run_dashboard`.
        RunFailed: the server did not start.
    """
    server, bound, url = _prepare(folder, "127.0.0.1", port, token, ())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    with bound:
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(0.005)
            if not server.started:
                raise RunFailed("the server did not start", where=url)
            yield url
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS + 5)


def _prepare(
    folder: Folder, host: str, port: int, token: str | None, names: Iterable[str]
) -> tuple[Server, socket.socket, str]:
    try:
        import sse_starlette
        import uvicorn
    except ImportError as error:
        raise InputError(
            "the packages of the dashboard are not installed", got=error.name, fix="pip install 'dln[view]'"
        ) from error
    del sse_starlette
    token = token or new_token()
    if not (token.isascii() and token.isprintable() and len(token) >= 16 and not set(token) & set(" \"'<>#&%")):
        raise InputError("the token must be 16 or more printable ASCII characters", where="the dashboard's token")
    bound = bind(host, port)
    shown = bound.getsockname()[1]
    own = {"localhost", "127.0.0.1", "::1"} if is_loopback(host) else {socket.gethostname().lower()}
    known = {name.lower() for name in (*own, host, *names)} - {"0.0.0.0", "::"}  # noqa: S104 - not bound here
    served = frozenset(f"{f'[{name}]' if ':' in name else name}:{shown}" for name in known)
    app = build_app(folder, token=token, hosts=served)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    name = host if host in known else socket.gethostname().lower()
    address = f"[{name}]" if ":" in name else name
    server = uvicorn.Server(config)
    app.state.stopping = lambda: server.should_exit  # ends the event streams
    return server, bound, f"http://{address}:{shown}/#token={token}"


def _tell(server: Server, url: str, on_ready: Callable[[str], None]) -> None:
    while not server.started and not server.should_exit:
        time.sleep(0.01)
    if server.started:
        on_ready(url)
