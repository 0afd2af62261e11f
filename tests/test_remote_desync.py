"""A reply that is delivered twice, at once or late, is never taken for the answer to another request."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from dln.lm.base import Sampling
from dln.lm.load import load_lm
from dln.lm.remote.call import Call
from dln.lm.remote.endpoint import Patience, endpoint_of
from dln.lm.remote.sender import HttpSender
from fault_language import Language, LanguageLM
from fault_scripts import every
from fault_server import FaultServer


class Twice:
    """Answers {"i": i} on kept connections; every third reply is sent again after `delay` seconds.

    Args:
        delay: None for the same segment.
        thinks: seconds before each reply.
        ids: whether replies bear an id, as those of real servers do.
    """

    def __init__(self, delay: float | None, thinks: float = 0.0, *, ids: bool = True) -> None:
        self.delay, self.thinks, self.ids = delay, thinks, ids
        self.targets: list[str] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        writing = threading.Lock()

        def send(data: bytes) -> None:
            try:
                with writing:
                    connection.sendall(data)
            except OSError:
                pass  # the client has left, as it should

        with connection, connection.makefile("rb") as lines:
            try:
                while first := lines.readline():
                    self._answer(first, lines, send)
            except OSError:
                return

    def _answer(self, first: bytes, lines: Any, send: Any) -> None:
        length = 0
        while (line := lines.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        asked = json.loads(lines.read(length))
        self.targets.append(first.split()[1].decode())
        number = len(self.targets)
        time.sleep(self.thinks)
        body = json.dumps({**({"id": f"cmpl-{number}"} if self.ids else {}), "i": asked["i"]}).encode()
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        if number % 3:
            send(reply)
        elif self.delay is None:
            send(reply + reply)
        else:
            send(reply)
            threading.Timer(self.delay, send, (reply,)).start()


@contextmanager
def asking(server: Twice, url: str | None = None, concurrency: int = 1) -> Generator[HttpSender]:
    patience = Patience(max_concurrency=concurrency, read_seconds=2)
    sender = HttpSender(endpoint_of("m", [url or f"http://{server.address}/v1"], patience=patience, key_needed=False))
    try:
        yield sender
    finally:
        sender.close()
        server.close()


def number(call: Call, reply: Any) -> int:
    return int(reply["i"])


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "no ids"])
@pytest.mark.parametrize("thinks", [0.0, 0.01], ids=["at once", "thinking"])
@pytest.mark.parametrize("delay", [None, 0.0, 0.001, 0.003, 0.008, 0.03])
def test_a_second_copy_is_never_another_requests_answer(delay: float | None, thinks: float, ids: bool):
    server = Twice(delay, thinks, ids=ids)
    with asking(server) as sender:
        calls = [Call("/completions", {"i": i // 2}, draws=True) for i in range(24)]
        assert sender.send(calls, number) == [i // 2 for i in range(24)]
        for i in range(6):  # with time in between
            assert sender.send([Call("/completions", {"i": i})], number) == [i]
            time.sleep(0.004)
    assert server.connections > 1


def test_a_server_that_says_the_same_to_all_is_asked_twice_a_few_times_only():
    server = Twice(delay=60.0, ids=False)
    with asking(server) as sender:
        calls = [Call("/completions", {"i": 7, "seed": i}) for i in range(20)]
        assert sender.send(calls, number) == [7] * 20
    assert len(server.targets) <= 24


def test_equal_draws_of_a_server_without_ids_are_asked_once_each():
    server = Twice(delay=60.0, ids=False)
    with asking(server) as sender:
        assert sender.send([Call("/completions", {"i": 7}, draws=True)] * 20, number) == [7] * 20
    assert len(server.targets) == 20


@pytest.mark.parametrize("delay", [None, 0.003])
def test_through_a_proxy_no_connection_is_used_twice(delay: float | None, monkeypatch: pytest.MonkeyPatch):
    proxy = Twice(delay)
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    monkeypatch.setenv("no_proxy", "")
    with asking(proxy, "http://models.example/v1") as sender:
        assert sender.send([Call("/completions", {"i": i}) for i in range(12)], number) == list(range(12))
    assert set(proxy.targets) == {"http://models.example/v1/completions"}
    assert proxy.connections == 12


def test_a_model_behind_such_a_server_says_what_it_says():
    truth = LanguageLM(Language())
    contexts, labels = [f"Input: box {i} broke\nLabel:" for i in range(20)], [" yes", " no", " deep thought of"]
    sampling = Sampling(temperature=1.0, max_tokens=4)
    with FaultServer() as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url, max_concurrency=1)
        drawn = [(draw.text, draw.token_ids) for draw in lm.sample(contexts, sampling, list(range(20)))]
        server.play("reply delivered twice", every(2), paths=())
        again = [(draw.text, draw.token_ids) for draw in lm.sample(contexts, sampling, list(range(20)))]
        masses = lm.choice_log_probs(contexts, labels)
    assert again == drawn
    assert masses == pytest.approx(truth.choice_log_probs(contexts, labels), abs=1e-9)
