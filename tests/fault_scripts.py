"""The faults that the test server can play, and when: each turns a good reply into a bad one.

A fault says what goes over the wire (`Reply`) for one request (`Exchange`); when it is played is a predicate
over the number of the request and over how often the very same request has been seen. Both count from the
moment the fault was switched on.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any, Literal

__all__ = [
    "FAULTS",
    "Exchange",
    "Fault",
    "Reply",
    "When",
    "after",
    "always",
    "every",
    "first",
    "first_of_each",
    "matching",
]

Delivery = Literal[
    "whole", "nothing", "reset", "half then reset", "half then end", "half then nothing", "slow", "twice"
]


@dataclass(frozen=True)
class Exchange:
    """One request as the server sees it.

    Attributes:
        number: 1 for the first request since the fault was switched on.
        attempt: 1 for the first with this path and body since then.
        good: the reply of a server in good health.
        headers: of the request, with lower-case names.
    """

    method: str
    path: str
    body: Mapping[str, Any]
    number: int
    attempt: int
    good: Callable[[], dict[str, Any]]
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Reply:
    """What is sent, and how: "nothing" holds the connection open, "half then …" breaks off in the body.

    Attributes:
        seconds: for "slow", how long the body takes.
    """

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    delivery: Delivery = "whole"
    seconds: float = 0.0


Fault = Callable[[Exchange], Reply]
When = Callable[[Exchange], bool]


def always(exchange: Exchange) -> bool:
    """Every request."""
    return exchange.number > 0


def first_of_each(exchange: Exchange) -> bool:
    """Every request when it is sent for the first time; a repetition is answered well."""
    return exchange.attempt == 1


def first(n: int) -> When:
    """The first n requests."""
    return lambda exchange: exchange.number <= n


def every(k: int) -> When:
    """Every k-th request."""
    return lambda exchange: exchange.number % k == 0


def after(m: int) -> When:
    """All requests after the first m."""
    return lambda exchange: exchange.number > m


def matching(text: str) -> When:
    """Requests whose prompt contains `text`, however often they are repeated."""
    return lambda exchange: text in json.dumps(exchange.body.get("prompt", exchange.body.get("messages", "")))


def good_reply(exchange: Exchange) -> Reply:
    """The good answer as it goes over the wire."""
    return Reply(body=json.dumps(exchange.good()).encode())


def status(code: int, message: str, kind: str = "server_error", error: str | None = None, **headers: str) -> Fault:
    """An error status with the usual error body."""
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": error}}).encode()
    extra = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return lambda _: Reply(code, body, (("Content-Type", "application/json"), *extra))


def retry_at(seconds: float) -> Fault:
    """429 whose Retry-After is a date; dates have whole seconds, so it is rounded up."""

    def play(exchange: Exchange) -> Reply:
        date = formatdate(math.ceil(time.time() + seconds), usegmt=True)
        return status(429, "Rate limit reached", "rate_limit", Retry_After=date)(exchange)

    return play


def delivered(delivery: Delivery, seconds: float = 0.0) -> Fault:
    """The good answer, badly brought."""
    return lambda exchange: replace(good_reply(exchange), delivery=delivery, seconds=seconds)


def raw(body: bytes, content_type: str = "application/json", code: int = 200) -> Fault:
    """These bytes instead of an answer."""
    return lambda _: Reply(code, body, (("Content-Type", content_type),))


def tell_tale(code: int) -> Fault:
    """A page for debugging that repeats all headers of the request, the key among them."""
    return lambda exchange: Reply(
        code,
        f"<html>Error. Your headers: {json.dumps(dict(exchange.headers))}</html>".encode(),
        (("Content-Type", "text/html"),),
    )


def cut_json(exchange: Exchange) -> Reply:
    """A complete HTTP message with the first half of the JSON."""
    whole = good_reply(exchange)
    return replace(whole, body=whole.body[: len(whole.body) // 2])


def edited(edit: Callable[[dict[str, Any]], None]) -> Fault:
    """The good answer with something changed in it."""

    def play(exchange: Exchange) -> Reply:
        reply = copy.deepcopy(exchange.good())
        edit(reply)
        return Reply(body=json.dumps(reply).encode())  # NaN and Infinity are written as Python does

    return play


def no_content(reply: dict[str, Any]) -> None:
    """Texts are null."""
    for choice in reply.get("choices", ()):
        if "message" in choice:
            choice["message"]["content"] = None
        else:
            choice["text"] = None


def fewer(reply: dict[str, Any]) -> None:
    """The last choice is missing; of one choice none is left."""
    reply["choices"] = reply.get("choices", [])[:-1]


def reordered(reply: dict[str, Any]) -> None:
    """Choices backwards, each with its right index."""
    reply["choices"] = reply.get("choices", [])[::-1]


def doubled(reply: dict[str, Any]) -> None:
    """Every choice twice."""
    reply["choices"] = [copy.deepcopy(c) for c in reply.get("choices", []) for _ in range(2)]


def other_model(reply: dict[str, Any]) -> None:
    """Another model says that it answered, as some proxies do when one is overloaded."""
    reply["model"] = "something-cheaper"


def no_echo(reply: dict[str, Any]) -> None:
    """As if neither `echo` nor `prompt_logprobs` had been asked for."""
    prompt = reply.get("usage", {}).get("prompt_tokens", 0)
    for choice in reply.get("choices", ()):
        columns = choice.get("logprobs")
        if isinstance(columns, dict) and None in columns.get("token_logprobs", ())[:1]:
            at = (columns["text_offset"] + [len(choice["text"])])[min(prompt, len(columns["text_offset"]))]
            choice["text"] = choice["text"][at:]
            choice["logprobs"] = {name: column[prompt:] for name, column in columns.items()}
        if "prompt_logprobs" in choice:
            choice["prompt_logprobs"] = None


def scores(value: object) -> Callable[[dict[str, Any]], None]:
    """`value` for the log-probability of the last prompt token, and of whatever was drawn."""

    def edit(reply: dict[str, Any]) -> None:
        for holder, name in _score_places(reply):
            holder[name] = value

    return edit


def no_scores(reply: dict[str, Any]) -> None:
    """The same log-probabilities are not there at all."""
    for holder, name in [*_score_places(reply)]:
        if isinstance(holder, dict):
            del holder[name]
    for choice in reply.get("choices", ()):
        if isinstance(choice.get("logprobs"), dict) and "token_logprobs" in choice["logprobs"]:
            choice["logprobs"]["token_logprobs"].pop()


def shifted(reply: dict[str, Any]) -> None:
    """Each token has its successor's log-probability, and the last one has none."""
    for choice in reply.get("choices", ()):
        columns = choice.get("logprobs")
        if isinstance(columns, dict):
            for name in ("token_logprobs", "top_logprobs", "content"):
                if columns.get(name):
                    columns[name] = [*columns[name][1:], None]
        if choice.get("prompt_logprobs"):
            choice["prompt_logprobs"] = [*choice["prompt_logprobs"][1:], None]


def _score_places(reply: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) where such a log-probability stands."""
    prompt = reply.get("usage", {}).get("prompt_tokens", 0)
    for choice in reply.get("choices", ()):
        columns = choice.get("logprobs")
        if isinstance(columns, dict) and "token_logprobs" in columns:
            values = columns["token_logprobs"]
            start = prompt - 1 if values[:1] == [None] else 0
            for t in range(max(start, 0), len(values)):
                yield values, t
                yield from ((columns["top_logprobs"][t], name) for name in [*(columns["top_logprobs"][t] or ())])
        elif isinstance(columns, dict):
            for entry in columns.get("content", ()):
                yield entry, "logprob"
                yield from ((top, "logprob") for top in entry["top_logprobs"])
        for entry in (choice.get("prompt_logprobs") or [])[-1:]:
            yield from ((inner, "logprob") for inner in entry.values())


HTML = b"<html><head><title>Sign in</title></head><body>Welcome to the hotel's network</body></html>"

FAULTS: dict[str, Fault] = {
    "429 with Retry-After in seconds": status(429, "Rate limit reached", "rate_limit", Retry_After="1"),
    "429 with Retry-After as a date": retry_at(0.2),
    "429 without Retry-After": status(429, "Rate limit reached", "rate_limit"),
    "429 quota exhausted": status(429, "You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
    "500": status(500, "The server had an error"),
    "502": raw(b"<html><h1>502 Bad Gateway</h1></html>", "text/html", 502),
    "503": status(503, "The server is overloaded", "overloaded"),
    "500 that repeats our headers": tell_tale(500),
    "read time-out": delivered("nothing"),
    "reset before the reply": delivered("reset"),
    "reset in the body": delivered("half then reset"),
    "body breaks off": delivered("half then end"),
    "body stalls": delivered("half then nothing"),
    "slow body": delivered("slow", 0.1),
    "body drips for ever": delivered("slow", 60.0),
    "truncated JSON": cut_json,
    "malformed JSON": raw(b'{"choices": [}'),
    "JSON of another kind": raw(b'["choices"]'),
    "HTML with status 200": raw(HTML, "text/html; charset=utf-8"),
    "HTML that repeats our headers": tell_tale(200),
    "empty body": raw(b""),
    "empty choices": edited(lambda reply: reply.update(choices=[])),
    "no choices": edited(lambda reply: reply.pop("choices", None)),
    "null content": edited(no_content),
    "fewer choices than asked": edited(fewer),
    "choices in wrong order": edited(reordered),
    "choices twice": edited(doubled),
    "reply delivered twice": delivered("twice"),
    "log-probs NaN": edited(scores(math.nan)),
    "log-probs +inf": edited(scores(math.inf)),
    "log-probs -inf": edited(scores(-math.inf)),
    "log-probs -9999": edited(scores(-9999.0)),
    "log-probs null": edited(scores(None)),
    "log-probs text": edited(scores("-1.5")),
    "log-probs missing": edited(no_scores),
    "log-probs shifted by one": edited(shifted),
    "log-probs positive": edited(scores(0.7)),
    "400": status(400, "Invalid value for 'temperature'", "invalid_request_error"),
    "400 over-long context": status(
        400, "This model's maximum context length is 64 tokens", "invalid_request_error", "context_length_exceeded"
    ),
    "401": status(401, "Incorrect API key provided", "invalid_request_error", "invalid_api_key"),
    "403": status(403, "You are not allowed to use this model", "permission_error"),
    "404": status(404, "The model `tiny` does not exist", "invalid_request_error", "model_not_found"),
    "echo ignored": edited(no_echo),
    "another model answers": edited(other_model),
}
"""Everything but what happens before a request can be read: that is the server's `closed` (no connection)."""
