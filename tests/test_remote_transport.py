"""Sending calls to a real server: order, merging, bounds, faults, what is kept when one call fails."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dln.errors import ContextLengthError, DlnError, ProviderError
from dln.lm.remote.call import (
    AuthenticationFailed,
    BadRequest,
    Call,
    DeadlinePassed,
    MalformedReply,
    ModelNotFound,
    QuotaExhausted,
    RateLimited,
    Reply,
    ServerFailed,
    ServerUnreachable,
    Silence,
)
from dln.lm.remote.endpoint import Azure, Patience, endpoint_of
from dln.lm.remote.sender import HttpSender
from dln.lm.remote.transport import Connection
from remote_scripted_server import Asked, ScriptedServer, http, ok

QUICK = Patience(
    connect_seconds=1,
    read_seconds=0.5,
    deadline_seconds=20,
    unreachable_seconds=0.5,
    longest_wait_seconds=3,
    max_retries=4,
)


@contextmanager
def sending(*urls: str, patience: Patience = QUICK, **options: Any) -> Iterator[HttpSender]:
    sender = HttpSender(endpoint_of("m", urls, patience=patience, **{"key_needed": False, **options}))
    try:
        yield sender
    finally:
        sender.close()


def number(call: Call, reply: Any) -> int:
    if not isinstance(reply, dict) or "i" not in reply:
        raise MalformedReply("no number", got=reply)
    return int(reply["i"])


def echo(asked: Asked) -> bytes:
    return ok({"i": asked.body["i"]})


def calls(count: int, **options: Any) -> list[Call]:
    return [Call("/completions", {"i": i}, **options) for i in range(count)]


def failing_first(times: int, fault: bytes | None) -> Any:
    """A script that gives each call `times` faults, then the answer."""
    seen: Counter[int] = Counter()

    def script(asked: Asked) -> bytes | None:
        seen[asked.body["i"]] += 1
        return fault if seen[asked.body["i"]] <= times else echo(asked)

    return script


def test_order_is_that_of_the_calls_whatever_the_order_of_completion() -> None:
    delays = [(37 * i % 100) / 2000 for i in range(100)]

    async def script(asked: Asked) -> bytes:
        await asyncio.sleep(delays[asked.body["i"]])
        return echo(asked)

    with ScriptedServer(script) as server, sending(server.url) as sender:
        assert sender.send(calls(100), number) == list(range(100))
        assert sorted(asked.body["i"] for asked in server.asked) == list(range(100))  # nothing twice


@pytest.mark.parametrize("bound", [1, 3, 16])
def test_in_flight_never_exceeds_the_bound(bound: int) -> None:
    async def script(asked: Asked) -> bytes:
        await asyncio.sleep(0.004)
        return echo(asked)

    patience = Patience(max_concurrency=bound)
    with ScriptedServer(script) as server, sending(server.url, patience=patience) as sender:
        threads = [threading.Thread(target=sender.send, args=(calls(60, draws=True), number)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_in_flight <= bound
        assert sender.traffic().concurrency == {server.url: bound}
        assert len(server.asked) == 180


def test_equal_calls_in_flight_are_one_unless_they_draw() -> None:
    async def script(asked: Asked) -> bytes:
        await asyncio.sleep(0.05)
        return ok({"i": asked.number})

    with ScriptedServer(script) as server, sending(server.url) as sender:
        same = [Call("/completions", body) for body in [{"a": 1, "b": 2}, {"b": 2, "a": 1}] * 4]
        assert len(set(sender.send(same, number))) == 1
        assert len(server.asked) == 1
        assert sender.traffic().merged == 7
        drawn = sender.send([Call("/completions", {"a": 1}, draws=True)] * 5, number)
        assert len(set(drawn)) == 5
        assert len(server.asked) == 6
        found: list[list[int]] = []
        threads = [threading.Thread(target=lambda: found.append(sender.send(same[:1], number))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6
        assert len({tuple(values) for values in found}) == len(server.asked) - 6 < 6


def test_heavier_calls_are_sent_first() -> None:
    with ScriptedServer(echo) as server, sending(server.url, patience=Patience(max_concurrency=1)) as sender:
        weights = [3, 1, 4, 1, 5, 9, 2, 6]
        sender.send([Call("/completions", {"i": i}, weight=w) for i, w in enumerate(weights)], number)
        sent = [weights[asked.body["i"]] for asked in server.asked]
        assert sent == sorted(weights, reverse=True)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (http(429, '{"error":{"message":"slow down"}}'), "429"),
        (http(429, "", {"Retry-After": "0"}), "429"),
        (http(408, ""), "408"),
        (http(500, "oops"), "500"),
        (http(502, "<html>Bad gateway</html>"), "502"),
        (http(503, "", {"Retry-After": "0"}), "503"),
        (http(504, ""), "504"),
        (http(529, '{"error":"overloaded"}'), "529"),
        (http(200, "<html><body>Sign in</body></html>", {"Content-Type": "text/html"}), "malformed"),
        (http(200, '{"i": 1, "j": '), "malformed"),
        (http(200, ""), "malformed"),
        (http(200, '{"choices": []}'), "malformed"),
        (http(200, '{"i": 1}', length=500), "broken off"),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"i":', "broken off"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "broken off"),
        (None, "broken off"),
    ],
)
def test_passing_faults_are_survived_and_counted(fault: bytes | None, cause: str) -> None:
    with ScriptedServer(failing_first(1, fault)) as server, sending(server.url) as sender:
        assert sender.send(calls(3), number) == [0, 1, 2]
        assert sender.traffic().retries == {cause: 3}
        assert len(server.asked) == sender.traffic().calls == 6
        assert sender.traffic().replies == 3


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, '{"error":{"message":"Incorrect API key provided"}}', AuthenticationFailed),
        (403, "forbidden", AuthenticationFailed),
        (404, '{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}', ModelNotFound),
        (400, '{"error":{"message":"unknown field"}}', BadRequest),
        (422, '{"detail":[{"msg":"field required"}]}', BadRequest),
        (429, '{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}', QuotaExhausted),
        (402, '{"error":"no credit"}', QuotaExhausted),
        (301, "", BadRequest),
        (400, '{"error":{"code":"context_length_exceeded","message":"too long"}}', ContextLengthError),
        (400, '{"message":"This model\'s maximum context length is 8 tokens."}', ContextLengthError),
        (
            400,
            '{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it",'
            '"type":"exceed_context_size_error"}}',
            ContextLengthError,
        ),
        (
            400,
            '{"error":{"message":"The input (9000 tokens) is longer than the model\'s context length (8192 tokens)."}}',
            ContextLengthError,
        ),
        (400, "Requested token count exceeds the model's maximum context length of 8192 tokens.", ContextLengthError),
    ],
)
def test_lasting_faults_fail_at_once_with_their_type(status: int, body: str, error: type[DlnError]) -> None:
    with ScriptedServer(lambda asked: http(status, body)) as server, sending(server.url) as sender:
        begun = time.monotonic()
        with pytest.raises(error) as caught:
            sender.send(calls(1), number)
        assert time.monotonic() - begun < 2
        assert len(server.asked) == 1
        assert str(status) in str(caught.value.got)
        assert server.url in str(caught.value)
        assert caught.value.expected
        assert caught.value.fix


def test_faults_that_do_not_pass_are_given_up_after_the_retries() -> None:
    patience = Patience(max_retries=2)
    with ScriptedServer(lambda asked: http(500, "broken")) as server, sending(server.url, patience=patience) as sender:
        with pytest.raises(ServerFailed, match="broken"):
            sender.send(calls(1), number)
        assert len(server.asked) == 3
    with ScriptedServer(lambda asked: http(200, "{}")) as server, sending(server.url) as sender:
        with pytest.raises(MalformedReply):
            sender.send(calls(1), number)
        assert len(server.asked) == 4


def test_a_bug_in_a_reader_is_raised_as_it_is() -> None:
    with ScriptedServer(echo) as server, sending(server.url) as sender:
        with pytest.raises(ZeroDivisionError):
            sender.send(calls(2), lambda call, reply: 1 // 0)
        assert sender.send(calls(2), number) == [0, 1]  # the sender lives on


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with sending(url) as sender:
            begun = time.monotonic()
            with pytest.raises(ServerUnreachable, match="is the server running") as caught:
                sender.send(calls(5), number)
            assert time.monotonic() - begun < 3
            assert url in str(caught.value)
            assert sender.traffic().retries["connect"] >= 1


def test_a_server_that_comes_late_is_waited_for() -> None:
    with ScriptedServer(echo) as first:
        port = first.port
    late = ScriptedServer(echo, port=port)
    timer = threading.Timer(0.5, late.__enter__)
    timer.start()
    with sending(f"http://127.0.0.1:{port}/v1", patience=Patience(unreachable_seconds=5)) as sender:
        assert sender.send(calls(3), number) == [0, 1, 2]
    late.__exit__(None, None, None)


def test_one_slow_connect_is_tried_again_even_if_it_took_longer_than_unreachable_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send, failures = Connection.send, [Silence("connect", "no connection in time", True)]

    async def slow_first(self: Connection, path: str, payload: bytes | None) -> Reply | Silence:
        if failures:
            failure = failures.pop()
            await asyncio.sleep(0.6)
            return failure
        return await send(self, path, payload)

    monkeypatch.setattr(Connection, "send", slow_first)
    with ScriptedServer(echo) as server, sending(server.url) as sender:
        assert QUICK.unreachable_seconds < 0.6
        assert sender.send(calls(1), number) == [0]
        assert sender.traffic().retries == {"connect": 1}


def test_read_time_out_is_asked_again() -> None:
    async def script(asked: Asked) -> bytes:
        await asyncio.sleep(5 if asked.number == 0 else 0)
        return echo(asked)

    with ScriptedServer(script) as server, sending(server.url) as sender:
        assert sender.send(calls(1), number) == [0]
        assert sender.traffic().retries == {"read time-out": 1}
        assert sender.traffic().time_outs == 1


def test_a_slow_body_is_no_time_out_but_the_deadline_holds() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for byte in http(200, '{"i": 0}'):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    class Dripping(ScriptedServer):
        _serve = staticmethod(drip)

    with Dripping(echo) as server:
        with sending(server.url, patience=Patience(read_seconds=0.3)) as sender:
            assert sender.send(calls(1), number) == [0]
        patience = Patience(read_seconds=0.3, deadline_seconds=0.2)
        with sending(server.url, patience=patience) as sender:
            begun = time.monotonic()
            with pytest.raises(DeadlinePassed):
                sender.send(calls(1), number)
            assert time.monotonic() - begun < 2


def test_retry_after_is_honoured_and_capped() -> None:
    wait = http(429, "", {"Retry-After": "1"})
    with ScriptedServer(failing_first(1, wait)) as server, sending(server.url) as sender:
        assert sender.send(calls(1), number) == [0]
        assert server.asked[1].at - server.asked[0].at >= 1.0
    hour = http(429, "", {"Retry-After": "3600"})
    with ScriptedServer(lambda asked: hour) as server, sending(server.url) as sender:
        with pytest.raises(RateLimited, match="3600"):
            sender.send(calls(1), number)
        assert len(server.asked) == 1


def test_when_one_fails_the_others_end_and_what_came_is_kept() -> None:
    async def script(asked: Asked) -> bytes:
        if asked.body["i"] == 5:
            await asyncio.sleep(0.05)
            return http(400, "no")
        return echo(asked)

    kept: dict[int, int] = {}
    patience = Patience(max_concurrency=4)
    with ScriptedServer(script) as server, sending(server.url, patience=patience) as sender:
        with pytest.raises(BadRequest):
            sender.send(calls(5000), number, on_reply=kept.__setitem__)
        assert len(server.asked) < 5000
        answered = {asked.body["i"] for asked in server.asked} - {5}
        assert set(kept) == answered  # every paid reply was handed over
        assert all(index == value for index, value in kept.items())
        at_rest = len(server.asked)
        time.sleep(0.1)
        assert len(server.asked) == at_rest  # nothing runs on


def test_waits_are_not_sat_out_when_another_call_has_failed() -> None:
    def script(asked: Asked) -> bytes:
        return http(400, "no") if asked.body["i"] == 1 else http(500, "later")

    patience = Patience(max_retries=50)
    with ScriptedServer(script) as server, sending(server.url, patience=patience) as sender:
        begun = time.monotonic()
        with pytest.raises(BadRequest):
            sender.send(calls(2), number)
        assert time.monotonic() - begun < 2


def test_a_waiter_takes_over_when_the_caller_it_waits_on_is_stopped() -> None:
    async def script(asked: Asked) -> bytes:
        if asked.body["i"] == 99:
            await asyncio.sleep(0.1)
            return http(400, "no")
        await asyncio.sleep(0.3)
        return http(500, "") if asked.number <= 1 else echo(asked)

    with ScriptedServer(script) as server, sending(server.url) as sender:

        def fail() -> None:
            with pytest.raises(BadRequest):
                sender.send([*calls(1), *calls(100)[99:]], number)

        failing = threading.Thread(target=fail)
        failing.start()
        time.sleep(0.05)
        found = sender.send(calls(1), number)
        failing.join()
        assert found == [0]


def test_keys_and_headers_reach_the_server_and_paths_are_right() -> None:
    with ScriptedServer(lambda asked: ok({"i": 0})) as server:
        with sending(server.url, api_key="sk-abc", headers={"X-Team": "blue"}) as sender:
            sender.send([Call("/models"), Call("//tokenize", {"i": 1}), Call("/completions", {"i": 1})], number)
            found = {(asked.method, asked.path) for asked in server.asked}
            assert found == {("GET", "/v1/models"), ("POST", "/tokenize"), ("POST", "/v1/completions")}
            for asked in server.asked:
                assert asked.headers["authorization"] == "Bearer sk-abc"
                assert asked.headers["x-team"] == "blue"
        with sending(server.url) as sender:
            sender.send(calls(1), number)
            assert "authorization" not in server.asked[-1].headers
        address = server.url.removesuffix("/v1")
        with sending(address, api_key="sk-az", azure=Azure("deployed", "2025-01-01")) as sender:
            sender.send([Call("/chat/completions", {"model": "m", "i": 1})], number)
            asked = server.asked[-1]
            assert asked.path == "/openai/deployments/deployed/chat/completions?api-version=2025-01-01"
            assert asked.headers["api-key"] == "sk-az"
            assert "authorization" not in asked.headers


def test_bodies_of_all_kinds_are_read() -> None:
    packed = gzip.compress(b'{"i": 7}')
    kinds = [
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"i\r\n5;x=y\r\n": 7}\r\n0\r\n\r\n',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"i": 7}\r\n0\r\nTrailer: x\r\n\r\n',
        b'HTTP/1.1 200 OK\r\n\r\n{"i": 7}',
        b'HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\n{"i": 7}',
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"i": 7}',
        http(200, packed, {"Content-Encoding": "gzip"}),
        http(200, '{"i": 7}', {"Connection": "close"}),
    ]
    patience = Patience(max_concurrency=1, max_retries=0)
    with (
        ScriptedServer(lambda asked: kinds[asked.number % len(kinds)]) as server,
        sending(server.url, patience=patience) as sender,
    ):
        assert sender.send(calls(3 * len(kinds)), number) == [7] * (3 * len(kinds))


def test_it_works_inside_a_running_loop_and_not_inside_its_own() -> None:
    with ScriptedServer(echo) as server, sending(server.url) as sender:

        async def notebook() -> list[int]:
            return sender.send(calls(3), number)

        assert asyncio.run(notebook()) == [0, 1, 2]
        with pytest.raises(RuntimeError, match="cannot send"):
            sender.send(calls(1), lambda call, reply: sender.send(calls(1), number))


def test_nothing_to_send_starts_nothing() -> None:
    with sending("http://127.0.0.1:9/v1") as sender:
        assert sender.send([], number) == []
        assert sender.traffic().calls == 0


PROGRAM = """
import os, sys, time, warnings
warnings.simplefilter("error")
from dln.lm.remote.call import Call
from dln.lm.remote.endpoint import Patience, endpoint_of
from dln.lm.remote.sender import HttpSender
sender = HttpSender(endpoint_of("m", [sys.argv[1]], key_needed=False, patience=Patience(max_concurrency=4)))
calls = [Call("/completions", {"i": i}) for i in range(8)]
read = lambda call, reply: reply["i"]
"""


def test_ctrl_c_ends_a_send_at_once_and_loses_no_reply() -> None:
    async def script(asked: Asked) -> bytes:
        await asyncio.sleep(0 if asked.body["i"] < 2 else 60)
        return echo(asked)

    program = PROGRAM + (
        "kept = {}\n"
        "try:\n    sender.send(calls, read, on_reply=kept.__setitem__)\n"
        "except KeyboardInterrupt:\n    print(sorted(kept)); sys.exit(130)\n"
    )
    with ScriptedServer(script) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", program, server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while len(server.asked) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - begun < 10
        assert process.returncode == 130, err
        assert out.split() == ["[0,", "1]"]
        assert not err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_anew_and_the_end_is_silent() -> None:
    program = PROGRAM + (
        "assert sender.send(calls, read) == list(range(8))\n"
        "warnings.simplefilter('ignore')\n"  # newer Pythons warn of any fork beside a thread
        "child = os.fork()\n"
        "warnings.simplefilter('error')\n"
        "assert sender.send(calls, read) == list(range(8))\n"
        "if not child:\n    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\nprint('both')\n"
    )
    with ScriptedServer(echo) as server:
        done = subprocess.run(
            [sys.executable, "-c", program, server.url], capture_output=True, text=True, timeout=100, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "both\n", "")
        assert len(server.asked) == 24


def test_lone_surrogates_and_any_text_arrive_whole() -> None:
    texts = ["\ud800 half", "中文 🎈", "\x00\x1f", '"quoted"\\']
    with (
        ScriptedServer(lambda asked: ok({"i": texts.index(asked.body["prompt"])})) as server,
        sending(server.url) as sender,
    ):
        assert sender.send([Call("/completions", {"prompt": text}) for text in texts], number) == [0, 1, 2, 3]


def test_traffic_counts_bytes_and_latency() -> None:
    with ScriptedServer(echo) as server, sending(server.url) as sender:
        sender.send(calls(10), number)
        traffic = sender.traffic()
        assert traffic.bytes_sent == sum(len(json.dumps(a.body, separators=(",", ":"))) for a in server.asked)
        assert traffic.bytes_received == sum(len(json.dumps({"i": i})) for i in range(10))
        assert traffic.latency_p50 is not None
        assert traffic.latency_p95 is not None
        assert 0 < traffic.latency_p50 <= traffic.latency_p95
        assert 8 <= traffic.concurrency[server.url] <= 64
        assert traffic.left_alone == ()


def test_the_error_of_a_merged_call_reaches_all_who_waited() -> None:
    async def script(asked: Asked) -> bytes:
        await asyncio.sleep(0.1)
        return http(400, "no")

    with ScriptedServer(script) as server, sending(server.url) as sender:
        found: list[ProviderError] = []

        def ask() -> None:
            with pytest.raises(BadRequest) as caught:
                sender.send(calls(1), number)
            found.append(caught.value)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == len({id(error) for error in found}) == 4
