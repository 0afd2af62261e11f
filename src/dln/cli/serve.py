"""`dln serve`: a model, or a trained network, behind an OpenAI-compatible server on this machine."""

from __future__ import annotations

import logging
import os
import shlex
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from dln.cli import flags
from dln.cli import flags as complete
from dln.cli.build import Loader, said_together
from dln.cli.flags import examples
from dln.cli.output import note, out, print_record, safe
from dln.cli.sources import load_config
from dln.errors import DlnError, InputError
from dln.lm.base import LanguageModel
from dln.lm.load import ENGINES, load_lm
from dln.lm.local.threads import use_threads
from dln.nn import Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.serve.batching import Batcher
from dln.serve.models import served
from dln.serve.server import need_serve_extra, run_server

__all__ = ["SERVE_EPILOG", "greet", "serve"]

SERVE_EPILOG = examples(
    "dln serve smollm2",
    "dln serve smollm2 --port 0 --json",
    "dln serve runs/questions --port 9000",
    "DLN_SERVE_API_KEY=… dln serve network.json --host 0.0.0.0",
)
KEY_VARIABLE = "DLN_SERVE_API_KEY"


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|NETWORK",
            help="A model (as --lm names it), a run directory, or a network.json.",
            autocompletion=complete.models,
        ),
    ],
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where to listen; others than this machine need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="How clients call the model; default: its own name.")
    ] = None,
    api_key_env: Annotated[
        str,
        typer.Option(metavar="VARIABLE", help="Environment variable with the key that clients must present."),
    ] = KEY_VARIABLE,
    lm: flags.Model = None,
    threads: flags.Threads = None,
    batch_window: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds to wait for requests to answer together.")
    ] = 5.0,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Most requests to answer together.")] = 64,
    as_json: flags.Json = False,
) -> None:
    """Serve a model or a trained network, in the OpenAI form."""
    need_serve_extra()
    key = _key(api_key_env)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    if threads is not None:
        use_threads(threads)
    with ExitStack() as stack:
        loaded, own_name = _load(model, lm, stack)
        worker = Batcher(window=batch_window / 1000, largest=batch_size)
        answering = served(loaded, name or own_name, batcher=worker)

        def ready(url: str) -> None:
            if as_json:
                print_record({"url": url, "model": answering.name, "key": key is not None, "pid": os.getpid()})
                return
            greet(url, answering.name, loaded, key is not None)

        with suppress(KeyboardInterrupt):  # Ctrl-C and SIGTERM are how a server ends
            run_server(answering, host=host, port=port, key=key, on_ready=ready)
        note("stopped")


def _key(variable: str) -> str | None:
    value = os.environ.get(variable)
    if variable != KEY_VARIABLE and not value:
        raise InputError("this variable is not set", where="--api-key-env", got=variable, fix=f"export {variable}=…")
    return value or None


def _load(model: str, override: str | None, stack: ExitStack) -> tuple[LanguageModel | AnyNetwork, str | None]:
    place = Path(model)
    if place.is_dir() or model.endswith(".json"):
        network = Loader(load_config({}), override, stack).trained(place)
        stem = place.resolve().parent.name if place.name == "network.json" else place.resolve().name
        return network, stem.removesuffix(".json")
    prefix = model.partition("/")[0].partition(":")[0]
    if prefix not in ENGINES and not model.removesuffix(":chat").endswith(".gguf"):
        try:
            return load_lm(model), None
        except DlnError as error:
            raise InputError(
                "there is no such run, network file or model",
                got=model,
                expected=error.expected,
                fix=error.fix or "dln model list, dln runs",
            ) from error
    if override is not None:
        note("--lm is the model of a network's layers; it has no effect on a model that is served itself")
    return load_lm(model), None


def greet(url: str, name: str, served_one: LanguageModel | AnyNetwork, with_key: bool) -> None:
    """Print how the server is asked: by curl, from Python, and as the model of a run."""
    key = "$KEY" if with_key else "x"
    lines = [
        f"{name} at {url}  (Ctrl-C stops)",
        f"  curl {url}/chat/completions -H 'Content-Type: application/json'"
        + (f" -H 'Authorization: Bearer {key}'" if with_key else "")
        + f""" -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
        f'  python: openai.OpenAI(base_url="{url}", api_key="{"…" if with_key else "x"}")',
    ]
    together = said_together(served_one) if isinstance(served_one, Ensemble) else None
    if together is not None:
        lines.insert(1, f"  {together}")
    if not isinstance(served_one, Sequential | Ensemble):
        lines.append(f"  dln train --task questions --lm {shlex.quote(f'vllm/{name}')} --base-url {url}")
    for line in lines:
        out().print(safe(line), soft_wrap=True)
