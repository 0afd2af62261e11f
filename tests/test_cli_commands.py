"""Every command: its help, its exit codes, what it prints where, and that nobody sees a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import dln
from cli_shell import Shell, mail_csv
from dln.cli.main import app
from dln.errors import BudgetReached, ContextLengthError, CorruptDataError, InputError, ProviderError, RunFailed

COMMANDS = [
    [],
    *(
        [name]
        for name in ("train", "eval", "predict", "resume", "report", "runs", "model", "doctor", "serve", "init", "show")
    ),
    *([name] for name in ("tune", "probe-task", "compare", "export", "init", "show", "view", "label")),
    *(["model", name] for name in ("pull", "path", "list")),
    *(["bench", name] for name in ("paper", "ablation", "labels")),
]
SMALL = ["--steps", 1, "--dev-size", 8, "--test-size", 8, "--set", "batch_size=4", "--set", "inference.num_prompts=2"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


def test_all_commands_are_listed_here():
    top = typer.main.get_command(app)
    names = {tuple(words) for words in COMMANDS if words}
    groups = {name: group.commands for name, group in top.commands.items() if hasattr(group, "commands")}
    assert names | {("bench",)} == {
        *((name,) for name in top.commands),
        *((group, name) for group, commands in groups.items() for name in commands),
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example_of_the_command_itself(cli: Shell, words: list[str]):
    done = cli(*words, "--help")
    assert done.code == 0
    examples = done.out.partition("Examples")[2]
    assert re.search(rf"^ *dln {' '.join(words)}\b", examples, re.MULTILINE)


def test_version(cli: Shell):
    assert cli("--version").out == f"dln {dln.__version__}\n"


DEPRECATED = """
import sys
import warnings
import dln.cli.runs
from dln.cli.main import main

library = {"__name__": "some_library", "warnings": warnings}
exec("def old(kind): warnings.warn(f'old is deprecated: {kind.__name__}', kind, stacklevel=STACKLEVEL)", library)

def runs() -> None:
    for _ in range(3):
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, UserWarning):
            library["old"](kind)
    print("done")

dln.cli.runs.runs = runs
sys.argv = ["dln", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    ("words", "stacklevel"),
    [  # attributed to the library, or to its caller
        (["runs"], 1),
        (["--debug", "runs"], 2),
        pytest.param(["runs"], 2, marks=pytest.mark.slow),
        pytest.param(["--debug", "runs"], 1, marks=pytest.mark.slow),
    ],
)
def test_warnings_of_other_packages_are_logged_once_and_not_shown(words: list[str], stacklevel: int):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "DLN_DEBUG")}
    code = DEPRECATED.replace("STACKLEVEL", str(stacklevel))
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stdout == "done\n"
    kinds = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "UserWarning")
    counts = [len(re.findall(rf"deprecated: {kind}$", done.stderr, re.MULTILINE)) for kind in kinds]
    assert counts == ([1] * 4 if "--debug" in words else [0] * 4)
    assert done.stderr or "--debug" not in words
    if "--debug" not in words:
        assert not done.stderr


@pytest.mark.slow
def test_python_warning_options_are_obeyed():
    code = DEPRECATED.replace("STACKLEVEL", "2")
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code, "runs"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "FutureWarning" in done.stderr


def test_usage_errors_exit_with_2(cli: Shell):
    for words in (["--bogus"], ["bogus"], ["train", "--steps", "many"], ["resume"], ["train", "--layers", "0"]):
        done = cli(*words)
        assert done.code == 2, words
        assert "Traceback" not in done.err
        assert not done.out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunFailed, 1),
        (InputError, 2),
        (ContextLengthError, 2),
        (ProviderError, 3),
        (BudgetReached, 4),
        (CorruptDataError, 5),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(
    cli: Shell, monkeypatch: pytest.MonkeyPatch, error: type[dln.DlnError], code: int
):
    def fail(*_: object, **__: object) -> None:
        raise error("it went wrong", where="here", fix="something else")

    monkeypatch.setattr("dln.cli.train.run_training", fail)
    done = cli("train", "--task", "questions", "--lm", "fake/1")
    assert done.code == code
    assert "here: it went wrong" in done.err
    assert "try: something else" in done.err
    assert "Traceback" not in done.err
    assert not done.out


def test_a_bug_is_one_line_and_a_traceback_only_with_debug(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    words = ["train", "--task", "questions", "--lm", "fake/broken"]
    done = cli(*words)
    assert done.code == 1
    assert "this is a bug: ZeroDivisionError: nobody can cause this" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in cli("--debug", *words).err
    monkeypatch.setenv("DLN_DEBUG", "1")
    assert "Traceback" in cli(*words).err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train"], "say which task"),
        (["train", "--task", "questoins"], "did you mean 'questions'?"),
        (["train", "--task", "questions", "--csv", "x.csv"], "more than one task"),
        (["train", "--csv", "missing.csv"], "missing.csv"),
        (["train", "--csv", "mail.csv", "--target", "knd"], "did you mean 'kind'?"),
        (["train", "--task", "subj"], "is not bundled with dln"),
        (["train", "--task", "questions", "--lm", "smollm3"], "did you mean smollm2?"),
        (["train", "--task", "questions", "--preset", "papers"], "there is no preset 'papers'"),
        (["train", "--task", "questions", "--set", "stepps=3"], "did you mean steps?"),
        (["train", "--task", "questions", "--set", "num_hidden=3"], "did you mean inference.num_hidden?"),
        (["train", "--task", "questions", "--set", "inference.num_hidden=zero"], "inference.num_hidden"),
        (["train", "--task", "questions", "--set", "steps"], "not a setting"),
        (["train", "--task", "questions", "--set", "steps=[1"], "not YAML"),
        (["train", "--task", "questions", "--lm", "fake/1", "--freeze", "2"], "no such layer to freeze"),
        (["train", "--task", "questions", "--lm", "fake/1", "--prompt", "a", "--prompt", "b"], "per layer"),
        (["train", "--task", "questions", "--lm", "fake/1", "--template", "clasify"], "did you mean 'classify'?"),
        (["train", "--task", "questions", "--input", "x"], "does not have that option"),
        (["train", "--task", "questions", "--config", "none.yaml"], "none.yaml"),
        (["train", "--task", "questions", "--run-dir", ""], "the run directory has no name"),
        (["train", "--task", "subj"], "--data path/to/data"),
        (["train", "--csv", "odd.csv"], '--target "'),
        (["train", "--task", "questions", "--base-url", "http://h/v1"], "no server and needs no key"),
        (["train", "--task", "questions", "--lm", "vllm/x", "--base-url", "h/v1"], "a base URL looks like"),
        (["train", "--task", "questions", "--lm", "vllm/x", "--api-key-env", "sk-1"], "name of an environment"),
        (["train", "--task", "questions", "--lm", "vllm/x", "--api-key-env", "NO_SUCH"], "export NO_SUCH=…"),
        (["train", "--task", "questions", "--prompt-base-url", "http://h/v1"], "not the model that is asked there"),
        (["train", "--task", "questions", "--lm-option", "timeout"], "not an option"),
        (["train", "--task", "questions", "--price", "x"], "not a price"),
        (["train", "--task", "questions", "--prices", "none.yaml"], "none.yaml: the price file cannot be read"),
        (["resume", "runs/none"], "there is no run here"),
        (["report", "runs/none"], "there is no run here"),
        (["runs", "nowhere"], "there is no such directory"),
        (["eval", "nothing.json", "--task", "questions"], "nothing.json"),
        (["predict", "nothing.json", "text"], "nothing.json"),
        (["predict", "nothing.json", "text", "--file", "mail.csv"], "given twice"),
        (["predict", "nothing.json", "text", "--input", "message"], "--input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_explained(cli: Shell, words: list[str], says: str):
    mail_csv(cli.folder / "mail.csv")
    (cli.folder / "odd.csv").write_text("text,a,b\nx,1,2\n", encoding="utf-8")
    done = cli(*words)
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err
    assert "bug" not in done.err
    assert not (cli.folder / "runs").exists()


def test_the_embedded_model_that_is_missing_is_exit_code_3(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = cli("model", "path")
    assert done.code == 3
    assert "dln model pull" in done.err
    listed = cli("model", "list", "--json").records
    assert {"model": "smollm2", "state": "downloaded at first use"} in listed


def test_a_damaged_network_is_exit_code_5(cli: Shell):
    (cli.folder / "network.json").write_text("{", encoding="utf-8")
    assert cli("predict", "network.json", "text").code == 5


def test_json_is_alone_on_standard_output(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    done = cli("train", "--csv", "mail.csv", "--lm", "fake/1", "--run-dir", "runs/a", "--json", *SMALL)
    assert done.code == 0
    kinds = [record["kind"] for record in done.records]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["evaluation", "result"]
    events = [json.loads(line) for line in (cli.folder / "runs/a/events.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if k != "time"} for row in events]
    assert timeless == [{k: v for k, v in row.items() if k != "time"} for row in done.records[:-1]]
    assert all(record["time"] > 1e9 for record in done.records[:-1])
    assert [r["run"] for r in cli("runs", "--json").records] == ["a"]
    assert cli("eval", "runs/a", "--json").records[0]["kind"] == "evaluation"
    assert cli("predict", "runs/a", "one", "two", "--json").records[1]["input"] == "two"
    estimate = cli("train", "--csv", "mail.csv", "--lm", "fake/1", "--dry-run", "--json").records
    assert estimate[0]["phases"]["total"]["calls"] > 0


def test_results_go_to_standard_output_and_progress_does_not(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    done = cli("train", "--csv", "mail.csv", "--lm", "fake/1", "--run-dir", "runs/a", *SMALL)
    assert done.code == 0
    assert "step 1/1" in done.err
    assert "note: column 'message' taken as the input" in done.err
    assert "step 1/1" not in done.out
    for word in ("before", "after", "95 %", "paired test", "best step", "tokens", "runs/a/report.html"):
        assert word in done.out
    assert (cli.folder / "runs/a/report.html").is_file()
    assert "\x1b" not in done.out + done.err


def test_predict_reads_files_and_standard_input(cli: Shell):
    mail_csv(cli.folder / "mail.csv", rows=24)
    assert cli("train", "--csv", "mail.csv", "--lm", "fake/1", "--run-dir", "runs/a", *SMALL).code == 0
    given = ["first line", "zweite Zeile ü", "third"]
    (cli.folder / "lines.txt").write_text("\n".join(given) + "\n\n", encoding="utf-8")
    (cli.folder / "rows.jsonl").write_text("".join(json.dumps({"a": 1, "text": t}) + "\n" for t in given), "utf-8")
    one = cli("predict", "runs/a", "--file", "lines.txt", "--json").records
    two = cli("predict", "runs/a", "--file", "rows.jsonl", "--input", "text", "--json").records
    assert [{**record, "data": {}} for record in two] == one
    assert "no column 'message'" in cli("predict", "runs/a", "--file", "rows.jsonl").err
    assert [record["input"] for record in one] == given
    assert all(abs(sum(record["probabilities"].values()) - 1) < 1e-9 for record in one)
    assert len(cli("predict", "runs/a", "--file", "mail.csv", "--input", "message", "--json").records) == 24
    process = cli.process("predict", "runs/a/network.json", "--json", stdin=subprocess.PIPE)
    piped, _ = process.communicate("\n".join(given), timeout=60)
    assert [json.loads(line) for line in piped.splitlines()] == one


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(cli: Shell):
    mail_csv(cli.folder / "mail.csv")
    process = cli.process("train", "--csv", "mail.csv", "--lm", "fake/1/slow", "--run-dir", "runs/a", "--json", *SMALL)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["kind"] == "started"
    process.stdout.close()
    assert process.wait(60) == 1
    complaint = process.stderr.read()
    process.stderr.close()
    assert "Traceback" not in complaint
    assert "bug" not in complaint
    assert cli("resume", "runs/a").code == 0


@pytest.mark.parametrize("row", ['{"b": 1}', '{"text": null}', '{"text": {"a": 1}}', '{"text": " "}'])
def test_predict_says_which_row_has_no_usable_text(cli: Shell, row: str):
    mail_csv(cli.folder / "mail.csv", rows=24)
    assert cli("train", "--csv", "mail.csv", "--lm", "fake/1", "--run-dir", "runs/a", *SMALL).code == 0
    (cli.folder / "rows.jsonl").write_text('{"text": "fine"}\n' + row + "\n", "utf-8")
    done = cli("predict", "runs/a", "--file", "rows.jsonl", "--input", "text", "--json")
    assert done.code == 0
    assert [(record["row"], record["label"] is None) for record in done.records] == [(1, False), (2, True)]
    assert "text" in done.records[1]["reason"]
    assert "1 of 2 rows have no prediction" in done.err


def test_a_run_that_is_in_the_way_is_named_as_a_command_to_copy(cli: Shell):
    mail_csv(cli.folder / "mail.csv", rows=24)
    words = ("train", "--csv", "mail.csv", "--lm", "fake/1", "--run-dir", "runs/my run", *SMALL)
    assert cli(*words).code == 0
    assert "dln resume 'runs/my run'" in cli(*words).err


def test_a_file_without_a_prompt_is_an_error(cli: Shell):
    mail_csv(cli.folder / "mail.csv", rows=24)
    (cli.folder / "p.txt").write_text("\n \n", "utf-8")
    done = cli("train", "--csv", "mail.csv", "--lm", "fake/1", "--prompts-from", "p.txt", *SMALL)
    assert done.code == 2
    assert "p.txt" in done.err
