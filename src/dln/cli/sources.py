"""Sources of settings, in order of precedence.

Flag, DLN_* variable, --config file, --recipe, ./dln.yaml, user's file, default.

`configured` gives a command the flags of settings, and the configuration that all sources together yield.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import platformdirs
import typer
import yaml

from dln.arguments import unknown_name
from dln.cli.config import (
    COMMAND_LINE,
    SETTINGS,
    RunConfig,
    Setting,
    check_option_names,
    engine_of,
    parse_config,
)
from dln.cli.flags import RECIPES, Config, recipe_names
from dln.cli.output import note
from dln.data.registry import is_file
from dln.errors import InputError
from dln.lm.connections import Connection, read_connections
from dln.train.options import nested

__all__ = [
    "PROJECT_FILE",
    "configured",
    "load_config",
    "named_file",
    "parse_setting",
    "recipe_file",
    "user_file",
    "with_task",
]

PROJECT_FILE = Path("dln.yaml")

_PATHS = (
    *(("task", name) for name in ("path", "csv", "jsonl", "dev_file", "test_file")),
    *(("data", name) for name in ("directory", "labelled")),
    *(("lm", "cache_path"), ("lm", "prices_file"), ("network", "prompts_from"), ("lm", "connections")),
)
_WHOLE = {"labels", "prompts", "templates", "freeze", "prompt_proposals", "base_url"}
"""Values that replace a lower one as a whole."""

_EITHER = {"task": ({"name", "path", "csv", "jsonl"},), "network": ({"prompts", "prompts_from"},)}
"""Fields of a section that exclude one another: a higher source's one puts out a lower one's other."""

_MODELS = ("lm", "prompt_lm", "hidden_lm")
"""Sections of a model and its server."""

_CSV, _JSONL = (".csv", ".tsv"), (".jsonl", ".ndjson")
_KEPT = {"name", "path", "csv", "jsonl", "instruction", "metric"}
"""Settings of a task that has a name; the others say how a file is read."""


def configured(*groups: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: add the flags of the named settings (keys of `SETTINGS`), each None if it is not given.

    The command's parameters `config` and `given` are no flags: the configuration that all sources yield, with a flag
    `--config`, and the nested settings that flags and environment variables gave.

    Args:
        groups: names with spaces between, in the order in which help lists them.
        defaults: of flags that have one in this command.
    """
    names = " ".join(groups).split()

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        wanted = inspect.signature(command, eval_str=True).parameters
        own = [one for name, one in wanted.items() if name not in ("config", "given", "context")]
        arguments = [one for one in own if isinstance(one.annotation.__metadata__[0], type(typer.Argument()))]
        flags = [_parameter(name, SETTINGS[name], defaults.get(name)) for name in names]
        if "config" in wanted:
            flags.append(inspect.Parameter("config_file", _KEYWORD, default=None, annotation=Config))
        context = inspect.Parameter("context", _KEYWORD, annotation=typer.Context)

        @functools.wraps(command)
        def run(context: typer.Context, config_file: Path | None = None, **values: Any) -> None:
            given = _nested(context, {name: values.pop(name) for name in names})
            if "config" in wanted:
                settings = cast("list[str] | None", given.get("options", {}).pop("set", None))
                recipe = values.get("recipe")
                values["config"] = load_config(given, config_file, settings or (), recipe=recipe)
                if given.get("lm", {}).get("spec") is not None:
                    given["lm"]["spec"] = values["config"].lm.spec  # a name of a model registry, as its model
            more = {"given": given, "context": context}
            command(**values, **{name: more[name] for name in more if name in wanted})

        parameters = [context, *arguments, *flags, *(one for one in own if one not in arguments)]
        parameters = [one.replace(kind=_KEYWORD) for one in parameters]
        cast(Any, run).__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _parameter(name: str, setting: Setting, default: Any) -> inspect.Parameter:
    flag = setting.flag
    option = typer.Option(
        flag.name,
        metavar=flag.metavar,
        envvar=list(flag.env) if isinstance(flag.env, tuple) else flag.env,
        help=setting.help,
        autocompletion=flag.complete,
        rich_help_panel=flag.panel,
        min=setting.low,
    )
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[setting.kind | None, option])


def _nested(context: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that flags and variables gave, as sections; values of mappings are read."""
    source = context.get_parameter_source("task") if "task" in values else None
    from_environment = source is not None and source.name == "ENVIRONMENT"
    given: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == []:
            continue
        if name == "task" and from_environment and (values.get("csv") or values.get("jsonl")):
            continue  # a file on the command line replaces a task from the environment
        setting = SETTINGS[name]
        path = ("options", "set") if name == "set" else setting.path
        place = given
        for section in path[:-1]:
            place = place.setdefault(section, {})
        place[path[-1]] = value if setting.flag.read is None else setting.flag.read(value)
        if name == "cache":
            place.setdefault("cache", True)
    return given


def load_config(
    flags: Mapping[str, Any],
    file: Path | None = None,
    settings: Sequence[str] = (),
    *,
    directory: Path | None = None,
    recipe: str | None = None,
) -> RunConfig:
    """The configuration that all sources together give.

    Args:
        flags: what the command line and the environment gave, as nested sections; None is not given.
        file: the file of `--config`.
        settings: `--set name=value` pairs of training options.
        directory: where the project file is looked for; default the working directory.
        recipe: the name of a recipe.

    Raises:
        InputError: a file cannot be read or has a field that is not possible; it names both.
    """
    merged: dict[str, Any] = {}
    project = (directory or Path()) / PROJECT_FILE
    given_file = None if file is None else Path(named_file(file))
    published = None if recipe is None else recipe_file(recipe)
    for source, needed in ((user_file(), False), (project, False), (published, True), (given_file, True)):
        if source is None or (not needed and not source.is_file()):
            continue
        layer = _read(source)
        parse_config(layer, str(source))
        folder = Path() if source == Path(named_file("-")) else source.parent
        merged = _merge(merged, _absolute(layer, folder.resolve()))
    given = _given(flags)
    for setting in settings:
        given = _merge(given, {"options": parse_setting(setting)})
    return parse_config(_connected(_merge(merged, _absolute(given, Path().resolve()))), COMMAND_LINE)


def recipe_file(name: str) -> Path:
    """The file of a recipe.

    Raises:
        InputError: there is no such recipe.
    """
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names(), where="--recipe")
    return RECIPES / f"{name}.yaml"


def _connected(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the models that a registry names in place of their names.

    What the registry says of temperature and length are training options here; a setting that is given wins.
    """
    models = dict(cast(Mapping[str, Any], settings.get("lm") or {}))
    file = models.pop("connections", None)
    if file is None:
        return settings
    known = read_connections(str(file))
    usual: dict[str, Any] = {}
    for role, model in (("lm", models), *((name, models[name]) for name in _MODELS[1:] if models.get(name))):
        chosen = known.get(str(model.get("spec")))
        if chosen is None:
            continue
        found = chosen.settings() | {name: value for name, value in model.items() if name != "spec"}
        if "api_key" in model or "api_key_env" in model:
            found = {k: v for k, v in found.items() if k not in ("api_key", "api_key_env") or k in model}
        usual = _merge(usual, _usual(role, chosen))
        if role == "lm":
            models = found
        else:
            models[role] = found
    return _merge(usual, {**settings, "lm": models})


def _usual(role: str, model: Connection) -> dict[str, Any]:
    """Settings that follow from the temperature and length of a model in a registry, by its role."""
    names = {
        "lm": (("options", "inference", "forward_temperature"), ("network", "hidden_tokens")),
        "prompt_lm": (("options", "inference", "prompt_temperature"), ("options", "inference", "prompt_tokens")),
        "hidden_lm": (("options", "inference", "hidden_temperature"), None),
    }[role]
    found: dict[str, Any] = {}
    for path, value in zip(names, (model.temperature, model.max_tokens), strict=True):
        if path is not None and value is not None:
            found = _merge(found, functools.reduce(lambda inner, name: {name: inner}, reversed(path), cast(Any, value)))
    return found


def with_task(config: RunConfig, name: str) -> RunConfig:
    """The same configuration for another task, a known one or a file; columns and instruction stay."""
    task = config.task.model_dump(mode="json", exclude_unset=True) | {"name": name}
    return config.model_copy(update={"task": parse_config(_absolute({"task": task}, Path().resolve()), "--tasks").task})


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
    """`change` over `base`, field by field; a task by name has no file, and drops how one is read, with a note."""
    merged = dict(base)
    for name, value in change.items():
        below = merged.get(name)
        if not (isinstance(value, Mapping) and isinstance(below, Mapping)) or name in _WHOLE:
            merged[name] = value
            continue
        inner, over = cast(Mapping[str, Any], below), cast(Mapping[str, Any], value)
        for group in _EITHER.get(name, ()):
            if group & set(over):
                inner = {k: v for k, v in inner.items() if k not in group}
                if name == "task" and over.get("name") is not None:
                    unused = [k for k, v in inner.items() if v not in (None, [], ())]
                    if unused:
                        note(f"note: not used for the task {over['name']}: {', '.join(unused)} of a settings file")
                    inner = {}
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
    if name and is_file(name):
        del task["name"]
        kinds = (kind for kind, suffixes in (("csv", _CSV), ("jsonl", _JSONL)) if name.lower().endswith(suffixes))
        task[next(kinds, "path")] = [name]
    for section, field in _PATHS:
        values = cast(dict[str, Any], result.get(section) or {})
        given = values.get(field)
        if isinstance(given, list | tuple):
            values[field] = [_absolute_path(one, base) for one in cast("Sequence[object]", given)]
        elif given is not None:
            values[field] = _absolute_path(given, base)
    return result


def _absolute_path(name: object, base: Path) -> str:
    """A path as an absolute one; names of Hugging Face datasets stay."""
    text = named_file(name)
    return text if text.startswith("hf/") and not (base / text).exists() else str(base / Path(text).expanduser())
