"""From a configuration to what is trained: the task, the models and the network.

Networks that commands are given: a network file or a run directory, with the models they name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from dln.cli.config import RunConfig, engine_of
from dln.cli.errors import in_flags
from dln.cli.sources import Wanted, price_table, wanted_models
from dln.data import Dataset, Task, bundled_names, load_task
from dln.data.splits import subsample
from dln.errors import InputError
from dln.io import cache_directory
from dln.lm.base import LanguageModel
from dln.lm.cache import Cached, Store
from dln.lm.load import load_lm
from dln.lm.meter import Budget, Meter, Metered
from dln.lm.prices import FREE, Quote
from dln.nn import AnyLayer, LanguageLayer, Prompt, Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble, best_of
from dln.nn.saving import load_network, network_from_json
from dln.train.layout import standard_network
from dln.train.run import read_meta

__all__ = [
    "Loader",
    "Models",
    "build_models",
    "build_network",
    "build_task",
    "known_task",
    "said_together",
    "task_label",
]


@dataclass(frozen=True)
class Models:
    """The models of a run; all share one meter, one budget and one cache. `quotes` are their prices by spec."""

    lm: LanguageModel
    prompt_lm: LanguageModel | None
    hidden_lm: LanguageModel | None
    meter: Meter
    notes: tuple[str, ...] = ()
    quotes: Mapping[str, Quote | None] = field(default_factory=dict[str, "Quote | None"])


def build_task(config: RunConfig) -> Task:
    """The task with its data, cut to the sizes asked for.

    Raises:
        InputError: no task or several, an option that it does not have, or data that cannot be used.
    """
    task, data = _full_task(config), config.data
    sizes = {"train": data.train_size, "dev": data.dev_size, "test": data.test_size}
    cut = {part: subsample(getattr(task, part), n, data.seed) for part, n in sizes.items() if n is not None}
    return replace(task, **cut)


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
    return Path(wanted.csv or wanted.jsonl or wanted.name or "task").stem


def build_models(config: RunConfig, stack: ExitStack, meter: Meter | None = None) -> Models:
    """Every model as Cached(Metered(engine)), so that only what is computed counts.

    Raises:
        DlnError: a model cannot be had, or the cache cannot be opened.
    """
    limits, meter = config.budget, meter or Meter()
    budget = Budget(
        limits.max_calls,
        limits.max_tokens,
        None if limits.max_minutes is None else 60.0 * limits.max_minutes,
        limits.max_usd,
    )
    table, chosen = price_table(config.lm), wanted_models(config.lm)
    quotes = {wanted.spec: table.find(wanted.spec) for wanted in chosen}
    unpriced = [spec for spec, quote in quotes.items() if quote is None]
    for spec in unpriced if budget.max_usd is not None else ():
        table.needed(spec)
    store: Store | None = None
    if config.lm.cache:
        path = Path(config.lm.cache_path) if config.lm.cache_path else cache_directory() / "lm-cache.sqlite"
        store = stack.enter_context(Store(path))

    def load(wanted: Wanted) -> LanguageModel:
        quote = quotes[wanted.spec]
        price = FREE if quote is None else quote.price
        metered = Metered(load_lm(wanted.spec, **wanted.options), budget, meter, purpose=wanted.purpose, price=price)
        return metered if store is None else Cached(metered, store)

    models = {wanted.purpose: load(wanted) for wanted in chosen}
    notes = tuple(store.notes) if store is not None else ()
    return Models(
        lm=models["layers"],
        prompt_lm=models.get("prompts"),
        hidden_lm=models.get("hidden"),
        meter=meter,
        notes=(
            *notes,
            *(f"the price of {spec} is not known: money is not counted (--price {spec}=IN/OUT)" for spec in unpriced),
        ),
        quotes=quotes,
    )


def build_network(config: RunConfig, task: Task, lm: LanguageModel) -> Sequential:
    """The layers with their initial prompts (see `dln.train.layout`).

    Raises:
        InputError: prompts or templates that do not fit the number of layers.
    """
    wanted = config.network
    start = _starting_network(config, lm)
    learnt = () if start is None else start.layers  # their prompts go with the templates that they were learnt under
    return standard_network(
        task,
        lm,
        wanted.layers,
        preset=str(config.options.get("preset", "default")),
        prompts=[layer.prompt for layer in learnt] or _prompts(config),
        templates=wanted.templates or [layer.template for layer in learnt],
        hidden=wanted.hidden,
        hidden_tokens=wanted.hidden_tokens or max((_longest(layer) for layer in learnt), default=None),
    )


def _full_task(config: RunConfig) -> Task:
    wanted, data = config.task, config.data
    sources = [name for name in ("name", "csv", "jsonl") if getattr(wanted, name) is not None]
    if len(sources) != 1:
        raise InputError(
            "say which task to work on" if not sources else "more than one task is given",
            where="task",
            got=", ".join(sources) or None,
            expected="one of --task NAME, --csv FILE or --jsonl FILE",
            fix="--task questions needs no data",
        )
    if wanted.name is None:
        try:
            return _file_task(config)
        except InputError as error:
            raise in_flags(error) from error
    for option in ("input", "target", "free_form", "labels"):
        if getattr(wanted, option) is not None:
            raise InputError("a named task does not have that option", where=wanted.name, got=option)
    task = known_task(wanted.name, data.directory, leaky=data.leaky, seed=data.seed)
    return task if wanted.instruction is None else replace(task, instruction=wanted.instruction)


def _file_task(config: RunConfig) -> Task:
    wanted, data = config.task, config.data
    if data.leaky:
        raise InputError("a task of one file does not have that option", where="data", got="leaky")
    if wanted.csv is not None:
        divider = "\t" if wanted.csv.lower().endswith(".tsv") else None
        dataset = Dataset.from_csv(
            wanted.csv,
            wanted.input,
            wanted.target,
            labels=wanted.labels,
            free_form=wanted.free_form,
            delimiter=divider,
        )
    else:
        dataset = Dataset.from_jsonl(
            str(wanted.jsonl), wanted.input, wanted.target, labels=wanted.labels, free_form=wanted.free_form
        )
    specs = wanted.labels if isinstance(wanted.labels, list) and not wanted.free_form else None
    return Task.from_dataset(
        dataset, instruction=wanted.instruction, labels=specs, seed=data.seed, name=task_label(config)
    )


def _starting_network(config: RunConfig, lm: LanguageModel) -> Sequential | None:
    """The network of a run or a file whose prompts are to begin with."""
    source = config.network.prompts_from
    if source is None or config.network.prompts:
        return None
    path = Path(source) / "network.json" if Path(source).is_dir() else Path(source)
    return best_of(load_network(path, lm)) if path.suffix == ".json" else None


def _longest(layer: AnyLayer) -> int:
    return layer.sampling.max_tokens if isinstance(layer, LanguageLayer) else 1


def _prompts(config: RunConfig) -> list[Prompt]:
    """Those that the user gave; none is the usual ones."""
    wanted = config.network
    if wanted.prompts and wanted.prompts_from:
        raise InputError("prompts are given twice", where="network", got="--prompt and --prompts-from")
    if wanted.prompts_from:
        return _prompts_from(Path(wanted.prompts_from))
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


class Loader:
    """Opens networks; their models share one cache and are loaded once each.

    Args:
        config: of the cache and the engine.
        override: the model to use whatever the file names.
        stack: closes the cache.
    """

    def __init__(self, config: RunConfig, override: str | None, stack: ExitStack) -> None:
        self._config = config
        self._override = override
        self._stack = stack
        self._load = cache(self._load_model)

    def trained(self, place: Path) -> AnyNetwork:
        """What answers: of a file, or the result of a run; one network, or several together.

        Raises:
            InputError: there is none.
        """
        if place.is_dir():
            file = place / "network.json"
            if not file.exists():
                raise InputError(
                    "there is no trained network here (yet)",
                    where=place,
                    fix=f"dln resume {place}" if (place / "run.yaml").exists() else "a run directory or network file",
                )
            return load_network(file, self._load)
        return load_network(place, self._load)

    def initial(self, run: Path) -> Sequential:
        """The network that a run began with."""
        recorded = cast(dict[str, Any], read_meta(run)["network"])
        return best_of(network_from_json(recorded, self._load, str(run / "run.yaml")))

    def _load_model(self, name: str) -> LanguageModel:
        given, spec = self._config.lm, self._override or name
        changes: dict[str, Any] = {"spec": spec, "prompt_lm": None, "hidden_lm": None}
        if engine_of(spec) != engine_of(given.spec) and "spec" in given.model_fields_set:
            # the server that is known is that of another engine: its address and key are not for this model
            changes |= {"base_url": (), "api_key": None, "api_key_env": None, "options": {}}
        lm = given.model_copy(update=changes)
        return build_models(self._config.model_copy(update={"lm": lm}), self._stack).lm


def said_together(network: AnyNetwork) -> str | None:
    """How many prompts answer together and with which weights, in a line; None where one answers."""
    if not isinstance(network, Ensemble):
        return None
    weights = ", ".join(f"{weight:.3f}" for weight in network.weights)
    return f"{len(network.members)} prompts answer together, with weights {weights}"
