"""Flags that several commands share: what they are called, what they mean, how they are completed.

Flags that take several values at once, with commas between them.

Shell completion of names: tasks, presets, templates, models, runs and training options.

Every command imports this module: what it completes from is imported when the shell asks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from dln.errors import InputError

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
    "Threads",
    "examples",
    "hidden_starts",
    "key_variables",
    "model_options",
    "models",
    "named_task",
    "names_of",
    "presets",
    "runs",
    "seeds_of",
    "settings",
    "tasks",
    "templates",
]


def names_of(text: str, flag: str) -> list[str]:
    """The names in `text`, each once, in their order.

    >>> names_of("subj, mpqa,,subj", "--tasks")
    ['subj', 'mpqa']

    Raises:
        InputError: there is none; it names `flag`.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise InputError("nothing is named here", where=flag, got=repr(text), expected="names with commas between")
    return found


def seeds_of(text: str, flag: str = "--seeds") -> list[int]:
    """The seeds in `text`, each once, in their order.

    >>> seeds_of("13, 42")
    [13, 42]

    Raises:
        InputError: one is no whole number, or there is none; it names `flag`.
    """
    return list(dict.fromkeys(_seed(name, flag) for name in names_of(text, flag)))


def _seed(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            "a seed is a whole number", where=flag, got=repr(text), expected="whole numbers with commas between"
        ) from error


OPTIONS = ("timeout", "max_concurrency", "chat", "device", "dtype")
"""Options of engines that are asked for most."""


def tasks(incomplete: str) -> list[str]:
    """Known tasks, and the example files that are here."""
    from dln.data import task_names

    files = [str(path) for kind in ("*.csv", "*.tsv", "*.jsonl") for path in sorted(Path().glob(kind))]
    return _matching([*task_names(), *files], incomplete)


def presets(incomplete: str) -> list[str]:
    """Named sets of options."""
    from dln.train.options import PRESETS

    return _matching(list(PRESETS), incomplete)


def hidden_starts(incomplete: str) -> list[str]:
    """What hidden layers can begin as."""
    from dln.train.layout import Hidden

    return _matching(list(get_args(Hidden)), incomplete)


def templates(incomplete: str) -> list[str]:
    """Templates of layers."""
    from dln.nn import template_names

    return _matching(template_names("forward"), incomplete)


def models(incomplete: str) -> list[str]:
    """Forms of model names, as far as they are fixed."""
    from dln.lm.load import ENGINES

    return _matching([engine.form.partition("<")[0] for engine in ENGINES.values()], incomplete)


def key_variables(incomplete: str) -> list[str]:
    """Environment variables that are set and whose names say that they hold a key; names only."""
    return _matching(sorted(name for name in os.environ if name.endswith(("_KEY", "_TOKEN"))), incomplete)


def model_options(incomplete: str) -> list[str]:
    """Options of engines, as `--lm-option` takes them."""
    return _matching([f"{name}=" for name in OPTIONS], incomplete)


def runs(incomplete: str) -> list[str]:
    """Run directories below `runs/` and beside what is typed."""
    folders = {Path("runs"), Path(incomplete).parent, Path(incomplete)}
    found = {str(path.parent) for folder in folders if folder.is_dir() for path in folder.glob("*/run.yaml")}
    return _matching(sorted(found), incomplete)


def settings(incomplete: str) -> list[str]:
    """Training options, as `--set` takes them."""
    from dln.train.options import InferenceOptions, Options

    names = [name for name in Options.model_fields if name != "inference"]
    names += [f"inference.{name}" for name in InferenceOptions.model_fields]
    return _matching([f"{name}=" for name in names], incomplete)


def _matching(words: list[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


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
        autocompletion=tasks,
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
        autocompletion=models,
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
        autocompletion=key_variables,
        rich_help_panel=MODEL,
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lm-option",
        metavar="NAME=VALUE",
        help="An option of the engine, as in timeout=60 or max_concurrency=16.",
        autocompletion=model_options,
        rich_help_panel=MODEL,
    ),
]
Prices = Annotated[
    str | None,
    typer.Option("--prices", envvar="DLN_PRICES", metavar="FILE", help="A YAML file of prices.", rich_help_panel=MODEL),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        envvar="DLN_THREADS",
        help="CPU threads of a model in this process; default: measured at loading.",
        rich_help_panel=MODEL,
    ),
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
    Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=runs, show_default=False)
]
