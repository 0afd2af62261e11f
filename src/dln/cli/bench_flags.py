"""Flags that the benches of `dln bench` share, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dln.bench.paper.publish import REGIONS
from dln.cli import flags
from dln.errors import InputError

__all__ = [
    "BIG_BENCH",
    "NLU",
    "PAPER_NINE",
    "BudgetOf",
    "DevSize",
    "Encoder",
    "EqualTokens",
    "Jobs",
    "Page",
    "Region",
    "Seeds",
    "Setting",
    "Tasks",
    "TrainSize",
    "budget_settings",
]

NLU, BIG_BENCH = "mpqa,trec,subj,disaster,airline", "hyperbaton,navigate,date,logic7"
PAPER_NINE = f"{NLU},{BIG_BENCH}"

OUTPUT = "Output"

Tasks = Annotated[
    str, typer.Option(metavar="A,B,…", help="Tasks, by name; default the paper's nine.", rich_help_panel=flags.DATA)
]
Seeds = Annotated[str, typer.Option(metavar="A,B,…", help="One cell per task, row of the table, and seed.")]
TrainSize = Annotated[int, typer.Option(min=1, help="Train examples.", rich_help_panel=flags.DATA)]
DevSize = Annotated[
    int, typer.Option(min=1, help="Examples that select; fewer than 120 mislead.", rich_help_panel=flags.DATA)
]
EqualTokens = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Every method that trains may use N tokens for it.")
]
Encoder = Annotated[
    str, typer.Option(metavar="words|NAME|DIR", help="KATE's sentence encoder; a sentence-transformers model.")
]
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A training option, for every network.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tasks and seeds side by side; default 4 for models behind a server, 1 in this process.",
        rich_help_panel=flags.MODEL,
    ),
]
BudgetOf = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TOKENS|NAME=N,…",
        help="Of all cells together: tokens, or of tokens=, calls=, minutes=, usd=; as --max-tokens and so on.",
        rich_help_panel=flags.MODEL,
    ),
]
Page = Annotated[
    list[Path] | None,
    typer.Option(
        "--write",
        metavar="PAGE",
        help="Put the table between the markers of this Markdown page; README.md takes a short one.",
        rich_help_panel=OUTPUT,
    ),
]
Region = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"The markers of --write: {', '.join(REGIONS)}; default: what the command makes.",
        rich_help_panel=OUTPUT,
    ),
]

_LIMITS = {"tokens": int, "calls": int, "minutes": float, "usd": float}


def budget_settings(budget: str | None, **given: float | None) -> dict[str, Any]:
    """The section `budget` of the configuration, from `--budget` and the single limits `max_tokens` and so on.

    >>> budget_settings("usd=2.5,minutes=30", max_tokens=None)
    {'max_tokens': None, 'max_usd': 2.5, 'max_minutes': 30.0}

    Raises:
        InputError: not a limit, not a number, or the same limit twice.
    """
    settings: dict[str, Any] = dict(given)
    for part in (budget or "").split(","):
        text = part.strip()
        if not text:
            continue
        name, equals, number = text.partition("=") if "=" in text else ("tokens", "=", text)
        kind = _LIMITS.get(name.strip())
        if kind is None or not equals:
            raise InputError("no such limit", where="--budget", got=text, expected=", ".join(f"{n}=N" for n in _LIMITS))
        try:
            value = kind(number.strip().replace("_", ""))
        except ValueError as error:
            raise InputError("a limit is a number", where="--budget", got=text) from error
        if value < 0 or value != value:  # noqa: PLR0124 - NaN
            raise InputError("a limit is a number ≥ 0", where="--budget", got=text)
        if settings.get(f"max_{name.strip()}") is not None:
            raise InputError("the same limit is given twice", where="--budget", got=text)
        settings[f"max_{name.strip()}"] = value
    return settings
