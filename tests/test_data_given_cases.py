"""The folder of cases (`DLN_CASES`, or `../shared/cases` beside the checkout): a test per row of its table.

Made-up files of the same kinds are in test_data_cases.py, which needs no folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_fake_engine import FakeLM
from cli_shell import Done, Shell
from dln.lm.load import ENGINES, Engine
from dln.lm.table import TableLM

pytestmark = pytest.mark.slow

TINY = (
    *("--steps", 1, "--set", "batch_size=6", "--set", "inference.num_prompts=2", "--set"),
    *("inference.demonstrations=[4]", "--dev-size", 10, "--test-size", 10, "--train-size", 24),
)
KNOWN = (
    *("order", "return", "call", "Order", "Return", "NaN", "naïve", "👍", "👍🏽", "😀", "😡", "1", "2", "3", "4", "5"),
    *("order, urgent", "return, urgent", "urgent order", "urgent return", "好评", "差评", "إيجابي", "سلبي"),
    *("Zufrieden", "Unzufrieden", *(f"{a} {b}" for a in ("fyi", "urgent") for b in ("invoice", "meeting"))),
    *(json.dumps({"item": item, "qty": n}) for item in ("fan", "pump", "valve") for n in range(10)),
)
TEXTS = [space + text for space in (" ", "") for text in KNOWN]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    chosen = os.environ.get("DLN_CASES")
    given = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "shared" / "cases"
    if not given.is_dir():
        pytest.skip(f"the folder of cases is not at {given}; set DLN_CASES to it")
    for file in given.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    for name, spec in (("words", "words/<seed>"), ("smollm2", "smollm2")):  # the given networks name the embedded model
        monkeypatch.setitem(ENGINES, name, Engine(spec, lambda rest, spec, options: FakeLM(spec, TEXTS, 1, 0.0)))
    return Shell(monkeypatch, tmp_path, capsys)


def ok(done: Done) -> Done:
    assert done.code == 0, done.err
    return done


def train(cli: Shell, *words: object, run: str = "run", lm: str = "words/1") -> Done:
    return ok(cli("train", *words, *TINY, "--lm", lm, "--no-cache", "--run-dir", run))


def layer(cli: Shell, run: str = "run") -> dict[str, Any]:
    return json.loads((cli.folder / run / "network.json").read_text("utf-8"))["layers"][0]


def recorded(cli: Shell, run: str = "run") -> dict[str, Any]:
    return yaml.safe_load((cli.folder / run / "run.yaml").read_text("utf-8"))


def evaluated(cli: Shell, *words: object) -> int:
    return ok(cli("eval", *words, "--json")).records[0]["after"]["n"]


def test_01_settings_that_name_no_file_stay(cli: Shell):
    train(cli, "--csv", "01_case_labels.csv", "--config", "01_labels.yaml")
    assert layer(cli)["labels"] == ["order|Order", "return|Return"]
    train(cli, "--csv", "01_pipe_label.csv", "--config", "01_pipe_advice.yaml", run="b")
    assert layer(cli, "b")["labels"] == ["urgent order", "urgent return"]
    assert "divided by '|'" in train(cli, "--csv", "01_pipe_label.csv", run="c").err


def test_02_columns_of_the_run_and_the_whole_file(cli: Shell):
    train(cli, "--csv", "02_mail.csv", "--input", "memo")
    done = ok(cli("eval", "run", "--csv", "02_more.csv", "--json"))
    assert (done.records[0]["after"]["n"], done.records[0]["data"]["input"]) == (40, ["memo"])
    assert "input 'memo'; target 'kind'" in done.err
    done = ok(cli("predict", "run", "--file", "02_more.csv", "--json"))
    assert [record["row"] for record in done.records] == list(range(1, 41))
    assert all(record["input"].endswith(" now") for record in done.records)
    assert "input 'memo'" in done.err


def test_03_a_split_column_is_used_and_small_files_are_evaluated(cli: Shell):
    done = train(cli, "--csv", "03_split_column.csv")
    assert "column 'split' taken as the parts of the rows" in done.err
    assert evaluated(cli, "run") == 10
    train(cli, "--csv", "02_mail.csv", "--input", "memo", run="mail")
    for name, rows in (("3_rows", 3), ("one_class", 12)):
        assert evaluated(cli, "mail", "--csv", f"03_test_{name}.csv", "--include-seen") == rows
        assert 0 < evaluated(cli, "mail", "--csv", f"03_test_{name}.csv") <= rows


@pytest.mark.parametrize("name", ["08_network_prompt_edited.json", "08_network_without_sha256.json"])
def test_08_one_command_accepts_an_edited_network(cli: Shell, name: str):
    refused = cli("predict", name, "two boxes")
    assert (refused.code, f"dln show {name} --resign" in refused.err) == (5, True)
    ok(cli("show", name, "--resign"))
    assert ok(cli("predict", name, "two boxes", "--json")).records[0]["label"] in ("call", "order", "return")


def test_10_11_a_record_per_row_and_a_clean_encoding_error(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    train(cli, "--csv", "plain.csv")
    records = ok(cli("predict", "run", "--file", "10_predict_empty_row.csv", "--json")).records
    assert [(r["row"], r["label"] is None, r["reason"]) for r in records] == [
        (1, False, None),
        (2, True, "empty text"),
        (3, False, None),
    ]
    with (cli.folder / "11_latin1.txt").open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        refused = cli("predict", "run")
    assert (refused.code, "--encoding cp1252" in refused.err, "bug" in refused.err) == (2, True, False)
    records = ok(cli("predict", "run", "--file", "11_latin1.txt", "--encoding", "latin-1", "--json")).records
    assert records[0]["input"] == "für mich"


def test_12_two_input_columns(cli: Shell):
    train(cli, "--csv", "12_two_columns.csv", "--input", "subject", "--input", "body")
    assert recorded(cli)["data"]["report"]["input"] == ["subject", "body"]
    first = ok(cli("predict", "run", "--file", "12_two_columns.csv", "--json")).records[0]
    assert first["input"] == "subject: FYI 0\nbody: about the meeting 0"


def test_13_labels_that_look_alike(cli: Shell):
    assert "'NaN' is a class, though it looks like a missing value" in train(cli, "--csv", "13_nan_label.csv").err
    train(cli, "--csv", "13_nan_label.csv", "--missing", "NaN", run="b")
    assert layer(cli, "b")["labels"] == ["order", "return"]
    done = train(cli, "--csv", "13_nfc_nfd_labels.csv", run="c")
    assert layer(cli, "c")["labels"] == ["naïve", "👍", "👍🏽", "😀", "😡"]
    assert "Unicode normal form" in done.err and "'naïve' (2 spellings)" in done.err


def test_16_the_estimate_is_a_bound(cli: Shell):
    train(cli, "--csv", "16_json_extraction.csv")
    most = recorded(cli)["estimate"]["at_most"]
    events = [json.loads(line) for line in (cli.folder / "run" / "events.jsonl").read_text("utf-8").splitlines()]
    used = max(e["usage"]["prompt_tokens"] + e["usage"]["completion_tokens"] for e in events if e.get("usage"))
    assert 0 < used <= most["prompt_tokens"] + most["completion_tokens"]


def test_22_23_blank_rows_and_a_legacy_encoding(cli: Shell):
    done = train(cli, "--csv", "22_excel_blank_rows.csv")
    assert "40 of 45 rows" in done.err
    assert "5 rows with no text in any cell dropped (lines 42, 43, 44, 45, 46)" in done.err
    assert "read as cp1252" in train(cli, "--csv", "23_cp1252.csv", run="b").err
    flags = ("--encoding", "cp1252", "--delimiter", ",", "--quotechar", '"')
    train(cli, "--csv", "23_cp1252.csv", *flags, run="c")
    assert layer(cli, "b")["prompt"] == layer(cli, "c")["prompt"]
    lines = (cli.folder / "22_excel_blank_rows.csv").read_text("utf-8").split("\n")[1:]
    (cli.folder / "bare.csv").write_text("\n".join(lines), encoding="utf-8")
    assert "no header line" in train(cli, "--csv", "bare.csv", "--no-header", run="d").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--csv", "24_german_columns.csv"), "input 'Nachricht'; target 'Kategorie'; id 'Nr'"),
        (("--jsonl", "24_nested.jsonl"), "input 'ticket.body'; target 'annotations.label'; id 'id'"),
        (("--jsonl", "24_nested.jsonl", "--input", "ticket.subject", "--input", "ticket.body"), "'ticket.subject' + "),
        (("--task", "24_list.json"), "40 of 40 rows; input 'text'; target 'label'"),
        (("--jsonl", "24_list.json"), "40 of 40 rows; input 'text'; target 'label'"),
        (("--jsonl", "24_multilabel.jsonl"), "have several labels in 'labels': order (20), return (20), urgent (14)"),
    ],
)
def test_24_columns_and_forms_are_guessed_sensibly(cli: Shell, words: tuple[str, ...], said: str):
    assert said in train(cli, *words).err


def test_26_nothing_to_gain(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    def knowing(context: str) -> dict[str, float]:
        p = 0.9 if "please send" in context.rsplit("Input:", 1)[-1] else 0.1
        return {" order": p, " return": 0.95 - p, " call": 0.05}

    made = Engine("knowing/<seed>", lambda rest, spec, options: TableLM(knowing, name="knowing/1"))
    monkeypatch.setitem(ENGINES, "knowing", made)
    path = ("--csv", "26_already_perfect.csv", "--lm", "knowing/1")
    assert "Nothing to gain" in ok(cli("probe-task", *path, "--dev-size", 20, "--prompts", 2)).out


def test_27_the_instruction_of_the_user_is_never_lost_silently(cli: Shell):
    for seed in range(3):
        run = f"run{seed}"
        words = ("--prompt", "Say order or return.", "--seed", seed)
        done = train(cli, "--csv", "27_twenty_rows.csv", *words, run=run)
        assert layer(cli, run)["prompt"]["instruction"].strip() or "instruction" in done.err


def test_31_a_label_whose_rows_all_conflict(cli: Shell):
    done = train(cli, "--csv", "31_lost_label.csv")
    assert "labels without a row that is left, dropped: 'rare'" in done.err
    assert layer(cli)["labels"] == ["order", "return"]


def test_34_an_ordered_scale_is_recognised(cli: Shell):
    assert "ordered scale, 1 < 2 < 3 < 4 < 5" in train(cli, "--csv", "34_ordinal.csv").err
    assert layer(cli)["labels"] == ["1", "2", "3", "4", "5"]


def test_plain_a_resorted_file_is_tested_on_the_same_rows(cli: Shell):
    train(cli, "--csv", "plain.csv")
    before = ok(cli("eval", "run", "--json")).records[0]["examples"]
    header, *rows = (cli.folder / "plain.csv").read_text("utf-8").splitlines()
    (cli.folder / "plain.csv").write_text("\n".join([header, *sorted(rows)]), encoding="utf-8")
    after = ok(cli("eval", "run", "--json")).records[0]["examples"]
    assert sorted(row["x"] for row in before) == sorted(row["x"] for row in after)
    assert "are left out" in ok(cli("eval", "run", "--csv", "plain.csv")).err


@pytest.mark.parametrize(("name", "start"), [("zh", "阅读下面"), ("ar", "اقرأ النص"), ("de", "Lies den")])
def test_languages_have_their_own_instruction(cli: Shell, name: str, start: str):
    done = train(cli, "--csv", f"{name}.csv")
    assert "the default instruction is in" in done.err
    assert recorded(cli)["network"]["layers"][0]["prompt"]["instruction"].startswith(start)
    first = ok(cli("predict", "run", "--file", f"{name}.csv", "--json")).records[0]
    assert first["label"] in layer(cli)["labels"]
