"""Misuse of the command line: every call ends in one clear error and leaves everything as it was."""

from __future__ import annotations

import io
import json
import re
import socket
from pathlib import Path

import pytest

from cli_shell import Shell, mail_csv
from dln.lm.load import load_lm
from dln.nn import ChoiceLayer, Sequential, save_network

T = "train --lm fake/1 --task questions"
M = "train --lm fake/1 --csv mail.csv"
N = "predict net.json"

CASES: dict[str, str] = {
    # commands and flags
    "trian --task questions": "did you mean dln train?",
    "bench papr": "did you mean dln bench paper?",
    "model lst": "did you mean dln model list?",
    "train --taks questions": "did you mean --task?",
    "eval net.json --agianst old.json": "did you mean --against?",
    f"{N} text --jsn": "did you mean --json?",
    "--verbos": "there is no such option",
    "train --task": "requires an argument",
    f"{T} --no-cache=5": "does not take a value",
    "eval": "an argument is missing",
    "resume": "an argument is missing",
    "serve": "an argument is missing",
    "runs a b": "unexpected extra argument",
    # types and ranges of values
    f"{T} --steps many": "a whole number",
    f"{T} --steps -1": "a number ≥ 0",
    f"{T} --steps 1.5": "a whole number",
    f"{T} --layers 0": "a number ≥ 1",
    f"{T} --layers 1000": "--layers",
    f"{T} --seed x": "a whole number",
    f"{T} --train-size 0": "a number ≥ 1",
    f"{T} --dev-size -5": "a number ≥ 1",
    f"{T} --max-usd cheap": "a number",
    f"{T} --max-minutes -1": "a number ≥ 0",
    f"{T} --max-tokens 1e3": "a whole number",
    f"{T} --freeze first": "a whole number",
    f"{T} --freeze 7": "there is no such layer to freeze",
    "eval net.json --split tests": "one of 'test', 'dev', 'train'",
    "eval net.json --task questions --test-size 0": "a number ≥ 1",
    f"{N} text --samples 0": "a number ≥ 1",
    "serve fake/1 --port 99999": "a number ≤ 65535",
    "serve fake/1 --port http": "a whole number",
    "serve fake/1 --batch-window nan": "--batch-window",
    "tune --task questions --judge acuracy": "one of 'log_likelihood', 'accuracy'",
    f"{T} --hidden coppy": "did you mean copy?",
    # options, presets, models, tasks, templates
    f"{T} --preset papre": "there is no preset 'papre'",
    f"{T} --set stpes=3": "did you mean steps?",
    f"{T} --set steps": "name=value",
    f"{T} --set steps=[1": "the value is not YAML",
    f"{T} --set batch_size=many": "--set batch_size",
    f"{T} --set inference.num_hidden=0": "--set inference.num_hidden",
    f"{T} --template clasify": "did you mean 'classify'?",
    "train --task questoins": "did you mean 'questions'?",
    "train": "say which task to work on",
    "train --task questions --lm smolm2": "did you mean smollm2?",
    "train --task questions --lm vllm/x": "--base-url",
    "train --task questions --lm vllm/x --base-url localhost:8000": "a base URL looks like",
    "train --task questions --lm vllm/x --base-url http://h/v1 --api-key-env NO_SUCH": "export NO_SUCH",
    "train --task questions --base-url http://h/v1": "no server and needs no key",
    f"{T} --lm-option timeout": "name=value",
    f"{T} --price fake/1=cheap": "price",
    "serve no/such": "no such run, network file or model",
    "serve fake/1 --client-key-env NO_SUCH": "export NO_SUCH",
    # former names of flags
    "tune --task questions --out x": "use --run-dir",
    "bench paper --out x": "use --run-dir",
    "bench ablation --budget usd=5": "--max-usd",
    "eval net.json --size 5": "--test-size",
    f"{N} text --column message": "use --input",
    "serve fake/1 --api-key-env NO_SUCH": "use --client-key-env",
    # files
    "train --csv nowhere.csv": "nowhere.csv: there is no such file",
    "train --csv folder": "folder: the folder holds no files",
    "train --csv empty.csv": "the file is empty",
    "train --csv garbled.csv": "garbled.csv, line",
    "train --csv wide.csv": "at least two classes",
    "train --csv latin.csv": "the file is not valid utf-8",
    "train --csv header.csv": "no rows",
    "train --jsonl garbled.jsonl": "a line is not valid JSON",
    f"{M} --target knd": "did you mean 'kind'?",
    f"{M} --input massage": "did you mean 'message'?",
    f"{T} --config nowhere.yaml": "nowhere.yaml",
    f"{T} --config garbled.yaml": "not YAML",
    f"{T} --config list.yaml": "not a mapping",
    f"{T} --config typo.yaml": "did you mean options?",
    f"{T} --prices nowhere.yaml": "nowhere.yaml",
    f"{T} --prompts-from nowhere.txt": "nowhere.txt",
    "predict nowhere.json text": "nowhere.json",
    "predict garbled.json text": "garbled.json",
    "predict half.json text": "half.json",
    "predict folder text": "there is no trained network here",
    f"{N} --file nowhere.txt": "nowhere.txt: there is no such file",
    f"{N} --file mail.csv --input massage": "there is no column 'massage'",
    f"{N} --file lines.txt --input message": "lines, not columns",
    # runs
    "runs nowhere": "there is no such directory",
    "resume nowhere": "there is no run here",
    "report folder": "there is no run here",
    "show folder": "there is no trained network here",
    "show net.json --format yaml": "one of 'text', 'json', 'openai', 'anthropic', 'python'",
    "show net.json --format promptfoo": "dln export",
    "export net.json --format sft": "needs a run",
    "export net.json --format huggingface": "--out",
    f"{N} text --out answers.xlsx": "unknown format of the output file",
    "resume nowhere --steps 3": "there is no run here",
    "probe-task --task questions --tasks subj": "tasks are given twice",
    "bench paper --tasks questions --tasks mpqa": "given twice",
    "bench labels --sizes 16 --sizes 32": "given twice",
    "bench ablation --seeds 1 --seeds 2": "given twice",
    "probe-task --task questions --dev-size 5": "too few examples",
    "resume broken": "run.yaml",
    "resume keyless": "run.yaml",
    # contradictions
    f"{M} --task questions": "more than one task",
    f"{N} text --file lines.txt": "given twice",
    f"{N} - text": "given twice",
    f"{N} text --input message": "a column needs a file",
    f"{T} --prompt a --prompts-from lines.txt": "given twice",
    f"{T} --prompt a --prompt b": "per layer",
    f"{T} --input message": "does not have that option",
    f"{N} -": "standard input: the file is empty",
}

DAMAGED = {"resume broken", "predict garbled.json text"}
"""Calls that meet a file of this program's own that is damaged: exit code 5."""


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    shell = Shell(monkeypatch, tmp_path, capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    mail_csv(tmp_path / "mail.csv")
    files: dict[str, str | bytes] = {
        "empty.csv": "",
        "garbled.csv": 'text,label\n"never closed,a\nb,c\n',
        "wide.csv": "text,label\na,b\n".encode("utf-16"),
        "latin.csv": "text,label\n\xe4rger,b\n".encode("latin-1"),
        "header.csv": "text,label\n",
        "garbled.jsonl": '{"input": "a", "target": "b"}\n{"input": \n',
        "garbled.yaml": "options: [1\n",
        "list.yaml": "- 1\n",
        "typo.yaml": "optoins: {}\n",
        "garbled.json": "{",
        "half.json": "{}",
        "lines.txt": "a line\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    network = Sequential(ChoiceLayer(load_lm("fake/1"), "classify", "Which?", ("order", "return")))
    save_network(network, tmp_path / "net.json")
    for name, meta in {"folder": None, "broken": "task: [", "keyless": "config: {optoins: {}}\n"}.items():
        (tmp_path / name).mkdir()
        if meta is not None:
            (tmp_path / name / "run.yaml").write_text(meta)
    return shell


def snapshot(folder: Path) -> dict[str, bytes]:
    """The content of every file but the cache's."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "cache" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_one_error(err: str) -> None:
    """One error: a line with where and what, then indented lines that say got, expected and what to try."""
    lines = err.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(starts) == 1, err
    assert all(line.startswith("note: ") for line in lines[: starts[0]]), err
    named = [re.match(r"  (got|expected|try): \S", line) for line in lines[starts[0] + 1 :]]
    assert named, err
    assert all(named), err
    assert "Traceback" not in err
    assert "this is a bug" not in err
    assert "pydantic" not in err
    assert "Input should" not in err


@pytest.mark.parametrize("line", CASES)
def test_misuse_is_one_clear_error_and_changes_nothing(cli: Shell, line: str):
    before = snapshot(cli.folder)
    done = cli(*line.split())
    assert done.code == (5 if line in DAMAGED else 2), done.err
    assert not done.out
    assert CASES[line] in done.err
    check_one_error(done.err)
    assert snapshot(cli.folder) == before


def test_a_port_in_use_is_named(cli: Shell):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("serve", "fake/1", "--port", taken.getsockname()[1])
    assert done.code == 2
    assert "this port is in use" in done.err
    check_one_error(done.err)


def test_a_finished_run_is_not_touched_by_misuse(cli: Shell):
    small = ["--steps", 1, "--train-size", 8, "--dev-size", 8, "--test-size", 8, "--set", "batch_size=4"]
    assert cli("train", "--task", "questions", "--lm", "fake/1", "--run-dir", "run", *small).code == 0
    before = snapshot(cli.folder)
    for words in (
        ["train", "--task", "questions", "--lm", "fake/1", "--run-dir", "run"],
        ["resume", "run", "--max-tokens", "many"],
        ["eval", "run", "--split", "tests"],
        ["predict", "run", "text", "--file", "lines.txt"],
        ["predict", "run", "text", "--lm", "smolm2"],
        ["report", "run", "--opne"],
    ):
        done = cli(*words)
        assert done.code == 2, words
        check_one_error(done.err)
        assert snapshot(cli.folder) == before, words


def test_a_dash_is_standard_input(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    said = [json.loads(line)["label"] for line in cli("predict", "net.json", "two boxes", "--json").out.splitlines()]
    for words in (["-"], [], ["--file", "-"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("two boxes\n"))
        records = cli("predict", "net.json", *words, "--json").records
        assert [record["input"] for record in records] == ["two boxes"]
        assert [record["label"] for record in records] == said
