"""Flags of `dln train` alone: how much data, which network, how it is trained, and the models beside the main one."""

from __future__ import annotations

from typing import Annotated

import typer

from dln.cli import complete
from dln.cli.flags import DATA, MODEL

__all__ = [
    "BatchTokens",
    "DevSize",
    "DryRun",
    "Freeze",
    "HiddenApiKeyEnv",
    "HiddenBaseUrl",
    "HiddenModel",
    "HiddenStart",
    "HiddenTokens",
    "InitialPrompt",
    "Layers",
    "NewRunDirectory",
    "Preset",
    "PrintSchema",
    "PromptApiKeyEnv",
    "PromptBaseUrl",
    "PromptModel",
    "PromptsFrom",
    "Seed",
    "Seeds",
    "Setting",
    "Steps",
    "TemplateName",
    "Test",
    "TestSize",
    "TrainSize",
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
