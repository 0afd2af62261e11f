"""Where a model is: base URLs, the key (never shown), time-outs and retries.

The key comes from an option, from user information in a base URL, or from the first environment variable that is set,
in this order. It lives in a `SecretStr` from then on; so do the values of extra headers, since many gateways take their
keys there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from pydantic import SecretStr

from dln.arguments import Count, Positive, Size, checked
from dln.errors import InputError

__all__ = ["Azure", "Endpoint", "Patience", "endpoint_of"]


SHORTEST_SECRET = 8
"""Characters of a part of a header that may be a key; "Bearer" and "Basic" are none."""


@checked
@dataclass(frozen=True, slots=True)
class Patience:
    """How hard, and how long, a server is asked.

    Args:
        connect_seconds: until a connection must stand.
        read_seconds: until the next bytes of a reply must come.
        deadline_seconds: for one call, from when it is first sent, all retries included.
        unreachable_seconds: for which a server that takes no connection is asked again, from the first failure on.
        longest_wait_seconds: that a server may ask us to wait (Retry-After); longer is an error.
        max_concurrency: calls in flight per replica, at most.
        max_retries: of one call.
    """

    connect_seconds: Positive = 4.0
    read_seconds: Positive = 120.0
    deadline_seconds: Positive = 600.0
    unreachable_seconds: Positive = 3.0
    longest_wait_seconds: Positive = 60.0
    max_concurrency: Count = 64
    max_retries: Size = 8


@dataclass(frozen=True, slots=True)
class Azure:
    """What an Azure OpenAI resource wants besides its address: the deployment and the version of the interface."""

    deployment: str
    api_version: str

    def __post_init__(self) -> None:
        for name in ("deployment", "api_version"):
            if not getattr(self, name):
                raise InputError(f"Azure OpenAI needs {name}", where=name, got="nothing")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model on one server, or on several that are alike (replicas).

    Args:
        model: its name there.
        base_urls: one per replica, without trailing slash, user information or query.
        key: None where none is needed.
        headers: extra ones, sent with every request.
        patience: time-outs, concurrency and retries.
        azure: deployment and version where the server is an Azure OpenAI resource.
    """

    model: str
    base_urls: tuple[str, ...]
    key: SecretStr | None = None
    headers: Mapping[str, SecretStr] = field(default_factory=dict[str, SecretStr], hash=False)
    patience: Patience = Patience()
    azure: Azure | None = None

    def secrets(self) -> tuple[str, ...]:
        """What must never be shown: the key, the values of the extra headers, and a key within one ("Bearer …")."""
        hidden = [] if self.key is None else [self.key.get_secret_value()]
        hidden += [value.get_secret_value() for value in self.headers.values()]
        parts = [part for value in hidden for part in value.split() if len(part) >= SHORTEST_SECRET]
        return tuple(dict.fromkeys([*hidden, *parts]))

    def __str__(self) -> str:
        return f"{self.model} at {', '.join(self.base_urls)}"


def endpoint_of(
    model: str,
    base_urls: Sequence[str],
    *,
    api_key: str | SecretStr | None = None,
    key_variables: Sequence[str] = (),
    key_needed: bool = True,
    headers: Mapping[str, str | SecretStr] | None = None,
    patience: Patience | None = None,
    azure: Azure | None = None,
    environment: Mapping[str, str] | None = None,
) -> Endpoint:
    """The endpoint that options and environment describe.

    Args:
        model: its name on the server.
        base_urls: one per replica; `https://user:key@host` gives the key.
        api_key: the key; wins over the other two places.
        key_variables: environment variables that may hold the key, the first that is set wins.
        key_needed: whether a missing key is an error.
        headers: extra ones.
        patience: time-outs, concurrency and retries.
        azure: for an Azure OpenAI resource.
        environment: in place of the process's own.

    Raises:
        InputError: an address, key or header that cannot be used; the message shows no secret.
    """
    try:
        return _endpoint(
            model, base_urls, api_key, key_variables, key_needed, headers, patience or Patience(), azure, environment
        )
    except InputError as found:
        error = found
    # whoever prints a traceback with the values of variables sees none that holds a key
    base_urls, api_key, headers, environment = (), None, None, None
    error.__context__ = None
    raise error.with_traceback(None)


def _endpoint(
    model: str,
    base_urls: Sequence[str],
    api_key: str | SecretStr | None,
    key_variables: Sequence[str],
    key_needed: bool,
    headers: Mapping[str, str | SecretStr] | None,
    patience: Patience,
    azure: Azure | None,
    environment: Mapping[str, str] | None,
) -> Endpoint:
    if not model.strip():
        raise InputError("the model's name on the server is missing", where="model", got=repr(model))
    urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
    if not urls:
        raise InputError("no base URL", where="--base-url", expected="http://… or https://…")
    parsed = [_address(url.strip()) for url in urls]
    shown = tuple(address for address, _ in parsed)
    if len(set(shown)) != len(shown):
        raise InputError("the same base URL twice", where="--base-url", got=", ".join(shown))
    in_urls = {secret for _, secret in parsed if secret}
    if len(in_urls) > 1:
        raise InputError("the base URLs hold different keys", where="--base-url", expected="one key for all replicas")
    return Endpoint(
        model=model,
        base_urls=shown,
        key=key_of(api_key, next(iter(in_urls), None), key_variables, key_needed, environment, shown[0]),
        headers={name: header_value(name, value) for name, value in (headers or {}).items()},
        patience=patience,
        azure=azure,
    )


def _address(url: str) -> tuple[str, str | None]:
    """The base URL as it may be shown, and the key that stood in it."""
    where, example = "--base-url", "http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # reading them is what checks them
    except ValueError:
        # the reason may quote what stands before the host, a key perhaps
        raise InputError("not a URL", where=where, got="something else", expected=example) from None
    bare = _without_secrets(parts)
    if parts.scheme not in {"http", "https"}:
        known = re.match(r"[a-z][a-z0-9+.-]*://", url, re.IGNORECASE)
        if known:
            raise InputError("unknown scheme", where=where, got=f"{parts.scheme}://…", expected="http:// or https://")
        plain = url.rpartition("@")[2].partition("?")[0]
        raise InputError(
            "a base URL begins with http:// or https://",
            where=where,
            got=plain,
            expected=example,
            fix=f"http://{plain}",
        )
    if not host:
        raise InputError("a URL without a host", where=where, got=bare, expected=example)
    if parts.query or parts.fragment:
        raise InputError(
            "a base URL has neither query nor fragment", where=where, got=f"{bare}?…", expected=bare, fix="use a header"
        )
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise InputError("a URL has no spaces or control characters", where=where, got=repr(bare), expected=example)
    secret = unquote(parts.password or parts.username or "")
    return bare, secret or None


def _without_secrets(parts: SplitResult) -> str:
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", ""))


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_OPTION = "--api-key-env"


def key_of(
    option: str | SecretStr | None,
    in_url: str | None,
    variables: Sequence[str],
    needed: bool,
    environment: Mapping[str, str] | None,
    server: str,
) -> SecretStr | None:
    """The key from the first place that has one.

    Args:
        option: given by the user.
        in_url: user information of a base URL.
        variables: names in the environment.
        needed: whether having none is an error.
        environment: in place of the process's own.
        server: as it may be shown.

    Raises:
        InputError: no key where one is needed, or one that no header can hold.
    """
    values = os.environ if environment is None else environment
    given = option.get_secret_value() if isinstance(option, SecretStr) else option
    places = [(_OPTION, given), ("--base-url", in_url), *((f"${name}", values.get(name)) for name in variables)]
    for place, value in places:
        if value:
            return SecretStr(_checked(value, place))
    if not needed:
        return None
    fix = " or ".join([*(f"export {name}=…" for name in variables), f"{_OPTION} NAME"])
    raise InputError("no API key", where=server, got="nothing in " + ", ".join(p for p, _ in places), fix=fix)


def header_value(name: str, value: str | SecretStr) -> SecretStr:
    """The value of an extra header, checked and hidden.

    Raises:
        InputError: name or value cannot be sent.
    """
    if not _HEADER_NAME.fullmatch(name):
        raise InputError("not a header's name", where="header", got=repr(name), expected="letters, digits and dashes")
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return SecretStr(_checked(text, f"header {name}", spaces=True))


def _checked(value: str, place: str, *, spaces: bool = False) -> str:
    wrong = [
        what
        for what, found in (
            ("a line break", re.search(r"[\r\n]", value)),
            ("a control character", re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]", value)),
            ("a space", not spaces and " " in value),
            ("a character outside ASCII", not value.isascii()),
        )
        if found
    ]
    if wrong:
        raise InputError(
            "cannot be sent in a header",
            where=place,
            got=f"{len(value)} characters with {wrong[0]}",
            fix="copy it anew",
        )
    return value
