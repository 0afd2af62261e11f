"""A real HTTP server for tests, with faults on a script: sockets, so that resets and half bodies are real.

with FaultServer() as server:
    server.play("503", first_of_each)
    … http://127.0.0.1:port/v1 …
    server.calm()

python tests/fault_server.py --port 8000 --fault "429 without Retry-After" --every 3
"""

from __future__ import annotations

import argparse
import asyncio
import json
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from fault_replies import Manners, Refusal, answer
from fault_scripts import FAULTS, Exchange, Fault, Reply, When, always, every, first, good_reply

__all__ = ["FaultServer", "Seen"]

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
BACKLOG = 128
GENERATING = ("/v1/completions", "/v1/chat/completions")


@dataclass(frozen=True)
class Seen:
    """A request that has arrived.

    Attributes:
        fault: the name of what was played on it; empty where it was answered well.
        at: seconds on the monotonic clock.
    """

    method: str
    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    fault: str
    at: float


@dataclass
class _Script:
    name: str
    fault: Fault
    when: When
    paths: tuple[str, ...]
    number: int = 0
    attempts: Counter[str] = field(default_factory=Counter)


class FaultServer:
    """Serves until closed, from a thread of its own.

    Args:
        manners: what it can do when nothing is played.
        latency: seconds before each reply.
        port: 0 = any free port.
        keep_alive: whether a connection serves more than one request.

    Attributes:
        seen: every request, in the order of arrival.
        in_flight: the most requests that were being answered at once.
    """

    def __init__(
        self, manners: Manners | None = None, *, latency: float = 0.0, port: int = 0, keep_alive: bool = True
    ) -> None:
        self.manners = manners or Manners()
        self.latency = latency
        self.keep_alive = keep_alive
        self.seen: list[Seen] = []
        self.in_flight = 0
        self._now = 0
        self._scripts: list[_Script] = []
        self._listener = _listener(port)
        self.port: int = self._listener.getsockname()[1]
        self._stuffing: list[socket.socket] = []
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._serve, name="fault server", daemon=True)
        self._accepting: asyncio.Future[None] | None = None
        self._stopping = self._open = asyncio.Event()

    @property
    def root(self) -> str:
        """Without the trailing /v1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What a client is given."""
        return f"{self.root}/v1"

    def play(self, name: str, when: When = always, paths: tuple[str, ...] = GENERATING) -> None:
        """From now on play a fault on the requests that `when` picks among those to `paths` (empty: all)."""
        self._scripts.append(_Script(name, FAULTS[name], when, paths))

    def calm(self) -> None:
        """No more faults."""
        self._scripts.clear()

    def asked(self, paths: tuple[str, ...] = GENERATING) -> list[Seen]:
        """The requests to `paths` so far."""
        return [seen for seen in self.seen if seen.path in paths]

    def close_door(self) -> None:
        """No connection can be made: the queue of the port is full, and the kernel ignores who knocks.

        Connections that are open already go on.
        """
        closed = threading.Event()
        self._call(lambda: (self._open.clear(), closed.set()))
        closed.wait(5)
        self._listener.listen(0)
        waiting = 0
        while waiting < 2:  # two in a row that are not let in: the queue is full and stays so
            extra = socket.socket()
            extra.setblocking(False)
            with suppress(BlockingIOError):
                extra.connect(("127.0.0.1", self.port))
            waiting = 0 if select.select([], [extra], [], 0.05)[1] else waiting + 1
            self._stuffing.append(extra)

    def open_door(self) -> None:
        """Connections can be made again."""
        for extra in self._stuffing:
            extra.close()
        self._stuffing.clear()
        if self._listener.fileno() >= 0:
            self._listener.listen(BACKLOG)
            self._call(self._open.set)

    def stop_listening(self) -> None:
        """Nothing is there: connections are refused, and those that are open go on."""
        closed = threading.Event()

        def close() -> None:
            self._open.clear()
            if self._accepting is not None:
                self._loop.remove_reader(self._listener)
                self._accepting.cancel()
            self._loop.call_soon(lambda: (self._listener.close(), closed.set()))

        self._call(close)
        closed.wait(5)

    def listen_again(self) -> None:
        """The server is back, at the same port."""
        self._listener = _listener(self.port)
        self._call(self._open.set)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.open_door()
        self._call(self._stopping.set)
        self._thread.join(10)
        self._listener.close()
        self._loop.close()

    def _call(self, action: Any) -> None:
        self._loop.call_soon_threadsafe(action)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._stopping, self._open = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._loop.run_until_complete(self._accept())

    async def _accept(self) -> None:
        stop = asyncio.ensure_future(self._stopping.wait())
        while not stop.done():
            gate = asyncio.ensure_future(self._open.wait())
            await asyncio.wait({gate, stop}, return_when=asyncio.FIRST_COMPLETED)
            gate.cancel()
            if stop.done():
                break
            if not self._open.is_set():
                continue  # closed after the gate had let us through: the listener is about to be, too
            # Not `sock_accept`: what it has accepted at the moment when it is cancelled would be left open.
            self._accepting = accepting = self._loop.create_future()
            listener = self._listener
            self._loop.add_reader(listener, lambda done=accepting: done.done() or done.set_result(None))
            await asyncio.wait({accepting, stop}, return_when=asyncio.FIRST_COMPLETED)
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener)
            if accepting.cancelled() or not accepting.done() or stop.done():
                continue
            with suppress(BlockingIOError):
                connection, _ = listener.accept()
                connection.setblocking(False)
                task = self._loop.create_task(self._connection(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, stop, return_exceptions=True)

    async def _connection(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the client has left
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; whether the connection may be used again."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return False
        method, path, _ = head[0].split(" ", 2)
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(content) if content else {}
        self._now += 1
        self.in_flight = max(self.in_flight, self._now)
        try:
            name, reply = self._reply(method, path.partition("?")[0], body, headers)
            self.seen.append(Seen(method, path.partition("?")[0], body, headers, name, time.monotonic()))
            await asyncio.sleep(self.latency)
            return await self._deliver(reply, reader, writer)
        finally:
            self._now -= 1

    def _reply(self, method: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[str, Reply]:
        def good() -> dict[str, Any]:
            return answer(self.manners, method, path, body)

        try:
            if self.manners.key is not None and headers.get("authorization") != f"Bearer {self.manners.key}":
                given = headers.get("authorization", "nothing").removeprefix("Bearer ")
                message = f"Incorrect API key provided: {given}."  # many servers repeat it
                raise Refusal(401, message, "invalid_request_error", "invalid_api_key")
            for script in self._scripts:
                if script.paths and path not in script.paths:
                    continue
                request = path + json.dumps(body, sort_keys=True)
                script.number += 1
                script.attempts[request] += 1
                exchange = Exchange(method, path, body, script.number, script.attempts[request], good, headers)
                if script.when(exchange):
                    return script.name, script.fault(exchange)
            return "", good_reply(Exchange(method, path, body, 0, 0, good))
        except Refusal as refusal:
            return "", Reply(refusal.status, json.dumps(refusal.body).encode())

    async def _deliver(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        fields = [*reply.headers, ("Content-Length", str(len(reply.body)))]
        if not self.keep_alive:
            fields.append(("Connection", "close"))
        start = f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Error')}\r\n"
        message = (start + "".join(f"{k}: {v}\r\n" for k, v in fields) + "\r\n").encode("latin-1") + reply.body
        half = message[: len(message) - (len(reply.body) + 1) // 2]
        if reply.delivery == "nothing":
            await reader.read(1)  # until the client leaves
            return False
        if reply.delivery == "reset":
            _reset(writer)
            return False
        if reply.delivery == "slow":
            size = max(1, round(0.02 * len(message) / reply.seconds))
            for at in range(0, len(message), size):
                writer.write(message[at : at + size])
                await writer.drain()
                await asyncio.sleep(0.02)
            return self.keep_alive
        writer.write(half if reply.delivery.startswith("half") else message)
        await writer.drain()
        if reply.delivery == "twice":
            writer.write(message)
        elif reply.delivery == "half then reset":
            await asyncio.sleep(0.02)  # let the first half arrive before the reset overtakes it
            _reset(writer)
        elif reply.delivery == "half then nothing":
            await reader.read(1)
        return self.keep_alive and reply.delivery in {"whole", "twice"}


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once and without goodbye: the peer gets "connection reset"."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main() -> None:
    """Serve from the command line until a signal."""
    parser = argparse.ArgumentParser(description="A model server that misbehaves on request.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--fault", choices=list(FAULTS))
    parser.add_argument("--every", type=int, default=1, help="play it on every k-th request")
    parser.add_argument("--first", type=int, help="play it on the first n requests only")
    wanted = parser.parse_args()
    with FaultServer(latency=wanted.latency, port=wanted.port) as server:
        if wanted.fault:
            server.play(wanted.fault, every(wanted.every) if wanted.first is None else first(wanted.first))
        print(server.base_url, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
