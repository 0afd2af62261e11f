"""Flags that several commands share: what they are called, what they mean, how they are completed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dln.cli import complete

__all__ = [
    "Answers",
    "ApiKeyEnv",
    "BaseUrl",
    "Cache",
    "Config",
    "Csv",
    "DataDirectory",
    "FreeForm",
    "Input",
    "Instruction",
    "Json",
    "Jsonl",
    "Leaky",
    "MaxCalls",
    "MaxMinutes",
    "MaxTokens",
    "MaxUsd",
    "Model",
    "ModelOption",
    "NoCache",
    "OneTask",
    "PriceOf",
    "Prices",
    "RunDirectory",
    "Target",
    "examples",
    "named_task",
]

DATA, MODEL = "Task and data", "Models and cost"


def examples(*lines: str) -> str:
    """The end of a help text: commands to copy."""
    return "\n\n".join(["[bold]Examples[/bold]", *(line.replace("[", r"\[") for line in lines)])


def named_task(context: typer.Context, task: str | None, *files: str | None) -> str | None:
    """`--task`, unless it stands in the environment only and a flag names a file."""
    source = context.get_parameter_source("task")
    return None if any(files) and source is not None and source.name == "ENVIRONMENT" else task


OneTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        envvar="DLN_TASK",
        metavar="NAME|FILE",
        help="A known task (questions, subj, trec, gsm8k, …) or a .csv, .tsv or .jsonl file.",
        autocompletion=complete.tasks,
        rich_help_panel=DATA,
    ),
]
Csv = Annotated[str | None, typer.Option("--csv", metavar="FILE", help="A CSV file of examples.", rich_help_panel=DATA)]
Jsonl = Annotated[
    str | None, typer.Option("--jsonl", metavar="FILE", help="A JSON-lines file of examples.", rich_help_panel=DATA)
]
Input = Annotated[
    str | None,
    typer.Option("--input", metavar="COLUMN", help="Column with the inputs; default: guessed.", rich_help_panel=DATA),
]
Target = Annotated[
    str | None,
    typer.Option("--target", metavar="COLUMN", help="Column with the targets; default: guessed.", rich_help_panel=DATA),
]
FreeForm = Annotated[
    bool | None,
    typer.Option("--free-form/--labels", help="Targets are free texts, or labels.", rich_help_panel=DATA),
]
Instruction = Annotated[
    str | None,
    typer.Option("--instruction", metavar="TEXT", help="What the task is, in a sentence.", rich_help_panel=DATA),
]
DataDirectory = Annotated[
    str | None,
    typer.Option(
        "--data",
        envvar=["DLN_DATA", "DLN_PAPER_DATA"],
        metavar="DIR",
        help="Directory of the paper's tasks and gsm8k.",
        rich_help_panel=DATA,
    ),
]
Leaky = Annotated[
    bool | None,
    typer.Option("--leaky/--no-leaky", help="The original splits, leaks included.", rich_help_panel=DATA),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--lm",
        envvar="DLN_LM",
        metavar="SPEC",
        help="The model of all layers; default smollm2.",
        autocompletion=complete.models,
        rich_help_panel=MODEL,
    ),
]
BaseUrl = Annotated[
    list[str] | None,
    typer.Option(
        "--base-url",
        envvar="DLN_BASE_URL",
        metavar="URL",
        help="Address of the model's server, as http://127.0.0.1:8000/v1; several are replicas.",
        rich_help_panel=MODEL,
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        "--api-key-env",
        envvar="DLN_API_KEY_ENV",
        metavar="NAME",
        help="Name of the environment variable with the key; default: the engine's own.",
        autocompletion=complete.key_variables,
        rich_help_panel=MODEL,
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lm-option",
        metavar="NAME=VALUE",
        help="An option of the engine, as in timeout=60 or max_concurrency=16.",
        autocompletion=complete.model_options,
        rich_help_panel=MODEL,
    ),
]
Prices = Annotated[
    str | None,
    typer.Option("--prices", envvar="DLN_PRICES", metavar="FILE", help="A YAML file of prices.", rich_help_panel=MODEL),
]
PriceOf = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="MODEL=IN/OUT",
        help="A price for this run, in US dollars per million tokens read and drawn.",
        rich_help_panel=MODEL,
    ),
]
MaxCalls = Annotated[
    int | None,
    typer.Option(
        "--max-calls", min=0, envvar="DLN_MAX_CALLS", help="Stop before more requests.", rich_help_panel=MODEL
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=0, envvar="DLN_MAX_TOKENS", help="Stop before more tokens.", rich_help_panel=MODEL
    ),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        min=0,
        envvar="DLN_MAX_MINUTES",
        help="Stop after so many minutes of models.",
        rich_help_panel=MODEL,
    ),
]
MaxUsd = Annotated[
    float | None,
    typer.Option("--max-usd", min=0, envvar="DLN_MAX_USD", help="Stop before more US dollars.", rich_help_panel=MODEL),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        envvar="DLN_CACHE",
        metavar="FILE",
        help="Where answers of models are kept.",
        rich_help_panel=MODEL,
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no answers.", rich_help_panel=MODEL)]
Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="DLN_CONFIG", metavar="FILE", help="A YAML file of settings."),
]
Answers = Annotated[
    Literal["scored", "free"] | None,
    typer.Option(help="Labels by score, or by what the model writes freely; default: as the network was trained."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON records on standard output, and nothing else there.")]
RunDirectory = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=complete.runs, show_default=False)
]
