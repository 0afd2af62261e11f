"""From a configuration to the task and the network to train; networks of files and runs are opened here too."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from dln.cli.config import RunConfig, parse_config, training_options
from dln.cli.models import with_server_of
from dln.cli.output import in_flags, note, note_in_flags
from dln.data import Task, bundled_names, load_task
from dln.data.files import STANDARD_INPUT
from dln.data.spec import DataSpec
from dln.data.splits import subsample
from dln.data.tasks import task_from_spec
from dln.errors import InputError
from dln.integrations.original import original_prompts
from dln.io import read_text
from dln.lm.base import LanguageModel
from dln.nn import Prompt, Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble, best_of
from dln.nn.saving import OtherModelWarning, load_network, network_from_json
from dln.train.labels import LABELS, given_labels, with_given_labels
from dln.train.layout import initial_prompts, standard_network
from dln.train.progress import Progress
from dln.train.run import read_checkpoint, read_meta

__all__ = [
    "build_network",
    "build_task",
    "data_record",
    "ensemble_line",
    "initial_network",
    "known_task",
    "open_network",
    "present_models",
    "recorded_config",
    "task_label",
    "with_columns",
]


def build_task(config: RunConfig) -> Task:
    """The task with its data, cut to the sizes asked for; prints what was read, guessed, folded and dropped.

    Raises:
        InputError: no task or several, an option that it does not have, or data that cannot be used.
    """
    task, sizes = _full_task(config), _sizes(config)
    cut = {part: subsample(getattr(task, part), n, config.data.seed) for part, n in sizes.items() if n is not None}
    task = replace(task, **cut)
    if config.data.labelled is not None:
        task = _with_labels(task, Path(config.data.labelled) / LABELS)
    paper = str(config.options.get("preset", "default")) == "paper"
    if config.task.metric is not None:
        task = task.with_metric(config.task.metric)
    elif paper and task.labels is not None:
        task = task.with_metric("paper")
    if task.report is not None:
        note(task.report.summary)
    for text in dict.fromkeys((*task.notes, *(() if task.report else task.train.notes))):
        note(f"note: {note_in_flags(text)}")
    return task


def _with_labels(task: Task, file: Path) -> Task:
    given = given_labels(file)
    task, left_out = with_given_labels(task, given, str(file))
    note(f"note: {len(given) - left_out} labels of {file} are in the training set")
    if left_out:
        note(f"note: {left_out} of its inputs are in the dev or test set and were left out")
    return task


def _sizes(config: RunConfig) -> dict[str, int | None]:
    data = config.data
    return {"train": data.train_size, "dev": data.dev_size, "test": data.test_size}


def with_columns(config: RunConfig, task: Task) -> RunConfig:
    """The configuration with the columns of the task, guessed ones too, and the output layer that suits its labels."""
    chosen = training_options(config).inference.output_layer
    inner: dict[str, Any] = dict(config.options.get("inference", {}))
    if task.output_layer != chosen == "words" and "output_layer" not in inner:
        inner["output_layer"] = task.output_layer
        config = config.model_copy(update={"options": {**config.options, "inference": inner}})
    if task.spec is None:
        return config
    found = {
        name: getattr(task.spec, name) for name in ("input", "target", "id", "split_column", "free_form", "several")
    }
    if config.task.labels is not None:
        del found["free_form"]
    return config.model_copy(update={"task": config.task.model_copy(update=found)})


def data_record(task: Task) -> dict[str, Any]:
    """What run.yaml says of data that was read: the completed specification and the report."""
    if task.spec is None or task.report is None:
        return {}
    return {"data": {"spec": task.spec.given(), "report": task.report.to_json()}}


def known_task(name: str, directory: str | None, *, leaky: bool = False, seed: int = 42) -> Task:
    """A task by its name, with all its data (see `load_task`).

    Raises:
        InputError: there is no such task, it does not have an option, or its data is not there.
    """
    # --data and DLN_PAPER_DATA may be set once for all tasks; the bundled ones just do not need them
    bundled = name.strip().lower() in bundled_names()
    try:
        return load_task(name, None if bundled else directory, leaky=leaky, seed=seed)
    except InputError as error:
        raise in_flags(error) from error


def task_label(config: RunConfig) -> str:
    """A short name for the run directory."""
    wanted = config.task
    if not wanted.files:
        return Path(wanted.name or "task").stem
    return "stdin" if wanted.files[0] in STANDARD_INPUT else Path(wanted.files[0]).name.split(".")[0] or "task"


def build_network(config: RunConfig, task: Task, lm: LanguageModel) -> Sequential:
    """The layers with their initial prompts (see `dln.train.layout`).

    Raises:
        InputError: prompts or templates that do not fit the number of layers.
    """
    wanted = config.network
    start = _starting_network(config, task, lm)
    learnt = () if start is None else start.prompted  # their prompts go with the templates that they were learnt under
    prompts = [layer.prompt for layer in learnt] or _prompts(config, task)
    if len(prompts) == 1 < wanted.layers and wanted.prompts_from and not wanted.prompts:
        # the prompt of DLN-1 begins the last layer of a deeper network, under the template that layer has there
        prompts, learnt = [*initial_prompts(wanted.layers, task)[:-1], *prompts], ()
    return standard_network(
        task,
        lm,
        wanted.layers,
        preset=str(config.options.get("preset", "default")),
        prompts=prompts,
        templates=wanted.templates or [layer.template for layer in learnt],
        hidden=wanted.hidden,
        hidden_tokens=wanted.hidden_tokens
        or max((layer.max_output_tokens if layer.writer else 1 for layer in learnt), default=None),
    )


def _full_task(config: RunConfig) -> Task:
    wanted, data = config.task, config.data
    given = {"name": wanted.name, "path": wanted.path, "csv": wanted.csv, "jsonl": wanted.jsonl}
    sources = [name for name, value in given.items() if value]
    if len(sources) != 1:
        raise InputError(
            "say which task to work on" if not sources else "more than one task is given",
            where="task",
            got=", ".join(sources) or None,
            expected="one of --task NAME or FILE, --csv FILE or --jsonl FILE",
            fix="--task questions needs no data",
        )
    if wanted.name is None:
        try:
            return _file_task(config)
        except InputError as error:
            raise in_flags(error) from error
    for option in DataSpec.model_fields:
        if getattr(wanted, option) not in (None, ()):
            raise InputError("a named task does not have that option", where=wanted.name, got=option)
    task = known_task(wanted.name, data.directory, leaky=data.leaky, seed=data.seed)
    return task if wanted.instruction is None else replace(task, instruction=wanted.instruction)


def _file_task(config: RunConfig) -> Task:
    wanted, data = config.task, config.data
    if data.leaky:
        raise InputError("a task of one file does not have that option", where="data", got="leaky")
    return task_from_spec(
        wanted.spec,
        name=task_label(config),
        instruction=wanted.instruction,
        seed=data.seed,
        metric=wanted.metric,
        sizes=_sizes(config),
    )


def _starting_network(config: RunConfig, task: Task, lm: LanguageModel) -> Sequential | None:
    """The network of a run or a file whose prompts are to begin with."""
    source = config.network.prompts_from
    if source is None or config.network.prompts or _from_original(source, task) is not None:
        return None
    path = Path(source) / "network.json" if Path(source).is_dir() else Path(source)
    return best_of(load_network(path, lm)) if path.suffix == ".json" else None


def _from_original(source: str, task: Task) -> list[Prompt] | None:
    """The prompts of a file of the original project, `FILE` or `FILE#ENTRY`; None if it is another file."""
    name, entry = source, task.name
    if not Path(source).exists() and "#" in source:
        name, _, entry = source.rpartition("#")
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        data: object = json.loads(read_text(path))
    except json.JSONDecodeError:
        return None  # what is wrong with it is said where networks are loaded
    return original_prompts(data, entry, name)


def _prompts(config: RunConfig, task: Task) -> list[Prompt]:
    """Those that the user gave; none is the usual ones."""
    wanted = config.network
    if wanted.prompts and wanted.prompts_from:
        raise InputError("prompts are given twice", where="network", got="--prompt and --prompts-from")
    if wanted.prompts_from:
        return _from_original(wanted.prompts_from, task) or _prompts_from(Path(wanted.prompts_from))
    return [Prompt(text) for text in wanted.prompts]


def _prompts_from(path: Path) -> list[Prompt]:
    """Prompts of a YAML list, or of a text divided by lines of `---`."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = cast(object, yaml.safe_load(text)) if path.suffix in (".yaml", ".yml") else _sections(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("the prompts cannot be read", where=path, got=str(error)) from error
    if not isinstance(rows, list) or not any(cast(Sequence[Any], rows)):
        raise InputError(
            "this file is not a list of prompts",
            where=path,
            got=json.dumps(rows, default=str)[:60],
            expected="a YAML list, or a text with lines of --- between the prompts",
        )
    return [Prompt.from_json(row, f"{path}, prompt {i}") for i, row in enumerate(cast(Sequence[Any], rows), 1)]


def _sections(text: str) -> list[str]:
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == "---":
            parts.append([])
        else:
            parts[-1].append(line)
    return ["\n".join(part).strip() for part in parts]


def open_network(place: Path, load: Callable[[str], LanguageModel], *, told: bool = True) -> AnyNetwork:
    """The network of a file, or the result of a run; of an unfinished run the best network so far.

    Args:
        place: a network file or a run directory.
        load: from the name of a model to the model.
        told: note a model that is another one than the network was trained with.

    Raises:
        InputError: there is no trained network.
    """
    file = place / "network.json" if place.is_dir() else place
    if file.exists() or not place.is_dir():
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", OtherModelWarning)
            network = load_network(file, load)
        for warning in found if told else ():
            note(f"note: {warning.message}")
        return network
    known = (place / "run.yaml").exists()
    saved = read_checkpoint(place) if known else None
    if saved is None:
        raise InputError(
            "there is no trained network here yet" if known else "there is no trained network here",
            where=place,
            expected="a run directory or a network file",
            fix=f"dln resume {shlex.quote(str(place))}" if known else "dln runs lists run directories",
        )
    best = Progress.from_json(saved, initial_network(place, load)).result
    note(
        f"note: this run is not finished: using its best network so far, from step {best.step} "
        f"(to finish it: dln resume {shlex.quote(str(place))})"
    )
    return best.network


def initial_network(run: Path, load: Callable[[str], LanguageModel]) -> Sequential:
    """The network that a run started from, with its templates."""
    recorded = cast(dict[str, Any], read_meta(run)["network"])
    return best_of(network_from_json(recorded, load, str(run / "run.yaml")))


def present_models(config: RunConfig, place: Path, override: str | None) -> RunConfig:
    """`config` with the server that the run at `place` was trained with, unless `config` or a flag names another."""
    if override is not None or not (place / "run.yaml").exists() or not read_meta(place).get("config"):
        return config
    return config.model_copy(update={"lm": with_server_of(recorded_config(place).lm, config.lm)})


def recorded_config(run: Path) -> RunConfig:
    """The configuration that a run was started with.

    Raises:
        InputError: there is no run, or it was not started from the command line.
    """
    recorded = cast(dict[str, Any], read_meta(run).get("config") or {})
    if not recorded:
        raise InputError(
            "this run was not started by `dln train`, so that its settings are not recorded",
            where=run,
            fix="resume it from Python: dln.fit(..., run_dir=..., resume=True)",
        )
    return parse_config(recorded, str(run / "run.yaml"))


def ensemble_line(network: AnyNetwork) -> str | None:
    """The size and weights of an ensemble in one line; None for a single network."""
    if not isinstance(network, Ensemble):
        return None
    weights = ", ".join(f"{weight:.3f}" for weight in network.weights)
    return f"ensemble of {len(network.members)} prompts with weights {weights}"
