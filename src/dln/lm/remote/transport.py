"""Requests to one base URL: the `openai` SDK builds them, `aiohttp` sends them, and no reply is taken for another.

The SDK builds the address and the headers once per path; every request to that path uses them again. The SDK is never
given the key: it is added to each request just before sending, so that no option, header table, exception or log line
of the SDK can hold it.

**Replies delivered twice.** HTTP/1.1 has no numbers by which a reply finds its request. A server or proxy that
delivers a reply twice would shift every later answer on that connection by one. Three rules prevent this:

- A kept connection on which bytes arrived between two requests is closed, not used.
- A copy that arrives after the next request was sent is known by its bytes: a reply that this connection has brought
  before, to another request or with an id, is not believed. The request is sent again over a new connection. A server
  whose new connection says the very same a few times gives equal replies to different requests; then bytes tell
  nothing, and it is believed from there on.
- After a refusal (status 300 and above) the connection is closed: refusals are alike, so a copy could not be told.
"""

from __future__ import annotations

import hashlib
import re
import select
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakKeyDictionary

import aiohttp
import httpx2
import yarl
from multidict import CIMultiDict

from dln.lm.remote.call import Reply, Silence
from dln.lm.remote.endpoint import Endpoint

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection as PooledConnection
    from aiohttp.tracing import Trace
    from openai import AsyncOpenAI

__all__ = ["Connection"]

_IDLE_SECONDS = 4.0  # many servers close idle connections after 5: do not race them
_REMEMBERED = 32  # replies per connection: copies come soon
_ALIKE = 3  # confirmations that a server gives equal replies to different requests
_GIVEN_LATER = "given-when-sent"
_IN_USE = -1
_OWN_HEADERS = {"authorization", "api-key", "content-length", "idempotency-key"}  # not shared by requests


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What all requests of one method to one path have in common, without the key."""

    method: str
    url: yarl.URL
    target: bytes
    headers: CIMultiDict[str]


class Connection:
    """Sends calls to one base URL over pooled connections; made and used on the background loop."""

    def __init__(self, endpoint: Endpoint, base_url: str) -> None:
        self.base_url = base_url
        self._root = base_url.removesuffix("/v1")
        self._transport = _Transport(endpoint, base_url)
        self._client = _sdk(endpoint, base_url)
        self._prepared: dict[tuple[str, bool], _Prepared] = {}

    async def send(self, path: str, payload: bytes | None) -> Reply | Silence:
        """Make one attempt; never raises for what the network or the server does.

        Args:
            path: as a `Call` has it.
            payload: JSON to post; None to get.
        """
        try:
            prepared = self._prepared.get((path, payload is None))
            if prepared is None:
                prepared = self._prepared[path, payload is None] = await self._prepare(path, get=payload is None)
            return await self._transport.send(prepared, payload)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return _silence(error, self._transport.read_seconds)

    async def _prepare(self, path: str, *, get: bool) -> _Prepared:
        url = self._root + path[1:] if path.startswith("//") else path
        if get:
            response = await self._client.get(url, cast_to=httpx2.Response)
        else:
            response = await self._client.post(url, cast_to=httpx2.Response, content=b"{}")
        request = response.request
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name not in _OWN_HEADERS)
        return _Prepared(request.method, yarl.URL(str(request.url), encoded=True), request.url.raw_path, headers)

    def begin_anew(self) -> None:
        """Close the connections that are idle now: what came over one of them was no answer."""
        self._transport.leave_idle()

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()


class _Builder(httpx2.AsyncBaseTransport):
    """Sends nothing: the request that the SDK built is taken from the empty response."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, request=request)


def _sdk(endpoint: Endpoint, base_url: str) -> AsyncOpenAI:
    from openai import AsyncAzureOpenAI, AsyncOpenAI

    http = httpx2.AsyncClient(transport=_Builder(), timeout=None, trust_env=False)
    if endpoint.azure is not None:
        return AsyncAzureOpenAI(
            azure_endpoint=base_url,
            azure_deployment=endpoint.azure.deployment,
            api_version=endpoint.azure.api_version,
            api_key=_GIVEN_LATER,
            max_retries=0,
            http_client=http,
        )
    return AsyncOpenAI(base_url=base_url, api_key=_GIVEN_LATER, max_retries=0, http_client=http)


def _silence(error: BaseException, read_seconds: float) -> Silence:
    reason = str(error) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()
    if isinstance(error, aiohttp.ClientSSLError):
        return Silence("no trust", reason)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Silence("connect", "no connection in time", True)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return Silence("connect", reason)
    if isinstance(error, TimeoutError):
        return Silence("read time-out", f"nothing came for {read_seconds:g} s", True)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return Silence("broken off", "the server broke off before it answered")
    return Silence("broken off", reason)


@dataclass(slots=True)
class _Past:
    """What one connection has brought.

    Attributes:
        epoch: that of the pool when the latest request was sent.
        ready: the epoch in which the connection was last found in order; `_IN_USE` until its reply was judged.
        brought: reply → request, as digests.
    """

    epoch: int
    ready: int = _IN_USE
    brought: OrderedDict[bytes, bytes] = field(default_factory=OrderedDict[bytes, bytes])

    def again(self, request: bytes, reply: _Raw) -> bool | None:
        """Remember this reply; whether it is an earlier one, delivered again, or None where that cannot be told.

        Equal requests may have equal replies where the server gives them no id. Such a reply answers this request
        in any case, but a second copy may follow it.
        """
        asked = _digest(request)
        came = _digest(repr(reply.headers).encode() + reply.body)
        earlier = self.brought.get(came)
        if earlier == asked and b'"id"' not in reply.body:
            return None
        self.brought[came] = asked
        if len(self.brought) > _REMEMBERED:
            self.brought.popitem(last=False)
        return earlier is not None


_used: ContextVar[_Past] = ContextVar("used")
"""The connection that the latest request of this task was sent over."""


class _Pool(aiohttp.TCPConnector):
    """Gives out new connections, and kept ones that are in order and silent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.epoch = 0
        self._pasts: WeakKeyDictionary[ResponseHandler, _Past] = WeakKeyDictionary()

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> PooledConnection:
        """Called by the session."""
        while True:
            connection = await super().connect(req, traces, timeout)
            handler = connection.protocol
            assert handler is not None  # noqa: S101 — of a connection that is open
            past = self._pasts.get(handler)
            if past is None:
                past = self._pasts[handler] = _Past(self.epoch)
            elif past.ready != self.epoch or not _silent(handler):
                connection.close()
                continue
            past.epoch, past.ready = self.epoch, _IN_USE
            _used.set(past)
            return connection


@dataclass(frozen=True, slots=True)
class _Raw:
    """A reply as it came; its body decompressed."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def reply(self) -> Reply:
        """With header names in lower case."""
        pairs = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in self.headers)
        return Reply(self.status, dict(pairs), self.body)


class _Transport:
    """Adds the key, sends over aiohttp, and doubts replies that came before."""

    def __init__(self, endpoint: Endpoint, base_url: str) -> None:
        patience = endpoint.patience
        self.read_seconds = patience.read_seconds
        self._endpoint = endpoint
        self._secure = base_url.lower().startswith("https:")
        self._proxy, self._proxy_auth = _proxy(base_url)
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=patience.connect_seconds, sock_read=patience.read_seconds
        )
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by whether connections are kept
        self._pool: _Pool | None = None  # of the connections that are kept
        self._alike = 0

    async def send(self, prepared: _Prepared, payload: bytes | None) -> Reply:
        """The complete reply.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: no connection, no complete reply in time, or no HTTP.
        """
        # a proxy may mix up the replies of several servers: no connection through one is used twice
        came, past = await self._exchange(prepared, payload, keep=self._proxy is None)
        if past is not None and came.status < 300:
            again = False if self._alike >= _ALIKE else past.again(prepared.target + (payload or b""), came)
            if again:
                doubted = came.body
                came, _ = await self._exchange(prepared, payload, keep=False)
                self._alike += came.status < 300 and came.body == doubted
            elif again is not None:
                past.ready = past.epoch
        return came.reply()

    def leave_idle(self) -> None:
        """Use no connection again that is idle now."""
        if self._pool is not None:
            self._pool.epoch += 1

    async def close(self) -> None:
        """Close all connections."""
        while self._sessions:
            await self._sessions.popitem()[1].close()
        self._pool = None

    def _session(self, *, keep: bool) -> aiohttp.ClientSession:
        if keep not in self._sessions:
            tls = httpx2.create_ssl_context() if self._secure else True
            if keep:
                connector = self._pool = _Pool(limit=0, ssl=tls, keepalive_timeout=_IDLE_SECONDS)
            else:
                connector = aiohttp.TCPConnector(limit=0, ssl=tls, force_close=True)
            self._sessions[keep] = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=self._timeout
            )
        return self._sessions[keep]

    async def _exchange(self, prepared: _Prepared, payload: bytes | None, *, keep: bool) -> tuple[_Raw, _Past | None]:
        async with self._session(keep=keep).request(
            prepared.method,
            prepared.url,
            headers=self._headers(prepared),
            data=payload,
            allow_redirects=False,
            proxy=self._proxy,
            proxy_auth=self._proxy_auth,
        ) as response:
            body = await response.read()
        return _Raw(response.status, response.raw_headers, body), _used.get() if keep else None

    def _headers(self, prepared: _Prepared) -> CIMultiDict[str]:
        """Those of the request, with the key and the extra ones."""
        endpoint, headers = self._endpoint, prepared.headers.copy()
        if endpoint.key is not None:
            key = endpoint.key.get_secret_value()
            name, value = ("api-key", key) if endpoint.azure is not None else ("authorization", f"Bearer {key}")
            headers[name] = value
        for name, value in endpoint.headers.items():
            headers[name] = value.get_secret_value()
        return headers


def _proxy(base_url: str) -> tuple[str | None, aiohttp.BasicAuth | None]:
    """The proxy that the environment names for this address."""
    parts = urlsplit(base_url)
    named = getproxies()
    found = named.get(parts.scheme) or named.get("all")
    if not found or proxy_bypass(parts.hostname or ""):
        return None, None
    url = yarl.URL(found if "://" in found else f"http://{found}")
    auth = None if url.user is None else aiohttp.BasicAuth(url.user, url.password or "")
    return str(url.with_user(None)), auth


def _silent(handler: ResponseHandler) -> bool:
    """Whether nothing has come since the last reply: nothing parsed, nothing waiting, the end included."""
    socket = None if handler.transport is None else handler.transport.get_extra_info("socket")
    if socket is None or socket.fileno() < 0 or handler.should_close:
        return False
    if not hasattr(select, "poll"):
        return not select.select([socket.fileno()], [], [], 0)[0]
    waiting = select.poll()
    waiting.register(socket.fileno(), select.POLLIN)
    return not waiting.poll(0)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
