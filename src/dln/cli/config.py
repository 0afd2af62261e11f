"""The configuration of a run: one validated value for files, flags, environment variables and run.yaml.

Each setting is declared once, as a pydantic field: its type, bounds, default and description, and with
`Annotated[..., Flag(...)]` how it is given on the command line. `SETTINGS` lists the settings that have a flag.

API keys are read and never written: `api_key` is left out of every record, as are user information and secret
parameters of base URLs, and options that carry secrets (headers).
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, cast, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import yaml
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

from dln.cli import flags as complete
from dln.cli.flags import DATA, MODEL, NETWORK, TRAINING, Flag
from dln.cli.output import closest, expectation
from dln.data.spec import DataSpec, Texts, suffix_format
from dln.errors import InputError
from dln.integrations.trackers import TRACKERS
from dln.lm.prices import parse_price
from dln.train.layout import Hidden
from dln.train.options import InferenceOptions, Options, resolve_options

__all__ = [
    "CACHE",
    "COMMAND_LINE",
    "ENGINE",
    "LAYERS",
    "LIMITS",
    "PRICES",
    "READ",
    "SERVER",
    "SETTINGS",
    "SIDE_MODELS",
    "SIZES",
    "TASK",
    "BudgetConfig",
    "DataConfig",
    "ModelConfig",
    "NetworkConfig",
    "PriceConfig",
    "RunConfig",
    "Section",
    "ServerConfig",
    "Setting",
    "SideModelConfig",
    "TaskConfig",
    "check_option_names",
    "command_of",
    "config_schema",
    "engine_of",
    "parse_config",
    "setting_name",
    "shown_url",
    "training_options",
]

SECRET_FIELDS = frozenset({"api_key", "api_key_env", "base_url", "options", "lm", "prompt_lm", "hidden_lm"})
"""Fields whose values are not repeated in messages, since they may contain an API key."""

_SECRET = re.compile(r"key|header|secret|passw|auth|credential|signature|^sig$|^code$|^token$|_token$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")


def _engine_options(words: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` words; the values are YAML."""
    chosen: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.strip():
            raise InputError("not an option", where="--lm-option", got=name, expected="name=value, as in timeout=60")
        try:
            chosen[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            # neither repeated nor chained: an option may be a header with an API key
            raise InputError(
                "the value is not YAML", where=f"--lm-option {name}", expected="a YAML value, as in timeout=60"
            ) from None
    return chosen


def _prices(words: list[str]) -> dict[str, Any]:
    return {name: asdict(price) for name, price in map(parse_price, words)}


class Section(BaseModel):
    """Frozen; unknown names are errors that do not repeat the input."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class ServerConfig(Section):
    """The server of a model, and the options of requests to it."""

    base_url: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given, str | list[str]),
        Flag("--base-url", MODEL, "URL", env="DLN_BASE_URL"),
    ] = Field((), description="Base URL of the model's server, as http://127.0.0.1:8000/v1; several are replicas.")
    api_key_env: Annotated[
        str | None, Flag("--api-key-env", MODEL, "NAME", env="DLN_API_KEY_ENV", complete=complete.key_variables)
    ] = Field(None, description="Environment variable with the API key (default: the provider's, as OPENAI_API_KEY).")
    api_key: SecretStr | None = Field(
        None, exclude=True, description="The API key itself; never written to a run. api_key_env is safer."
    )
    options: Annotated[
        dict[str, Any],
        Flag("--lm-option", MODEL, "NAME=VALUE", complete=complete.model_options, read=_engine_options),
    ] = Field(default_factory=dict[str, Any], description="Option of the engine, as timeout=60 or max_concurrency=16.")

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
        for name in ("base_url", "api_key", "batch_tokens", "threads", "workers", "executor"):
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
    """A model besides that of the layers; without a server of its own it uses the layers' if the engine is the same."""

    spec: Annotated[str | None, Flag("--lm", MODEL, "SPEC", env="DLN_LM", complete=complete.models)] = Field(
        None, description="Name of the model."
    )


class PriceConfig(Section):
    """US dollars per million tokens."""

    input: float = Field(ge=0, description="Input tokens.")
    output: float = Field(ge=0, description="Output tokens.")
    cached_input: float | None = Field(None, ge=0, description="Input tokens read from the server's prompt cache.")


_Side = Annotated[
    SideModelConfig | None,
    BeforeValidator(lambda given: {"spec": given} if isinstance(given, str) else given, str | SideModelConfig | None),
]


class ModelConfig(ServerConfig):
    """The language models, their servers, their prices, and the cache of their responses."""

    spec: Annotated[str, Flag("--lm", MODEL, "SPEC", env="DLN_LM", complete=complete.models)] = Field(
        "smollm2", description="Model of all layers (default: smollm2)."
    )
    prompt_lm: _Side = Field(None, description="Model that proposes prompts (default: the layers' model).")
    hidden_lm: _Side = Field(
        None,
        description="Model that edits hidden texts, or with inference.hidden_writer=hidden_lm proposes all of them "
        "(default: the layers' model).",
    )
    batch_tokens: Annotated[int | None, Flag("--batch-tokens", MODEL)] = Field(
        None, ge=1, description="Tokens per batch of the in-process engine."
    )
    threads: Annotated[int | None, Flag("--threads", MODEL, env="DLN_THREADS")] = Field(
        None, ge=1, description="CPU threads of in-process models (default: measured at loading; 1 in each worker)."
    )
    workers: Annotated[int | None, Flag("--workers", MODEL, env="DLN_WORKERS")] = Field(
        None, ge=1, description="Number of processes that compute in-process models (default: this one)."
    )
    dask: Annotated[str | None, Flag("--dask", MODEL, "ADDRESS", env="DLN_DASK")] = Field(
        None, description="Dask scheduler whose workers compute the models, as tcp://10.0.0.1:8786."
    )
    ray: Annotated[str | None, Flag("--ray", MODEL, "ADDRESS", env="DLN_RAY")] = Field(
        None, description="Ray cluster whose actors compute the models: its address, or auto."
    )
    cache: Annotated[bool, Flag(" /--no-cache", MODEL, help="Disable the cache.")] = Field(
        True, description="Cache model responses on disk."
    )
    cache_path: Annotated[str | None, Flag("--cache", MODEL, "FILE", env="DLN_CACHE")] = Field(
        None, description="Cache file (default: lm-cache.sqlite in the user's cache directory)."
    )
    connections: Annotated[str | None, Flag("--connections", MODEL, "FILE", env="DLN_CONNECTIONS")] = Field(
        None, description="Model registry of the original project (connections.yaml), whose names models then have."
    )
    prices_file: Annotated[str | None, Flag("--prices", MODEL, "FILE", env="DLN_PRICES")] = Field(
        None, description="YAML file of prices; overrides prices.yaml in the user's configuration directory."
    )
    prices: Annotated[dict[str, PriceConfig], Flag("--price", MODEL, "MODEL=IN/OUT", read=_prices)] = Field(
        default_factory=dict[str, PriceConfig],
        description="Price of a model in US dollars per million input and output tokens; overrides price files.",
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
"""Where settings from flags and environment variables are."""


class TaskConfig(DataSpec, Section):
    """The task: a known one by name, or files of examples and how they are read."""

    __init__ = cast("Any", BaseModel.__init__)  # errors of a section are those of the configuration

    FLAGS: ClassVar[Mapping[str, Flag]] = {
        "dev_file": Flag("--dev-file", DATA, "FILE"),
        "test_file": Flag("--test-file", DATA, "FILE"),
        "input": Flag("--input", DATA, "COLUMN"),
        "target": Flag("--target", DATA, "COLUMN"),
        "id": Flag("--id", DATA, "COLUMN"),
        "free_form": Flag("--free-form/--labels", DATA),
        "merge_labels": Flag("--merge-labels/--keep-labels", DATA),
        "several": Flag("--several", DATA, "combine|first|refuse"),
        "split_column": Flag("--split-column", DATA, "COLUMN"),
        "group": Flag("--group", DATA, "COLUMN"),
        "split_by": Flag("--split-by", DATA, "COLUMN"),
        "format": Flag("--file-format", DATA, "NAME"),
        "encoding": Flag("--encoding", DATA, "NAME"),
        "delimiter": Flag("--delimiter", DATA, "CHARACTER"),
        "quotechar": Flag("--quotechar", DATA, "CHARACTER"),
        "header": Flag("--header/--no-header", DATA),
        "sheet": Flag("--sheet", DATA, "NAME"),
        "missing": Flag("--missing", DATA, "TEXT"),
        "empty": Flag("--empty", DATA, "drop|keep|refuse"),
        "long_rows": Flag("--long-rows", DATA, "skip|cut|refuse"),
    }

    name: Annotated[str | None, Flag("--task", DATA, "NAME|FILE", env="DLN_TASK", complete=complete.tasks)] = Field(
        None, description="A known task (questions, subj, trec, gsm8k, …), a file of any format, or a folder of texts."
    )
    csv: Annotated[Texts, Flag("--csv", DATA, "FILE")] = Field(
        (), description="CSV or TSV file of examples; several are read as one."
    )
    jsonl: Annotated[Texts, Flag("--jsonl", DATA, "FILE")] = Field(
        (), description="JSON Lines file of examples; several are read as one."
    )
    instruction: Annotated[str | None, Flag("--instruction", DATA, "TEXT")] = Field(
        None, description="The task in one sentence; the initial prompt of the output layer."
    )
    metric: Annotated[str | None, Flag("--metric", DATA, "NAME")] = Field(
        None,
        description="How answers are compared: exact, normalized, numeric, json, token_f1, contains, macro_f1, mcc, "
        "balanced_accuracy, qwk, package.module:function or file.py:function (default: by the kind of the targets).",
    )

    @property
    def files(self) -> tuple[str, ...]:
        """The files of examples, however they were given."""
        return (*self.path, *self.csv, *self.jsonl)

    @property
    def spec(self) -> DataSpec:
        """How the files are read; a CSV or JSON Lines file may have any suffix."""
        fields = {name: getattr(self, name) for name in DataSpec.model_fields}
        unknown = self.format is None and self.files and suffix_format(self.files[0]) in (None, "lines")
        if unknown and (self.csv or self.jsonl):
            fields["format"] = "csv" if self.csv else "jsonl"
        return DataSpec(**fields | {"path": self.files})


class DataConfig(Section):
    """Where the data is and how much of it is used."""

    directory: Annotated[str | None, Flag("--data", DATA, "DIR", env=("DLN_DATA", "DLN_PAPER_DATA"))] = Field(
        None, description="Directory with the paper's tasks and gsm8k."
    )
    leaky: Annotated[bool, Flag("--leaky/--no-leaky", DATA)] = Field(
        False, description="Use the splits of the original loader, in which train and test examples overlap."
    )
    labelled: Annotated[str | None, Flag("--labelled", DATA, "RUN")] = Field(
        None, description="Run directory with labels of dln label, which join the training set."
    )
    seed: int = Field(42, description="Random seed of the split into train, dev and test.")
    train_size: Annotated[int | None, Flag("--train-size", DATA)] = Field(
        None, ge=1, description="Maximum number of training examples."
    )
    dev_size: Annotated[int | None, Flag("--dev-size", DATA)] = Field(
        None, ge=1, description="Maximum number of validation examples."
    )
    test_size: Annotated[int | None, Flag("--test-size", DATA)] = Field(
        None, ge=1, description="Maximum number of test examples."
    )


class NetworkConfig(Section):
    """The layers and their initial prompts."""

    layers: Annotated[int, Flag("--layers", NETWORK, env="DLN_LAYERS")] = Field(
        1, ge=1, le=32, description="Number of layers (1 = direct answer, 2+ = intermediate text)."
    )
    prompts: Annotated[tuple[str, ...], Flag("--prompt", NETWORK, "TEXT")] = Field(
        (), description="Initial prompt; once per layer."
    )
    prompts_from: Annotated[str | None, Flag("--prompts-from", NETWORK, "FILE|RUN")] = Field(
        None,
        description="Initial prompts from a text or YAML file, or with their templates from a network file or a run; "
        "also best prompts and results of the original project. One prompt begins the last layer of a deeper network.",
    )
    templates: Annotated[tuple[str, ...], Flag("--template", NETWORK, "NAME", complete=complete.templates)] = Field(
        (), description="Template; once per layer."
    )
    hidden: Annotated[Hidden | None, Flag("--hidden", NETWORK, "copy|think", complete=complete.hidden_starts)] = Field(
        None,
        description="Initialization of hidden layers (default: the task's own steps; else copy for short inputs, "
        "else think).",
    )
    hidden_tokens: Annotated[int | None, Flag("--hidden-tokens", NETWORK)] = Field(
        None,
        ge=1,
        description="Maximum length of a hidden text or free answer, in tokens (default: 64; 256 for hidden texts "
        "with preset=paper; as long as needed for copies).",
    )
    freeze: Annotated[tuple[int, ...], Flag("--freeze", NETWORK, "LAYER")] = Field(
        (), description="Layer that is not trained, counted from 1."
    )


class BudgetConfig(Section):
    """Limits of a run; null means unlimited."""

    max_calls: Annotated[int | None, Flag("--max-calls", MODEL, env="DLN_MAX_CALLS")] = Field(
        None, ge=0, description="Maximum number of model requests."
    )
    max_tokens: Annotated[int | None, Flag("--max-tokens", MODEL, env="DLN_MAX_TOKENS")] = Field(
        None, ge=0, description="Maximum number of input and output tokens."
    )
    max_minutes: Annotated[float | None, Flag("--max-minutes", MODEL, env="DLN_MAX_MINUTES")] = Field(
        None, ge=0, description="Maximum time spent in models, in minutes."
    )
    max_usd: Annotated[float | None, Flag("--max-usd", MODEL, env="DLN_MAX_USD")] = Field(
        None, ge=0, description="Maximum cost in US dollars."
    )


class RunConfig(Section):
    """The settings of `dln train`."""

    task: TaskConfig = Field(default_factory=lambda: TaskConfig.model_validate({}))
    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}))
    lm: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    network: NetworkConfig = Field(default_factory=lambda: NetworkConfig.model_validate({}))
    budget: BudgetConfig = Field(default_factory=lambda: BudgetConfig.model_validate({}))
    options: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="Training options that differ from the preset."
    )
    run_dir: Annotated[str | None, Flag("--run-dir", "Options", "DIR", env="DLN_RUN_DIR")] = Field(
        None, description="Output directory."
    )
    track: Annotated[tuple[str, ...], Flag("--track", "Options", "NAME", complete=complete.trackers)] = Field(
        (),
        description="Experiment tracker, each an extra: tensorboard, mlflow, wandb or trackio; several are possible.",
    )
    test: Annotated[bool, Flag("--test/--no-test", TRAINING)] = Field(
        True, description="Evaluate on the test examples at the end."
    )

    @field_validator("track")
    @classmethod
    def _known_trackers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in TRACKERS:
                raise ValueError(f"a tracker is one of {', '.join(TRACKERS)}")
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Setting:
    """A setting with a flag.

    Attributes:
        path: names of the sections and the field.
        flag: how it is given.
        kind: type of the command's parameter.
        help: what it is.
        low: smallest value, None without a bound.
    """

    path: tuple[str, ...]
    flag: Flag
    kind: Any
    help: str
    low: float | None = None


def _settings() -> Iterator[Setting]:
    """The settings of all sections, then those of the side models and the training options with a flag."""
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _section(field.annotation, (name,))
    for name in ("prompt_lm", "hidden_lm"):
        about = str(ModelConfig.model_fields[name].description)
        kind = name.removesuffix("_lm")
        told = {
            "spec": about,
            "base_url": f"Base URL of the {kind} model (default: same as --lm).",
            "api_key_env": f"Environment variable with the API key of the {kind} model.",
        }
        for one in _section(SideModelConfig, ("lm", name)):
            if one.path[-1] in told:
                flag = replace(
                    one.flag,
                    name=one.flag.name.replace("--", f"--{kind}-", 1),
                    env=str(one.flag.env).replace("DLN_", f"DLN_{kind.upper()}_", 1),
                )
                yield replace(one, flag=flag, help=told[one.path[-1]])
    yield Setting(
        ("options", "preset"),
        Flag("--preset", TRAINING, "NAME", env="DLN_PRESET", complete=complete.presets),
        str,
        "Preset of training options: default or paper.",
    )
    yield Setting(
        ("options", "steps"), Flag("--steps", TRAINING, env="DLN_STEPS"), int, "Number of training steps.", low=0
    )
    yield Setting(("options", "seed"), Flag("--seed", TRAINING, env="DLN_SEED"), int, "Random seed.")
    yield Setting(
        ("options",),
        Flag("--set", TRAINING, "NAME=VALUE", complete=complete.settings),
        list[str],
        "Training option, as inference.num_hidden=3.",
    )
    yield from _section(RunConfig, ())


def _section(section: type[Section], place: tuple[str, ...]) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        declared: Mapping[str, Flag] = getattr(section, "FLAGS", {})
        for flag in (declared[name],) if name in declared else (f for f in field.metadata if isinstance(f, Flag)):
            kinds = [one for one in get_args(field.annotation) if isinstance(one, type)]
            if str(field.annotation).startswith("tuple"):
                kind: Any = list[kinds[0]]
            elif flag.read is not None:
                kind = list[str]
            elif flag.is_switch:
                kind = bool
            else:  # X | None is X, and the choices of a literal are checked with the rest
                kind = next((k for k in (field.annotation, *kinds) if k in (int, float)), str)
            low = next((one.ge for one in field.metadata if hasattr(one, "ge")), None)
            yield Setting((*place, name), flag, kind, flag.help or str(field.description), low)


SETTINGS = {setting.flag.parameter: setting for setting in _settings()}
"""Settings with a flag, by the name of the command's parameter."""

READ = "file_format encoding delimiter quotechar header sheet input id missing empty long_rows"
TASK = (
    "task csv jsonl dev_file test_file input target id free_form merge_labels several split_column group split_by "
    "file_format encoding delimiter quotechar header sheet missing empty long_rows metric"
)
SIZES = "train_size dev_size test_size"
LAYERS = "layers prompt prompts_from template hidden hidden_tokens freeze"
SERVER = "base_url api_key_env lm_option threads workers dask ray"
ENGINE = f"connections {SERVER}"
SIDE_MODELS = " ".join(f"{kind}_{name}" for kind in ("prompt", "hidden") for name in ("lm", "base_url", "api_key_env"))
CACHE, PRICES = "cache no_cache", "prices price"
LIMITS = "max_calls max_tokens max_minutes max_usd"
"""Settings that commands have in common, for `dln.cli.sources.configured`."""


def command_of(config: RunConfig) -> str:
    """`dln train` with the flags that give `config`; settings without a flag and secrets are left to its file."""
    # as recorded: URLs without credentials, no keys
    given, usual = (c.model_dump(mode="json") for c in (config, RunConfig.model_validate({})))
    words = ["dln", "train"]
    for name, setting in SETTINGS.items():
        value = _at(given, setting.path)
        # outputs and the cache belong to one machine; options are written below, one by one
        if name in ("run_dir", *CACHE.split(), "set") or value is None or value == _at(usual, setting.path):
            continue
        words += _words(setting.flag, value)
    options = {name: value for name, value in config.options.items() if name not in SETTINGS}
    for path, value in _leaves(options):
        words += ["--set", f"{path}={json.dumps(value)}"]
    return shlex.join(words)


def _words(flag: Flag, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag.on if value else flag.off]
    if isinstance(value, dict):
        values = [f"{name}={_written(inner)}" for name, inner in cast(dict[str, Any], value).items()]
    else:
        values = [str(one) for one in cast(list[object], value if isinstance(value, list) else [value])]
    return [word for one in values for word in (flag.on, one)]


def _written(value: Any) -> str:
    """A price as IN/OUT or IN/OUT/CACHED, an option of an engine as JSON."""
    price = cast(dict[str, Any], value) if isinstance(value, dict) else {}
    if {"input", "output"} <= set(price):
        numbers = [price["input"], price["output"], price["cached_input"]]
        return "/".join(repr(number) for number in numbers if number is not None)
    return json.dumps(value)


def _at(data: object, path: Sequence[str]) -> Any:
    for name in path:
        data = cast(Mapping[str, Any], data).get(name) if isinstance(data, Mapping) else None
    return data


def _leaves(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and name != "prompt_proposals":
            yield from _leaves(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


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
    """The name of a setting where it was given: its flag on the command line, else file and dotted name.

    >>> setting_name(["network", "hidden"], COMMAND_LINE), setting_name(["options", "steps"], "dln.yaml")
    ('--hidden', 'dln.yaml: options.steps')
    """
    dotted = ".".join(place)
    if where != COMMAND_LINE:
        return f"{where}: {dotted}" if dotted else where
    by_path = {setting.path: setting.flag.on or setting.flag.off for setting in SETTINGS.values()}
    if place[:1] == ["options"] and tuple(place[:2]) not in by_path:
        return f"--set {'.'.join(place[1:])}"
    prefixes = (tuple(place[:length]) for length in range(len(place), 0, -1))
    return next((by_path[prefix] for prefix in prefixes if prefix in by_path), dotted)


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
