"""One replica's HTTP: the `openai` client with our time-outs and pool, no retries of its own, and no secrets in it.

The client is never given the key. The key is put on each request at the last moment, so that no option, header
table or log line of the client can hold it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dln.lm.remote.endpoint import Endpoint

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

    from dln.lm.remote.wire import WireTransport

__all__ = ["Connection", "Reply", "Silence"]

_GIVEN_LATER = "given-when-sent"
_SILENCES = {
    "ConnectTimeout": "no connection in time",
    "ReadTimeout": "nothing came for too long",
    "ReadError": "the connection was reset",
    "WriteError": "the connection was reset while the request was sent",
    "WriteTimeout": "the server took no more of the request",
}
"""What the client's own transport says with a type and no words."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, whole; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)  # may quote a key


@dataclass(frozen=True, slots=True)
class Silence:
    """Why no whole reply came: kind is "connect", "no trust" (TLS), "read time-out" or "broken off"."""

    kind: str
    reason: str
    timed_out: bool = False


class Connection:
    """Sends calls to one base URL; made and used on the background loop."""

    def __init__(self, endpoint: Endpoint, base_url: str) -> None:
        from dln.lm.remote.wire import WireTransport

        self.base_url = base_url
        self._root = base_url.removesuffix("/v1")
        self._wires = None if _through_proxy(base_url) else WireTransport()
        self._client = _client(endpoint, base_url, self._wires)

    async def send(self, path: str, payload: bytes | None) -> Reply | Silence:
        """One attempt: never raises for what the network or the server does.

        Args:
            path: as a `Call` has it.
            payload: JSON to post; None to get.
        """
        import httpx2
        from openai import APIConnectionError, APIStatusError

        url = self._root + path[1:] if path.startswith("//") else path
        try:
            if payload is None:
                response = await self._client.get(url, cast_to=httpx2.Response)
            else:
                response = await self._client.post(url, cast_to=httpx2.Response, content=payload)
        except APIStatusError as error:
            response = error.response
        except APIConnectionError as error:
            return _silence(error.__cause__)
        except httpx2.HTTPError as error:
            return _silence(error)
        return Reply(response.status_code, response.headers, response.content)

    def begin_anew(self) -> None:
        """Use no connection again that is idle now: what came over one of them was no answer."""
        if self._wires is not None:
            self._wires.leave_idle()

    async def close(self) -> None:
        """Close the pool."""
        await self._client.close()


def _silence(error: BaseException | None) -> Silence:
    import httpx2

    if isinstance(error, httpx2.ConnectError) and re.search("certificate|ssl|tls", str(error), re.IGNORECASE):
        return Silence("no trust", str(error))
    reason = str(error) or _SILENCES.get(type(error).__name__, type(error).__name__)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
        return Silence("connect", reason, isinstance(error, httpx2.ConnectTimeout))
    if isinstance(error, httpx2.TimeoutException):
        return Silence("read time-out", reason, True)
    return Silence("broken off", reason)


def _client(endpoint: Endpoint, base_url: str, wires: WireTransport | None) -> AsyncOpenAI:
    import httpx2
    from openai import AsyncAzureOpenAI, AsyncOpenAI

    patience = endpoint.patience
    http = httpx2.AsyncClient(
        auth=_auth(endpoint),
        timeout=httpx2.Timeout(patience.read_seconds, connect=patience.connect_seconds),
        # Through a proxy the client's own transport speaks, which cannot tell a reply delivered twice from the
        # answer to the next request. So it uses no connection twice, at the price of a handshake per call.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        transport=wires,
        follow_redirects=False,
    )
    if endpoint.azure is not None:
        return AsyncAzureOpenAI(
            azure_endpoint=base_url,
            azure_deployment=endpoint.azure.deployment,
            api_version=endpoint.azure.api_version,
            api_key=_GIVEN_LATER,
            max_retries=0,
            http_client=http,
        )
    return AsyncOpenAI(
        base_url=base_url,
        api_key=_GIVEN_LATER,
        max_retries=0,
        http_client=http,
    )


def _through_proxy(base_url: str) -> bool:
    """Whether the environment names a proxy for this address: then the client's own transport speaks to it."""
    parts = urlsplit(base_url)
    named = {"all", parts.scheme} & getproxies().keys()
    return bool(named) and not proxy_bypass(parts.hostname or "")


def _auth(endpoint: Endpoint) -> httpx2.Auth:
    import httpx2

    class Keyed(httpx2.Auth):
        """Adds key and extra headers."""

        def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
            request.headers.pop("Authorization", None)
            if endpoint.key is not None:
                if endpoint.azure is not None:
                    request.headers["api-key"] = endpoint.key.get_secret_value()
                else:
                    request.headers["Authorization"] = f"Bearer {endpoint.key.get_secret_value()}"
            for name, value in endpoint.headers.items():
                request.headers[name] = value.get_secret_value()
            yield request

    return Keyed()
