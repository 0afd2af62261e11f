"""The ASGI application: paths, response envelopes, streams, and the checks before a request is read.

Any web page in the user's browser can reach a server on the loopback device: by a name that an attacker points at
127.0.0.1 (so Host is checked), or by a plain form (so only JSON is accepted, which a browser does not send across
origins without a preflight request, and the server does not answer those).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from dln.errors import DlnError
from dln.serve.batching import Answer, Served
from dln.serve.fields import ChatRequest, Common, CompletionRequest, Refusal, check, refusal_of
from dln.serve.observe import Observed, Observer

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["LARGEST_BODY", "Guard", "answer_refusal", "build_app", "is_loopback"]

LARGEST_BODY = 16 * 2**20
OPEN = {"/health", "/ready"}
LOG = logging.getLogger("dln.serve")

Handler = Callable[["Request"], Coroutine[Any, Any, "Response"]]


def build_app(
    served: Served,
    *,
    key: str | None = None,
    hosts: frozenset[str] | None = None,
    largest_body: int = LARGEST_BODY,
    workers: Callable[[], int] = lambda: 0,
) -> Starlette:
    """Build the ASGI application of a model.

    Args:
        served: the model.
        key: API key of the clients; None for none.
        hosts: allowed host names; None for any.
        largest_body: maximum size of a request body in bytes.
        workers: number of the model's workers; 0 where it is computed in this process.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    observer = Observer()
    paths = _Paths(served, observer, workers)
    routes = [
        Route("/health", paths.health),
        Route("/ready", paths.ready),
        Route("/metrics", paths.metrics),
        Route("/v1/models", paths.models),
        Route("/v1/models/{name:path}", paths.model),
        Route("/v1/completions", paths.completions, methods=["POST"]),
        Route("/v1/chat/completions", paths.chat, methods=["POST"]),
        Route("/tokenize", paths.tokenize, methods=["POST"]),
        Route("/detokenize", paths.detokenize, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Observed, observer=observer),
            Middleware(Guard, key=key, hosts=hosts, largest_body=largest_body),
        ],
        exception_handlers={Refusal: _failed, DlnError: _failed, HTTPException: _no_such_path},
    )


class _Paths:
    def __init__(self, served: Served, observer: Observer, workers: Callable[[], int]) -> None:
        self._served = served
        self._observer = observer
        self._workers = workers
        self._started = int(time.time())

    async def health(self, request: Request) -> Response:
        return _json({})

    async def ready(self, request: Request) -> Response:
        self._served.batcher.check_room()
        return _json({})

    async def metrics(self, request: Request) -> Response:
        from starlette.responses import PlainTextResponse

        text = self._observer.text(self._served.batcher, self._workers())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._is_served(request.path_params["name"])
        return _json(self._card())

    async def tokenize(self, request: Request) -> Response:
        return _json(self._served.tokenize(await self._body(request)))

    async def detokenize(self, request: Request) -> Response:
        return _json(self._served.detokenize(await self._body(request)))

    async def completions(self, request: Request) -> Response:
        asked = check(CompletionRequest, await self._body(request, model=True))
        answer = await _unless_gone(request, self._served.complete(asked))
        return self._response(asked, answer, "cmpl-", "text_completion", "text_completion", lambda choice: choice)

    async def chat(self, request: Request) -> Response:
        asked = check(ChatRequest, await self._body(request, model=True))
        answer = await _unless_gone(request, self._served.chat(asked))
        return self._response(asked, answer, "chatcmpl-", "chat.completion", "chat.completion.chunk", _as_delta)

    def _response(
        self,
        asked: Common,
        answer: Answer,
        prefix: str,
        kind: str,
        chunk: str,
        part: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> Response:
        envelope: dict[str, Any] = {
            "id": prefix + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": self._served.name,
            "system_fingerprint": self._served.fingerprint,
            **answer.extra,
        }
        if not asked.stream:
            return _json({**envelope, "choices": answer.choices, "usage": answer.usage})
        from starlette.responses import StreamingResponse

        with_usage = bool((asked.stream_options or {}).get("include_usage"))
        events = [{**envelope, "object": chunk, "choices": [part(choice)]} for choice in answer.choices]
        if with_usage:
            events = [{**event, "usage": None} for event in events]
            events.append({**envelope, "object": chunk, "choices": [], "usage": answer.usage})
        return StreamingResponse(_stream(events), media_type="text/event-stream", headers={"cache-control": "no-cache"})

    async def _body(self, request: Request, *, model: bool = False) -> dict[str, Any]:
        try:
            body: object = json.loads(await request.body(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the body is not JSON: {error}", None, "invalid_json") from error
        if not isinstance(body, dict):
            raise Refusal(400, "the body must be a JSON object", None, "invalid_type")
        found = cast("dict[str, Any]", body)
        if model or found.get("model") is not None:
            if not isinstance(found.get("model"), str):
                raise Refusal(400, "model must be a text", "model", "invalid_value")
            self._is_served(found["model"])
        return found

    def _is_served(self, name: str) -> None:
        if name != self._served.name:
            raise Refusal(
                404,
                f"the model {name!r} does not exist here; this is {self._served.name!r}",
                "model",
                "model_not_found",
            )

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._served.name,
            "object": "model",
            "created": self._started,
            "owned_by": "dln",
            "root": self._served.root,
            "max_model_len": self._served.max_model_len,
        }


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    return {("delta" if name == "message" else name): value for name, value in choice.items()}


async def _stream(events: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    for event in events:
        yield b"data: " + _dump(event) + b"\n\n"
    yield b"data: [DONE]\n\n"


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Return the answer; if the client disconnects first, drop the work that has not started."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refusal(499, "the client has disconnected", None, "client_gone")
        return await task
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: object) -> Response:
    from starlette.responses import Response

    return Response(_dump(content), media_type="application/json")


def _dump(content: object) -> bytes:
    # escaped: a text may contain a lone surrogate, which UTF-8 cannot encode
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


async def _failed(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error) if isinstance(error, DlnError) else error
    return answer_refusal(refusal if isinstance(refusal, Refusal) else Refusal(500, "the server failed"))


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    what = "method not allowed" if status == 405 else "there is no such path"
    return answer_refusal(Refusal(status, f"{what}: {request.method} {request.url.path}", None, "not_found"))


def is_loopback(host: str) -> bool:
    """Return whether `host` is reachable from this machine only."""
    return host in ("localhost", "::1") or host.startswith("127.")


class Guard:
    """ASGI middleware that checks host, key, content type and size of a request before it is read.

    Args:
        app: the application.
        key: the bearer key of the clients; None to accept everybody on this machine.
        hosts: allowed host names; None for any.
        largest_body: maximum size of a body in bytes.
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
            # unexpected: an answer for the client, the traceback for the operator
            LOG.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            if begun:
                raise
            refusal = Refusal(500, f"the server failed: {type(error).__name__}", None, "internal_error")
            await answer_refusal(refusal)(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._hosts is not None and _host_name(headers.get(b"host", b"").decode("latin-1")) not in self._hosts:
            raise Refusal(403, "host name not allowed", "Host", "forbidden_host")
        if self._key is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
                raise Refusal(401, "invalid or missing API key: Authorization: Bearer …", None, "invalid_api_key")
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
    """Return a refusal as a JSON response."""
    from starlette.responses import JSONResponse

    headers: dict[str, str] = {}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    return JSONResponse(refusal.body(), refusal.status, headers)


def _host_name(host: str) -> str:
    """`Host` without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
