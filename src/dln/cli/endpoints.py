"""From the section `lm` to what `load_lm` takes: which server and which key belong to which model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from dln.cli.errors import expectation
from dln.cli.model_config import ModelConfig, ServerConfig, SideModelConfig, engine_of, shown_url
from dln.errors import InputError
from dln.lm.prices import Price, PriceTable, load_prices
from dln.lm.remote.dialects import DIALECTS

__all__ = [
    "IN_PROCESS",
    "Wanted",
    "moved",
    "price_table",
    "remote",
    "user_prices",
    "wanted_models",
    "with_secrets",
    "with_server_of",
]

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
    found = [Wanted("layers", config.spec, _options(config, config.spec, config.batch_tokens, "lm"))]
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
        found.append(Wanted(purpose, side.spec, _options(server, side.spec, config.batch_tokens, f"lm.{field}")))
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
        raise InputError("this value is not possible", where=flag, expected=expectation(first)) from None
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


def _options(server: ServerConfig, spec: str, batch_tokens: int | None, where: str) -> dict[str, Any]:
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
        if batch_tokens is not None:
            options["batch_tokens"] = batch_tokens
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
