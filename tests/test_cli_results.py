"""What a run yields: predictions as files, prompts for use elsewhere, a list of runs; and `dln init`."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cli_shell import Shell, mail_csv
from dln.integrations.exports import below
from dln.lm.base import Sampling
from dln.lm.load import load_lm
from dln.nn import ChoiceLayer, Ensemble, LanguageLayer, LayerInput, Prompt, Sequential, save_network
from dln.train.events import StepDone, Validated
from dln.train.run import current, of_kind, read_events

TRAIN = [
    *("train", "--csv", "mail.csv", "--lm", "fake/1", "--layers", 2, "--steps", 2, "--dev-size", 6, "--test-size", 6),
    *("--set", "batch_size=4", "--set", "val_every=1", "--set", "inference.num_prompts=2", "--hidden", "think"),
    *("--set", "inference.num_hidden=2"),
]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    return Shell(monkeypatch, tmp_path, capsys)


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def prompts_of(run: Path) -> list[object]:
    return [event.parameters for event in of_kind(current(read_events(run / "events.jsonl")), StepDone)]


@pytest.mark.parametrize("stopped", ["finished", pytest.param("network lost", marks=pytest.mark.slow)])
def test_a_run_is_extended_to_what_a_longer_run_would_have_been(cli: Shell, stopped: str):
    """Without annealed terms the steps that were done are those of the longer run."""
    cli.trained(*TRAIN, run_dir="runs/short")
    if stopped == "network lost":
        (cli.folder / "runs/short/network.json").unlink()
    done = cli("resume", "runs/short", "--steps", 4)
    assert done.code == 0, done.err
    assert "reached 4 of 4 steps" in done.out
    longer = [4 if word == 2 and TRAIN[i - 1] == "--steps" else word for i, word in enumerate(TRAIN)]
    assert cli(*longer, "--run-dir", "runs/long").code == 0
    assert prompts_of(cli.folder / "runs/short") == prompts_of(cli.folder / "runs/long")
    network = [json.loads((cli.folder / f"runs/{run}/network.json").read_text("utf-8")) for run in ("short", "long")]
    assert network[0]["layers"] == network[1]["layers"]
    (short, _) = sorted(cli("runs", "--json").records, key=lambda record: record["run_dir"], reverse=True)
    assert (short["steps_done"], short["steps_planned"], short["state"]) == (4, 4, "finished")
    assert "this run is finished" in cli("resume", "runs/short").err


def test_a_run_is_not_extended_to_fewer_steps_than_are_done(cli: Shell):
    cli.trained(*TRAIN, run_dir="runs/a")
    before = (cli.folder / "runs/a/run.yaml").read_bytes()
    done = cli("resume", "runs/a", "--steps", 1)
    assert (done.code, "expected: a number ≥ 2" in done.err) == (2, True)
    assert (cli.folder / "runs/a/run.yaml").read_bytes() == before


def test_an_unfinished_run_predicts_evaluates_and_shows_its_best_network_so_far(cli: Shell):
    cli.trained(*TRAIN, run_dir="runs/a")
    finished = cli("predict", "runs/a", "two boxes", "--json").records
    shown = cli("show", "runs/a", "--format", "json").out
    accuracy = cli("eval", "runs/a", "--json").records[0]["after"]["accuracy"]
    (cli.folder / "runs/a/network.json").unlink()
    predicted = cli("predict", "runs/a", "two boxes", "--json")
    best = max(
        of_kind(current(read_events(cli.folder / "runs/a/events.jsonl")), Validated), key=lambda v: (v.score, -v.step)
    )
    assert predicted.records == finished
    assert f"best network so far, from step {best.step}" in predicted.err
    assert cli("show", "runs/a", "--format", "json").out == shown
    assert cli("eval", "runs/a", "--json").records[0]["after"]["accuracy"] == accuracy
    (cli.folder / "runs/a/checkpoint.json").unlink()
    done = cli("predict", "runs/a", "two boxes")
    assert (done.code, "dln resume runs/a" in done.err) == (2, True)


def test_predictions_are_written_as_a_table_or_as_json_lines(cli: Shell):
    cli.trained(*TRAIN, run_dir="runs/a")
    words = ["predict", "runs/a", "--file", "mail.csv", "--input", "message"]
    records = cli(*words, "--json").records
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        done = cli(*words, "--out", name)
        assert (done.code, done.out) == (0, "")
        rows = table(cli.folder / name, delimiter)
        assert [(row["input"], row["label"]) for row in rows] == [(r["input"], r["label"]) for r in records]
        for row, record in zip(rows, records, strict=True):
            assert {k: float(row[f"p({k})"]) for k in record["probabilities"]} == record["probabilities"]
            assert float(row["probability"]) == max(record["probabilities"].values())
    assert cli(*words, "--out", "a.jsonl").code == 0
    assert [json.loads(line) for line in (cli.folder / "a.jsonl").read_text("utf-8").splitlines()] == records


def network() -> Sequential:
    lm = load_lm("fake/1")
    think = LanguageLayer(lm, "think", 'Say "why" {input} \\ briefly.', Sampling(max_tokens=9))
    shown = Prompt("Which?\nChoose.").with_wording(("Mail", "Kind"))
    return Sequential(think, ChoiceLayer(lm, "classify_residual", shown, ("order", "return")))


def test_the_python_module_writes_the_very_contexts_of_the_network(cli: Shell):
    trained = network()
    save_network(trained, cli.folder / "net.json")
    source = cli("show", "net.json", "--format", "python").out
    (cli.folder / "answer.py").write_text(source, encoding="utf-8")
    run = "import json, answer; calls = []\n"
    run += "print(json.dumps([answer.predict('a \"b\" {c}', lambda *c: calls.append(c) or ' return it'), calls]))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.')\n{run}"],
        cwd=cli.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    label, calls = json.loads(done.stdout)
    first, second = trained.layers
    x = 'a "b" {c}'
    assert label == "return"
    assert [call[0] for call in calls] == [
        *first.contexts([LayerInput(x, x)]),
        *second.contexts([LayerInput(x, "return it")]),
    ]
    assert calls[0][1] == 9


def test_chat_requests_and_data_hold_the_contexts_with_placeholders(cli: Shell):
    trained = network()
    save_network(trained, cli.folder / "net.json")
    bodies = json.loads(cli("show", "net.json", "--format", "openai").out)
    data = json.loads(cli("show", "net.json", "--format", "json").out)["layers"]
    text = cli("show", "net.json").out
    for number, (layer, body, row) in enumerate(zip(trained.layers, bodies, data, strict=True), 1):
        (context,) = layer.contexts([LayerInput("{input}", below(number))])
        assert body["messages"] == [{"role": "user", "content": context}]
        assert row["context"] == context
        assert row["prompt"] == layer.prompt.to_json()
        assert context in text
    assert data[1]["labels"] == {"order": 0.0, "return": 0.0}


def test_all_members_of_an_ensemble_are_shown(cli: Shell):
    save_network(Ensemble([network(), network()], [0.25, 0.75]), cli.folder / "net.json")
    members = json.loads(cli("show", "net.json", "--format", "json").out)["members"]
    assert [member["weight"] for member in members] == [0.25, 0.75]
    assert "member 2 of 2, weight 0.750" in cli("show", "net.json").out
    assert "the heaviest of 2 members" in cli("show", "net.json", "--format", "python").err


def test_a_word_readout_is_trained_resumed_shown_reported_and_predicts(cli: Shell):
    words = [
        "fake/1/words" if word == "fake/1" else 1 if TRAIN[i - 1] == "--layers" else word
        for i, word in enumerate(TRAIN)
    ]
    words = [*(word for word in words if word not in ("--hidden", "think")), "--set", "ensemble=2"]
    assert cli(*words, "--run-dir", "runs/words").code == 0
    shown = cli("show", "runs/words").out
    assert "words whose probability speaks for and against them" in shown
    readout = json.loads(cli("show", "runs/words", "--format", "json").out)["members"][0]["layers"][0]["readout"]
    assert readout["kind"] == "words"
    assert len(readout["weights"][0]) == len(readout["words"])
    assert cli("report", "runs/words").code == 0
    page = (cli.folder / "runs/words/report.html").read_text("utf-8")
    assert "Words whose probability at the answer position" in page
    assert "the product of the networks" in page
    before = cli("predict", "runs/words", "two boxes", "--json").records[0]
    assert before["probabilities"].keys() == {"order", "return"}
    (cli.folder / "runs/words/network.json").unlink()
    assert cli("resume", "runs/words").code == 0
    assert cli("predict", "runs/words", "two boxes", "--json").records[0] == before


def test_runs_fit_a_terminal_of_80_columns_and_name_task_model_and_layers(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    assert cli(*TRAIN, "--run-dir", "runs/mail-2l-20261121-093000").code == 0
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("runs").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(part in "\n".join(lines) for part in ("mail", "fake/1", "2 layers", "2/2 steps", "test ", "finished"))


def test_the_next_commands_after_training_can_be_typed(cli: Shell):
    done = cli(*TRAIN, "--run-dir", "runs/a b")
    assert done.err.count("dln ") >= 3
    assert "next: dln predict 'runs/a b'" in done.err
    assert cli("show", "runs/a b").code == 0


def test_a_project_trains_without_any_flag_but_the_model(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    done = cli("init", "tickets")
    assert done.code == 0, done.err
    assert "next: cd tickets && dln train" in done.err
    settings = yaml.safe_load((cli.folder / "tickets/dln.yaml").read_text("utf-8"))
    assert settings["lm"]["spec"] == "smollm2"
    rows = table(cli.folder / "tickets/tickets.csv")
    assert len(rows) == 60
    assert len({row["message"] for row in rows}) == 60
    assert len((cli.folder / "tickets/README.md").read_text("utf-8").splitlines()) <= 12
    again = cli("init", "tickets")
    assert (again.code, "dln.yaml, tickets.csv, README.md" in again.err) == (2, True)
    monkeypatch.chdir(cli.folder / "tickets")
    known = cli("train", "--lm", "openai-compatible/x", "--base-url", "http://127.0.0.1:1/v1", "--dry-run", "--json")
    assert known.code == 0, known.err
    assert known.records[0]["phases"]["total"]["calls"] > 0
