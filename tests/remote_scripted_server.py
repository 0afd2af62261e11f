"""A real server on a socket that does what a test says, byte for byte: faults included."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

__all__ = ["Asked", "ScriptedServer", "http", "ok"]


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    at: float = field(default_factory=time.monotonic)


def http(status: int, body: bytes | str, headers: dict[str, str] | None = None, *, length: int | None = None) -> bytes:
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(content) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def ok(value: object) -> bytes:
    return http(200, json.dumps(value), {"Content-Type": "application/json"})


Script = Callable[[Asked], "bytes | Awaitable[bytes | None] | None"]


class ScriptedServer:
    """Answers each request with the bytes of `script`; None closes the connection without an answer."""

    def __init__(self, script: Script, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._port = port
        self._tls = tls
        self.asked: list[Asked] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """No connection is taken any more, those that stand are reset; once is enough."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        )
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client, or the test, is done
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(len(self.asked), method, path, headers, json.loads(body) if body else None)
        self.asked.append(asked)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            found = self._script(asked)
            answer = found if isinstance(found, bytes | None) else await found
        finally:
            self.in_flight -= 1
        if answer is None:
            return False
        writer.write(answer)
        await writer.drain()
        # a reply cut short, or one that ends with the connection, is the last there
        head, _, content = answer[answer.rfind(b"HTTP/1.") :].partition(b"\r\n\r\n")
        named = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        chunked = b"chunked" in head and answer.endswith(b"\r\n\r\n")
        return chunked or (bool(named) and int(named) == len(content))
