"""Where settings come from: flag > DLN_* environment > --config file > ./dln.yaml > user's file > default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import platformdirs
import yaml

from dln.cli.config import COMMAND_LINE, RunConfig, check_option_names, parse_config
from dln.cli.model_config import engine_of
from dln.errors import InputError
from dln.lm.prices import parse_price
from dln.train.options import nested

__all__ = ["PROJECT_FILE", "lm_settings", "load_config", "named_file", "parse_setting", "user_file"]

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
