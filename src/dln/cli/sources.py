"""Where settings come from: flag > DLN_* environment > --config file > ./dln.yaml > user's file > default.

From the section `lm` to what `load_lm` takes: which server and which key belong to which model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import platformdirs
import yaml
from pydantic import ValidationError

from dln.cli.config import (
    COMMAND_LINE,
    ModelConfig,
    RunConfig,
    ServerConfig,
    SideModelConfig,
    check_option_names,
    engine_of,
    parse_config,
    shown_url,
)
from dln.cli.errors import expectation
from dln.errors import InputError
from dln.lm.prices import Price, PriceTable, load_prices, parse_price
from dln.lm.remote.dialects import DIALECTS
from dln.train.options import nested

__all__ = [
    "IN_PROCESS",
    "PROJECT_FILE",
    "Wanted",
    "lm_settings",
    "load_config",
    "moved",
    "named_file",
    "parse_setting",
    "price_table",
    "remote",
    "user_file",
    "user_prices",
    "wanted_models",
    "with_secrets",
    "with_server_of",
]

PROJECT_FILE = Path("dln.yaml")

_PATHS = (
    *(("task", "csv"), ("task", "jsonl"), ("data", "directory")),
    *(("lm", "cache_path"), ("lm", "prices_file"), ("network", "prompts_from")),
)
_WHOLE = {"labels", "prompts", "templates", "freeze", "prompt_proposals", "base_url"}
"""Values that replace a lower one as a whole."""

_EITHER = {"task": ({"name", "csv", "jsonl"},), "network": ({"prompts", "prompts_from"},)}
"""Fields of a section that exclude one another: a higher source's one puts out a lower one's other."""

_MODELS = ("lm", "prompt_lm", "hidden_lm")
"""Sections of a model and its server."""

_CSV, _JSONL = (".csv", ".tsv"), (".jsonl", ".ndjson")


def load_config(
    flags: Mapping[str, Any], file: Path | None = None, settings: Sequence[str] = (), *, directory: Path | None = None
) -> RunConfig:
    """The configuration that all sources together give.

    Args:
        flags: what the command line and the environment gave, as nested sections; None is not given.
        file: the file of `--config`.
        settings: `--set name=value` pairs of training options.
        directory: where the project file is looked for; default the working directory.

    Raises:
        InputError: a file cannot be read or has a field that is not possible; it names both.
    """
    merged: dict[str, Any] = {}
    project = (directory or Path()) / PROJECT_FILE
    given_file = None if file is None else Path(named_file(file))
    for source, needed in ((user_file(), False), (project, False), (given_file, True)):
        if source is None or (not needed and not source.is_file()):
            continue
        layer = _read(source)
        parse_config(layer, str(source))
        folder = Path() if source == Path(named_file("-")) else source.parent
        merged = _merge(merged, _absolute(layer, folder.resolve()))
    given = _given(flags)
    for setting in settings:
        given = _merge(given, {"options": parse_setting(setting)})
    return parse_config(_merge(merged, _absolute(given, Path().resolve())), COMMAND_LINE)


def user_file() -> Path:
    """The user's own settings."""
    return Path(platformdirs.user_config_dir("dln", appauthor=False)) / "config.yaml"


def named_file(name: object) -> str:
    """The path that a name of a file means: `-` is standard input.

    >>> named_file("-"), named_file("mail.csv")
    ('/dev/stdin', 'mail.csv')
    """
    return "/dev/stdin" if str(name) == "-" else str(name)


def parse_setting(setting: str) -> dict[str, Any]:
    """The nested options of one `a.b=value`; the value is YAML.

    >>> parse_setting("inference.demonstrations=[2, 4]")
    {'inference': {'demonstrations': [2, 4]}}

    Raises:
        InputError: it has no `=`, an unknown name, or a value that is not YAML.
    """
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise InputError("not a setting", where="--set", got=setting, expected="name=value, as in steps=3")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError("the value is not YAML", where=f"--set {name}", got=text) from error
    options = nested({name.strip(): value})
    check_option_names(options, "--set")
    return options


def lm_settings(
    spec: str | None,
    base_url: Sequence[str] | None,
    api_key_env: str | None,
    options: Sequence[str] | None,
    prices_file: str | None,
    prices: Sequence[str] | None,
    cache: str | None,
    no_cache: bool,
    threads: int | None = None,
) -> dict[str, Any]:
    """The section `lm` that the flags of a command give; None is not given.

    Raises:
        InputError: an option or a price is not in its form.
    """
    chosen: dict[str, Any] = {}
    for option in options or ():
        name, equals, text = option.partition("=")
        if not equals or not name.strip():
            raise InputError("not an option", where="--lm-option", got=name, expected="name=value, as in timeout=60")
        chosen[name.strip()] = _value(text, f"--lm-option {name}")
    return {
        "spec": spec,
        "base_url": list(base_url or ()),
        "api_key_env": api_key_env,
        "options": chosen,
        "prices_file": prices_file,
        "prices": {name: asdict(price) for name, price in map(parse_price, prices or ())},
        "cache": False if no_cache else True if cache else None,
        "cache_path": cache,
        "threads": threads,
    }


def _value(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        # not repeated, and not chained: an option may be a header with a key
        raise InputError("the value is not YAML", where=where) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        data: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the configuration file cannot be read", where=path, got=str(error)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        # without the original error, which quotes the line: there may be a key in it
        raise InputError(
            "the configuration file is not YAML", where=place, got=str(getattr(error, "problem", "not readable"))
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError("the configuration file is not a mapping", where=path, got=type(data).__name__)
    return cast(dict[str, Any], data)


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None or an empty list, at any depth."""
    kept: dict[str, Any] = {}
    for name, value in flags.items():
        if isinstance(value, Mapping):
            inner = _given(cast(Mapping[str, Any], value))
            if inner:
                kept[name] = inner
        elif value is not None and value != []:
            kept[name] = value
    return kept


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`; another task drops the lower one's file and columns."""
    merged = dict(base)
    for name, value in change.items():
        below = merged.get(name)
        if not (isinstance(value, Mapping) and isinstance(below, Mapping)) or name in _WHOLE:
            merged[name] = value
            continue
        inner, over = cast(Mapping[str, Any], below), cast(Mapping[str, Any], value)
        for group in _EITHER.get(name, ()):
            if group & set(over):
                inner = {} if name == "task" else {k: v for k, v in inner.items() if k not in group}
        if name in _MODELS:
            inner = _server_below(inner, over)
        merged[name] = _merge(inner, over)
    return merged


def _server_below(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """What a lower source says of a server, as far as it is of the same one: a key goes to no other address."""
    dropped: set[str] = set()
    if "base_url" in over:
        dropped |= {"api_key", "api_key_env"}
    if "spec" in over and "spec" in below and engine_of(str(over["spec"])) != engine_of(str(below["spec"])):
        dropped |= {"base_url", "api_key", "api_key_env", "options"}
    if {"api_key", "api_key_env"} & set(over):
        dropped |= {"api_key", "api_key_env"}
    return {name: value for name, value in below.items() if name not in dropped}


def _absolute(layer: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Paths as absolute ones; a task named by a path becomes a file."""
    result: dict[str, Any] = {
        k: dict(cast(Mapping[str, Any], v)) if isinstance(v, Mapping) and k != "options" else v
        for k, v in layer.items()
    }
    models = cast(dict[str, Any], result.get("lm") or {})
    for side in _MODELS[1:]:
        if isinstance(models.get(side), str):
            models[side] = {"spec": models[side]}  # the short form, so that sources can be put together
    task = cast(dict[str, Any], result.get("task") or {})
    name = str(task.get("name") or "")
    for kind, suffixes in (("csv", _CSV), ("jsonl", _JSONL)):
        if name.lower().endswith(suffixes):
            del task["name"]
            task[kind] = name
    for section, field in _PATHS:
        values = cast(dict[str, Any], result.get(section) or {})
        if values.get(field) is not None:
            values[field] = str(base / Path(named_file(values[field])).expanduser())
    return result


IN_PROCESS = ("smollm2", "hf", "gguf")
"""Engines that run in this process: they have no server."""


@dataclass(frozen=True)
class Wanted:
    """A model to be loaded.

    Attributes:
        purpose: what it is for: "layers", "prompts" or "hidden".
        spec: its name.
        options: what `load_lm` takes beside it; a key is among them, so they are never shown.
    """

    purpose: str
    spec: str
    options: dict[str, Any]

    def __repr__(self) -> str:
        return f"Wanted({self.purpose!r}, {self.spec!r})"


def wanted_models(config: ModelConfig) -> list[Wanted]:
    """The models of a run, that of the layers first.

    A model beside it that says nothing of a server has the layers' one if it is of the same engine, key and
    options included. With an address of its own it has its own key.

    Raises:
        InputError: an address without a model, an address for a model in this process, or no such variable.
    """
    found = [Wanted("layers", config.spec, _options(config, config.spec, config, "lm"))]
    for purpose, field, side in (
        ("prompts", "prompt_lm", config.prompt_lm),
        ("hidden", "hidden_lm", config.hidden_lm),
    ):
        if side is None:
            continue
        flag = f"--{field.replace('_', '-')}"
        if side.spec is None:
            raise InputError(
                "a server is named, but not the model that is asked there",
                where=f"lm.{field}",
                expected=f"a model, as in {flag} vllm/NAME",
            )
        server = _server(config, side)
        found.append(Wanted(purpose, side.spec, _options(server, side.spec, config, f"lm.{field}")))
    return found


def remote(spec: str) -> bool:
    """Whether this model is reached over a network."""
    return engine_of(spec) in DIALECTS


def price_table(config: ModelConfig) -> PriceTable:
    """The built-in prices, the user's, those of the file that is named, and those given for this run.

    Raises:
        InputError: a file is not a price file.
    """
    files = [file for file in (user_prices(),) if file.is_file()]
    if config.prices_file is not None:
        files.append(Path(config.prices_file))
    given = {name: Price(p.input, p.output, p.cached_input) for name, p in config.prices.items()}
    return load_prices(files, given)


def user_prices() -> Path:
    """The user's own price file."""
    return Path(platformdirs.user_config_dir("dln", appauthor=False)) / "prices.yaml"


def with_secrets(recorded: ModelConfig, present: ModelConfig) -> ModelConfig:
    """The recorded models with what a run's record leaves out, from the present settings.

    Only what belongs to the same engine at the same addresses is taken.
    """
    changes: dict[str, Any] = _secrets(recorded, recorded.spec, present, present.spec)
    for field in ("prompt_lm", "hidden_lm"):
        before: SideModelConfig | None = getattr(recorded, field)
        now: SideModelConfig | None = getattr(present, field)
        if before is not None and now is not None:
            secrets = _secrets(before, before.spec or "", now, now.spec or "")
            changes[field] = before.model_copy(update=secrets)
    return recorded.model_copy(update=changes)


def with_server_of(recorded: ModelConfig, present: ModelConfig) -> ModelConfig:
    """The present settings with the model's server as it was recorded, unless they name a server themselves."""
    if present.base_url or ("spec" in present.model_fields_set and present.spec != recorded.spec):
        return present
    whole = with_secrets(recorded, present)
    own_key = present.api_key is not None or present.api_key_env is not None
    key = present if own_key else whole
    return present.model_copy(
        update={
            "spec": whole.spec,
            "base_url": whole.base_url,
            "options": {**whole.options, **present.options},
            "api_key": key.api_key,
            "api_key_env": key.api_key_env,
        }
    )


def moved(config: ModelConfig, base_url: Sequence[str] | None, api_key_env: str | None) -> ModelConfig:
    """The same models, that of the layers at another address or with another key.

    Raises:
        InputError: not an address, or not a variable's name.
    """
    changes: dict[str, Any] = {}
    try:
        given = ServerConfig.model_validate({"base_url": list(base_url or ()), "api_key_env": api_key_env})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise InputError("invalid value", where=flag, expected=expectation(first)) from None
    if given.base_url:
        changes["base_url"] = given.base_url
    if given.api_key_env is not None:
        changes |= {"api_key_env": given.api_key_env, "api_key": None}
    return config.model_copy(update=changes)


def _secrets(recorded: ServerConfig, spec: str, present: ServerConfig, present_spec: str) -> dict[str, Any]:
    same = [shown_url(url) for url in present.base_url] == [shown_url(url) for url in recorded.base_url]
    if not same or engine_of(spec) != engine_of(present_spec):
        return {}
    changes: dict[str, Any] = {"base_url": present.base_url, "options": {**present.options, **recorded.options}}
    if present.api_key is not None and recorded.api_key_env is None:
        changes["api_key"] = present.api_key
    return changes


def _server(layers: ModelConfig, side: SideModelConfig) -> ServerConfig:
    own = side.base_url or side.api_key is not None or side.api_key_env is not None or side.options
    return side if own or engine_of(str(side.spec)) != engine_of(layers.spec) else layers


def _options(server: ServerConfig, spec: str, shared: ModelConfig, where: str) -> dict[str, Any]:
    options = dict(server.options)
    engine = engine_of(spec)
    if engine in IN_PROCESS:
        for field, flag in (("base_url", "base-url"), ("api_key_env", "api-key-env"), ("api_key", None)):
            if getattr(server, field):
                raise InputError(
                    "this model runs in this process: it has no server and needs no key",
                    where=f"{where}.{field}",
                    got=spec,
                    fix="name a model that is served, as in --lm vllm/NAME"
                    + (f", or leave out --{flag}" if flag else ""),
                )
        given = {"batch_tokens": shared.batch_tokens, "threads": shared.threads}
        options |= {name: value for name, value in given.items() if value is not None}
        return options
    if server.base_url:
        options["base_url"] = list(server.base_url)
    key = _key(server, where)
    if key is not None:
        options["api_key"] = key
    return options


def _key(server: ServerConfig, where: str) -> str | None:
    if server.api_key is not None:
        return server.api_key.get_secret_value()
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env, "").strip()
    if not key:
        raise InputError(
            "the environment variable that should hold the key is not set",
            where=f"{where}.api_key_env",
            got=server.api_key_env,
            fix=f"export {server.api_key_env}=…",
        )
    return key
