"""Language models of a command: their servers, API keys, prices, budget and cache.

`build_models` loads those of a run, `Loader` those that networks name, and `LengthOnly` stands in where none is asked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import platformdirs

from dln.cli.config import (
    COMMAND_LINE,
    ModelConfig,
    RunConfig,
    ServerConfig,
    SideModelConfig,
    engine_of,
    parse_config,
    shown_url,
)
from dln.cli.workers import executor_of, with_workers
from dln.errors import InputError
from dln.io import cache_directory
from dln.lm.base import Capabilities, Completion, LanguageModel, NextTokens, Sampling, Target, Token, TokenLogProbs
from dln.lm.cache import Cached, Store
from dln.lm.load import load_lm
from dln.lm.meter import Budget, Meter, Metered
from dln.lm.prices import FREE, Price, PriceTable, Quote, load_prices
from dln.lm.remote.dialects import DIALECTS
from dln.numerics import Floats

__all__ = [
    "CHARACTERS",
    "IN_PROCESS",
    "LengthOnly",
    "Loader",
    "Models",
    "Wanted",
    "build_models",
    "moved",
    "price_table",
    "remote",
    "user_prices",
    "wanted_models",
    "with_secrets",
    "with_server_of",
]

WORKERS_CHUNK = 2048
"""Requests per call of a model that workers compute, and per transaction of the cache."""

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
    for purpose, name, side in (
        ("prompts", "prompt_lm", config.prompt_lm),
        ("hidden", "hidden_lm", config.hidden_lm),
    ):
        if side is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if side.spec is None:
            raise InputError(
                "a server is named, but not the model that is asked there",
                where=f"lm.{name}",
                expected=f"a model, as in {flag} vllm/NAME",
            )
        server = _server(config, side)
        found.append(Wanted(purpose, side.spec, _options(server, side.spec, config, f"lm.{name}")))
    if with_workers(config) and all(remote(one.spec) for one in found):
        raise InputError(
            "a model on a server is not computed by workers",
            where="lm.workers",
            got=config.spec,
            fix="leave out --workers; the server's requests are concurrent (--lm-option max_concurrency=N)",
        )
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
    for name in ("prompt_lm", "hidden_lm"):
        before: SideModelConfig | None = getattr(recorded, name)
        now: SideModelConfig | None = getattr(present, name)
        if before is not None and now is not None:
            secrets = _secrets(before, before.spec or "", now, now.spec or "")
            changes[name] = before.model_copy(update=secrets)
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


def moved(config: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
    """The same models with other settings for that of the layers: address, key, options, cache or prices.

    Args:
        config: of the run.
        given: the section `lm`, as flags gave it.

    Raises:
        InputError: a value is invalid.
    """
    chosen = parse_config({"lm": dict(given)}, COMMAND_LINE).lm
    changes = {name: getattr(chosen, name) for name in chosen.model_fields_set}
    if "options" in changes:
        changes["options"] = {**config.options, **chosen.options}
    if "api_key_env" in changes:
        changes["api_key"] = None
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
    executor = None if engine in DIALECTS else executor_of(shared)
    if executor is not None:
        options["executor"] = executor
    if engine in IN_PROCESS:
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


@dataclass(frozen=True)
class Models:
    """The models of a run; all share one meter, one budget and one cache. `quotes` are their prices by spec."""

    lm: LanguageModel
    prompt_lm: LanguageModel | None
    hidden_lm: LanguageModel | None
    meter: Meter
    notes: tuple[str, ...] = ()
    quotes: Mapping[str, Quote | None] = field(default_factory=dict[str, "Quote | None"])


def build_models(config: RunConfig, stack: ExitStack, meter: Meter | None = None) -> Models:
    """Every model as Cached(Metered(engine)), so that only what is computed counts.

    Raises:
        DlnError: a model is unavailable, or the cache cannot be opened.
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
        if store is None:
            return metered
        # with workers, a call must be large enough for all of them
        return Cached(metered, store, chunk=WORKERS_CHUNK) if "executor" in wanted.options else Cached(metered, store)

    models = {wanted.purpose: load(wanted) for wanted in chosen}
    notes = tuple(store.notes) if store is not None else ()
    return Models(
        lm=models["layers"],
        prompt_lm=models.get("prompts"),
        hidden_lm=models.get("hidden"),
        meter=meter,
        notes=(
            *notes,
            *(
                f"the price of {spec} is unknown: its cost is not counted (set it with --price {spec}=IN/OUT)"
                for spec in unpriced
            ),
        ),
        quotes=quotes,
    )


class Loader:
    """Loads each model of a network once; all share one cache.

    Args:
        config: of the cache and the engine.
        override: the model to use in place of the one that a file names.
        stack: closes the cache.
    """

    def __init__(self, config: RunConfig, override: str | None, stack: ExitStack) -> None:
        self._config = config
        self._override = override
        self._stack = stack
        self._load = cache(self._load_model)

    def __call__(self, name: str) -> LanguageModel:
        """The model for the layers that name this one."""
        return self._load(name)

    def _load_model(self, name: str) -> LanguageModel:
        given, spec = self._config.lm, self._override or name
        changes: dict[str, Any] = {"spec": spec, "prompt_lm": None, "hidden_lm": None}
        if engine_of(spec) != engine_of(given.spec) and "spec" in given.model_fields_set:
            # the known server is that of another engine: its address and key are not for this model
            changes |= {"base_url": (), "api_key": None, "api_key_env": None, "options": {}}
        lm = given.model_copy(update=changes)
        return build_models(self._config.model_copy(update={"lm": lm}), self._stack).lm


CHARACTERS = 4
"""Of a token, where nobody can be asked."""


class LengthOnly:
    """Stands for a model on a server where only lengths matter: asks nothing, four characters are a token."""

    def __init__(self, spec: str) -> None:
        self._spec = spec

    @property
    def name(self) -> str:
        """The model's name."""
        return self._spec

    @property
    def capabilities(self) -> Capabilities:
        """As of a server that can do everything."""
        return Capabilities(True, True, False, self._spec.endswith(":chat"), None, next_tokens="all")

    def fingerprint(self) -> str:
        """Nobody was asked which model it is."""
        return f"length-only:{self._spec}"

    def count_tokens(self, text: str) -> int:
        """Characters / 4, rounded up."""
        return math.ceil(len(text) / CHARACTERS)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Nothing is asked before a run."""
        self._refuse()

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """Nothing is asked before a run."""
        self._refuse()

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """Nothing is asked before a run."""
        self._refuse()

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """Nothing is asked before a run."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError("a model on a server is not asked before the run", where=self._spec)
