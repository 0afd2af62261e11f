"""The configuration of a run: one validated value, the same in files, on the command line and in run.yaml.

The section `lm` of a configuration: models, where their servers are, and what they cost.

Keys are read and never written: `api_key` is left out of every record, and so are user information and secret
parameters of base URLs, and options that carry secrets (headers).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
)

from dln.cli.errors import closest, expectation
from dln.errors import InputError
from dln.train.layout import Hidden
from dln.train.options import InferenceOptions, Options, resolve_options

__all__ = [
    "COMMAND_LINE",
    "FLAGS",
    "OWN_FLAGS",
    "SECRET_FIELDS",
    "BudgetConfig",
    "DataConfig",
    "ModelConfig",
    "NetworkConfig",
    "PriceConfig",
    "RunConfig",
    "Section",
    "ServerConfig",
    "SideModelConfig",
    "TaskConfig",
    "config_schema",
    "engine_of",
    "parse_config",
    "setting_name",
    "shown_url",
    "training_options",
]

SECRET_FIELDS = frozenset({"api_key", "api_key_env", "base_url", "options", "lm", "prompt_lm", "hidden_lm"})
"""Fields whose values are not shown in messages: there may be a key in them."""

_SECRET = re.compile(r"key|header|secret|passw|auth|credential|signature|^sig$|^code$|^token$|_token$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")


class Section(BaseModel):
    """Frozen, and unknown names are errors, which do not repeat what was given."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class ServerConfig(Section):
    """Where a model's server is, and how it is asked."""

    base_url: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given, str | list[str]),
    ] = Field((), description="address of the model's server; several are replicas of one another")
    api_key_env: str | None = Field(
        None, description="name of the environment variable with the key; default: the engine's own, as OPENAI_API_KEY"
    )
    api_key: SecretStr | None = Field(
        None, exclude=True, description="the key itself; it is never written to a run, api_key_env is safer"
    )
    options: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="options of the engine, as timeout, max_concurrency, chat"
    )

    @field_validator("base_url")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            try:
                parts = urlsplit(url.strip())
            except ValueError:
                parts = urlsplit("")
            if parts.scheme not in ("http", "https") or not parts.netloc:
                # the address is not repeated: there may be a password in it
                raise ValueError("a base URL looks like http://127.0.0.1:8000/v1")
        return tuple(url.strip() for url in urls)

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        if name is not None and not _VARIABLE.fullmatch(name):
            raise ValueError("this is the name of an environment variable, in capital letters, and never a key itself")
        return name

    @field_validator("options")
    @classmethod
    def _no_doubles(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in ("base_url", "api_key", "batch_tokens", "threads"):
            if name in options:
                raise ValueError(f"{name} is a setting of its own, not one of the options")
        return options

    @field_serializer("base_url")
    def _without_credentials(self, urls: tuple[str, ...]) -> list[str]:
        return [shown_url(url) for url in urls]

    @field_serializer("options")
    def _without_secrets(self, options: dict[str, Any]) -> dict[str, Any]:
        return cast(dict[str, Any], _harmless(options))


class SideModelConfig(ServerConfig):
    """A model beside that of the layers; with the same kind of spec and nothing else it has the same server."""

    spec: str | None = Field(None, description="the model")


class PriceConfig(Section):
    """US dollars per million tokens."""

    input: float = Field(ge=0, description="tokens read")
    output: float = Field(ge=0, description="tokens drawn")
    cached_input: float | None = Field(None, ge=0, description="tokens read from the server's prompt cache")


_Side = Annotated[
    SideModelConfig | None,
    BeforeValidator(lambda given: {"spec": given} if isinstance(given, str) else given, str | SideModelConfig | None),
]


class ModelConfig(ServerConfig):
    """Which language models are used, where they are, what they cost, and where their answers are kept."""

    spec: str = Field("smollm2", description="the model of all layers")
    prompt_lm: _Side = Field(None, description="the model that proposes prompts; default the layers' own")
    hidden_lm: _Side = Field(
        None,
        description="the model of the edit proposal of hidden texts, or of all with inference.hidden_writer=hidden_lm; "
        "default the layers' own",
    )
    batch_tokens: int | None = Field(None, ge=1, description="tokens per batch of the in-process engine")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of a model in this process; default: measured at loading"
    )
    cache: bool = Field(True, description="keep the model's answers in a file")
    cache_path: str | None = Field(None, description="that file; default lm-cache.sqlite in the user's cache")
    prices_file: str | None = Field(
        None, description="a YAML file of prices; it wins over prices.yaml beside the user's settings"
    )
    prices: dict[str, PriceConfig] = Field(
        default_factory=dict[str, PriceConfig], description="prices by model, which win over those of files"
    )


def shown_url(url: str) -> str:
    """An address without user information and without parameters that may be keys.

    >>> shown_url("https://me:secret@host:8000/v1?api-version=3&sig=x")
    'https://host:8000/v1?api-version=3'
    """
    parts = urlsplit(url)
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if not _SECRET.search(name)])
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def engine_of(spec: str) -> str:
    """The part of a model's name that says how it is reached.

    >>> engine_of("vllm/org/name"), engine_of("smollm2:chat"), engine_of("model.gguf")
    ('vllm', 'smollm2', 'gguf')
    """
    name = spec.strip().removesuffix(":chat")
    return "gguf" if name.endswith(".gguf") else name.partition("/")[0].partition(":")[0]


def _harmless(value: object) -> object:
    """Without entries whose names say that they are secret, at any depth."""
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, object], value).items()
        return {name: _harmless(inner) for name, inner in entries if not _SECRET.search(str(name))}
    if isinstance(value, list | tuple):
        return [_harmless(inner) for inner in cast(list[object], value)]
    return value


COMMAND_LINE = "command line"
"""Where settings are that flags and the environment gave."""

OWN_FLAGS = ("preset", "steps", "seed")
"""Training options that have a flag of their own; the others are given by `--set`."""

FLAGS: dict[tuple[str, str], str] = {
    ("task", "name"): "--task",
    ("task", "csv"): "--csv",
    ("task", "jsonl"): "--jsonl",
    ("task", "input"): "--input",
    ("task", "target"): "--target",
    ("task", "free_form"): "--free-form",
    ("task", "instruction"): "--instruction",
    ("data", "directory"): "--data",
    ("data", "leaky"): "--leaky",
    ("data", "train_size"): "--train-size",
    ("data", "dev_size"): "--dev-size",
    ("data", "test_size"): "--test-size",
    ("lm", "spec"): "--lm",
    ("lm", "base_url"): "--base-url",
    ("lm", "api_key_env"): "--api-key-env",
    ("lm", "prompt_lm"): "--prompt-lm",
    ("lm", "hidden_lm"): "--hidden-lm",
    ("lm", "prices_file"): "--prices",
    ("lm", "batch_tokens"): "--batch-tokens",
    ("lm", "threads"): "--threads",
    ("network", "layers"): "--layers",
    ("network", "prompts"): "--prompt",
    ("network", "prompts_from"): "--prompts-from",
    ("network", "templates"): "--template",
    ("network", "hidden"): "--hidden",
    ("network", "hidden_tokens"): "--hidden-tokens",
    ("network", "freeze"): "--freeze",
    ("budget", "max_calls"): "--max-calls",
    ("budget", "max_tokens"): "--max-tokens",
    ("budget", "max_minutes"): "--max-minutes",
    ("budget", "max_usd"): "--max-usd",
}
"""Which flag sets which setting."""


class TaskConfig(Section):
    """What is to be learnt: a known task by name, or a file of examples."""

    name: str | None = Field(None, description="a known task, for example questions or subj")
    csv: str | None = Field(None, description="a CSV or TSV file of examples")
    jsonl: str | None = Field(None, description="a JSON-lines file of examples")
    input: str | None = Field(None, description="the column with the inputs; guessed if not given")
    target: str | None = Field(None, description="the column with the targets; guessed if not given")
    free_form: bool | None = Field(None, description="targets are free texts, not labels; guessed if not given")
    labels: list[str] | dict[str, str] | None = Field(
        None, description='labels with other spellings ("yes|Yes"), or {value in the file: label}'
    )
    instruction: str | None = Field(None, description="the initial prompt of the output layer")


class DataConfig(Section):
    """Where data is and how much of it is used."""

    directory: str | None = Field(None, description="directory of the paper's tasks and gsm8k")
    leaky: bool = Field(False, description="the original loader's splits, leaks included")
    seed: int = Field(42, description="of the split into train, dev and test")
    train_size: int | None = Field(None, ge=1, description="train on at most so many examples")
    dev_size: int | None = Field(None, ge=1, description="validate on at most so many examples")
    test_size: int | None = Field(None, ge=1, description="test on at most so many examples")


class NetworkConfig(Section):
    """The layers and what they start from."""

    layers: int = Field(1, ge=1, le=32, description="depth of the network")
    prompts: tuple[str, ...] = Field((), description="initial prompts, one per layer")
    prompts_from: str | None = Field(
        None,
        description="initial prompts from a text or YAML file, or with their templates from a network file or a run",
    )
    templates: tuple[str, ...] = Field((), description="templates, one per layer")
    hidden: Hidden | None = Field(
        None,
        description="what hidden layers begin as; null: the steps that the task names, else copies of short inputs "
        "under the default preset, else thoughts",
    )
    hidden_tokens: int | None = Field(
        None,
        ge=1,
        description="longest hidden text and free answer, in tokens; null: 64, for hidden texts of the paper's preset "
        "256, for a copy what it needs",
    )
    freeze: tuple[int, ...] = Field((), description="layers that are not trained, counted from 1")


class BudgetConfig(Section):
    """Limits; null is none."""

    max_calls: int | None = Field(None, ge=0, description="requests to models")
    max_tokens: int | None = Field(None, ge=0, description="tokens read and drawn")
    max_minutes: float | None = Field(None, ge=0, description="minutes inside models")
    max_usd: float | None = Field(None, ge=0, description="US dollars")


class RunConfig(Section):
    """All that `dln train` needs to know."""

    task: TaskConfig = Field(default_factory=lambda: TaskConfig.model_validate({}))
    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}))
    lm: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    network: NetworkConfig = Field(default_factory=lambda: NetworkConfig.model_validate({}))
    budget: BudgetConfig = Field(default_factory=lambda: BudgetConfig.model_validate({}))
    options: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="changes to the preset's training options"
    )
    run_dir: str | None = Field(None, description="the run directory; default runs/<task>-<layers>l-<time>")
    test: bool = Field(True, description="evaluate on the test examples at the end")


def parse_config(data: Mapping[str, Any], where: str) -> RunConfig:
    """A configuration from plain data, its options checked too.

    Raises:
        InputError: naming `where` and the field.
    """
    try:
        config = RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise _setting_error(error, where) from None
    check_option_names(config.options, where)
    _resolved(config, where)
    return config


def setting_name(place: Sequence[str], where: str) -> str:
    """How a setting is called where it was given: by its flag on the command line, else by file and dotted name.

    >>> setting_name(["network", "hidden"], COMMAND_LINE), setting_name(["options", "steps"], "dln.yaml")
    ('--hidden', 'dln.yaml: options.steps')
    """
    dotted = ".".join(place)
    if where != COMMAND_LINE:
        return f"{where}: {dotted}" if dotted else where
    if place[:1] == ["options"] and len(place) > 1:
        return f"--{place[1]}" if place[1] in OWN_FLAGS else f"--set {'.'.join(place[1:])}"
    return FLAGS.get((place[0], place[1]), dotted) if len(place) > 1 else f"--{dotted.replace('_', '-')}"


def training_options(config: RunConfig) -> Options:
    """The resolved training options: preset, changes, and the frozen layers.

    Raises:
        InputError: naming the option.
    """
    options = _resolved(config, "options")
    frozen, depth = config.network.freeze, config.network.layers
    if not frozen:
        return options
    if min(frozen) < 1 or max(frozen) > depth:
        raise InputError("there is no such layer to freeze", where="freeze", got=frozen, expected=f"1 to {depth}")
    given = options.inference.layer_steps
    steps = [given] * depth if isinstance(given, int) else list(given)
    if len(steps) != depth:
        raise InputError(
            "one number of steps per layer is needed", where="inference.layer_steps", got=given, expected=depth
        )
    steps = [0 if position in frozen else count for position, count in enumerate(steps, 1)]
    inference = options.inference.model_copy(update={"layer_steps": tuple(steps)})
    return options.model_copy(update={"inference": inference})


def check_option_names(options: Mapping[str, Any], where: str) -> None:
    """Refuse unknown options, with the nearest known one.

    Raises:
        InputError: naming `where` and the option.
    """
    inner, outer = list(InferenceOptions.model_fields), list(Options.model_fields)
    nested = options.get("inference", {})
    names = [(str(name), "", outer) for name in options]
    if isinstance(nested, Mapping):
        names += [(str(name), "inference.", inner) for name in cast(Mapping[str, Any], nested)]
    for name, prefix, known in names:
        if name in known:
            continue
        by_name = {k: f"inference.{k}" for k in inner} | ({} if prefix else {k: k for k in outer})
        close = difflib.get_close_matches(name, list(by_name), n=1)
        raise InputError(
            "there is no such training option",
            where=f"{where}: {prefix}{name}",
            expected=f"one of {', '.join(prefix + k for k in known)}",
            fix=f"did you mean {by_name[close[0]]}?" if close else None,
        )


def config_schema() -> dict[str, Any]:
    """JSON Schema of a configuration file, with the training options in their place."""
    schema = RunConfig.model_json_schema()
    options = Options.model_json_schema()
    definitions = cast(dict[str, Any], schema.setdefault("$defs", {}))
    definitions |= cast(dict[str, Any], options.pop("$defs", {}))
    definitions["Options"] = options
    # what the preset gives need not be repeated: no option is required, and a default depends on the preset
    properties = cast(dict[str, Any], schema["properties"])
    properties["options"] = {"$ref": "#/$defs/Options", "description": "changes to the preset's training options"}
    schema["title"] = "Configuration of dln train"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _resolved(config: RunConfig, where: str) -> Options:
    changes = dict(config.options)
    preset = str(changes.pop("preset", "default"))
    try:
        return resolve_options(preset, changes)
    except InputError as error:
        place, problem = _first_problem(error)
        at = setting_name(["options", *(place or str(error.where).split("."))], where)
        if problem is None:
            raise InputError(error.message, where=at, got=error.got, expected=error.expected, fix=error.fix) from error
        inner = problem.get("ctx", {}).get("error")
        if isinstance(inner, InputError):
            raise InputError(inner.message, where=at, got=inner.got, expected=inner.expected, fix=inner.fix) from None
        got = repr(problem["input"])[:80]
        raise InputError("invalid value", where=at, got=got, expected=expectation(problem)) from None


def _first_problem(error: InputError) -> tuple[list[str], Mapping[str, Any] | None]:
    """The address and pydantic's description of the first invalid option; a section reports its own errors."""
    place: list[str] = []
    problem: Mapping[str, Any] | None = None
    cause = error.__cause__
    while isinstance(cause, ValidationError):
        problem = cause.errors(include_url=False)[0]
        place += [str(part) for part in problem["loc"]]
        inner = problem.get("ctx", {}).get("error")
        cause = inner.__cause__ if isinstance(inner, InputError) else None
    return place, problem


def _setting_error(error: ValidationError, where: str) -> InputError:
    """What pydantic found in a configuration, with the setting that was probably meant."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    at = setting_name(place, where)
    if first["type"] == "extra_forbidden":
        known = _names_at(place[:-1])
        near = closest(place[-1], known)
        fix = (
            f"did you mean {'.'.join([*place[:-1], near])}?" if near else "dln train --print-schema lists all settings"
        )
        return InputError("there is no such setting", where=at, expected=f"one of {', '.join(known)}", fix=fix)
    got = None if _may_be_secret(place) else repr(first["input"])[:80]
    choices = re.findall(r"'(.*?)'", str(first.get("ctx", {}).get("expected", "")))
    near = closest(str(first["input"]), choices)
    fix = f"did you mean {near}?" if near else None
    return InputError("invalid value", where=at, got=got, expected=expectation(first), fix=fix)


def _may_be_secret(place: list[str]) -> bool:
    """What stands at an address, a key's place, or is a whole section of these is not repeated in a message."""
    return place[:1] == ["lm"] and (not place[1:] or not SECRET_FIELDS.isdisjoint(place[1:]))


def _names_at(place: list[str]) -> list[str]:
    model: Any = RunConfig
    for part in place:
        model = cast(type[BaseModel], model).model_fields[part].annotation if part in model.model_fields else None
        model = next((choice for choice in get_args(model) if isinstance(choice, type)), model)  # X | None is X
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(cast(type[BaseModel], model).model_fields)
