"""A server that answers anything after a fixed time: `python -m benchmarks.remote_stub SECONDS SLOTS`.

It prints its port. Requests beyond its slots wait. It does as little per request as it can, so that a client, not
the server, is what is measured.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

__all__ = ["serve", "stub"]

_BODY = b'{"choices":[{"index":0,"text":" yes","finish_reason":"stop"}],"usage":{"prompt_tokens":9}}'
_REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


@contextmanager
def stub(seconds: float, slots: int) -> Generator[str]:
    """The base URL of a stub in a process of its own.

    Args:
        seconds: from when a request gets a slot until its reply.
        slots: requests at once.
    """
    command = [sys.executable, "-m", "benchmarks.remote_stub", str(seconds), str(slots)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 — ourselves
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


async def serve(seconds: float, slots: int) -> None:
    """Serve on a free port of the loopback, printed first, until the process ends."""
    queue = _Slots(seconds, slots)
    server = await asyncio.get_running_loop().create_server(lambda: _Client(queue), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


class _Slots:
    def __init__(self, seconds: float, slots: int) -> None:
        self._seconds, self._free = seconds, slots
        self._waiting: deque[_Client] = deque()

    def ask(self, client: _Client) -> None:
        if self._free:
            self._free -= 1
            asyncio.get_running_loop().call_later(self._seconds, self._answer, client)
        else:
            self._waiting.append(client)

    def _answer(self, client: _Client) -> None:
        self._free += 1
        client.answer()
        if self._waiting:
            self.ask(self._waiting.popleft())


class _Client(asyncio.Protocol):
    def __init__(self, slots: _Slots) -> None:
        self._slots = slots
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        _, named, rest = head.lower().partition(b"content-length:")
        if named and len(body) < int(rest.partition(b"\r\n")[0]):
            return
        self._buffer = b""
        self._slots.ask(self)

    def answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_REPLY)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), int(sys.argv[2])))
