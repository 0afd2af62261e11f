"""The application: paths, envelopes, streams; what is asked is done by a `Served`."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from dln.errors import DlnError
from dln.serve.batching import Answer, Served
from dln.serve.fields import ChatRequest, Common, CompletionRequest, Refusal, check, refusal_of
from dln.serve.guard import Guard, answer_refusal

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["LARGEST_BODY", "build_app"]

LARGEST_BODY = 16 * 2**20

Handler = Callable[["Request"], Coroutine[Any, Any, "Response"]]


def build_app(
    served: Served,
    *,
    key: str | None = None,
    hosts: frozenset[str] | None = None,
    largest_body: int = LARGEST_BODY,
) -> Starlette:
    """The ASGI application around one model.

    Args:
        served: what answers.
        key: that clients must present; None for none.
        hosts: names under which it may be addressed; None for any.
        largest_body: of a request, in bytes.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    paths = _Paths(served)
    routes = [
        Route("/health", paths.health),
        Route("/v1/models", paths.models),
        Route("/v1/models/{name:path}", paths.model),
        Route("/v1/completions", paths.completions, methods=["POST"]),
        Route("/v1/chat/completions", paths.chat, methods=["POST"]),
        Route("/tokenize", paths.tokenize, methods=["POST"]),
        Route("/detokenize", paths.detokenize, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, key=key, hosts=hosts, largest_body=largest_body)],
        exception_handlers={
            Refusal: _refused,
            DlnError: _failed,
            HTTPException: _no_such_path,
        },
    )


class _Paths:
    def __init__(self, served: Served) -> None:
        self._served = served
        self._started = int(time.time())

    async def health(self, request: Request) -> Response:
        return _json({})

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
    """The answer, unless the client leaves first: then what has not begun is dropped."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refusal(499, "the client has left", None, "client_gone")
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
    # escaped, because a text may hold half of a surrogate pair, which UTF-8 cannot say
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


async def _refused(request: Request, error: Exception) -> Response:
    return answer_refusal(error if isinstance(error, Refusal) else Refusal(500, "the server failed"))


async def _failed(request: Request, error: Exception) -> Response:
    return answer_refusal(refusal_of(error) if isinstance(error, DlnError) else Refusal(500, "the server failed"))


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    what = "this path does not take this method" if status == 405 else "there is no such path"
    return answer_refusal(Refusal(status, f"{what}: {request.method} {request.url.path}", None, "not_found"))
