"""Addresses and keys: what is accepted, what is refused and how, and that no secret is ever shown."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from dln.errors import DlnError, InputError
from dln.lm.remote.call import Call, MalformedReply, plain
from dln.lm.remote.endpoint import Azure, Patience, endpoint_of
from dln.lm.remote.sender import HttpSender
from remote_scripted_server import Asked, ScriptedServer, http, ok

CANARY = "sk-canary-4f9a1c7e"


def test_where_the_key_comes_from_and_which_wins() -> None:
    environment = {"FIRST": "", "SECOND": "from-second", "THIRD": "from-third"}

    def key(url: str, **options: Any) -> str | None:
        variables = ("FIRST", "SECOND", "THIRD")
        found = endpoint_of("m", [url], key_variables=variables, environment=environment, **options).key
        return None if found is None else found.get_secret_value()

    assert key("https://host/v1") == "from-second"
    assert key("https://me:from-url@host/v1") == "from-url"
    assert key("https://from-url@host/v1") == "from-url"
    assert key("https://:p%40ss@host/v1") == "p@ss"
    assert key("https://me:from-url@host/v1", api_key="from-option") == "from-option"
    assert key("https://host/v1", api_key=SecretStr("from-option")) == "from-option"


def test_a_missing_key_names_the_variable() -> None:
    with pytest.raises(InputError, match="export OPENAI_API_KEY=") as caught:
        endpoint_of("m", ["https://host/v1"], key_variables=("OPENAI_API_KEY",), environment={})
    assert "https://host/v1" in str(caught.value)
    assert endpoint_of("m", ["https://host/v1"], key_needed=False, environment={}).key is None


def test_addresses_are_normal_and_without_user_information() -> None:
    endpoint = endpoint_of("m", [f" https://u:{CANARY}@host:8443/v1/ ", f"http://u:{CANARY}@[::1]:80/v1"])
    assert endpoint.base_urls == ("https://host:8443/v1", "http://[::1]:80/v1")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "host/v1",
        "ftp://host/v1",
        "file:///etc/passwd",
        "http://",
        "http:///v1",
        "http://host:99999/v1",
        "http://host:port/v1",
        "http://[::1/v1",
        "http://host/v1?x=1",
        "http://host/v1#x",
        "http://ho st/v1",
        "http://host/v1\nX: y",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        endpoint_of("m", [url], key_needed=False)
    assert "--base-url" in str(caught.value)


@pytest.mark.parametrize("key", ["line\nbreak", "trailing\n", "tab\tin", "nul\x00", "schlüssel", "two words", "\r"])
def test_keys_that_no_header_can_hold_are_refused_unseen(key: str) -> None:
    with pytest.raises(InputError) as caught:
        endpoint_of("m", ["http://host"], api_key=key)
    assert key not in str(caught.value)
    with pytest.raises(InputError, match=r"\$MY_KEY"):
        endpoint_of("m", ["http://host"], key_variables=("MY_KEY",), environment={"MY_KEY": key})


@pytest.mark.parametrize(
    "options",
    [
        {"base_urls": []},
        {"base_urls": ["http://a/v1", "http://a/v1/"]},
        {"base_urls": ["http://x:one@a", "http://x:two@b"]},
        {"model": " "},
        {"headers": {"bad name": "x"}},
        {"headers": {"X-Good": "bad\r\nX-Evil: 1"}},
    ],
)
def test_other_refusals(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        endpoint_of(**{"model": "m", "base_urls": ["http://host"], "key_needed": False, **options})


@pytest.mark.parametrize("field", ["connect_seconds", "read_seconds", "deadline_seconds", "max_concurrency"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_patience_is_positive(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        Patience(**{field: value})  # pyright: ignore[reportArgumentType] — wrong values are the point


def test_azure_needs_both() -> None:
    with pytest.raises(InputError, match="api_version"):
        Azure("deployment", "")


def test_text_of_servers_is_shown_without_control_characters_or_secrets() -> None:
    assert plain(f"a\x1b[31m\n\tkey {CANARY}!", [CANARY]) == "a [31m key [key]!"
    assert len(plain("x" * 10_000)) == 300


def shown(error: BaseException) -> str:
    """Everything that a careful or careless program may print of an error."""
    lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
    chain = [error, error.__cause__, error.__context__]
    return "\n".join([*lines, *(f"{e!r} {e} {e.args!r} {vars(e)!r}" for e in chain if e is not None)])


def leaky(status: int) -> Callable[[Asked], bytes]:
    """A server that says the key it was given in its answer."""
    return lambda asked: http(status, f'{{"error": {{"message": "bad key: {asked.headers["authorization"]}"}}}}')


SCRIPTS: dict[str, Any] = {
    **{str(status): leaky(status) for status in (301, 400, 401, 403, 404, 422, 429, 500, 503)},
    "html": lambda asked: http(200, f"<html>{asked.headers['authorization']}</html>"),
    "malformed": lambda asked: http(200, f'{{"key": "{asked.headers["authorization"]}"'),
    "reset": lambda asked: None,
    "no http": lambda asked: f"HELLO {asked.headers['authorization']}\r\n\r\n".encode(),
    "unread": lambda asked: ok({"echo": asked.headers["authorization"]}),
    "bug": lambda asked: ok({"i": 1}),
    "deadline": None,
    "refused": None,
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("place", ["option", "url", "environment", "header"])
def test_the_key_is_in_no_error_and_no_log(name: str, place: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    names = ("openai", "httpx2", "httpcore2", "asyncio", "dln")
    before = {n: logging.getLogger(n).level for n in names}
    root.addHandler(handler)
    for n in names:
        logging.getLogger(n).setLevel(logging.DEBUG)

    async def never(asked: Asked) -> bytes:
        raise ConnectionError

    def read(call: Call, reply: Any) -> Any:
        if name == "bug":
            raise KeyError("choices")
        raise MalformedReply("no text", got=reply)

    try:
        with ScriptedServer(SCRIPTS[name] or never) as server:
            url = server.url.replace("127.0.0.1", f"user:{CANARY}@127.0.0.1") if place == "url" else server.url
            endpoint = endpoint_of(
                "m",
                [url],
                api_key=CANARY if place == "option" else None,
                key_variables=("KEY",),
                key_needed=place != "header",
                environment={"KEY": CANARY} if place == "environment" else {},
                headers={"Authorization": CANARY} if place == "header" else None,
                patience=Patience(
                    max_retries=0,
                    deadline_seconds=1e-4 if name == "deadline" else 5,
                    unreachable_seconds=0.01,
                ),
            )
            del url  # so that this test's own frame does not hold it
            sender = HttpSender(endpoint)
            if name == "refused":
                server.stop()
            with pytest.raises((DlnError, KeyError)) as caught:
                sender.send([Call("/completions", {"prompt": "hello"})], read)
            sender.close()
            seen = shown(caught.value) + stream.getvalue() + repr(endpoint) + str(endpoint) + repr(sender.traffic())
            seen += repr(vars(sender)) + repr(sender)
        assert CANARY not in seen
        assert name in {"refused", "deadline"} or "HTTP" in stream.getvalue()  # the logs were on
    finally:
        root.removeHandler(handler)
        for n, level in before.items():
            logging.getLogger(n).setLevel(level)


@pytest.mark.parametrize(
    "options",
    [
        {"base_urls": [f"https://u:{CANARY}@host:port/v1"]},
        {"base_urls": [f"ftp://u:{CANARY}@host/v1"]},
        {"base_urls": [f"u:{CANARY}@host/v1"]},
        {"base_urls": [f"https://host/v1?key={CANARY}"]},
        {"base_urls": [f"https://u:{CANARY}@[host/v1"]},
        {"base_urls": [f"https://u:{CANARY}@/v1"]},
        {"api_key": CANARY + "\n"},
        {"headers": {"X": CANARY + "\n"}},
        {"headers": {"bad name": CANARY}},
        {"environment": {"KEY": CANARY + " "}, "key_variables": ("KEY",)},
        {"model": "", "api_key": CANARY},
    ],
)
def test_refused_settings_do_not_show_the_key_they_hold(options: dict[str, Any]) -> None:
    given = {"model": "m", "base_urls": ["http://host"], "environment": {}, **options}
    try:
        endpoint_of(**given)
    except InputError as error:
        # the first frame is this test's own, which holds the key
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        assert CANARY not in shown(error.with_traceback(frames))
    else:
        pytest.fail("it was accepted")
