"""`dln train` on tasks of every kind, and what comes of its flags."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_fake_engine import LABELS
from cli_shell import Shell, mail_csv
from dln.train.events import Evaluated, Finished, Started, StepDone
from dln.train.run import of_kind, read_events

QUICK = ["--lm", "fake/1", "--set", "batch_size=4", "--set", "inference.num_prompts=2", "--set", "val_every=9"]
NAMES = [label for label in LABELS if "|" not in label]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


def network_of(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "network.json").read_text(encoding="utf-8"))["layers"]


@pytest.mark.parametrize("classes", [3, 40])
def test_the_csv_of_a_stranger_trains_with_one_command(cli: Shell, classes: int):
    labels = NAMES[:classes] if classes == 3 else [f"class {i}" for i in range(classes)]
    with (cli.folder / "données.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=";", quoting=csv.QUOTE_ALL)
        writer.writerow(["Quelle est la demande ?", "catégorie", "id"])
        for i in range(classes * 5):
            writer.writerow([f'ligne {i}\nsuite "citée" ; ünï 好 \u2028 fin', labels[i % classes], i])
    done = cli(
        "train", "--csv", "données.csv", "--input", "Quelle est la demande ?", "--target", "catégorie",
        "--steps", 1, "--run-dir", "runs/a", *QUICK,
    )  # fmt: skip
    assert done.code == 0, done.err
    events = read_events(cli.folder / "runs/a/events.jsonl")
    assert set(of_kind(events, Started)[0].labels or ()) == set(labels)
    assert of_kind(events, Evaluated)[0].after.n >= classes
    assert "\n" in of_kind(events, StepDone)[0].examples[0].x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "depth"),
    [
        ("default", 3),
        ("paper", 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("default", 1), ("default", 2), ("paper", 1), ("paper", 3))
        ),
    ],
)
def test_every_depth_and_preset_has_its_templates(cli: Shell, depth: int, preset: str):
    mail_csv(cli.folder / "mail.csv")
    words = ["--task", "mail.csv", "--layers", depth, "--preset", preset, "--run-dir", "runs/a", "--steps", 1]
    small = ["--set", "inference.num_hidden=2", "--dev-size", 4, "--test-size", 4]
    done = cli("train", *words, *QUICK, *small)
    assert done.code == 0, done.err
    if preset == "paper":
        hidden = ["think_steps", "analyse_residual"][: depth - 1]
        expected = [*hidden, "classify_answer" if depth == 1 else "classify_residual_answer"]
    else:
        expected = [*["reread"] * (depth - 1), "classify"]
    layers = network_of(cli.folder / "runs/a")
    assert [layer["template"]["name"] for layer in layers] == expected
    assert [layer["kind"] for layer in layers] == ["language"] * (depth - 1) + ["choice"]


def test_free_texts_end_in_an_answer(cli: Shell):
    rows = [{"question": f"what is {i}?", "answer": f"a deep thought {i}"} for i in range(40)]
    (cli.folder / "free.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--jsonl", "free.jsonl", "--free-form", "--layers", 2, "--steps", 1, "--hidden-tokens", 7]
    small = ["--set", "inference.num_hidden=2", "--dev-size", 4, "--test-size", 4]
    # a table model cannot write these answers, so they are ranked by being right, not by their probability
    objective = ["--set", "inference.output_objective=accuracy", "--set", "inference.posterior_terms=[prior]"]
    done = cli("train", *words, *QUICK, *small, *objective, "--run-dir", "runs/a")
    assert done.code == 0, done.err
    layers = network_of(cli.folder / "runs/a")
    assert [layer["template"]["name"] for layer in layers] == ["analyse", "answer_residual"]
    assert all(layer["sampling"]["max_tokens"] == 7 for layer in layers)
    assert of_kind(read_events(cli.folder / "runs/a/events.jsonl"), Evaluated)[0].after.n == 4


def test_initial_prompts_are_given_or_taken_from_elsewhere(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    base = ["train", "--csv", "mail.csv", "--layers", 2, "--steps", 0, "--no-test", *QUICK]

    def prompts(name: str, *words: object) -> list[str]:
        done = cli(*base, *words, "--run-dir", f"runs/{name}")
        assert done.code == 0, done.err
        return [layer["prompt"]["instruction"] for layer in network_of(cli.folder / "runs" / name)]

    for name, first, words in (
        ("default", "Copy the input.", ()),
        ("thoughts", "Decompose the problem to make it simpler:", ("--hidden", "think")),
    ):
        found = prompts(name, *words)
        assert found[0] == first
        assert "order or return" in found[1]
        # taken from a run they go with the templates and the lengths that they had there
        prompts(f"again {name}", "--prompts-from", f"runs/{name}")
        assert network_of(cli.folder / "runs" / f"again {name}") == network_of(cli.folder / "runs" / name)
    wanted = ["think, {{ twice }}", "Sort [it]\nproperly"]
    assert prompts("flags", "--prompt", wanted[0], "--prompt", wanted[1]) == wanted
    (cli.folder / "p.txt").write_text(f"{wanted[0]}\n---\n{wanted[1]}\n", encoding="utf-8")
    (cli.folder / "p.yaml").write_text(yaml.safe_dump(wanted), encoding="utf-8")
    for source in ("p.txt", "p.yaml", "runs/flags", "runs/flags/network.json"):
        assert prompts(f"from {Path(source).name}", "--prompts-from", source) == wanted
    (cli.folder / "bad.yaml").write_text("just a text", encoding="utf-8")
    assert cli(*base, "--prompts-from", "bad.yaml").code == 2
    for words, said in (
        (("--hidden", "copies"), "copy"),
        (("--hidden", "copy", "--prompt", "a", "--prompt", "b"), "leave out one"),
        (("--prompts-from", "runs/default"), "2 for 3 layers"),
    ):
        done = cli(*(3 if word == 2 and "3 layers" in said else word for word in base), *words)
        assert done.code == 2
        assert said in done.err


def test_a_frozen_layer_keeps_its_prompt(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    words = ["--csv", "mail.csv", "--layers", 2, "--steps", 2, "--freeze", 2, "--no-test", "--run-dir", "runs/a"]
    assert cli("train", *words, *QUICK).code == 0
    for step in of_kind(read_events(cli.folder / "runs/a/events.jsonl"), StepDone):
        assert [layer.layer for layer in step.layers] == [0]


def test_sizes_limit_the_data_and_no_test_leaves_the_test_out(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    sizes = ["--train-size", 11, "--dev-size", 6, "--test-size", 5]
    assert cli("train", "--csv", "mail.csv", "--steps", 0, *sizes, *QUICK, "--run-dir", "runs/a").code == 0
    events = read_events(cli.folder / "runs/a/events.jsonl")
    started = of_kind(events, Started)[0]
    assert (started.train_size, started.dev_size) == (11, 6)
    assert of_kind(events, Evaluated)[0].after.n == 5
    assert cli("train", "--csv", "mail.csv", "--steps", 0, "--no-test", *QUICK, "--run-dir", "runs/b").code == 0
    assert not of_kind(read_events(cli.folder / "runs/b/events.jsonl"), Evaluated)


def test_a_spent_budget_is_exit_code_4_with_the_result_so_far(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    words = ["train", "--csv", "mail.csv", "--steps", 12, "--run-dir", "runs/a", *QUICK]
    done = cli(*words, "--max-tokens", 10000)
    assert done.code == 4
    assert "budget is spent" in done.err
    assert "without a test evaluation" in done.err
    assert "test accuracy" not in done.out
    assert (cli.folder / "runs/a/report.html").is_file()
    events = read_events(cli.folder / "runs/a/events.jsonl")
    finished = of_kind(events, Finished)[0]
    assert finished.reason == "budget"
    assert 0 < finished.step < 12
    assert not of_kind(events, Evaluated)
    assert finished.usage["prompt_tokens"] <= 10000
    assert [layer["prompt"] for layer in finished.network["layers"]] == [
        layer["prompt"] for layer in network_of(cli.folder / "runs/a")
    ]
    assert cli("resume", "runs/a").code == 4, "without another limit nothing can go on"
    assert cli("resume", "runs/a", "--max-tokens", 10001).code == 4
    assert cli("resume", "runs/a", "--max-tokens", 10**9).code == 0


@pytest.mark.slow
def test_a_second_run_of_the_same_command_costs_nothing(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    words = ["train", "--csv", "mail.csv", "--steps", 2, "--json", *QUICK]
    first = cli(*words, "--run-dir", "runs/a").records[-1]
    again = cli(*words, "--run-dir", "runs/b").records[-1]
    fresh = cli(*words, "--run-dir", "runs/c", "--no-cache").records[-1]
    assert first["tokens"] > 0
    assert again["tokens"] == 0
    assert fresh["tokens"] >= first["tokens"]
    networks = [(cli.folder / f"runs/{name}/network.json").read_text("utf-8") for name in "abc"]
    assert len({json.dumps(json.loads(text)["layers"]) for text in networks}) == 1


def test_a_run_directory_is_not_used_twice(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    words = ["train", "--csv", "mail.csv", "--steps", 0, "--no-test", "--run-dir", "runs/a", *QUICK]
    assert cli(*words).code == 0
    done = cli(*words)
    assert done.code == 2
    assert "dln resume" in done.err


def test_runs_are_named_by_task_depth_and_time(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    for _ in range(2):
        assert cli("train", "--csv", "mail.csv", "--steps", 0, "--layers", 2, "--no-test", *QUICK).code == 0
    names = [path.name for path in (cli.folder / "runs").iterdir()]
    assert len(names) == 2
    assert all(name.startswith("mail-2l-2") for name in names)


def test_eval_compares_with_the_initial_or_another_network(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    train = ["train", "--csv", "mail.csv", "--test-size", 12, *QUICK]
    assert cli(*train, "--steps", 2, "--run-dir", "runs/a").code == 0
    assert cli(*train, "--steps", 0, "--run-dir", "runs/b").code == 0
    recorded = of_kind(read_events(cli.folder / "runs/a/events.jsonl"), Evaluated)[0]
    own = cli("eval", "runs/a", "--json").records[0]
    assert own["after"] == json.loads(recorded.after.model_dump_json())
    assert own["p_value"] == recorded.p_value
    assert own["fitted"] == json.loads(recorded.model_dump_json())["fitted"]
    other = cli("eval", "runs/a", "--against", "runs/b/network.json", "--json").records[0]
    assert other["before"]["n"] == own["after"]["n"] == 12
    alone = cli(
        "eval", "runs/a/network.json", "--csv", "mail.csv", "--dev-size", 5, "--split", "dev", "--json"
    ).records[0]
    assert (alone["split"], alone["after"]["n"], alone["before"]) == ("dev", 5, None)
    assert "paired test" in cli("eval", "runs/a", "--samples", 2).out
