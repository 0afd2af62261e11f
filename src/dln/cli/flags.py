"""Command-line flags: how a setting is given, shared flags that are no settings, and shell completion.

A flag of a setting is declared at its field in `dln.cli.config`, as `Annotated[type, Flag(...)]`: help text, type,
bounds and JSON Schema come from the field. Completion imports what it needs when the shell asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from dln.errors import InputError

__all__ = [
    "RECIPES",
    "Answers",
    "Config",
    "Draws",
    "Flag",
    "Form",
    "Json",
    "NetworkOrRun",
    "Out",
    "Page",
    "Recipe",
    "Region",
    "RunDirectory",
    "Seeds",
    "TaskNames",
    "hidden_starts",
    "key_variables",
    "model_options",
    "models",
    "names_of",
    "presets",
    "recipe_names",
    "recipes",
    "runs",
    "seeds_of",
    "settings",
    "tasks",
    "templates",
    "trackers",
]

DATA, MODEL, NETWORK, TRAINING, OUTPUT = "Task and data", "Models and cost", "Network", "Training", "Output"
"""Panels of the help pages."""


@dataclass(frozen=True)
class Flag:
    """How a field of the configuration is given on the command line.

    Attributes:
        name: the flag; a switch has two forms, "--leaky/--no-leaky", or the negative one alone, " /--no-cache".
        panel: where help lists it.
        metavar: what help shows in place of the value.
        env: environment variables that are read if the flag is not given.
        help: help text where it differs from the field's description.
        complete: completions of a value.
        read: from the words given for a mapping to the mapping.
    """

    name: str
    panel: str
    metavar: str | None = None
    env: str | tuple[str, ...] | None = None
    help: str | None = None
    complete: Callable[[str], list[str]] | None = None
    read: Callable[[list[str]], dict[str, Any]] | None = None

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return "/" in self.name

    @property
    def on(self) -> str:
        """The flag, or the form of a switch that means True; "" if there is none."""
        return self.name.partition("/")[0].strip()

    @property
    def off(self) -> str:
        """The form of a switch that means False."""
        return self.name.partition("/")[2]

    @property
    def parameter(self) -> str:
        """The name of the command's parameter."""
        return (self.on or self.off).removeprefix("--").replace("-", "_")


def names_of(text: str, flag: str) -> list[str]:
    """The distinct names in a comma-separated text, in order.

    >>> names_of("subj, mpqa,,subj", "--tasks")
    ['subj', 'mpqa']

    Raises:
        InputError: there is none; the message names `flag`.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise InputError("no name given", where=flag, got=repr(text), expected="comma-separated names")
    return found


def seeds_of(text: str, flag: str = "--seeds") -> tuple[int, ...]:
    """The seeds in a comma-separated text, in order.

    >>> seeds_of("13, 42")
    (13, 42)

    Raises:
        InputError: one is not an integer or is given twice, or there is none; the message names `flag`.
    """
    try:
        seeds = tuple(int(name) for name in text.split(",") if name.strip())
    except ValueError:
        seeds = ()
    if not seeds:
        raise InputError("not a list of seeds", where=flag, got=repr(text), expected="integers, as in 13,42,25")
    if len(set(seeds)) != len(seeds):
        raise InputError("a seed is given twice", where=flag, got=repr(text), expected="distinct seeds")
    return seeds


OPTIONS = ("timeout", "max_concurrency", "chat", "device", "dtype")
"""Engine options that completion offers."""


def tasks(incomplete: str) -> list[str]:
    """Known tasks, and example files in the working directory."""
    from dln.data import task_names

    files = [str(path) for kind in ("*.csv", "*.tsv", "*.jsonl") for path in sorted(Path().glob(kind))]
    return _matching([*task_names(), *files], incomplete)


def presets(incomplete: str) -> list[str]:
    """Named sets of options."""
    from dln.train.options import PRESETS

    return _matching(list(PRESETS), incomplete)


def hidden_starts(incomplete: str) -> list[str]:
    """Initializations of hidden layers."""
    from dln.train.layout import Hidden

    return _matching(list(get_args(Hidden)), incomplete)


def templates(incomplete: str) -> list[str]:
    """Templates of layers."""
    from dln.nn import template_names

    return _matching(template_names("forward"), incomplete)


def models(incomplete: str) -> list[str]:
    """Fixed beginnings of model names."""
    from dln.lm.load import ENGINES

    return _matching([engine.form.partition("<")[0] for engine in ENGINES.values()], incomplete)


def key_variables(incomplete: str) -> list[str]:
    """Names of environment variables that are set and look like API keys."""
    return _matching(sorted(name for name in os.environ if name.endswith(("_KEY", "_TOKEN"))), incomplete)


def model_options(incomplete: str) -> list[str]:
    """Engine options, as `--lm-option` takes them."""
    return _matching([f"{name}=" for name in OPTIONS], incomplete)


def runs(incomplete: str) -> list[str]:
    """Run directories in `runs/` and next to what is typed."""
    folders = {Path("runs"), Path(incomplete).parent, Path(incomplete)}
    found = {str(path.parent) for folder in folders if folder.is_dir() for path in folder.glob("*/run.yaml")}
    return _matching(sorted(found), incomplete)


RECIPES = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """The recipes of the package."""
    return sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.rglob("*.yaml"))


def recipes(incomplete: str) -> list[str]:
    """Recipes of the package that begin so."""
    return _matching(recipe_names(), incomplete)


def settings(incomplete: str) -> list[str]:
    """Training options, as `--set` takes them."""
    from dln.train.options import InferenceOptions, Options

    names = [name for name in Options.model_fields if name != "inference"]
    names += [f"inference.{name}" for name in InferenceOptions.model_fields]
    return _matching([f"{name}=" for name in names], incomplete)


def trackers(incomplete: str) -> list[str]:
    """Experiment trackers."""
    from dln.integrations.trackers import TRACKERS

    return _matching(list(TRACKERS), incomplete)


def _matching(words: list[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


Answers = Annotated[
    Literal["scored", "free"] | None,
    typer.Option(
        "--answers", help="Predict by label scores or by generated text (default: as the network was trained)."
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", envvar="DLN_CONFIG", metavar="FILE", help="YAML file of settings.")
]
Draws = Annotated[int | None, typer.Option("--samples", min=1, help="Number of hidden-text samples to average over.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON records, and nothing else, to standard output.")]
NetworkOrRun = Annotated[
    Path, typer.Argument(metavar="NETWORK|RUN", help="A network.json or a run directory.", autocompletion=runs)
]
Page = Annotated[
    list[Path] | None,
    typer.Option(
        "--write",
        metavar="PAGE",
        help="Markdown page to insert the table into, between its markers.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
Form = Annotated[
    Literal[
        "text", "json", "openai", "anthropic", "python", "promptfoo", "huggingface", "sft", "preferences", "result_data"
    ],
    typer.Option(
        "--format",
        help="text: to read; json: data; openai, anthropic: bodies of chat requests; python: a module without "
        "dependencies. Of dln export also promptfoo: a folder with the network as provider and the test set as tests; "
        "huggingface: a folder with a model card; sft, preferences: JSON Lines for fine-tuning; result_data: results "
        "as the original project writes them.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="PATH", help="File or folder to write; predictions as .csv, .tsv, .jsonl or .parquet."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Settings of a published experiment, as paper/navigate-e2e; --config and flags override them.",
        autocompletion=recipes,
    ),
]
Region = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="NAME",
        help="Name of the page's markers (default: the table's own).",
        rich_help_panel=OUTPUT,
    ),
]
RunDirectory = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=runs, show_default=False)
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        metavar="N,N,…",
        help="Comma-separated seeds; training is repeated with each.",
        rich_help_panel=TRAINING,
    ),
]
TaskNames = Annotated[
    str | None,
    typer.Option("--tasks", metavar="A,B,…", help="Comma-separated tasks.", rich_help_panel=DATA),
]
