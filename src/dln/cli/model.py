"""`dln model`: fetch, find and list models."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from dln.cli.flags import Json, examples
from dln.cli.show import out, print_record, safe
from dln.errors import ProviderError
from dln.lm.embedded import SMOLLM2, EmbeddedModel, embedded_model_path, pull
from dln.lm.load import ENGINES

__all__ = ["app"]

app = typer.Typer(
    help="Fetch, find and list models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=examples("dln model pull", "dln model path", "dln model list"),
)


@app.command("pull", epilog=examples("dln model pull"))
def pull_model() -> None:
    """Fetch the embedded model, unless it is here already, and print its path."""
    out().print(safe(pull(SMOLLM2)), soft_wrap=True)


@app.command("path", epilog=examples("dln model path", "ls -l $(dln model path)"))
def path() -> None:
    """Print where the embedded model is; fetch nothing."""
    out().print(safe(embedded_model_path(SMOLLM2, fetch=_refuse)), soft_wrap=True)


@app.command("list", epilog=examples("dln model list", "dln model list --json"))
def list_models(as_json: Json = False) -> None:
    """List how models are named, and whether the embedded one is here."""
    try:
        embedded_model_path(SMOLLM2, fetch=_refuse)
        state = "here"
    except ProviderError:
        state = "fetched at first use"
    rows = [(engine.form, state if name == "smollm2" else "") for name, engine in ENGINES.items()]
    if as_json:
        for form, state in rows:
            print_record({"model": form, "state": state})
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("--lm")
    table.add_column("")
    for form, state in rows:
        table.add_row(safe(form), state)
    out().print(table)


def _refuse(model: EmbeddedModel, folder: Path) -> Path:
    raise ProviderError("the embedded model is not here, or damaged", where=model.cached_path, fix="dln model pull")
