"""Settings: where they come from, which one wins, and how a wrong one is named."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli_shell import Shell, mail_csv
from dln.cli.config import RunConfig, command_of, config_schema, parse_config, training_options
from dln.cli.sources import load_config, parse_setting, user_file
from dln.errors import InputError
from dln.train.options import InferenceOptions, Options

SMALL = ["--dev-size", 8, "--test-size", 8, "--set", "batch_size=4", "--set", "inference.num_prompts=2"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


def write(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def recorded(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["config"]


def test_each_source_overrides_the_next(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    mail_csv(cli.folder / "mail.csv")
    sources = {"user": 5, "project": 4, "config": 3, "environment": 2, "flag": 1}
    words: list[object] = ["train", "--csv", "mail.csv", "--lm", "fake/1", "--no-test", "--set", "val_every=9", *SMALL]
    expected = 20
    for number, (source, steps) in enumerate(sources.items()):
        assert number == 0 or expected == list(sources.values())[number - 1]
        if source == "user":
            write(user_file(), {"options": {"steps": steps, "seed": 99}})
        elif source == "project":
            write(cli.folder / "dln.yaml", {"options": {"steps": steps}})
        elif source == "config":
            words += ["--config", write(cli.folder / "more.yaml", {"options": {"steps": steps}})]
        elif source == "environment":
            monkeypatch.setenv("DLN_STEPS", str(steps))
        else:
            words += ["--steps", steps]
        expected = steps
        done = cli(*words, "--run-dir", f"runs/{source}")
        assert done.code == 0, done.err
        options = recorded(cli.folder / "runs" / source)["options"]
        assert options["steps"] == expected
        assert options["seed"] == 99, "what a higher source does not say is left to the lower one"


def test_a_setting_beats_its_flag_only_where_it_says_more():
    config = load_config({"options": {"steps": 3}}, settings=["inference.num_hidden=2", "seed=1"])
    assert config.options == {"steps": 3, "inference": {"num_hidden": 2}, "seed": 1}


def test_a_named_task_drops_the_lower_ones_file_and_columns_and_a_file_keeps_them(cli: Shell):
    write(cli.folder / "dln.yaml", {"task": {"csv": "mail.csv", "input": "message"}})
    assert load_config({}).task.csv == (str(cli.folder / "mail.csv"),)
    chosen = load_config({"task": {"name": "questions"}}).task
    assert (chosen.name, chosen.csv, chosen.input) == ("questions", (), ())
    for file in ("mail.csv", "other.csv"):
        chosen = load_config({"task": {"target": "kind", "csv": [file]}}).task
        assert (chosen.csv, chosen.input, chosen.target) == ((str(cli.folder / file),), ("message",), "kind")


def test_paths_of_a_file_are_relative_to_that_file(cli: Shell):
    file = write(cli.folder / "deep/settings.yaml", {"task": {"name": "mail.csv"}, "data": {"directory": "data"}})
    config = load_config({}, file)
    assert config.task.csv == (str(cli.folder / "deep/mail.csv"),)
    assert config.data.directory == str(cli.folder / "deep/data")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"optoins": {}}, ["there is no such setting", "optoins", "did you mean options?"]),
        ({"task": {"nmae": "subj"}}, ["task.nmae", "did you mean task.name?"]),
        ({"network": {"layers": "two"}}, ["network.layers", "a whole number"]),
        ({"options": {"stpes": 2}}, ["stpes", "did you mean steps?"]),
        ({"options": {"inference": {"num_hidden": 0}}}, ["inference.num_hidden", "a number ≥ 1"]),
        ([1, 2], ["not a mapping"]),
    ],
    ids=str,
)
def test_a_wrong_field_is_named_with_its_file(cli: Shell, content: object, says: list[str]):
    write(cli.folder / "dln.yaml", content)
    done = cli("train", "--task", "questions")
    assert done.code == 2
    for text in ("dln.yaml", *says):
        assert text in done.err


def test_a_broken_file_is_named_with_its_line(cli: Shell):
    (cli.folder / "dln.yaml").write_text("task:\n  name: [subj\n", encoding="utf-8")
    done = cli("train")
    assert done.code == 2
    assert "dln.yaml, line 3" in done.err


def test_a_file_on_the_command_line_beats_a_task_in_the_environment(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    mail_csv(cli.folder / "mail.csv")
    monkeypatch.setenv("DLN_TASK", "questions")
    words = ["--lm", "fake/1", "--steps", 0, "--no-test", "--run-dir", "runs/a"]
    assert cli("train", "--csv", "mail.csv", *words).code == 0
    assert recorded(cli.folder / "runs/a")["task"]["csv"] == str(cli.folder / "mail.csv")
    assert cli("train", "--csv", "mail.csv", "--task", "questions", *words).code == 2


def test_a_wrong_environment_variable_is_named(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DLN_STEPS", "many")
    done = cli("train", "--task", "questions")
    assert done.code == 2
    assert "DLN_STEPS" in done.err


@given(
    st.sampled_from(list(InferenceOptions.model_fields)),
    st.one_of(
        st.integers(), st.booleans(), st.lists(st.integers(), max_size=3), st.text("abc", min_size=1, max_size=3)
    ),
)
def test_a_setting_is_read_as_yaml(name: str, value: object):
    text = json.dumps(value)
    assert parse_setting(f"inference.{name}={text}") == {"inference": {name: value}}


@given(st.text("abcdefgh_", min_size=1, max_size=12).filter(lambda s: s not in Options.model_fields))
def test_an_unknown_option_is_never_taken(name: str):
    with pytest.raises(InputError, match="no such training option"):
        parse_setting(f"{name}=1")


def test_frozen_layers_take_no_steps():
    config = parse_config({"network": {"layers": 3, "freeze": [1, 3]}}, "test")
    assert training_options(config).inference.layer_steps == (0, 1, 0)
    config = parse_config(
        {"network": {"layers": 2, "freeze": [2]}, "options": {"inference": {"layer_steps": [3, 2]}}}, "test"
    )
    assert training_options(config).inference.layer_steps == (3, 0)


def test_a_configuration_survives_its_record():
    config = parse_config(
        {
            "task": {"csv": "/x.csv", "labels": ["a|A", "b"]},
            "network": {"layers": 2, "prompts": ["one", "two"], "freeze": [1]},
            "options": {"preset": "paper", "inference": {"num_hidden": 3}},
            "budget": {"max_minutes": 1.5},
        },
        "test",
    )
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json"))), "again") == config


def test_the_command_that_is_reported_gives_the_same_configuration(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    words = ["--csv", "mail.csv", "--lm", "fake/1", "--steps", 0, "--layers", 2, "--freeze", 1, "--hidden-tokens", 9]
    words += ["--prompt", 'it\'s "one"', "--prompt", "two; three", "--seed", 3, "--set", "inference.demonstrations=[2]"]
    assert cli("train", *words, "--run-dir", "runs/a", "--no-test").code == 0
    first = RunConfig.model_validate(recorded(cli.folder / "runs/a"))
    again = shlex.split(command_of(first))[1:]
    assert cli(*again, "--run-dir", "runs/b").code == 0
    second = RunConfig.model_validate(recorded(cli.folder / "runs/b"))
    assert second.model_copy(update={"run_dir": first.run_dir}) == first


def test_the_schema_names_every_setting(cli: Shell):
    schema = json.loads(cli("train", "--print-schema").out)
    assert schema == config_schema()
    published = Path(__file__).parents[1] / "docs" / "config.schema.json"
    assert json.loads(published.read_text("utf-8")) == schema, f"run: dln train --print-schema > {published.name}"
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert set(schema["$defs"]["Options"]["properties"]) == set(Options.model_fields)
    assert set(schema["$defs"]["InferenceOptions"]["properties"]) == set(InferenceOptions.model_fields)
    assert schema["additionalProperties"] is False
