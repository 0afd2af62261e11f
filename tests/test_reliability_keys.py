"""Canaries: a key that is put in environment, configuration or base URL is used, and then found nowhere."""

from __future__ import annotations

import io
import logging
import traceback
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import pytest

from cli_shell import Done, Shell
from dln.errors import DlnError
from dln.lm.base import Sampling
from dln.lm.load import load_lm
from fault_replies import Manners
from fault_scripts import after
from fault_server import FaultServer
from fault_training import agreed, shell, train

CANARY = "sk-canary-7f3/q+Zx=="
FAULTY = ("wrong key", "500 that repeats our headers", "HTML that repeats our headers", "body drips for ever")
PLACES = ("environment", "named variable", "configuration", "base URL", "base URL in the environment", "header")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return shell(monkeypatch, tmp_path, capsys)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that anybody logs, at the lowest level, with tracebacks."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    loggers = [logging.getLogger(name) for name in (None, "openai", "httpx", "httpx2", "httpcore", "httpcore2", "dln")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = True
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)
    for logger, level, propagate in before:
        logger.setLevel(level)
        logger.propagate = propagate


def forms() -> list[bytes]:
    """The key as it may be written: as it is, in a URL, in JSON, in Basic authorization, or its telling part."""
    basic = b64encode(f"me:{CANARY}".encode())
    return [CANARY.encode(), quote(CANARY, safe="").encode(), basic, b64encode(CANARY.encode()), b"canary-7f3"]


def found_in(text: str | bytes) -> bool:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return any(form in data for form in forms())


def files_with_the_key(folder: Path, but: tuple[str, ...] = ()) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in but]
    assert len(paths) > 1
    return [str(path) for path in paths if found_in(path.read_bytes()) or found_in(path.name)]


def put(place: str, url: str, cli: Shell, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, list[object]]:
    """Puts the key somewhere; (the base URL to give, further words of the command line)."""
    secret_url = url.replace("http://", f"http://me:{quote(CANARY, safe='')}@")
    if place == "environment":
        monkeypatch.setenv("VLLM_API_KEY", CANARY)
    elif place == "named variable":
        monkeypatch.setenv("MY_OWN_KEY", CANARY)
        return url, ["--api-key-env", "MY_OWN_KEY"]
    elif place == "configuration":
        # with its address: a key is sent to no other one than it was written down for
        (cli.folder / "settings.yaml").write_text(f"lm:\n  base_url: {url}\n  api_key: {CANARY}\n", encoding="utf-8")
        return None, ["--config", "settings.yaml"]
    elif place == "base URL":
        return secret_url, []
    elif place == "base URL in the environment":
        monkeypatch.setenv("DLN_BASE_URL", secret_url)
        return None, []
    else:
        (cli.folder / "settings.yaml").write_text(
            f"lm:\n  options:\n    headers:\n      Authorization: Bearer {CANARY}\n", encoding="utf-8"
        )
        return url, ["--config", "settings.yaml"]
    return url, []


def assert_silent(done: Done, log: io.StringIO) -> None:
    assert not found_in(done.out)
    assert not found_in(done.err)
    lines = [line for line in log.getvalue().splitlines() if found_in(line)]
    assert not lines, lines[:3]


@pytest.mark.parametrize(
    "place",
    [pytest.param(p, marks=() if p == "base URL" else pytest.mark.slow) for p in PLACES],
)
def test_a_key_is_used_and_written_nowhere(cli: Shell, monkeypatch: pytest.MonkeyPatch, log: io.StringIO, place: str):
    with FaultServer(Manners(key=CANARY)) as server:
        url, words = put(place, server.base_url, cli, monkeypatch)
        done = train(cli, url, "a", *words)
        assert done.code == 0, done.err  # the server accepts no other key: it was used
        assert_silent(done, log)
        for command in (["report", "runs/a"], ["runs", "--json"], ["resume", "runs/a"]):
            assert_silent(cli("--debug", *command), log)
    assert log.getvalue()
    assert not files_with_the_key(cli.folder, but=("settings.yaml",))


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        # every fault once, each in another place; the other pairs are slow
        pytest.param(place, fault, marks=() if i == j else pytest.mark.slow)
        for i, place in enumerate(PLACES)
        for j, fault in enumerate(FAULTY)
    ],
)
def test_a_key_is_in_no_error_though_the_server_repeats_it(
    cli: Shell, monkeypatch: pytest.MonkeyPatch, log: io.StringIO, place: str, fault: str
):
    with FaultServer(Manners(key="another key" if fault == "wrong key" else CANARY)) as server:
        if fault != "wrong key":
            server.play(fault, after(60))
        url, words = put(place, server.base_url, cli, monkeypatch)
        done = train(cli, url, "a", *words, "--lm-option", "deadline=1", "--lm-option", "max_retries=1", debug=True)
    assert done.code == 3
    assert "Traceback" in done.err  # --debug shows it
    assert_silent(done, log)
    if fault != "wrong key":
        assert not files_with_the_key(cli.folder, but=("settings.yaml",))


@pytest.mark.parametrize("fault", ["wrong key", "500 that repeats our headers", "HTML that repeats our headers", "503"])
def test_a_key_is_in_no_local_variable_of_a_traceback(fault: str):
    with FaultServer(Manners(key="another key" if fault == "wrong key" else CANARY)) as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url, api_key=CANARY, max_retries=0)
        if fault != "wrong key":
            assert lm.capabilities.scores_labels
            server.play(fault)
        with pytest.raises(DlnError) as raised:
            lm.sample(["a"], Sampling(), [1])
    shown = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
    text = "".join(shown.format())
    assert "lm = " in text
    assert not found_in(text)
    chained: BaseException | None = raised.value
    while chained is not None:
        assert not found_in(repr(chained) + str(chained) + repr(vars(chained)))
        chained = chained.__cause__ or chained.__context__


def test_a_key_is_in_no_representation():
    with FaultServer(Manners(key=CANARY)) as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url.replace("://", f"://me:{quote(CANARY, safe='')}@"))
        draw = lm.sample(["a"], Sampling(), [1])[0]
        shown = [repr(lm), str(lm), lm.name, lm.fingerprint(), repr(lm.capabilities), repr(asdict(draw))]
        sender = getattr(lm, "sender", None)
        shown += [repr(sender), repr(getattr(sender, "endpoint", None)), str(getattr(sender, "endpoint", None))]
    assert not any(map(found_in, shown))


@pytest.mark.parametrize(
    "words",
    [
        ["--base-url", f"http://127.0.0.1:1/v1?api-key={quote(CANARY, safe='')}"],
        ["--base-url", f"ftp://me:{quote(CANARY, safe='')}@host/v1"],
        ["--base-url", f"http://me:{CANARY}@host:port/v1"],
        ["--base-url", "http://127.0.0.1:1/v1", "--api-key-env", CANARY],
        ["--base-url", "http://127.0.0.1:1/v1", "--lm-option", f"api_key={CANARY}"],
        ["--base-url", "http://127.0.0.1:1/v1", "--lm-option", f"kye={CANARY}"],
    ],
    ids=["in the query", "another scheme", "not quoted", "as a name", "as an option", "as an unknown option"],
)
def test_a_key_at_a_wrong_place_is_not_repeated(cli: Shell, log: io.StringIO, words: list[str]):
    done = cli("--debug", "train", "--csv", "mail.csv", "--lm", "vllm/tiny", "--run-dir", "runs/a", *words)
    assert done.code in {2, 3}
    assert_silent(done, log)


@pytest.mark.slow
def test_a_key_in_a_base_url_is_asked_for_again_by_resume(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    with FaultServer(Manners(key=CANARY)) as server:
        url, _ = put("base URL", server.base_url, cli, monkeypatch)
        assert train(cli, url, "calm").code == 0
        server.play("401", after(len(server.asked()) // 2))
        assert train(cli, url, "cut").code == 3
        server.calm()
        refused = cli("resume", "runs/cut")
        assert refused.code in {2, 3}
        assert "key" in refused.err
        monkeypatch.setenv("VLLM_API_KEY", CANARY)
        assert cli("resume", "runs/cut").code == 0
    assert agreed(cli.folder / "runs/cut") == agreed(cli.folder / "runs/calm")
    assert not files_with_the_key(cli.folder)
