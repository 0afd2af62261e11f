"""The dashboard as an ASGI application: its pages, the data of runs, live events, and requests to a running training.

Any web page in the user's browser can reach a server on the loopback device. So every request must name a Host that
this server was started as, an Origin, where there is one, must be the server itself, and all data and every request to
a training need a token, which only the printed address contains. Ids of runs are looked up in a table and are never
paths. The server asks no other server for anything.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dln.errors import DlnError, InputError
from dln.train.control import Request as Control
from dln.train.control import request as ask
from dln.train.events import Record
from dln.train.labels import Label, give_label, read_waiting
from dln.view.exports import export
from dln.view.folder import Folder, Named
from dln.view.follow import FollowedRun
from dln.view.records import example_rows, growth, label_page, listing, overview, step_page, to_json

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["HEADERS", "STATIC", "Guard", "build_app"]

STATIC = Path(__file__).parent / "static"
LARGEST_BODY = 512 * 1024
POLL_SECONDS = 0.2
STATE_SECONDS = 2.0
LOG = logging.getLogger("dln.view")
RecordT = TypeVar("RecordT", bound=Record)

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def build_app(folder: Folder, *, token: str, hosts: frozenset[str]) -> Starlette:
    """Build the application.

    Args:
        folder: the runs.
        token: what all requests for data must carry, as `Authorization: Bearer …`.
        hosts: the values of Host that are answered, with their ports.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route
    from starlette.staticfiles import StaticFiles

    paths = _Paths(folder)
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/static/report.css", _style),
            Route("/api/runs", paths.runs),
            Route("/api/runs/{id}", paths.run),
            Route("/api/runs/{id}/steps/{step:int}", paths.step),
            Route("/api/runs/{id}/examples", paths.examples),
            Route("/api/runs/{id}/events", paths.events),
            Route("/api/runs/{id}/control", paths.control, methods=["POST"]),
            Route("/api/runs/{id}/labels", paths.labels),
            Route("/api/runs/{id}/labels", paths.label, methods=["POST"]),
            Route("/api/runs/{id}/files/{name}", paths.file),
        ],
        middleware=[Middleware(Guard, token=token, hosts=hosts)],
        exception_handlers={DlnError: _failed, HTTPException: _refused},
    )
    app.state.stopping = lambda: False
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


class _Paths:
    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def runs(self, request: Request) -> Response:
        return _json({"runs": await asyncio.to_thread(self._folder.rows)})

    async def run(self, request: Request) -> Response:
        run = await self._read(request)
        return _json({"id": run.id, **await asyncio.to_thread(overview, run.source, run.name, run.command)})

    async def step(self, request: Request) -> Response:
        run = await self._read(request)
        page = await asyncio.to_thread(step_page, run.source, int(request.path_params["step"]))
        if page is None:
            raise InputError("this run has no such step", got=request.path_params["step"])
        return _json(page)

    async def examples(self, request: Request) -> Response:
        run = await self._read(request)
        return _json({"examples": example_rows(run.source.events())})

    async def file(self, request: Request) -> Response:
        from starlette.responses import Response

        run = await self._read(request)
        name = str(request.path_params["name"])
        kind, content = await asyncio.to_thread(export, run, name)
        return Response(content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})

    async def control(self, request: Request) -> Response:
        run = await self._read(request)
        asked = _read_body(Control, await request.body())
        state = listing(run.source, run.name)["state"]
        if run.source.folder is None or state not in ("running", "paused"):
            raise InputError("only a running training takes requests", where=run.name, got=state)
        number = await asyncio.to_thread(ask, run.source.folder, asked)
        return _json({"request": number}, 202)

    async def labels(self, request: Request) -> Response:
        run = await self._read(request)
        return _json(await asyncio.to_thread(label_page, run.source))

    async def label(self, request: Request) -> Response:
        run = await self._read(request)
        asked = _read_body(_Labelled, await request.body())
        waiting = [] if run.source.folder is None else read_waiting(run.source.folder)
        if run.source.folder is None or not 0 <= asked.number < len(waiting):
            raise InputError("there is no such input to label", got=str(asked.number))
        row = waiting[asked.number]
        given = Label(x=row.x, y=asked.y, predicted=row.predicted)
        await asyncio.to_thread(give_label, run.source.folder, given, tuple(row.probabilities))
        return _json({"number": asked.number, "y": asked.y}, 202)

    async def events(self, request: Request) -> Response:
        from sse_starlette import EventSourceResponse

        run = await self._read(request)
        after = request.query_params.get("after", "0")
        if not after.isascii() or not after.isdigit() or len(after) > 9:
            raise InputError("after must be a number of events", got=after)
        return EventSourceResponse(_stream(run, int(after), request.app.state.stopping), ping=15)

    async def _read(self, request: Request) -> Named:
        """The run of the address, read to its present end."""
        from starlette.exceptions import HTTPException

        run = await asyncio.to_thread(self._folder.get, str(request.path_params["id"]))
        if run is None:
            raise HTTPException(404, "there is no such run")
        await asyncio.to_thread(run.source.refresh)
        return run


async def _stream(run: Named, after: int, stopping: Callable[[], bool]) -> AsyncIterator[dict[str, str]]:
    """What a page that has `after` events needs: new rows, or the word to read the page again."""
    source, state, waited = run.source, "", STATE_SECONDS
    if not isinstance(source, FollowedRun):
        return
    while not stopping():
        if source.stale:
            await asyncio.to_thread(source.refresh)
        if source.count != after or waited >= STATE_SECONDS:
            fresh, waited = source.since(after), 0.0
            rows = growth(source, fresh) if fresh else {}
            now = str((await asyncio.to_thread(listing, source, run.name))["state"])
            if rows is None or source.count < after:
                yield {"event": "again", "data": json.dumps({"count": source.count, "state": now})}
            elif fresh or now != state:
                content = {**rows, "count": source.count, "state": now}
                yield {"event": "rows", "data": to_json(content).decode()}
            after, state = source.count, now
        await asyncio.sleep(POLL_SECONDS)
        waited += POLL_SECONDS


class _Labelled(Record):
    """A label for the input with that number; None takes it back."""

    number: int
    y: str | None


def _read_body(kind: type[RecordT], body: bytes) -> RecordT:
    from pydantic import ValidationError

    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            "this is no such request", got=f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error


async def _page(request: Request) -> Response:
    from starlette.responses import FileResponse

    return FileResponse(STATIC / "index.html")


async def _style(request: Request) -> Response:
    """The style sheet that the report has too."""
    from starlette.responses import FileResponse

    return FileResponse(STATIC.parent / "templates" / "style.css.j2", media_type="text/css")


def _json(content: object, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(to_json(content), status, media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    return _json({"error": error.message if isinstance(error, DlnError) else "failed"}, 400)


async def _refused(request: Request, error: Exception) -> Response:
    return _json({"error": str(getattr(error, "detail", error))}, int(getattr(error, "status_code", 404)))


class Guard:
    """ASGI middleware that checks Host, Origin, token, type and size of a request before it is read.

    Args:
        app: the application.
        token: of the requests for data.
        hosts: the values of Host that are answered.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: frozenset[str]) -> None:
        self._app, self._token, self._hosts = app, token.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return  # no websockets
        begun = False

        async def guarded(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = {name.encode(): value.encode() for name, value in HEADERS.items()}
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in own]
                message = {**message, "headers": [*kept, *own.items()]}
            await send(message)

        problem = self._problem(scope)
        if problem is not None:
            status, text = problem
            await _json({"error": text}, status)(scope, receive, guarded)
            return
        try:
            await self._app(scope, _limited(receive), guarded)
        except _TooLargeError:
            await _json({"error": "the body is too large"}, 413)(scope, receive, guarded)
        except Exception as error:
            LOG.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            if begun:
                raise
            await _json({"error": f"the server failed: {type(error).__name__}"}, 500)(scope, receive, guarded)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason why a request is refused; None for one that is not."""
        pairs = cast("list[tuple[bytes, bytes]]", scope["headers"])
        headers = {name.lower(): value for name, value in pairs}
        names = [name.lower() for name, _ in pairs]
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if names.count(b"host") != 1 or host not in self._hosts:
            return 403, "this Host is not served"
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            return 403, "this Origin is not served"
        if scope["path"].startswith("/api/"):
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                return 401, "the token is missing or wrong: open the address that dln view printed"
        if scope["method"] == "POST":
            if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
                return 415, "the body must be application/json"
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > LARGEST_BODY:
                return 413, "the body is too large"
        return None


class _TooLargeError(Exception):
    pass


def _limited(receive: Receive) -> Callable[[], Any]:
    read = 0

    async def limited() -> Any:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > LARGEST_BODY:
            raise _TooLargeError
        return message

    return limited
