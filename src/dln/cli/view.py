"""`dln view`: the dashboard of runs in a browser."""

from __future__ import annotations

import logging
import os
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from dln.cli import flags
from dln.cli.build import recorded_config
from dln.cli.config import command_of
from dln.cli.output import examples, note, out, print_record, safe
from dln.serve.app import is_loopback
from dln.view.folder import Folder
from dln.view.server import run_dashboard

__all__ = ["VIEW_EPILOG", "view"]

VIEW_EPILOG = examples(
    "dln view",
    "dln view runs/questions --open",
    "dln view result_data.json",
    "DLN_VIEW_TOKEN=… dln view --host 0.0.0.0 --allow-host gpu7.example.org",
)
TOKEN_VARIABLE = "DLN_VIEW_TOKEN"  # noqa: S105 - its name


def view(
    runs: Annotated[
        Path,
        typer.Argument(
            metavar="RUNS", help="A folder of runs, a run directory, or a result_data.json of the original code."
        ),
    ] = Path("runs"),
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; others than loopback need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 = any free port.")] = 8765,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="Further host name under which browsers reach this server."),
    ] = None,
    show_it: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Show runs in a browser, live while they train, and take part in them.

    The printed address contains a token that all data needs: the one in DLN_VIEW_TOKEN, or a new one.
    """
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    folder = Folder(runs, command=lambda run: command_of(recorded_config(run)))
    if not is_loopback(host):
        note("note: the address is reachable from other machines, and what is sent is not encrypted")

    def ready(url: str) -> None:
        if as_json:
            print_record({"url": url, "pid": os.getpid()})
        else:
            out().print(safe(f"dashboard of {runs}: {url}  (Ctrl-C to stop)"), soft_wrap=True)
        if show_it:
            webbrowser.open(url)

    with suppress(KeyboardInterrupt):  # Ctrl-C and SIGTERM are how a server ends
        run_dashboard(
            folder,
            host=host,
            port=port,
            token=os.environ.get(TOKEN_VARIABLE) or None,
            names=allow_host or (),
            on_ready=ready,
        )
    note("stopped")
