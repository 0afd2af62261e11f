"""HTTP/1.1 over asyncio, whole replies only: the transport below the client, made for thousands of small calls.

A general pool looks at every connection for every request; here an idle connection is the top of a stack. Only what
model servers speak is spoken: a body of known length in; a body of known length, in chunks, or until the end of the
connection out. Redirects, proxies, compression and cookies are the client's affair.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from typing import cast

import httpx2

from dln.lm.remote.wire_reply import ReplyParser, WireError

__all__ = ["WireTransport"]

_IDLE_SECONDS = 4.0  # many servers close idle connections after 5: do not race them


class WireTransport(httpx2.AsyncBaseTransport):
    """Sends requests over kept connections; used on one loop.

    Args:
        tls: certificates to trust, for https.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._idle: defaultdict[tuple[bytes, bytes, int | None], list[_Wire]] = defaultdict(list)
        self._open: set[_Wire] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The whole reply.

        Raises:
            httpx2.TransportError: no connection, no reply in time, or a reply that is no HTTP.
        """
        url = request.url
        origin = (url.raw_scheme, url.raw_host, url.port)
        limits = cast("dict[str, float | None]", request.extensions.get("timeout", {}))
        body = await request.aread()
        head = [request.method.encode("ascii"), b" ", url.raw_path, b" HTTP/1.1\r\n"]
        for name, value in request.headers.raw:
            head += (name, b": ", value, b"\r\n")
        wire = self._kept(origin) or await self._connect(url, limits.get("connect"))
        try:
            reply = await wire.exchange(b"".join((*head, b"\r\n", body)), limits.get("read"))
        except TimeoutError:
            raise httpx2.ReadTimeout("nothing came for too long", request=request) from None
        except (WireError, OSError) as error:
            raise httpx2.RemoteProtocolError(str(error), request=request) from None
        finally:
            if wire.reusable:
                wire.idle_since = wire.loop.time()
                self._idle[origin].append(wire)
            else:
                wire.abort()
                self._open.discard(wire)
        return httpx2.Response(reply.status, headers=reply.headers, content=bytes(reply.body), request=request)

    async def aclose(self) -> None:
        """Close all connections and let the loop see it."""
        for wire in self._open:
            wire.abort()
        self._open.clear()
        self._idle.clear()
        await asyncio.sleep(0)

    def _kept(self, origin: tuple[bytes, bytes, int | None]) -> _Wire | None:
        idle = self._idle[origin]
        while idle:
            wire = idle.pop()
            if wire.reusable and wire.loop.time() - wire.idle_since < _IDLE_SECONDS:
                return wire
            wire.abort()
            self._open.discard(wire)
        return None

    async def _connect(self, url: httpx2.URL, seconds: float | None) -> _Wire:
        loop = asyncio.get_running_loop()
        secure = url.scheme == "https"
        if secure and self._tls is None:
            self._tls = httpx2.create_ssl_context()
        try:
            async with asyncio.timeout(seconds):
                _, wire = await loop.create_connection(
                    lambda: _Wire(loop),
                    url.host,
                    url.port or (443 if secure else 80),
                    ssl=self._tls if secure else None,
                )
        except TimeoutError:
            raise httpx2.ConnectTimeout("no connection in time") from None
        except OSError as error:
            raise httpx2.ConnectError(str(error)) from None
        self._open.add(wire)
        return wire


class _Wire(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.idle_since = 0.0
        self.reusable = False
        self._transport: asyncio.Transport | None = None
        self._parser = ReplyParser()
        self._answer: asyncio.Future[ReplyParser] | None = None
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def exchange(self, request: bytes, seconds: float | None) -> ReplyParser:
        """Send a request and wait for the whole reply, never `seconds` without a byte of it."""
        if self._transport is None or self._transport.is_closing():
            raise WireError("the server closed the connection")
        self.reusable = False
        self._parser = ReplyParser()
        self._answer = self.loop.create_future()
        self._heard = self.loop.time()
        self._timer = None if seconds is None else self.loop.call_at(self._heard + seconds, self._late, seconds)
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None
            if self._timer is not None:
                self._timer.cancel()

    def abort(self) -> None:
        """Close at once."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._answer is None or self._answer.done():
            self.abort()  # nobody asked
            return
        self._heard = self.loop.time()
        try:
            whole = self._parser.feed(data)
        except WireError as error:
            self._answer.set_exception(error)
            return
        if whole:
            self.reusable = self._parser.kept
            self._answer.set_result(self._parser)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.reusable = False
        if self._answer is None or self._answer.done():
            return
        if exc is None and self._parser.ended_by_close():
            self._answer.set_result(self._parser)
        else:
            why = "the server broke off" if exc is None else f"the connection broke off: {exc}"
            self._answer.set_exception(WireError(f"{why} {self._parser.progress()}"))

    def _late(self, seconds: float) -> None:
        if self._answer is None or self._answer.done():
            return
        due = self._heard + seconds
        if self.loop.time() >= due:
            self._answer.set_exception(TimeoutError())
        else:
            self._timer = self.loop.call_at(due, self._late, seconds)
