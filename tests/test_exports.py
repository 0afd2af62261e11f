"""Trained networks in the forms of other tools: what is written says what the network says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from cli_shell import Shell, mail_csv
from dln.cli.build import open_network
from dln.cli.export import stand_in
from dln.integrations.exports import anthropic_request, layer_records, promptfoo_files
from dln.integrations.training_data import preference_records, sft_records
from dln.nn import LayerInput
from dln.nn.ensemble import best_of
from dln.nn.saving import load_state_dict
from dln.train.events import Evaluated, StepDone
from dln.train.run import current, of_kind, read_events

TRAIN = [
    *("train", "--csv", "mail.csv", "--lm", "fake/1", "--layers", 2, "--steps", 2, "--dev-size", 8, "--test-size", 8),
    *("--set", "batch_size=4", "--set", "val_every=1", "--set", "inference.num_prompts=2", "--hidden", "think"),
]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    return Shell(monkeypatch, tmp_path, capsys)


@pytest.fixture
def run(cli: Shell) -> Path:
    return cli.trained(*TRAIN, run_dir="runs/a")


@pytest.mark.slow
def test_show_and_export_print_the_same(cli: Shell, run: Path):
    for form in ("text", "json", "openai", "anthropic", "python"):
        shown = cli("show", "runs/a", "--format", form)
        exported = cli("export", "runs/a", "--format", form)
        assert (exported.code, exported.out) == (0, shown.out), exported.err
        assert cli("export", "runs/a", "--format", form, "--out", "out.txt").code == 0
        assert (cli.folder / "out.txt").read_text(encoding="utf-8") == shown.out


def test_messages_hold_the_contexts_of_the_network(cli: Shell, run: Path):
    network = best_of(open_network(run, stand_in, told=False))
    openai = json.loads(cli("export", "runs/a", "--format", "openai").out)
    anthropic = json.loads(cli("export", "runs/a", "--format", "anthropic").out)
    contexts = [layer["context"] for layer in layer_records(network)]
    for requests in (openai, anthropic):
        assert [request["messages"] for request in requests] == [[{"role": "user", "content": c}] for c in contexts]
        assert all(request["temperature"] == 0 and request["max_tokens"] > 0 for request in requests)
    assert not any("stop" in request for request in anthropic)


def test_anthropic_refuses_stop_sequences_of_white_space():
    layer = {"model": "m", "context": "c", "max_tokens": 5, "stop": ["\n", "[END]", " "]}
    assert anthropic_request(layer)["stop_sequences"] == ["[END]"]
    assert "stop_sequences" not in anthropic_request({**layer, "stop": ["\n\n"]})
    assert anthropic_request({"model": "m", "context": "c"})["max_tokens"] > 0


def test_a_promptfoo_project_asks_the_network_and_tests_the_test_set(cli: Shell, run: Path):
    done = cli("export", "runs/a", "--format", "promptfoo", "--out", "foo")
    assert done.code == 0, done.err
    config = yaml.safe_load((cli.folder / "foo/promptfooconfig.yaml").read_text(encoding="utf-8"))
    tested = of_kind(read_events(run / "events.jsonl"), Evaluated)[-1].examples
    assert [(t["vars"]["input"], t["assert"][0]["value"]) for t in config["tests"]] == [(e.x, e.y) for e in tested]
    assert config["providers"] == ["file://provider.py"]
    provider: dict[str, Any] = {}
    exec(compile((cli.folder / "foo/provider.py").read_text(encoding="utf-8"), "provider.py", "exec"), provider)  # noqa: S102
    answers = [provider["call_api"](e.x, {}, {"vars": {"input": e.x}})["output"] for e in tested]
    assert answers == [e.after for e in tested]
    assert cli("export", "runs/a", "--format", "promptfoo", "--out", "foo").code == 2, "nothing is overwritten"


@pytest.mark.parametrize("text", ["{{ 1 + 1 }}", "{% if x %}", "{# gone #}", "{% endraw %}{{ y }}", "plain {brace}"])
def test_the_template_engine_of_promptfoo_leaves_inputs_as_they_are(text: str):
    files = promptfoo_files("net.json", [(text, text)], True, "mail")
    (test,) = yaml.safe_load(files["promptfooconfig.yaml"])["tests"]
    # Nunjucks took its syntax over from Jinja
    assert jinja2.Template(test["vars"]["input"]).render() == text
    assert jinja2.Template(test["assert"][0]["value"]).render() == text


def test_training_data_holds_what_the_run_drew(run: Path):
    events = current(read_events(run / "events.jsonl"))
    steps = of_kind(events, StepDone)
    records = list(sft_records(events, stand_in))
    assert len(records) == sum(len(step.examples) for step in steps)
    for record in records:
        (level,) = record["hidden"]
        assert sum(one["weight"] for one in level) == pytest.approx(1, abs=1e-6)
        assert [one["weight"] for one in level] == sorted((one["weight"] for one in level), reverse=True)
        first, last = (layer["messages"] for layer in record["layers"])
        assert (first[1]["content"], last[1]["content"]) == (level[0]["text"], record["y"])
        assert record["x"] in first[0]["content"]
        assert level[0]["text"] in last[0]["content"], "the last layer reads the hidden text of largest weight"


def test_contexts_are_those_of_the_network_before_the_step(run: Path):
    events = current(read_events(run / "events.jsonl"))
    steps = of_kind(events, StepDone)
    network = load_state_dict(best_of(open_network(run, stand_in, told=False)), steps[0].parameters)
    second = next(record for record in sft_records(events, stand_in) if record["step"] == 2)
    read = LayerInput(second["x"], second["hidden"][0][0]["text"])
    assert second["layers"][1]["messages"][0]["content"] == network.prompted[1].contexts([read])[0]


def test_preferences_prefer_the_heavier_text_and_the_right_answer(run: Path):
    events = current(read_events(run / "events.jsonl"))
    pairs = list(preference_records(events, stand_in))
    assert {pair["layer"] for pair in pairs} == {1, 2}
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert all(pair["weights"][0] > pair["weights"][1] for pair in pairs if pair["layer"] == 1)
    wrong = sum(not e.correct for step in of_kind(events, StepDone) for e in step.examples)
    assert sum(pair["layer"] == 2 for pair in pairs) == wrong


def test_json_lines_are_written(cli: Shell, run: Path):
    for form in ("sft", "preferences"):
        assert cli("export", "runs/a", "--format", form, "--out", "data.jsonl").code == 0
        lines = (cli.folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
        assert lines == cli("export", "runs/a", "--format", form).out.splitlines()
        assert all(json.loads(line) for line in lines)


def test_a_model_card_carries_the_measured_numbers(cli: Shell, run: Path):
    assert cli("export", "runs/a", "--format", "huggingface", "--out", "card").code == 0
    card = (cli.folder / "card/README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    measured = of_kind(read_events(run / "events.jsonl"), Evaluated)[-1]
    metadata = yaml.safe_load(header)
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == measured.after.accuracy
    after = measured.after
    row = f"| trained | {100 * after.accuracy:.1f} | {100 * after.low:.1f} to {100 * after.high:.1f} |"
    assert row in body
    assert all(f"| {baseline.name} |" in body for baseline in measured.baselines)
    network = best_of(open_network(run, stand_in, told=False))
    assert all(prompt.instruction in body for prompt in network.parameters())
    assert open_network(cli.folder / "card/network.json", stand_in, told=False).parameters() == network.parameters()
    names: dict[str, Any] = {}
    exec(compile((cli.folder / "card/predict.py").read_text(encoding="utf-8"), "predict.py", "exec"), names)  # noqa: S102
    assert names["predict"]("two boxes", lambda prompt, length, stop: " order now") == "order"
    # of a file alone nothing was measured, and no number is given
    done = cli("export", "runs/a/network.json", "--format", "huggingface", "--out", "bare")
    assert done.code == 0, done.err
    bare = (cli.folder / "bare/README.md").read_text(encoding="utf-8")
    assert "not evaluated" in bare
    assert "model-index" not in bare


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/a/network.json", "--format", "sft"], "sft needs a run"),
        (["runs/a/network.json", "--format", "result_data"], "result_data needs a run"),
        (["runs/a", "--format", "promptfoo"], "--out promptfoo"),
        (["nowhere", "--format", "text"], "nowhere"),
        (["runs/a", "--format", "nothing"], "nothing"),
        (["runs/a"], "--format"),
    ],
)
def test_what_cannot_be_exported_is_said(cli: Shell, run: Path, words: list[str], said: str):
    done = cli("export", *words)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


def test_a_run_without_test_examples_has_no_tests(cli: Shell):
    words = [*TRAIN, "--no-test", "--run-dir", "runs/b"]
    assert cli(*words).code == 0
    done = cli("export", "runs/b", "--format", "promptfoo", "--out", "foo")
    assert (done.code, "no test examples" in done.err) == (2, True)
    assert not (cli.folder / "foo").exists()
