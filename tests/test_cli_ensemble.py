"""The command line on runs and files in which several prompts answer together."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

import cli_fake_engine
from cli_shell import Shell, mail_csv
from dln.cli.main import run
from dln.lm.load import load_lm
from dln.nn import load_network
from dln.nn.ensemble import Ensemble
from dln.train.events import Evaluated
from dln.train.run import of_kind, read_events
from serve_clients import client_of

WORDS = [
    *("train", "--csv", "mail.csv", "--lm", "fake/1", "--steps", 4, "--dev-size", 10, "--test-size", 10),
    *("--set", "batch_size=6", "--set", "val_every=1", "--set", "inference.num_prompts=4"),
    *("--set", "inference.demonstrations=[2]", "--set", "inference.evidence=0"),
    *("--set", "inference.prompt_proposals={demonstrations: 3, rewrite: 1}"),
]
TOGETHER = ["--set", "ensemble=3", "--set", "ensemble_temp=4.0"]
X = ["please send me 3 boxes", "the tiles broke"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs: `three`, in which several prompts answer together, and `one`."""
    folder = tmp_path_factory.mktemp("ensemble")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(mail_csv(folder / "mail.csv").parent)
        patch.setenv("DLN_CACHE_DIR", str(folder / "cache"))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        cli_fake_engine.install()
        for name, options in (("three", TOGETHER), ("one", [])):
            assert run([str(word) for word in (*WORDS, *options, "--run-dir", f"runs/{name}")]) == 0
    return folder / "runs"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: Path) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    shutil.copytree(runs, tmp_path / "runs")
    return Shell(monkeypatch, tmp_path, capsys)


@pytest.fixture
def together(cli: Shell) -> Ensemble:
    found = load_network(cli.folder / "runs/three/network.json", load_lm("fake/1"))
    assert isinstance(found, Ensemble)
    assert len(found.members) == 3
    return found


@pytest.mark.slow
def test_predict_shows_every_member_with_its_weight(cli: Shell, together: Ensemble):
    done = cli("predict", "runs/three", *X, "--json")
    assert "ensemble of 3 prompts" in done.err
    for record, expected in zip(done.records, together.predict_many(X), strict=True):
        assert record["label"] == expected.label
        assert record["probabilities"] == pytest.approx(expected.probabilities)
        assert [member["weight"] for member in record["members"]] == pytest.approx(together.weights.tolist())
        for row, member in zip(record["members"], together.members, strict=True):
            alone = member.predict(record["input"])
            assert row["label"] == alone.label
            assert row["probabilities"] == pytest.approx(alone.probabilities)
    shown = cli("predict", "runs/three/network.json", X[0]).out
    assert [float(w) for w in re.findall(r"member \d +weight (\d\.\d+)", shown)] == pytest.approx(
        together.weights.tolist(), abs=1e-3
    )


def test_one_network_is_shown_as_before(cli: Shell):
    done = cli("predict", "runs/one", X[0], "--json")
    assert done.records[0]["members"] == []
    assert "ensemble of" not in done.err + cli("eval", "runs/one").out
    assert "answer together" not in (cli.folder / "runs/one/report.html").read_text("utf-8")


def test_eval_evaluates_them_together_and_says_so(cli: Shell, together: Ensemble):
    record = cli("eval", "runs/three", "--json").records[0]
    assert record["members"] == 3
    rows = [(row["x"], row["after"]) for row in record["examples"]]
    assert [label for _, label in rows] == [p.label for p in together.predict_many([x for x, _ in rows])]
    shown = cli("eval", "runs/three").out
    assert "ensemble of 3 prompts" in shown
    assert all(f"{weight:.3f}" in shown for weight in together.weights)


def test_eval_compares_one_with_several(cli: Shell, together: Ensemble):
    record = cli("eval", "runs/three", "--against", "runs/one", "--json").records[0]
    alone = load_network(cli.folder / "runs/one/network.json", together.members[0].layers[0].lm)
    labels = [p.label for p in alone.predict_many([row["x"] for row in record["examples"]])]
    assert [row["before"] for row in record["examples"]] == labels
    back = cli("eval", "runs/one", "--against", "runs/three/network.json", "--json").records[0]
    assert (back["members"], back["before"]) == (1, record["after"])
    shown = cli("eval", "runs/one", "--against", "runs/three").out
    assert "three: ensemble of 3 prompts" in shown


def test_the_final_test_is_of_all_together(cli: Shell, together: Ensemble):
    events = read_events(cli.folder / "runs/three/events.jsonl")
    (tested,) = of_kind(events, Evaluated)
    assert tested.members == 3
    assert [e.after for e in tested.examples] == [
        p.label for p in together.predict_many([e.x for e in tested.examples])
    ]
    assert "ensemble of 3 networks" in (cli.folder / "runs/three/report.html").read_text("utf-8")


def test_a_run_stopped_before_its_final_test_goes_on_with_the_same_networks(cli: Shell):
    run, whole = cli.folder / "runs/three", read_events(cli.folder / "runs/three/events.jsonl")
    lines = (run / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(line for line in lines if '"kind":"evaluation"' not in line), "utf-8")
    (run / "report.html").unlink()
    done = cli("resume", "runs/three")
    assert done.code == 0, done.err
    assert "ensemble of 3 prompts" in done.out
    again, before = of_kind(read_events(run / "events.jsonl"), Evaluated), of_kind(whole, Evaluated)
    timeless = {"time", "seconds", "usage"}
    assert [e.model_dump(exclude=timeless) for e in again] == [e.model_dump(exclude=timeless) for e in before]


def test_an_estimate_counts_the_answers_of_all(cli: Shell):
    words = [*WORDS, "--dry-run", "--json", "--set", "inference.output_layer=fitted"]
    one, three = (cli(*words, *more).records[0]["phases"] for more in ([], TOGETHER))
    trained = (three["test"]["calls"] - one["test"]["calls"]) / 2  # two more networks answer the test examples
    assert trained == 10
    # two runners-up beside each of four winners, none beside the first network
    assert three["validation"]["calls"] / one["validation"]["calls"] == (1 + 4 * 3) / (1 + 4)
    changed = ("validation", "test", "total")
    assert {n: c for n, c in one.items() if n not in changed} == {n: c for n, c in three.items() if n not in changed}


def test_the_report_lists_them(cli: Shell, together: Ensemble):
    assert cli("report", "runs/three").code == 0
    page = (cli.folder / "runs/three/report.html").read_text("utf-8")
    assert "ensemble of 3 networks" in page
    for weight in together.weights:
        assert f"{100 * weight:.1f}" in page


def test_prompts_are_taken_from_the_heaviest(cli: Shell, together: Ensemble):
    for name, source in (("a", "runs/three"), ("b", "runs/three/network.json")):
        words = ["--no-test", "--run-dir", f"runs/{name}", "--prompts-from", source]
        assert cli(*(0 if word == 4 else word for word in WORDS), *words).code == 0
        layers = json.loads((cli.folder / f"runs/{name}/network.json").read_text("utf-8"))["layers"]
        assert layers[0]["prompt"]["instruction"] == together.parameters()[0].instruction
        assert len(layers[0]["prompt"]["demonstrations"]) == len(together.parameters()[0].demonstrations)


@pytest.mark.slow
def test_served_they_are_one_model(cli: Shell, together: Ensemble):
    process = cli.process("serve", "runs/three", "--port", 0, "--json")
    assert process.stdout is not None
    record = json.loads(process.stdout.readline())
    try:
        with client_of(record["url"]) as client:
            answer = client.chat.completions.create(model="three", messages=[{"role": "user", "content": X[0]}])
            message = answer.choices[0].message
            listed = client.models.list().data[0]
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    expected = together.predict(X[0])
    assert message.content == expected.label
    assert message.dln["probabilities"] == pytest.approx(expected.probabilities)
    assert [m["weight"] for m in message.dln["members"]] == pytest.approx(together.weights.tolist())
    assert "an ensemble of 3 networks of 1 layer" in json.dumps(listed.model_dump())
    assert "Traceback" not in said
