"""`dln serve` as a process: what it prints, how it is asked to stop, what it refuses."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest

from cli_shell import Shell
from dln.cli.serve import greet
from dln.lm.base import Sampling
from dln.lm.load import load_lm
from dln.lm.local.engine import TransformersLM
from dln.nn import ChoiceLayer, Sequential, save_network
from dln.serve.models import served
from dln.serve.server import serving
from serve_clients import client_of


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_served_network_answers_until_it_is_stopped(shell: Shell, stop: signal.Signals):
    network = Sequential(ChoiceLayer(load_lm("fake/1"), "classify", "Which?", ("order", "return")))
    (shell.folder / "kinds").mkdir()
    save_network(network, shell.folder / "kinds" / "network.json")
    process = shell.process("serve", "kinds", "--port", 0, "--json")
    assert process.stdout is not None
    record = json.loads(process.stdout.readline())
    assert record["model"] == "kinds"
    with client_of(record["url"]) as client:
        answer = client.chat.completions.create(model="kinds", messages=[{"role": "user", "content": "two boxes"}])
        assert answer.choices[0].message.content == network.predict("two boxes").label
    process.send_signal(stop)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopped" in said
    assert "Traceback" not in said


def test_a_served_model_says_how_it_is_asked(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DLN_SERVE_API_KEY", "canary-77")
    process = shell.process("serve", "fake/1", "--port", 0, "--name", "toy")
    assert process.stdout is not None
    line = process.stdout.readline()
    examples = ""  # read line by line: `communicate` would not see what was read ahead
    while "openai.OpenAI" not in examples or "curl" not in examples:
        examples += process.stdout.readline()
    url = line.split()[2]
    assert line.startswith("toy at http://127.0.0.1:")
    with client_of(url, "canary-77") as client:
        assert client.completions.create(model="toy", prompt="a").choices[0].text
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert "canary" not in line + examples + out + said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/such"], "no such run, network file or model"),
        (["smollm3"], "no such run, network file or model"),
        (["missing.json"], "cannot be read"),
        (["fake/1", "--host", "0.0.0.0"], "need an API key"),  # noqa: S104 - refused
        (["fake/1", "--client-key-env", "NOT_SET"], "not set"),
        (["fake/1", "--host", "192.0.2.1", "--client-key-env", "SET"], "cannot listen"),
    ],
)
def test_mistakes_are_said_without_a_traceback(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
):
    monkeypatch.setenv("SET", "a-key")
    done = shell("serve", "--port", 0, *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny", "vllm"),
        ("tiny:chat", "openai-compatible"),
        pytest.param("tiny:completion", "vllm", marks=pytest.mark.slow),
        pytest.param("hf/org/tiny:chat", "vllm", marks=pytest.mark.slow),
        ("a folder/m.gguf:chat", "openai-compatible"),
    ],
)
def test_every_name_that_is_printed_can_be_typed(
    tiny_lm: TransformersLM, capsys: pytest.CaptureFixture[str], name: str, kind: str
):
    model = tiny_lm.with_chat(name.endswith(":chat"))
    with serving(served(model, name)) as url:
        greet(url, name, model, with_key=False)
        words = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
        typed = words[words.index("--lm") + 1].replace("vllm/", f"{kind}/", 1)
        client = load_lm(typed, base_url=words[words.index("--base-url") + 1], api_key="x")
        assert client.capabilities.chat == model.capabilities.chat
        drawn = client.sample(["the cat"], Sampling(0.0, 1.0, 4), [0])
        assert [draw.text for draw in drawn] == [d.text for d in model.sample(["the cat"], Sampling(0.0, 1.0, 4), [0])]
        np.testing.assert_allclose(
            client.log_prob(["the cat"], [" sat"])[0].values, model.log_prob(["the cat"], [" sat"])[0].values, atol=1e-4
        )


def test_a_suffix_that_no_listed_name_has_only_says_how_the_model_is_asked(tiny_lm: TransformersLM):
    with serving(served(tiny_lm.with_chat(True), "tiny")) as url:
        client = load_lm("openai-compatible/tiny:chat", base_url=url, api_key="x")
        assert client.capabilities.chat
        assert client.sample(["the cat"], Sampling(0.0, 1.0, 2), [0])[0].model is not None
