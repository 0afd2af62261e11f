"""`dln serve`: a model or trained network behind an OpenAI-compatible API."""

from __future__ import annotations

import logging
import os
import shlex
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from dln.cli import flags
from dln.cli.build import ensemble_line, open_network
from dln.cli.config import ModelConfig, RunConfig, engine_of
from dln.cli.models import IN_PROCESS, Loader
from dln.cli.output import duration, examples, note, out, print_record, safe
from dln.cli.sources import configured
from dln.cli.workers import executor_of
from dln.errors import DlnError, InputError
from dln.lm.base import LanguageModel
from dln.lm.load import ENGINES, load_lm
from dln.lm.workers import workers_of
from dln.nn import Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.serve.batching import Batcher
from dln.serve.models import served
from dln.serve.server import STOP_SECONDS, check_address, run_server

__all__ = ["SERVE_EPILOG", "greet", "serve"]

SERVE_EPILOG = examples(
    "dln serve smollm2",
    "dln serve smollm2 --port 0 --json",
    "dln serve runs/questions --port 9000",
    "DLN_SERVE_API_KEY=… dln serve network.json --host 0.0.0.0",
)
KEY_VARIABLE = "DLN_SERVE_API_KEY"


@configured("lm", "threads workers dask ray")
def serve(
    config: RunConfig,
    given: dict[str, Any],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|NETWORK",
            help="A model (as --lm names it), a run directory, or a network.json.",
            autocompletion=flags.models,
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; others than loopback need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 = any free port.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Model name shown to clients (default: its own).")
    ] = None,
    client_key_env: Annotated[
        str,
        typer.Option(
            "--client-key-env", metavar="NAME", help="Environment variable with the API key that clients must send."
        ),
    ] = KEY_VARIABLE,
    batch_window: Annotated[
        float, typer.Option("--batch-window", min=0, max=1000, help="Milliseconds to wait for more requests.")
    ] = 5.0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=4096, help="Maximum batch size.")] = 64,
    drain: Annotated[
        float, typer.Option("--drain", min=0, max=3600, help="Seconds for running requests to finish at SIGTERM.")
    ] = STOP_SECONDS,
    as_json: flags.Json = False,
) -> None:
    """Serve a model or trained network behind an OpenAI-compatible API."""
    key = _key(client_key_env)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    check_address(host, port, key)  # an invalid one is reported before a model is loaded
    with ExitStack() as stack:
        began = time.perf_counter()
        loaded, own_name = _load(model, config, given.get("lm", {}).get("spec"), stack)
        note(f"loaded in {duration(time.perf_counter() - began)}; starting the server on {host}, port {port or 'any'}")
        worker = Batcher(window=batch_window / 1000, largest=batch_size)
        executor = executor_of(config.lm)
        count = 0 if executor is None else workers_of(executor)
        answering = served(loaded, name or own_name, batcher=worker)

        def ready(url: str) -> None:
            if as_json:
                print_record({"url": url, "model": answering.name, "key": key is not None, "pid": os.getpid()})
                return
            greet(url, answering.name, loaded, key is not None)

        with suppress(KeyboardInterrupt):  # Ctrl-C and SIGTERM are how a server ends
            run_server(answering, host=host, port=port, key=key, on_ready=ready, drain=drain, workers=lambda: count)
        note("stopped")


def _key(variable: str) -> str | None:
    value = os.environ.get(variable)
    if variable != KEY_VARIABLE and not value:
        raise InputError(
            "this environment variable is not set", where="--client-key-env", got=variable, fix=f"export {variable}=…"
        )
    return value or None


def _load(
    model: str, config: RunConfig, override: str | None, stack: ExitStack
) -> tuple[LanguageModel | AnyNetwork, str | None]:
    place = Path(model)
    if place.is_dir() or model.endswith(".json"):
        note(f"loading the network {model} …")
        network = open_network(place, Loader(config, override, stack))
        stem = place.resolve().parent.name if place.name == "network.json" else place.resolve().name
        return network, stem.removesuffix(".json")
    prefix = model.partition("/")[0].partition(":")[0]
    if prefix not in ENGINES and not model.removesuffix(":chat").endswith(".gguf"):
        try:
            return _loaded(model, config.lm), None
        except DlnError as error:
            raise InputError(
                "there is no such run, network file or model",
                got=model,
                expected=error.expected,
                fix=error.fix or "dln model list, dln runs",
            ) from error
    if override is not None:
        note("note: --lm is the model of a network's layers; it has no effect on a model that is served itself")
    note(f"loading the model {model} …")
    return _loaded(model, config.lm), None


def _loaded(model: str, config: ModelConfig) -> LanguageModel:
    """The model itself, with the threads and workers that are set."""
    options = {} if config.threads is None or engine_of(model) not in IN_PROCESS else {"threads": config.threads}
    return load_lm(model, executor=executor_of(config), **options)


def greet(url: str, name: str, served_one: LanguageModel | AnyNetwork, with_key: bool) -> None:
    """Print how to send requests: with curl, from Python, and from a run."""
    key = "$KEY" if with_key else "x"
    lines = [
        f"{name} at {url}  (Ctrl-C to stop)",
        f"  curl {url}/chat/completions -H 'Content-Type: application/json'"
        + (f" -H 'Authorization: Bearer {key}'" if with_key else "")
        + f""" -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
        f'  python: openai.OpenAI(base_url="{url}", api_key="{"…" if with_key else "x"}")',
    ]
    together = ensemble_line(served_one) if isinstance(served_one, Ensemble) else None
    if together is not None:
        lines.insert(1, f"  {together}")
    if not isinstance(served_one, Sequential | Ensemble):
        lines.append(f"  dln train --task questions --lm {shlex.quote(f'vllm/{name}')} --base-url {url}")
    for line in lines:
        out().print(safe(line), soft_wrap=True)
