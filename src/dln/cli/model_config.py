"""The section `lm` of a configuration: models, where their servers are, and what they cost.

Keys are read and never written: `api_key` is left out of every record, and so are user information and secret
parameters of base URLs, and options that carry secrets (headers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_serializer, field_validator

__all__ = [
    "SECRET_FIELDS",
    "ModelConfig",
    "PriceConfig",
    "Section",
    "ServerConfig",
    "SideModelConfig",
    "engine_of",
    "shown_url",
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
        for name in ("base_url", "api_key", "batch_tokens"):
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
