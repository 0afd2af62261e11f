"""Requests to a server as values, their outcomes, and the typed errors.

A dialect turns questions to a model into `Call`s and reads the replies; it does no I/O. A `Sender` transports calls and
replies; it knows nothing of models. A reply that a reader cannot read raises `MalformedReply`, which the sender treats
as a fault of the server: it retries a few times and then gives up.

A `Fault` is a value: its kind, whether a retry may help, and the error that is raised when it does not. No fault holds
a request or a response, so none holds a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import quote

from dln.errors import ContextLengthError, DlnError, ProviderError, RequestFailed

__all__ = [
    "AuthenticationFailed",
    "BadRequest",
    "Call",
    "DeadlinePassed",
    "Fault",
    "MalformedReply",
    "ModelNotFound",
    "QuotaExhausted",
    "RateLimited",
    "Reply",
    "Sender",
    "ServerFailed",
    "ServerUnreachable",
    "Silence",
    "fault_of_body",
    "fault_of_reading",
    "fault_of_silence",
    "fault_of_status",
    "passing",
    "plain",
    "too_late",
    "too_long_a_wait",
]


T = TypeVar("T")

_JSON, _ASCII_JSON = (
    json.JSONEncoder(sort_keys=True, ensure_ascii=escaped, separators=(",", ":"), allow_nan=False)
    for escaped in (False, True)
)


class MalformedReply(RequestFailed):
    """The server's answer, though well delivered, is not one: raised by readers, asked again by senders."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to one path of a server.

    Args:
        path: below the base URL, with its leading slash; one that begins with "//" (as in "//tokenize") is
            relative to the server's root instead, which is the base URL without its trailing "/v1".
        body: the JSON that is posted; None makes it a GET.
        route: text whose hash chooses among replicas: what calls that can share a prefix cache have in common.
        weight: how much work it is, in tokens; heavier calls are sent first.
        draws: whether the answer is random without a seed, so that equal calls must not be merged.
    """

    path: str
    body: Mapping[str, Any] | None = field(default=None, hash=False)
    route: str = ""
    weight: int = 0
    draws: bool = False

    def payload(self) -> bytes | None:
        """The body as it is sent; equal bodies give equal bytes."""
        if self.body is None:
            return None
        try:
            return _JSON.encode(self.body).encode()
        except UnicodeEncodeError:  # half a surrogate pair; escaped, it can be sent
            return _ASCII_JSON.encode(self.body).encode()


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)  # may quote a key


@dataclass(frozen=True, slots=True)
class Silence:
    """Why no complete reply came: kind is "connect", "no trust" (TLS), "read time-out" or "broken off"."""

    kind: str
    reason: str
    timed_out: bool = False


class Sender(Protocol):
    """What brings calls to a server."""

    def send(
        self, calls: Sequence[Call], read: Callable[[Call, Any], T], *, on_reply: Callable[[int, T], None] | None = None
    ) -> list[T]:
        """`read(call, JSON of the reply)` for every call, in the order of `calls`.

        Equal calls in flight are merged unless they draw. A reply on which `read` raises `MalformedReply` is
        asked for again as a fault of the server. `on_reply` gets (index, value) of every answered call, in the
        calling thread, before this returns or raises.

        Raises:
            ProviderError: a fault that asking again cannot mend, or has not mended; it names the endpoint, what
                came back and what to try. Calls not yet sent are not sent then.
        """
        ...


class AuthenticationFailed(ProviderError):
    """The server does not accept the key (401), or the key may not do this (403)."""


class ModelNotFound(ProviderError):
    """The server has no such model, or no such path (404)."""


class BadRequest(RequestFailed):
    """The server does not take what was sent (400, 422 and the like)."""


class QuotaExhausted(ProviderError):
    """The account has no money or quota left; waiting does not help."""


class RateLimited(ProviderError):
    """The server still said "too many requests" when patience ended."""


class ServerFailed(ProviderError):
    """The server failed again and again (5xx), or broke the connection off."""


class ServerUnreachable(ProviderError):
    """No connection could be made."""


class DeadlinePassed(ProviderError):
    """No answer within the time of the call."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One failed attempt.

    Args:
        kind: as counted and shown: "429", "503", "connect", "read time-out", "malformed", ….
        error: what is raised when it is not mended.
        retry: whether asking again may help.
        crowded: whether it says that too much is asked at once: concurrency shrinks.
        dead: whether it speaks against the replica rather than against the call.
        wait_seconds: that the server asks for, None where it does not.
    """

    kind: str
    error: DlnError
    retry: bool = False
    crowded: bool = False
    dead: bool = False
    wait_seconds: float | None = None


_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}

_CROWDED = {429, 503, 529}

_TOO_LONG = re.compile(
    r"context_length_exceeded|maximum context length|maximum model length|exceeds? (?:the )?(?:available )?context"
    r"|context (?:length|size|window)[^.]{0,40}exceed|longer than the model'?s? (?:maximum )?context"
    r"|exceed_context_size_error|exceeds? the (?:model'?s )?max(?:imum)? (?:context|input|model)"
    r"|prompt is too long|input (?:is|length) .{0,40}(?:too long|exceeds)|max_model_len"
    r"|`?inputs`? tokens \+ `?max_new_tokens`? must be",
    re.IGNORECASE,
)

_NO_QUOTA = re.compile(
    r"insufficient_quota|exceeded your current quota|billing_hard_limit|insufficient (?:credit|funds|balance)"
    r"|payment required|credit limit|out of credits",
    re.IGNORECASE,
)

_NO_MODEL = re.compile(
    r"model_not_found|DeploymentNotFound|model .{0,80}(?:not found|does not exist|not available)", re.IGNORECASE
)


def fault_of_status(  # noqa: PLR0911 — one return per kind of fault
    status: int, body: bytes, server: str, model: str, *, wait_seconds: float | None = None, secrets: Iterable[str] = ()
) -> Fault:
    """The fault that a status other than 2xx is."""
    words = _message(body)
    said = plain(words, secrets)
    got = f"{status}: {said}" if said else str(status)
    where = server

    def final(cls: type[DlnError], message: str, expected: str, fix: str) -> Fault:
        return Fault(str(status), cls(message, where=where, got=got, expected=expected, fix=fix))

    if status in {400, 413, 422} and _TOO_LONG.search(words):
        return final(
            ContextLengthError,
            "the request is longer than the model's context",
            "prompt and answer within the context of the model",
            "a model or server with a longer context (for example a larger --max-model-len), or shorter texts",
        )
    if status == 402 or (status in {400, 403, 429} and _NO_QUOTA.search(words)):
        return final(QuotaExhausted, "the account's quota is used up", "credit", "add credit, or use another key")
    if status in {401, 403, 407}:
        fix = "check that the key is whole, not revoked, of this server, and may use this model"
        return final(AuthenticationFailed, "the server does not accept the key", "a valid API key", fix)
    if status in {404, 410} or (status in {400, 422} and _NO_MODEL.search(words)):
        fix = "ask the server for its models (GET …/models); check the base URL, which mostly ends in /v1"
        return final(ModelNotFound, f"no model {model!r}, or no such path", "a model that is served", fix)
    if 300 <= status < 400:
        return final(BadRequest, "the server is elsewhere", "an answer", "give the address it names as --base-url")
    if status in _RETRIED or status >= 500:
        cls = RateLimited if status == 429 else ServerFailed
        message = "too many requests" if status == 429 else "the server fails"
        fix = "wait, or ask less at once" if status == 429 else "look at the server's log, or try again later"
        error = cls(message, where=where, got=got, expected="an answer", fix=fix)
        return Fault(str(status), error, True, status in _CROWDED, status in {502, 504}, wait_seconds)
    return final(BadRequest, "the server does not take the request", "a request it accepts", "see what it says")


def fault_of_silence(kind: str, reason: str, server: str, *, secrets: Iterable[str] = ()) -> Fault:
    """The fault that no (whole) reply is; kind is "connect", "read time-out" or "broken off"."""
    got = plain(reason, secrets)
    if kind == "connect":
        fix = "is the server running, and is this its base URL? `dln doctor` looks closer"
        error: DlnError = ServerUnreachable(
            "no connection", where=server, got=got, expected="a listening server", fix=fix
        )
        return Fault(kind, error, retry=True, dead=True)
    if kind == "no trust":
        fix = "check https:// and the server's certificate; set SSL_CERT_FILE for a private certificate authority"
        return Fault(kind, ServerUnreachable("no safe connection", where=server, got=got, expected="TLS", fix=fix))
    fix = "look at the server's log, give it more time, or ask less at once"
    error = ServerFailed("no whole answer", where=server, got=got, expected="an answer", fix=fix)
    return Fault(kind, error, retry=True, crowded=kind == "read time-out", dead=True)


def fault_of_body(body: bytes, server: str, *, secrets: Iterable[str] = ()) -> Fault:
    """The fault that a body which is no JSON is: half of it missing, or a proxy's page."""
    start = body[:200].decode("utf-8", "replace").lstrip().lower()
    what = "an HTML page" if start.startswith(("<!doctype", "<html", "<")) else "no JSON" if body else "nothing"
    text = plain(body[:400].decode("utf-8", "replace"), secrets)
    fix = "a proxy may answer in the server's place: check the base URL"
    error = MalformedReply(
        "the answer cannot be read", where=server, got=f"{what}: {text}" if text else what, expected="JSON", fix=fix
    )
    return Fault("malformed", error, retry=True)


def fault_of_reading(error: MalformedReply, server: str, *, secrets: Iterable[str] = ()) -> Fault:
    """The fault that JSON is in which the reader found no answer; its words made fit to be shown."""
    hidden = tuple(secrets)
    clean = type(error)(
        plain(error.message if error.where is None else f"{error.message} ({error.where})", hidden),
        where=server,
        got=None if error.got is None else plain(error.got, hidden),
        expected=error.expected,
        fix=error.fix or "another program may answer at this base URL: `dln doctor --lm …` says what it can do",
    )
    return Fault("malformed", clean, retry=True)


def passing(error: DlnError) -> bool:
    """Whether the server was ill, or not to be heard, which says nothing of what it can do when it is well."""
    return isinstance(error, ServerFailed) and not re.match(r"50[015]\b", str(error.got))


def too_late(where: object, got: object, seconds: float) -> DeadlinePassed:
    """The error when a call's time is over."""
    fix = "give it more time, or look at why the server is slow"
    return DeadlinePassed("no answer in time", where=where, got=got, expected=f"one within {seconds:g} s", fix=fix)


def too_long_a_wait(fault: Fault, longest: float) -> RateLimited:
    """The error when a server asks for more patience than the user has."""
    return RateLimited(
        f"the server asks to wait {fault.wait_seconds or 0:.0f} seconds",
        where=fault.error.where,
        got=fault.error.got,
        expected=f"at most {longest:g} seconds",
        fix="try again later, or allow a longer wait",
    )


SHORTEST_HIDDEN, SHORTEST_WHOLE = 3, 8
"""Characters: a shorter key ("x") is no secret; one below the second is hidden where it stands as a word."""


def plain(text: object, secrets: Iterable[str] = (), *, longest: int = 300) -> str:
    """Text of a server as it may be shown: no control characters, no secret, not endless."""
    words = str(text)
    for secret in secrets:
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}:
            if len(form) >= SHORTEST_WHOLE:
                words = words.replace(form, "[key]")
            elif len(form) >= SHORTEST_HIDDEN:  # "test" is no part of "latest"
                words = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "[key]", words)
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return words if len(words) <= longest else words[: longest - 1] + "…"


def _message(body: bytes) -> str:
    """The server's own words: the message of its error object, else the body itself."""
    text = body[:20_000].decode("utf-8", "replace")
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return re.sub(r"<[^>]*>", " ", text)
    parts: list[str] = []
    if isinstance(found, Mapping):
        record = cast("Mapping[str, Any]", found)
        inner: object = record.get("error", record)
        fields = cast("Mapping[str, Any]", inner) if isinstance(inner, Mapping) else {"message": inner}
        parts = [str(fields[name]) for name in ("message", "code", "type", "detail") if fields.get(name)]
    return " · ".join(dict.fromkeys(parts)) or text
