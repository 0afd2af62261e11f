"""HTTP/1.1 over asyncio, whole replies only: the transport below the client, made for thousands of small calls.

A general pool looks at every connection for every request; here an idle connection is the top of a stack. Only what
model servers speak is spoken: a body of known length in; a body of known length, in chunks, or until the end of the
connection out. Redirects, proxies, compression and cookies are the client's affair.

A connection may bring a reply twice, and HTTP/1.1 has no numbers by which a reply finds its request: from then on
every answer would be the one before. So a connection on which bytes came that nobody asked for is never used again,
be they behind a whole reply, between two requests, or unread when the next one is about to be sent. A copy that
comes later than that is known by its bytes: what this connection has brought before, to another request or with an
id, is not believed, and the request is sent once more, over a new one. A server whose new connections say the very
same a few times simply says the same to different requests; its bytes tell nothing, and it is believed from then on.
"""

from __future__ import annotations

import asyncio
import hashlib
import select
import ssl
from collections import Counter, OrderedDict, defaultdict
from typing import cast

import httpx2

from dln.lm.remote.wire_reply import ReplyParser, WireError

__all__ = ["WireTransport"]

_IDLE_SECONDS = 4.0  # many servers close idle connections after 5: do not race them
_REMEMBERED = 256  # replies per connection: a copy comes late, but not so late
_ALIKE = 3  # confirmations that a server says the same to different requests


class WireTransport(httpx2.AsyncBaseTransport):
    """Sends requests over kept connections; used on one loop.

    Args:
        tls: certificates to trust, for https.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._idle: defaultdict[tuple[bytes, bytes, int | None], list[_Wire]] = defaultdict(list)
        self._open: set[_Wire] = set()
        self._alike: Counter[tuple[bytes, bytes, int | None]] = Counter()

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
        message = b"".join((*head, b"\r\n", body))
        wire = self._kept(origin) or await self._connect(url, limits.get("connect"))
        try:
            reply = await wire.exchange(message, limits.get("read"))
            if self._alike[origin] < _ALIKE and wire.brings_again(message, reply):
                self._leave(wire)
                doubted = bytes(reply.body)
                wire = await self._connect(url, limits.get("connect"))
                reply = await wire.exchange(message, limits.get("read"))
                wire.brings_again(message, reply)  # its first: remembered
                self._alike[origin] += int(reply.status < 300 and bytes(reply.body) == doubted)
        except TimeoutError:
            waited = f"nothing came for {limits.get('read') or 0:g} s"
            raise httpx2.ReadTimeout(waited, request=request) from None
        except (WireError, OSError) as error:
            raise httpx2.RemoteProtocolError(str(error), request=request) from None
        finally:
            if wire.reusable:
                wire.idle_since = wire.loop.time()
                self._idle[origin].append(wire)
            else:
                self._leave(wire)
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
            if wire.reusable and wire.loop.time() - wire.idle_since < _IDLE_SECONDS and wire.silent():
                return wire
            self._leave(wire)
        return None

    def leave_idle(self) -> None:
        """Close the connections that are idle."""
        for idle in self._idle.values():
            while idle:
                self._leave(idle.pop())

    def _leave(self, wire: _Wire) -> None:
        wire.abort()
        self._open.discard(wire)

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
        self._brought: OrderedDict[bytes, bytes] = OrderedDict()  # reply → request, as digests

    def silent(self) -> bool:
        """Whether nothing waits to be read, the end of the connection included."""
        socket = None if self._transport is None else self._transport.get_extra_info("socket")
        return socket is not None and socket.fileno() >= 0 and not _readable(socket.fileno())

    def brings_again(self, request: bytes, reply: ReplyParser) -> bool:
        """Whether this reply is an earlier one, delivered again; remembers it.

        Equal requests may have equal replies where the server gives them no id. Such a one is taken, since it is an
        answer to this request in any case; but the connection is not used again, because another may follow.
        """
        if reply.status >= 300:
            return False
        asked, came = _digest(request), _digest(repr((reply.status, reply.headers)).encode() + reply.body)
        earlier = self._brought.get(came)
        if earlier == asked and b'"id"' not in reply.body:
            self.reusable = False
            return False
        self._brought[came] = asked
        if len(self._brought) > _REMEMBERED:
            self._brought.popitem(last=False)
        return earlier is not None

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
            # a refusal may be repeated in the very same bytes, so that a copy could not be told: no more after it
            self.reusable = self._parser.kept and self._parser.status < 300
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


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _readable(descriptor: int) -> bool:
    if hasattr(select, "poll"):
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        return bool(waiting.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])
