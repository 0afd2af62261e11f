"""Flags of the commands that train: data, network, training, and the sizes of a bench.

Flags of `dln train` alone: how much data, which network, how it is trained, and the models beside the main one.

Flags that the benches of `dln bench` share, and what they come to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dln.cli import flags
from dln.cli import flags as complete
from dln.cli.flags import DATA, MODEL
from dln.errors import InputError
from dln.experiments.tables import REGIONS

__all__ = [
    "BIG_BENCH",
    "NLU",
    "PAPER_NINE",
    "BatchTokens",
    "BenchDevSize",
    "BenchSeeds",
    "BenchSetting",
    "BenchTrainSize",
    "BudgetOf",
    "DevSize",
    "DryRun",
    "Encoder",
    "EqualTokens",
    "Freeze",
    "HiddenApiKeyEnv",
    "HiddenBaseUrl",
    "HiddenModel",
    "HiddenStart",
    "HiddenTokens",
    "InitialPrompt",
    "Jobs",
    "Layers",
    "NewRunDirectory",
    "Page",
    "Preset",
    "PrintSchema",
    "PromptApiKeyEnv",
    "PromptBaseUrl",
    "PromptModel",
    "PromptsFrom",
    "Region",
    "Seed",
    "Seeds",
    "Setting",
    "Steps",
    "Tasks",
    "TemplateName",
    "Test",
    "TestSize",
    "TrainSize",
    "budget_settings",
]

NETWORK, TRAINING = "Network", "Training"

TrainSize = Annotated[int | None, typer.Option(min=1, help="Train on at most so many examples.", rich_help_panel=DATA)]
DevSize = Annotated[int | None, typer.Option(min=1, help="Validate on at most so many.", rich_help_panel=DATA)]
TestSize = Annotated[int | None, typer.Option(min=1, help="Test on at most so many.", rich_help_panel=DATA)]
Layers = Annotated[
    int | None,
    typer.Option(
        min=1, envvar="DLN_LAYERS", help="Depth: 1 answers at once, more think first.", rich_help_panel=NETWORK
    ),
]
InitialPrompt = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Initial prompt, once per layer.", rich_help_panel=NETWORK),
]
PromptsFrom = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|RUN",
        help="Initial prompts from a file, or from a network or run with its templates.",
        rich_help_panel=NETWORK,
    ),
]
TemplateName = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Template, once per layer.",
        autocompletion=complete.templates,
        rich_help_panel=NETWORK,
    ),
]
HiddenStart = Annotated[
    str | None,
    typer.Option(
        "--hidden",
        metavar="copy|think",
        help="What hidden layers begin as.",
        autocompletion=complete.hidden_starts,
        rich_help_panel=NETWORK,
    ),
]
HiddenTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest hidden text, in tokens.", rich_help_panel=NETWORK)
]
Freeze = Annotated[
    list[int] | None, typer.Option(metavar="LAYER", help="Do not train this layer.", rich_help_panel=NETWORK)
]
Preset = Annotated[
    str | None,
    typer.Option(
        envvar="DLN_PRESET",
        metavar="NAME",
        help="Options to start from: default or paper.",
        autocompletion=complete.presets,
        rich_help_panel=TRAINING,
    ),
]
Steps = Annotated[int | None, typer.Option(min=0, envvar="DLN_STEPS", help="Updates.", rich_help_panel=TRAINING)]
Seed = Annotated[int | None, typer.Option(envvar="DLN_SEED", help="Of everything random.", rich_help_panel=TRAINING)]
Seeds = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,…", help="One run per seed under the run directory, read together.", rich_help_panel=TRAINING
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any training option, as in inference.num_hidden=3.",
        autocompletion=complete.settings,
        rich_help_panel=TRAINING,
    ),
]
Test = Annotated[
    bool | None,
    typer.Option("--test/--no-test", help="Evaluate on the test examples at the end.", rich_help_panel=TRAINING),
]
PromptModel = Annotated[
    str | None,
    typer.Option(
        envvar="DLN_PROMPT_LM",
        metavar="SPEC",
        help="The model that proposes prompts.",
        autocompletion=complete.models,
        rich_help_panel=MODEL,
    ),
]
PromptBaseUrl = Annotated[
    list[str] | None,
    typer.Option(
        envvar="DLN_PROMPT_BASE_URL",
        metavar="URL",
        help="Its server; default that of --lm if the engine is the same.",
        rich_help_panel=MODEL,
    ),
]
PromptApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        envvar="DLN_PROMPT_API_KEY_ENV",
        metavar="NAME",
        help="Its key's environment variable.",
        autocompletion=complete.key_variables,
        rich_help_panel=MODEL,
    ),
]
HiddenModel = Annotated[
    str | None,
    typer.Option(
        envvar="DLN_HIDDEN_LM",
        metavar="SPEC",
        help="The model that proposes hidden texts: edits, or all with inference.hidden_writer=hidden_lm.",
        autocompletion=complete.models,
        rich_help_panel=MODEL,
    ),
]
HiddenBaseUrl = Annotated[
    list[str] | None,
    typer.Option(
        envvar="DLN_HIDDEN_BASE_URL",
        metavar="URL",
        help="Its server; default that of --lm if the engine is the same.",
        rich_help_panel=MODEL,
    ),
]
HiddenApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        envvar="DLN_HIDDEN_API_KEY_ENV",
        metavar="NAME",
        help="Its key's environment variable.",
        autocompletion=complete.key_variables,
        rich_help_panel=MODEL,
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens per batch of the in-process engine.", rich_help_panel=MODEL),
]
NewRunDirectory = Annotated[
    str | None, typer.Option(envvar="DLN_RUN_DIR", metavar="DIR", help="Default: runs/<task>-<layers>l-<time>.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Estimate the cost and stop.")]
PrintSchema = Annotated[bool, typer.Option("--print-schema", help="Print the JSON Schema of --config files and stop.")]


NLU, BIG_BENCH = "mpqa,trec,subj,disaster,airline", "hyperbaton,navigate,date,logic7"
PAPER_NINE = f"{NLU},{BIG_BENCH}"

OUTPUT = "Output"

Tasks = Annotated[
    str, typer.Option(metavar="A,B,…", help="Tasks, by name; default the paper's nine.", rich_help_panel=flags.DATA)
]
BenchSeeds = Annotated[str, typer.Option(metavar="A,B,…", help="One cell per task, row of the table, and seed.")]
BenchTrainSize = Annotated[int, typer.Option(min=1, help="Train examples.", rich_help_panel=flags.DATA)]
BenchDevSize = Annotated[
    int, typer.Option(min=1, help="Examples that select; fewer than 120 mislead.", rich_help_panel=flags.DATA)
]
EqualTokens = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Every method that trains may use N tokens for it.")
]
Encoder = Annotated[
    str, typer.Option(metavar="words|NAME|DIR", help="KATE's sentence encoder; a sentence-transformers model.")
]
BenchSetting = Annotated[
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
