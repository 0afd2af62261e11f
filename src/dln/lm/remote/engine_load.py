"""From a model string and options to a `RemoteLM`: addresses, keys, chat or completion, patience."""

from __future__ import annotations

import datetime
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from dln.arguments import Count, Positive, Size, check_options
from dln.errors import InputError
from dln.lm.base import Rung
from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialects import DIALECTS
from dln.lm.remote.endpoint import Azure, Patience, endpoint_of
from dln.lm.remote.engine import RemoteLM
from dln.lm.remote.sender import HttpSender

__all__ = ["OPTIONS", "open_remote"]

PATIENCE = {
    "timeout": "read_seconds",
    "connect_timeout": "connect_seconds",
    "deadline": "deadline_seconds",
    "max_concurrency": "max_concurrency",
    "max_retries": "max_retries",
}


def _options(
    *,
    base_url: str | Sequence[str] | None = None,
    api_key: str | SecretStr | None = None,
    chat: bool | None = None,
    timeout: Positive | None = None,
    connect_timeout: Positive | None = None,
    deadline: Positive | None = None,
    max_concurrency: Count | None = None,
    max_retries: Size | None = None,
    headers: Mapping[str, str | SecretStr] | None = None,
    api_version: str | datetime.date | None = None,
    revision: str | int | float | None = None,
    best_rung: Rung = "target scoring",
    label_draws: Size = 16,
) -> None:
    """What `load_lm` takes for a model on a server; times in seconds."""


OPTIONS = tuple(inspect.signature(_options).parameters)
"""The names of these options."""

AZURE_VERSION = "2024-10-21"
FALLBACK_URL, FALLBACK_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"


def open_remote(
    kind: str, rest: str, spec: str, options: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> RemoteLM:
    """The model that a string such as `vllm/org/name:chat` names. Nothing is sent yet.

    Args:
        kind: the prefix, one of `DIALECTS`.
        rest: what follows the prefix: the model's name on the server, with `:chat` or `:completion` if wanted.
        spec: the whole string.
        options: see `OPTIONS`; times in seconds, `base_url` one address or several (replicas), `best_rung` the
            highest rung of the ladder that is used, `label_draws` per context where labels can only be counted.
        environment: in place of the process's own.

    Raises:
        InputError: an unknown option, no address, no key, or values that cannot be used.
    """
    check_options(options, _options, f"load_lm({spec!r})")
    dialect = DIALECTS[kind]
    variables = os.environ if environment is None else environment
    model, chat = _chat(dialect, rest, options.get("chat"))
    urls, fallback = _addresses(dialect, spec, options.get("base_url"), variables)
    best: Rung = options.get("best_rung", "target scoring")
    draws: int = options.get("label_draws", 16)
    patience = {field: options[name] for name, field in PATIENCE.items() if options.get(name) is not None}
    azure = kind == "azure" and not any("/openai" in url for url in urls)
    endpoint = endpoint_of(
        model,
        urls,
        api_key=options.get("api_key"),
        key_variables=(*dialect.key_variables, *([FALLBACK_KEY] if fallback else [])),
        key_needed=dialect.hosted and (kind == "azure" or list(urls) == [dialect.default_url]),
        headers=options.get("headers"),
        patience=Patience(**patience),
        azure=Azure(model, _version(options, variables)) if azure else None,
        environment=variables,
    )
    return RemoteLM(
        dialect(model, suffix=rest.removeprefix(model)),
        HttpSender(endpoint),
        name=f"{kind}/{model}{_suffix(dialect, chat)}",
        servers=endpoint.base_urls,
        chat=chat,
        # the command line reads `revision=1` as a number, and a version as a date
        revision=None if options.get("revision") is None else str(options["revision"]),
        best_rung=best,
        draws=draws,
    )


def _chat(dialect: type[Dialect], rest: str, option: bool | None) -> tuple[str, bool]:
    """The model's bare name, and whether it is used as a chat model; the option wins over the string."""
    for suffix, chat in ((":chat", True), (":completion", False)):
        if rest.endswith(suffix):
            return rest.removesuffix(suffix), chat if option is None else bool(option)
    return rest, dialect.chat_by_default if option is None else bool(option)


def _suffix(dialect: type[Dialect], chat: bool) -> str:
    if chat == dialect.chat_by_default:
        return ""
    return ":chat" if chat else ":completion"


def _addresses(
    dialect: type[Dialect], spec: str, given: str | Sequence[str] | None, variables: Mapping[str, str]
) -> tuple[list[str], bool]:
    """The base URLs, and whether they come from the variable that OpenAI's own tools read."""
    if given:
        return ([given] if isinstance(given, str) else list(given)), False
    for name in dialect.url_variables:
        if variables.get(name):
            return [url.strip() for url in variables[name].split(",") if url.strip()], name == FALLBACK_URL
    if dialect.default_url is not None:
        return [dialect.default_url], False
    raise InputError(
        "it is not known where this model is served",
        where=spec,
        got="no base URL",
        expected=f"base_url, or one of {', '.join(f'${name}' for name in dialect.url_variables)}",
        fix=f"--lm {spec} --base-url {dialect.example_url}",
    )


def _version(options: Mapping[str, Any], variables: Mapping[str, str]) -> str:
    return str(options.get("api_version") or variables.get("OPENAI_API_VERSION") or AZURE_VERSION)
