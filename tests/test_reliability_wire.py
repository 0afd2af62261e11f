"""Each fault of the fault server is on the wire what its name says."""

from __future__ import annotations

import json
import math
import re
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from fault_asking import CONTEXT, TARGET, ask, completion
from fault_scripts import FAULTS, after, every, first, first_of_each
from fault_server import FaultServer


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as serving:
        yield serving


def raw_bytes(server: FaultServer, patience: float = 1.0) -> tuple[bytes, str]:
    """What arrives for one request, byte by byte, and how it ends: "end", "reset" or "silence"."""
    body = json.dumps({"model": "tiny", "prompt": CONTEXT, "max_tokens": 1}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    got = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=patience) as connection:
        connection.sendall(head + body)
        try:
            while part := connection.recv(65536):
                got += part
        except TimeoutError:
            return got, "silence"
        except ConnectionResetError:
            return got, "reset"
    return got, "end"


def parts(got: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split(" ")[1]), fields, body


@pytest.mark.parametrize("name", [name for name in FAULTS if re.match(r"\d\d\d", name)])
def test_statuses(server: FaultServer, name: str):
    server.play(name)
    status, fields, body = parts(raw_bytes(server, 0.2)[0])
    assert status == int(name[:3])
    assert len(body) == int(fields["content-length"])
    if "seconds" in name:
        assert int(fields["retry-after"]) >= 1
    elif "date" in name:
        assert parsedate_to_datetime(fields["retry-after"]).timestamp() > time.time() - 1
    else:
        assert "retry-after" not in fields


@pytest.mark.parametrize(
    ("name", "end", "share"),
    [
        ("read time-out", "silence", 0.0),
        ("reset before the reply", "reset", 0.0),
        ("reset in the body", "reset", 0.5),
        ("body breaks off", "end", 0.5),
        ("body stalls", "silence", 0.5),
    ],
)
def test_broken_deliveries(server: FaultServer, name: str, end: str, share: float):
    server.play(name)
    got, ended = raw_bytes(server, 0.3)
    assert ended == end
    if not share:
        assert got == b""
    else:
        _, fields, body = parts(got)
        assert abs(len(body) - share * int(fields["content-length"])) <= 1


def test_a_slow_body_comes_in_pieces_and_whole(server: FaultServer):
    server.play("slow body")
    began = time.monotonic()
    reply = completion(server)
    assert 0.07 < time.monotonic() - began < 2
    assert reply["choices"]


def test_a_reply_delivered_twice_is_two_messages(server: FaultServer):
    server.play("reply delivered twice")
    got, _ = raw_bytes(server, 0.2)
    assert got.count(b"HTTP/1.1 200") == 2


def test_no_connection_can_be_made_while_the_door_is_closed(server: FaultServer):
    completion(server)
    server.close_door()
    for _ in range(2):
        with pytest.raises(TimeoutError), socket.create_connection(("127.0.0.1", server.port), timeout=0.2):
            pass
    server.open_door()
    completion(server)


def test_nothing_listens_until_the_server_is_back_at_its_port(server: FaultServer):
    completion(server)
    server.stop_listening()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            completion(server)
    server.listen_again()
    completion(server)


@pytest.mark.parametrize("name", ["truncated JSON", "malformed JSON", "HTML with status 200", "empty body"])
def test_bodies_that_are_no_json(server: FaultServer, name: str):
    server.play(name)
    status, fields, body = parts(raw_bytes(server, 0.2)[0])
    assert status == 200
    assert len(body) == int(fields["content-length"])
    assert fields["content-type"].startswith("text/html" if "HTML" in name else "application/json")
    with pytest.raises(ValueError, match=r"Expecting|line 1"):
        json.loads(body)


def scored(reply: Any) -> tuple[Any, Any, Any]:
    """The last prompt token's score in both forms, and the drawn token's."""
    choice, at = reply["choices"][0], reply["usage"]["prompt_tokens"] - 1
    columns = choice["logprobs"]["token_logprobs"]
    entry = choice["prompt_logprobs"][-1]
    return columns[at], next(iter(entry.values()))["logprob"] if entry else entry, columns[-1]


def same(got: object, value: object) -> bool:
    return repr(got) == repr(value)  # NaN is NaN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log-probs NaN", math.nan),
        ("log-probs +inf", math.inf),
        ("log-probs -inf", -math.inf),
        ("log-probs -9999", -9999.0),
        ("log-probs null", None),
        ("log-probs positive", 0.7),
        ("log-probs text", "-1.5"),
    ],
)
def test_values_that_are_no_log_probabilities(server: FaultServer, name: str, value: object):
    server.play(name)
    reply = completion(server, CONTEXT + TARGET, echo=True, logprobs=2, prompt_logprobs=0)
    for got in scored(reply):
        assert same(got, value)
    columns = reply["choices"][0]["logprobs"]
    assert columns["token_logprobs"][1] < 0  # only what may be a target is spoilt
    assert all(same(v, value) for v in columns["top_logprobs"][-1].values())


def test_shifted_missing_and_unechoed_scores(server: FaultServer):
    wanted = {"echo": True, "logprobs": 1, "prompt_logprobs": 0, "seed": 1, "max_tokens": 1}
    good = completion(server, CONTEXT + TARGET, **wanted)["choices"][0]
    server.play("log-probs shifted by one")
    bad = completion(server, CONTEXT + TARGET, **wanted)["choices"][0]
    assert bad["logprobs"]["token_logprobs"] == [*good["logprobs"]["token_logprobs"][1:], None]
    assert bad["logprobs"]["tokens"] == good["logprobs"]["tokens"]
    assert bad["prompt_logprobs"][:-1] == good["prompt_logprobs"][1:]
    server.calm()
    server.play("log-probs missing")
    bad = completion(server, CONTEXT + TARGET, **wanted)["choices"][0]
    assert len(bad["logprobs"]["token_logprobs"]) == len(good["logprobs"]["token_logprobs"]) - 1
    assert bad["prompt_logprobs"][-1] == {} or "logprob" not in next(iter(bad["prompt_logprobs"][-1].values()))
    server.calm()
    server.play("echo ignored")
    bad = completion(server, CONTEXT + TARGET, **wanted)["choices"][0]
    assert len(bad["logprobs"]["tokens"]) == 1
    assert CONTEXT + TARGET + bad["text"] == good["text"]
    assert bad["prompt_logprobs"] is None


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("empty choices", []),
        ("fewer choices than asked", [0, 1]),
        ("choices in wrong order", [2, 1, 0]),
        ("choices twice", [0, 0, 1, 1, 2, 2]),
    ],
)
def test_choices(server: FaultServer, name: str, indices: list[int]):
    server.play(name)
    assert [choice["index"] for choice in completion(server, n=3)["choices"]] == indices


def test_null_content_and_another_model(server: FaultServer):
    server.play("null content")
    assert completion(server)["choices"][0]["text"] is None
    server.calm()
    server.play("another model answers")
    assert completion(server)["model"] != "tiny"


@pytest.mark.parametrize(
    ("when", "played"),
    [
        (first(2), [1, 1, 0, 0, 0, 0]),
        (every(3), [0, 0, 1, 0, 0, 1]),
        (after(4), [0, 0, 0, 0, 1, 1]),
        (first_of_each, [1, 0, 1, 0, 0, 0]),
    ],
    ids=["first 2", "every 3rd", "after 4", "first of each"],
)
def test_scripts_say_when(server: FaultServer, when: Any, played: list[int]):
    server.play("503", when)
    prompts = ["a", "a", "b", "b", "a", "b"]
    got = [ask(server, body={"prompt": prompt, "max_tokens": 1})[0] for prompt in prompts]
    assert got == [503 if bad else 200 for bad in played]
    assert [bool(seen.fault) for seen in server.asked()] == list(map(bool, played))
    assert ask(server, "/v1/models")[0] == 200  # not among the paths of the script
