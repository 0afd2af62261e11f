"""Who may ask: the key, the host, the kind and the size of a request. Pure ASGI, before anything is read.

A server on the loopback device is reachable by every web page that the user's browser shows: by a name that an
attacker points at 127.0.0.1 (hence the check of Host), or by a plain form (hence JSON only, which a browser does
not send across origins without asking first, and nobody here answers that question).
"""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING, Any

from dln.serve.fields import Refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Guard", "answer_refusal", "is_loopback"]

OPEN = {"/health"}
LOG = logging.getLogger("dln.serve")


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine to itself only."""
    return host in ("localhost", "::1") or host.startswith("127.")


class Guard:
    """Lets through what may be asked.

    Args:
        app: what answers.
        key: the key that clients must present as a bearer; None where anybody on this machine may ask.
        hosts: names under which the server may be addressed; None lets every name through.
        largest_body: in bytes.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, hosts: frozenset[str] | None, largest_body: int) -> None:
        self._app = app
        self._key = None if key is None else key.encode()
        self._hosts = hosts
        self._largest_body = largest_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._limited(receive), watched)
        except Refusal as refusal:
            await answer_refusal(refusal)(scope, receive, send)
        except Exception as error:
            # what nobody foresaw: an answer for the client, the place of it for whoever runs the server
            LOG.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            if begun:
                raise
            refusal = Refusal(500, f"the server failed: {type(error).__name__}", None, "internal_error")
            await answer_refusal(refusal)(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._hosts is not None and _name(headers.get(b"host", b"").decode("latin-1")) not in self._hosts:
            raise Refusal(403, "this server answers to its own name only", "Host", "forbidden_host")
        if self._key is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
                raise Refusal(401, "a valid key is needed: Authorization: Bearer …", None, "invalid_api_key")
        if scope["method"] == "POST":
            if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
                raise Refusal(415, "the body must be application/json", "Content-Type", "unsupported_media_type")
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self._largest_body:
                raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        read = 0

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._largest_body:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self._largest_body} bytes", None, "request_too_large")


def answer_refusal(refusal: Refusal) -> Any:
    """The refusal as an answer."""
    from starlette.responses import JSONResponse

    headers: dict[str, str] = {}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    return JSONResponse(refusal.body(), refusal.status, headers)


def _name(host: str) -> str:
    """`Host` without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
