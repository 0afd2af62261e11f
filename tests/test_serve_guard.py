"""Who may ask and what may be asked: keys, hosts, sizes, fields, and what a client sees of an error."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from dln.errors import ContextLengthError, DlnError, InputError
from dln.lm.base import Completion, Sampling
from dln.lm.local.engine import TransformersLM
from dln.lm.table import TableLM
from dln.serve.batching import Batcher
from dln.serve.fields import Refusal
from dln.serve.models import served
from dln.serve.server import run_server, serving
from serve_clients import client_of, refused, running, small_network

KEY = "canary-4f2a9"


@pytest.fixture(scope="module")
def client(tiny_lm: TransformersLM) -> Iterator[openai.OpenAI]:
    with running(tiny_lm) as found:
        yield found


def raw(url: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """(status, JSON) of one request, below every client library."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"logprobs": 10**6}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [[1], ["a"]]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"best_of": 3}, "best_of"),
        ({"extra_body": {"repetition_penalty": 1.2}}, "repetition_penalty"),
        ({"extra_body": {"guided_choice": ["a"]}}, "guided_choice"),
        ({"extra_body": {"tempreature": 0}}, "tempreature"),
        ({"extra_body": {"samples": 2}}, "samples"),
        ({"extra_body": {"allowed_token_ids": [10**6]}, "max_tokens": 1}, None),
    ],
)
def test_a_bad_field_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str | None):
    error = refused(client.completions.create, **({"model": "tiny", "prompt": "a"} | fields))
    assert error.status_code == 400
    assert error.message
    assert error.type == "invalid_request_error"
    if param is not None:
        assert error.param == param


def test_fields_that_change_nothing_are_let_through(client: openai.OpenAI):
    answer = client.completions.create(
        model="tiny", prompt="a", max_tokens=1, user="me", presence_penalty=0, frequency_penalty=0.0, best_of=1
    )
    assert answer.choices


def test_too_long_is_said_in_the_usual_words(client: openai.OpenAI):
    for fields in ({"prompt": "a " * 300, "max_tokens": 1}, {"prompt": "a", "max_tokens": 256}):
        error = refused(client.completions.create, model="tiny", **fields)
        assert (error.status_code, error.code) == (400, "context_length_exceeded")
        assert "maximum context length is 256 tokens" in error.message


def test_another_model_is_not_here(client: openai.OpenAI):
    error = refused(client.completions.create, model="gpt-4", prompt="a")
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")


def test_a_key_is_needed_where_there_is_one(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG), serving(served(small_network(), "net"), key=KEY) as url:
        with client_of(url, KEY) as right, client_of(url, KEY[:-1]) as wrong:
            assert right.models.list().data[0].id == "net"
            error = refused(wrong.models.list)
            assert (error.status_code, error.code) == (401, "invalid_api_key")
            error = refused(wrong.completions.create, model="net", prompt="a")
            assert error.status_code == 401
        assert raw(url, "/v1/models", None, {})[0] == 401
        assert raw(url, "/v1/models", None, {"Authorization": f"Basic {KEY}"})[0] == 401
        assert raw(url, "/health", None, {})[0] == 200
    assert KEY not in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104 - nothing listens there
def test_others_cannot_reach_a_server_without_a_key(host: str):
    with pytest.raises(InputError, match="need an API key"):
        run_server(served(small_network(), "net"), host=host, port=0)


def test_a_port_in_use_is_said(client: openai.OpenAI):
    assert client.base_url.port is not None
    with pytest.raises(InputError, match="in use"):
        run_server(served(small_network(), "net"), port=client.base_url.port)


def test_web_pages_cannot_ask(client: openai.OpenAI):
    url = str(client.base_url).rstrip("/")
    body = json.dumps({"model": "tiny", "prompt": "a"}).encode()
    port = client.base_url.port
    as_json = {"Content-Type": "application/json"}
    assert raw(url, "/v1/completions", body, as_json)[0] == 200
    assert raw(url, "/v1/completions", body, as_json | {"Host": f"localhost:{port}"})[0] == 200
    assert raw(url, "/v1/completions", body, as_json | {"Host": f"evil.example:{port}"})[0] == 403
    assert raw(url, "/v1/completions", body, as_json | {"Host": "127.0.0.1.evil.example"})[0] == 403
    assert raw(url, "/v1/completions", body, {"Content-Type": "text/plain"})[0] == 415
    assert raw(url, "/v1/completions", body, {"Content-Type": "application/x-www-form-urlencoded"})[0] == 415


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b'{"model": NaN}', b'{"prompt": "a"}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_request_is_a_400(client: openai.OpenAI, body: bytes):
    status, answer = raw(str(client.base_url), "/v1/completions", body, {"Content-Type": "application/json"})
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_paths_and_methods_that_are_not_here(client: openai.OpenAI):
    assert raw(str(client.base_url), "/v1/embeddings", None, {})[0] == 404
    assert raw(str(client.base_url), "/v1/completions", None, {})[0] == 405


def test_a_body_that_is_too_large(client: openai.OpenAI):
    as_json = {"Content-Type": "application/json"}
    url = str(client.base_url)
    assert raw(url, "/v1/completions", b"{}", as_json | {"Content-Length": str(10**9)})[0] == 413


class Slow(TableLM):
    """Counts what it is asked, and answers when it is let."""

    def __init__(self) -> None:
        super().__init__(lambda context: {"yes": 1.0}, name="slow")
        self.go = threading.Event()
        self.asked: list[str] = []

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        self.asked += contexts
        self.go.wait(30)
        if "bad" in contexts:
            raise ContextLengthError("too long", where="request 0")
        if "bug" in contexts:
            raise ZeroDivisionError("secret text")
        return super().sample(contexts, sampling, seeds)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_leaves_is_dropped():
    lm = Slow()
    with serving(served(lm, "slow")) as url, client_of(url) as client:
        first = threading.Thread(target=lambda: client.completions.create(model="slow", prompt="first"))
        first.start()
        wait_for(lambda: lm.asked)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).completions.create(model="slow", prompt="gone", max_tokens=2)
        time.sleep(0.3)
        lm.go.set()
        first.join(20)
        client.completions.create(model="slow", prompt="last")
    assert lm.asked == ["first", "last"]


def test_failures_of_the_model_reach_their_own_client_only(caplog: pytest.LogCaptureFixture):
    lm = Slow()
    lm.go.set()
    with serving(served(lm, "slow")) as url, client_of(url) as client:
        error = refused(client.completions.create, model="slow", prompt=["good", "bad"])
        assert (error.status_code, error.code) == (400, "context_length_exceeded")
        error = refused(client.completions.create, model="slow", prompt="bug")
        assert error.status_code == 500
        assert "secret" not in error.message
        assert client.completions.create(model="slow", prompt="good").choices[0].text == "yes"
    assert "ZeroDivisionError" in caplog.text


def test_alike_work_goes_together_and_errors_stay_with_their_item():
    batcher = Batcher(window=0.2, largest=8)
    seen: list[list[int]] = []

    def run(items: list[int]) -> list[int]:
        seen.append(items)
        if 3 in items:
            raise InputError("no three")
        return [item * 2 for item in items]

    futures = [future for i in range(8) for future in batcher.submit("double", run, [i])]
    values = [None if isinstance(future.exception(20), DlnError) else future.result() for future in futures]
    assert values == [None if i == 3 else 2 * i for i in range(8)]
    assert seen[0] == list(range(8))
    batcher.close()
    with pytest.raises(Refusal, match="stopping"):
        batcher.submit("double", run, [1])


def test_too_much_waiting_is_refused():
    batcher = Batcher(most_waiting=2)
    with pytest.raises(Refusal) as refusal:
        batcher.submit("double", lambda items: items, [1, 2, 3])
    assert (refusal.value.status, refusal.value.retry_after) == (503, 1)
    batcher.close()


def text_of(url: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


def test_metrics_count_what_was_answered_and_need_the_key() -> None:
    with serving(served(TableLM.random(["yes", "no"], 3), "t"), key=KEY) as url:
        with client_of(url, KEY) as client:
            client.completions.create(model="t", prompt="a", max_tokens=4)
        refused(client_of(url, "wrong").completions.create, model="t", prompt="a")
        assert text_of(url, "/metrics")[0] == 401
        status, text = text_of(url, "/metrics", {"Authorization": f"Bearer {KEY}"})
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200
    assert values['dln_requests_total{path="/v1/completions",status="200"}'] == "1"
    assert values['dln_requests_total{path="/v1/completions",status="401"}'] == "1"
    assert values['dln_requests_total{path="other",status="401"}'] == "1"
    assert (values["dln_requests_in_flight"], values["dln_workers"]) == ("1", "0")
    assert values["dln_request_seconds_count"] == values['dln_request_seconds_bucket{le="+Inf"}'] == "3"
    assert float(values["dln_request_seconds_sum"]) > 0
    assert int(values["dln_model_items_total"]) >= int(values["dln_model_calls_total"]) >= 1


def test_a_server_is_ready_until_its_queue_is_full_or_it_stops() -> None:
    batcher = Batcher(most_waiting=0)
    with serving(served(TableLM.random(["yes", "no"], 3), "t", batcher=batcher), key=KEY) as url:
        assert text_of(url, "/health")[0] == 200
        assert text_of(url, "/ready")[0] == 503
    with serving(served(TableLM.random(["yes", "no"], 3), "t"), key=KEY) as url:
        assert text_of(url, "/ready") == (200, "{}")
