"""Small files as users have them: what is right for each, from the command line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_fake_engine import LABELS, FakeLM
from cli_shell import Done, Shell
from dln.data import task_from_file
from dln.data.languages import LANGUAGES as KNOWN
from dln.lm.load import ENGINES, Engine, load_lm
from dln.lm.table import TableLM
from dln.nn import Sequential, load_network
from dln.nn.saving import OtherModelWarning

LM = ("--lm", "words/1")
TINY = (
    *(
        "--steps",
        1,
        "--set",
        "batch_size=6",
        "--set",
        "inference.num_prompts=2",
        "--set",
        "inference.demonstrations=[4]",
    ),
    *("--dev-size", 10, "--test-size", 10, "--train-size", 24, *LM),
)
COLOURS = ("blue", "red", "green", "white")
ORDERS = [(f"please send me {i} boxes of {COLOURS[i % 4]} tiles", "order") for i in range(3, 23)]
RETURNS = [(f"{i} of the {COLOURS[i % 4]} tiles arrived broken, what now?", "return") for i in range(3, 23)]
ROWS = [row for pair in zip(ORDERS, RETURNS, strict=True) for row in pair]


LANGUAGES = {
    "zh": (
        "文本",
        "标签",
        ["外卖非常满意，推荐", "味道不错，下次还会点"],
        ["味道很差，再也不点了", "非常失望，不推荐"],
        "好评",
        "差评",
    ),
    "ar": ("النص", "التصنيف", ["الطعام ممتاز جدا", "السعر رائع"], ["التوصيل سيئ جدا", "الطعام بطيء"], "إيجابي", "سلبي"),
    "de": (
        "Text",
        "Stimmung",
        ["Die App war großartig", "Gern wieder"],
        ["Nie wieder", "Sehr schlecht"],
        "gut",
        "übel",
    ),
}


def words(rest: str, spec: str, options: dict[str, Any]) -> FakeLM:
    """An instant model that knows the labels and answers of this page."""
    known = [*LABELS, "call", "order, urgent", "return, urgent", "urgent order", "urgent return", "naïve", "NaN"]
    known += [*"ab12345", "0", "news", "sport", "news, sport", "other", "INFO", "ERROR", "C#", "C++", "Order", "Return"]
    known += [f"intent_{i}" for i in range(77)] + [f"town {i}" for i in range(48)]
    known += [label for language in LANGUAGES.values() for label in language[4:]]
    texts = [space + text for space in (" ", "") for text in dict.fromkeys(known)]
    return FakeLM(spec, texts, int(rest), 0.0)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setitem(ENGINES, "words", Engine("words/<seed>", words))
    return Shell(monkeypatch, tmp_path, capsys)


def table(path: Path, header: str, rows: list[tuple[Any, ...]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header.split(","), *rows])
    return path


def ok(done: Done) -> Done:
    assert done.code == 0, done.err
    return done


def train(cli: Shell, *words: object, run: str = "runs/a", rows: int = 24) -> Done:
    return ok(cli("train", *words, *(rows if word == 24 else word for word in TINY), "--run-dir", run))


def recorded(cli: Shell, run: str = "runs/a") -> dict[str, Any]:
    return yaml.safe_load((cli.folder / run / "run.yaml").read_text("utf-8"))


def network(cli: Shell, run: str = "runs/a") -> dict[str, Any]:
    return json.loads((cli.folder / run / "network.json").read_text("utf-8"))


def mail(path: Path, mark: str = "T", end: str = "") -> Path:
    rows = [(f"{mark}{i}", y, x + end, "x") for i, (x, y) in enumerate(ROWS)]
    return table(path, "title,kind,memo,note", rows)


def test_settings_of_a_file_that_names_no_file_stay(cli: Shell):
    both = [(x, y.title() if i % 3 else y) for i, (x, y) in enumerate(ROWS)]
    table(cli.folder / "case.csv", "text,label", both)
    (cli.folder / "labels.yaml").write_text('task:\n  labels: ["order|Order", "return|Return"]\n')
    done = train(cli, "--csv", "case.csv", "--config", "labels.yaml")
    assert network(cli)["layers"][0]["labels"] == ["order|Order", "return|Return"]
    assert "'Order' → 'order'" in done.err


def test_a_label_with_a_bar_is_several_labels_and_can_be_mapped(cli: Shell):
    table(cli.folder / "pipe.csv", "text,label", [(x, f"{y}|urgent") for x, y in ROWS])
    done = train(cli, "--csv", "pipe.csv")
    assert "have several labels in 'label', divided by '|': urgent (40), order (20), return (20)" in done.err
    assert network(cli)["layers"][0]["labels"] == ["order, urgent", "return, urgent"]
    assert ok(cli("eval", "runs/a", "--json")).records[0]["after"]["n"] > 0
    whole = ok(cli("eval", "runs/a", "--csv", "pipe.csv", "--include-seen", "--json")).records[0]
    assert whole["after"]["n"] == 40
    (cli.folder / "y.yaml").write_text(
        'task:\n  labels: {"order|urgent": "urgent order", "return|urgent": "urgent return"}\n'
    )
    train(cli, "--csv", "pipe.csv", "--config", "y.yaml", run="runs/b")
    assert network(cli, "runs/b")["layers"][0]["labels"] == ["urgent order", "urgent return"]


def test_predict_and_eval_use_the_columns_of_the_run_and_the_whole_file(cli: Shell):
    mail(cli.folder / "mail.csv")
    mail(cli.folder / "more.csv", "N", " now")
    train(cli, "--csv", "mail.csv", "--input", "memo")
    record = recorded(cli)
    assert (record["config"]["task"]["input"], record["config"]["task"]["target"]) == ("memo", "kind")
    assert record["data"]["report"]["input"] == ["memo"]
    done = ok(cli("eval", "runs/a", "--csv", "more.csv", "--json"))
    assert done.records[0]["after"]["n"] == 40
    assert done.records[0]["data"]["input"] == ["memo"]
    assert "input 'memo'; target 'kind'" in done.err
    assert "no row of this file was used in training" in done.err
    predicted = ok(cli("predict", "runs/a", "--file", "more.csv", "--json")).records
    assert [record["row"] for record in predicted] == list(range(1, 41))
    assert [record["input"] for record in predicted] == [x + " now" for x, _ in ROWS]
    assert predicted[3]["data"] == {"title": "N3", "kind": "return", "note": "x"}
    other = ok(cli("eval", "runs/a", "--csv", "more.csv", "--input", "title", "--json")).records[0]
    assert other["data"]["input"] == ["title"]


def test_eval_leaves_out_what_the_run_has_seen(cli: Shell):
    mail(cli.folder / "mail.csv")
    train(cli, "--csv", "mail.csv", "--input", "memo")
    done = ok(cli("eval", "runs/a", "--csv", "mail.csv", "--json"))
    left = done.records[0]["data"]["left_out"]
    assert done.records[0]["after"]["n"] + sum(left.values()) == 40
    assert left["train rows of the run"] > 0
    assert "--include-seen" in done.err
    assert ok(cli("eval", "runs/a", "--csv", "mail.csv", "--include-seen", "--json")).records[0]["after"]["n"] == 40
    seen = task_from_file(cli.folder / "mail.csv", "memo", "kind").train
    table(cli.folder / "seen.csv", "kind,memo", [(e.target, e.input) for e in seen][:5])
    refused = cli("eval", "runs/a", "--csv", "seen.csv")
    assert (refused.code, "every row was used in training" in refused.err) == (2, True)


def test_a_resorted_file_is_tested_on_the_same_rows(cli: Shell):
    table(cli.folder / "plain.csv", "text,label", ROWS)
    train(cli, "--csv", "plain.csv")
    before = ok(cli("eval", "runs/a", "--json")).records[0]
    table(cli.folder / "plain.csv", "text,label", sorted(ROWS))
    after = ok(cli("eval", "runs/a", "--json")).records[0]
    assert sorted(row["x"] for row in after["examples"]) == sorted(row["x"] for row in before["examples"])
    assert after["after"]["accuracy"] == before["after"]["accuracy"]
    assert "left_out': {}" in str(after["data"])


def test_a_split_column_is_used_and_small_or_one_sided_files_are_evaluated(cli: Shell):
    parts = ["test", "train", "train", "train"]
    table(cli.folder / "t.csv", "text,label,split", [(x, y, parts[i // 2 % 4]) for i, (x, y) in enumerate(ROWS)])
    done = train(cli, "--csv", "t.csv")
    assert "column 'split' taken as the parts of the rows" in done.err
    tested = ok(cli("eval", "runs/a", "--json")).records[0]["examples"]
    assert {row["x"] for row in tested} <= {x for i, (x, _) in enumerate(ROWS) if i // 2 % 4 == 0}
    for name, rows in (
        ("three", [*ROWS[:1], ("4 tiles broken", "return"), ("send one", "order")]),
        ("one", ORDERS[:12]),
    ):
        table(cli.folder / f"{name}.csv", "text,label", [(x + "!", y) for x, y in rows])
        assert ok(cli("eval", "runs/a", "--csv", f"{name}.csv", "--json")).records[0]["after"]["n"] == len(rows)
    table(cli.folder / "odd.csv", "text,label", [("what now", "refund")])
    refused = cli("eval", "runs/a", "--csv", "odd.csv")
    assert refused.code == 2
    assert "'refund' (1 rows)" in refused.err


def test_an_edited_network_is_accepted_by_one_command(cli: Shell):
    table(cli.folder / "plain.csv", "text,label", ROWS)
    train(cli, "--csv", "plain.csv")
    file = cli.folder / "edited.json"
    for change in ("edit", "without hash"):
        document = network(cli)
        document["layers"][0]["prompt"] = {"instruction": "Say order or return.", "demonstrations": []}
        if change == "without hash":
            del document["sha256"]
        file.write_text(json.dumps(document), encoding="utf-8")
        refused = cli("predict", "edited.json", "two boxes")
        assert (refused.code, "dln show edited.json --resign" in refused.err) == (5, True)
        ok(cli("show", "edited.json", "--resign"))
        assert ok(cli("predict", "edited.json", "two boxes", "--json")).records[0]["label"] in ("order", "return")
        assert "Say order or return." in cli("show", "edited.json").out
    document["layers"][0]["prompt"]["demonstrations"] = [{"x": "a", "h": "a", "y": "refund"}]
    file.write_text(json.dumps(document), encoding="utf-8")
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    refused = cli("show", "edited.json", "--resign")
    assert (refused.code, "another label" in refused.err) == (2, True)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_another_model_is_noted_at_load(cli: Shell):
    table(cli.folder / "plain.csv", "text,label", ROWS)
    train(cli, "--csv", "plain.csv")
    done = ok(cli("predict", "runs/a", "two boxes", "--lm", "words/2"))
    assert "trained with the model words/1" in done.err
    assert "trained with" not in ok(cli("predict", "runs/a", "two boxes")).err
    with pytest.warns(OtherModelWarning, match="trained with the model words/1"):
        load_network(cli.folder / "runs/a", load_lm("words/2"))


def test_every_row_has_a_record(cli: Shell):
    table(cli.folder / "plain.csv", "text,label", ROWS)
    train(cli, "--csv", "plain.csv")
    (cli.folder / "empty.csv").write_text('text\nplease send\n""\nbroken\n', encoding="utf-8")
    records = ok(cli("predict", "runs/a", "--file", "empty.csv", "--json")).records
    assert [(r["row"], r["line"], r["label"] is None) for r in records] == [(1, 2, False), (2, 3, True), (3, 4, False)]
    assert records[1]["reason"] == "empty text"
    (cli.folder / "lines.txt").write_text("one\n\ntwo\n\n", encoding="utf-8")
    records = ok(cli("predict", "runs/a", "--file", "lines.txt", "--json")).records
    assert [(r["input"], r["reason"]) for r in records] == [("one", None), ("", "empty text"), ("two", None)]


@pytest.mark.parametrize(
    "suffix",
    [".csv", *(pytest.param(other, marks=pytest.mark.slow) for other in (".parquet", ".tsv", ".jsonl"))],
)
def test_predictions_carry_the_columns_and_an_interrupted_file_is_continued(
    cli: Shell, suffix: str, monkeypatch: pytest.MonkeyPatch
):
    table(cli.folder / "plain.csv", "text,label", ROWS)
    train(cli, "--csv", "plain.csv")
    rows = [(f"id{i}", x, "" if i == 7 else y, i) for i, (x, y) in enumerate(ROWS * 4)]
    table(cli.folder / "long.csv", "id,text,label,score", rows)
    command = ("predict", "runs/a", "--file", "long.csv", "--out", f"out{suffix}")
    ok(cli(*command))
    whole = (cli.folder / f"out{suffix}").read_bytes()
    (cli.folder / f"out{suffix}").unlink()
    asked: list[int] = []
    real = Sequential.predict_many

    def stopped(self: Sequential, inputs: list[str], **options: Any) -> Any:
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(len(inputs))
        return real(self, inputs, **options)

    monkeypatch.setattr(Sequential, "predict_many", stopped)
    assert cli(*command).code == 130
    assert not (cli.folder / f"out{suffix}").exists()
    monkeypatch.setattr(Sequential, "predict_many", real)
    done = ok(cli(*command))
    assert "64 of 160 predictions are there already" in done.err
    assert (cli.folder / f"out{suffix}").read_bytes() == whole
    assert not list(cli.folder.glob("*.partial"))
    if suffix == ".csv":
        with (cli.folder / "out.csv").open(encoding="utf-8", newline="") as file:
            written = list(csv.DictReader(file))
        assert [r["id"] for r in written] == [str(r[0]) for r in rows]
        assert [r["score"] for r in written] == [str(r[3]) for r in rows]
        assert [r["data.label"] for r in written] == [r[2] for r in rows]
        assert all(abs(float(r["p(order)"]) + float(r["p(return)"]) - 1) < 1e-6 for r in written)
    if suffix == ".parquet":
        from pyarrow import parquet

        assert parquet.read_table(cli.folder / "out.parquet").num_rows == 160


def test_the_output_never_replaces_the_input(cli: Shell):
    table(cli.folder / "plain.csv", "text,label", ROWS)
    train(cli, "--csv", "plain.csv")
    refused = cli("predict", "runs/a", "--file", "plain.csv", "--out", "plain.csv")
    assert (refused.code, "would replace the input" in refused.err) == (2, True)


def test_an_encoding_that_cannot_be_recognised_is_asked_for(cli: Shell):
    table(cli.folder / "plain.csv", "text,label", ROWS)
    train(cli, "--csv", "plain.csv")
    (cli.folder / "latin1.txt").write_bytes("für mich".encode("latin-1"))
    refused = cli("predict", "runs/a", "--file", "latin1.txt")
    assert refused.code == 2
    assert "--encoding cp1252" in refused.err
    done = ok(cli("predict", "runs/a", "--file", "latin1.txt", "--encoding", "latin-1", "--json"))
    assert done.records[0]["input"] == "für mich"


def test_two_input_columns_are_read_together(cli: Shell):
    rows = [(("FYI" if i % 2 else "Urgent") + f" {i}", x, y) for i, (x, y) in enumerate(ROWS)]
    table(cli.folder / "two.csv", "subject,body,label", rows)
    train(cli, "--csv", "two.csv", "--input", "subject", "--input", "body")
    assert recorded(cli)["config"]["task"]["input"] == ["subject", "body"]
    first = ok(cli("predict", "runs/a", "--file", "two.csv", "--json")).records[1]
    assert first["input"] == f"subject: FYI 1\nbody: {ROWS[1][0]}"
    twice = cli("train", "--csv", "two.csv", "--target", "label", "--target", "subject", *TINY)
    assert (twice.code, "given twice" in twice.err) == (2, True)
    same = cli("train", "--csv", "two.csv", "--input", "body", "--input", "body", *TINY)
    assert (same.code, "given twice" in same.err) == (2, True)


def test_labels_that_look_alike_are_noted(cli: Shell):
    rows = [*ROWS, ("strange", "NaN")]
    table(cli.folder / "nan.csv", "text,label", rows)
    done = train(cli, "--csv", "nan.csv")
    assert "'NaN' is a class, though it looks like a missing value; --missing NaN" in done.err
    assert "labels with a single row, which is in train: 'NaN'" in done.err
    done = train(cli, "--csv", "nan.csv", "--missing", "NaN", run="runs/b")
    assert network(cli, "runs/b")["layers"][0]["labels"] == ["order", "return"]
    forms = ["nai\u0308ve", "na\u00efve"]
    table(
        cli.folder / "nfc.csv",
        "text,label",
        [(x, forms[i % 2] if y == "order" else y) for i, (x, y) in enumerate(ROWS)],
    )
    done = train(cli, "--csv", "nfc.csv", run="runs/c")
    assert network(cli, "runs/c")["layers"][0]["labels"] == ["na\u00efve", "return"]


def test_json_answers_are_compared_as_json(cli: Shell):
    rows = [(f"Ann orders {i} of the fan", json.dumps({"item": "fan", "qty": i % 5})) for i in range(40)]
    task = task_from_file(table(cli.folder / "j.csv", "text,answer", rows))
    assert (task.labels, task.metric.name) == (None, "json")
    assert task.metric('{"qty": 2.0, "item": "fan"}', rows[2][1]) == 1.0


def test_blank_rows_of_excel_and_legacy_encodings_are_read_and_said(cli: Shell):
    path = table(cli.folder / "excel.csv", "text,label", [*ROWS, *[("", "")] * 5])
    done = train(cli, "--csv", path)
    assert "40 of 45 rows" in done.err
    assert "5 rows with no text in any cell dropped (lines 42, 43, 44, 45, 46)" in done.err
    wide = [(f"{x} für das Café – groß", y) for x, y in ROWS]
    table(cli.folder / "old.csv", "text,label", wide, encoding="cp1252")
    done = train(cli, "--csv", "old.csv", run="runs/b")
    assert "read as cp1252" in done.err
    assert "--encoding …" in done.err
    table(cli.folder / "x.csv", ROWS[0][0] + ",order", ROWS[1:], delimiter="|")
    done = train(cli, "--csv", "x.csv", "--no-header", "--delimiter", "|", "--quotechar", "'", run="runs/c")
    assert "no header line" in done.err


def test_nothing_is_trained_where_nothing_is_to_gain(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    def knowing(context: str) -> dict[str, float]:
        order = "please send" in context.rsplit("Input:", 1)[-1]
        return {" order": 0.9 if order else 0.1, " return": 0.1 if order else 0.9}

    monkeypatch.setitem(
        ENGINES, "knowing", Engine("knowing/<seed>", lambda rest, spec, options: TableLM(knowing, name="knowing/1"))
    )
    path = table(cli.folder / "easy.csv", "text,label", ROWS)
    assert (
        "Nothing to gain"
        in ok(cli("probe-task", "--csv", path, "--lm", "knowing/1", "--dev-size", 20, "--prompts", 2)).out
    )
    done = ok(cli("train", "--csv", path, "--lm", "knowing/1", "--dev-size", 12, "--test-size", 8, "--run-dir", "run"))
    assert "nothing to gain" in done.err
    assert "stop_at_accuracy=null" in done.err
    assert ok(cli("predict", "run", "please send me 9 boxes", "--json")).records[0]["label"] == "order"
    assert "nothing to gain" in ok(cli("runs", ".")).out


def test_other_columns_and_forms_are_guessed_sensibly(cli: Shell):
    table(cli.folder / "de.csv", "Nr,Nachricht,Kategorie", [(i, x, y) for i, (x, y) in enumerate(ROWS)], delimiter=";")
    done = train(cli, "--csv", "de.csv")
    assert "input 'Nachricht'; target 'Kategorie'; id 'Nr'" in done.err
    nested = [{"id": i, "ticket": {"subject": "s", "body": x}, "a": {"label": y}} for i, (x, y) in enumerate(ROWS)]
    (cli.folder / "n.jsonl").write_text("\n".join(map(json.dumps, nested)))
    assert "input 'ticket.body'; target 'a.label'" in train(cli, "--jsonl", "n.jsonl", run="runs/b").err
    (cli.folder / "l.json").write_text(json.dumps([{"text": x, "label": y} for x, y in ROWS]))
    assert "40 of 40 rows" in train(cli, "--task", "l.json", run="runs/c").err
    several = [{"text": x, "labels": [y, "urgent"] if i % 3 else [y]} for i, (x, y) in enumerate(ROWS)]
    (cli.folder / "m.jsonl").write_text("\n".join(map(json.dumps, several)))
    done = train(cli, "--jsonl", "m.jsonl", run="runs/d")
    assert "have several labels in 'labels'" in done.err
    assert network(cli, "runs/d")["layers"][0]["labels"] == ["order", "order, urgent", "return", "return, urgent"]
    assert ok(cli("eval", "runs/d", "--jsonl", "m.jsonl", "--include-seen", "--json")).records[0]["after"]["n"] == 40


@pytest.mark.parametrize(
    ("scale", "ordered"),
    [
        (("1", "2", "3", "4", "5"), True),
        (("low", "medium", "high"), True),
        (("1 star", "2 stars", "3 stars"), True),
        (("very bad", "bad", "good"), True),
        (("business", "sport", "world"), False),
        (("yes", "no"), False),
        (("1", "3", "7"), False),
    ],
)
def test_an_ordered_scale_is_recognised_and_said(tmp_path: Path, scale: tuple[str, ...], ordered: bool):
    path = table(
        tmp_path / "t.csv", "text,label", [(f"it was so and so {i}", scale[i % len(scale)]) for i in range(90)]
    )
    task = task_from_file(path)
    assert any("ordered scale" in note for note in task.notes) == ordered
    assert task.labels == (scale if ordered else tuple(sorted(scale)))
    if ordered:
        assert " < ".join(scale) in " ".join(task.notes)


def test_a_label_whose_rows_all_conflict_is_dropped_with_a_note(cli: Shell):
    rows = [("x y", "rare"), ("x y", "order"), *ROWS]
    done = train(cli, "--csv", table(cli.folder / "lost.csv", "text,label", rows))
    assert "labels without a row that is left, dropped: 'rare'" in done.err
    assert network(cli)["layers"][0]["labels"] == ["order", "return"]


@pytest.mark.parametrize("name", ["zh", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ar", "de"))])
def test_other_languages_train_and_predict(cli: Shell, name: str):
    x, y, good, bad, yes, no = LANGUAGES[name]
    rows = [(f"{text} {i}", label) for i in range(16) for texts, label in ((good, yes), (bad, no)) for text in texts]
    table(cli.folder / f"{name}.csv", f"{x},{y}", rows)
    done = train(cli, "--csv", f"{name}.csv")
    assert f"input '{x}'; target '{y}'" in done.err
    assert "the default instruction is in" in done.err
    prompt = recorded(cli)["network"]["layers"][0]["prompt"]
    assert yes in prompt["instruction"] and "Read the following" not in prompt["instruction"]
    assert prompt["wording"] == list(KNOWN[name].wording)
    assert ok(cli("predict", "runs/a", good[0], "--json")).records[0]["label"] in (yes, no)


def shapes(folder: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    """Twelve made-up files in the shapes of public data sets: the words of `dln train`, and a file to predict."""
    n = range(48)

    def lines(name: str, records: list[dict[str, Any]]) -> str:
        (folder / name).write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
        return name

    table(
        folder / "intents.csv",
        "text,intent",
        [(f"utterance {i} about {i % 77}", f"intent_{i % 77}") for i in range(308)],
    )
    zh = LANGUAGES["zh"]
    table(
        folder / "reviews.csv",
        "review,sentiment",
        [(f"{zh[2 + i % 2][i % 2]} {i}", zh[4 + i % 2]) for i in n],
        encoding="gb18030",
    )
    table(
        folder / "tickets.csv",
        "id,subject,body,queue",
        [(i, f"Subject {i}", ROWS[i % 40][0], ROWS[i % 40][1]) for i in range(40)],
    )
    mails = [(f'Hello,\n\n{x}\n\n> On Monday you wrote:\n> "fine, thanks"\n\nBye', y) for x, y in ROWS]
    table(folder / "emails.csv", "email,label", mails)
    squad = [{"id": f"q{i}", "question": f"Where is place {i}?", "context": f"Place {i} is in town {i}.",
              "answers": {"text": [f"town {i}"], "answer_start": [14]}} for i in n]  # fmt: skip
    tags = [
        {"text": f"post {i}", "tags": [t for k, t in enumerate(("news", "sport")) if (i >> k) & 1] or ["other"]}
        for i in n
    ]
    table(folder / "stars.tsv", "text,stars", [(f"it was so and so {i}", i % 5 + 1) for i in range(60)], delimiter="\t")
    chats = [{"messages": [{"role": "user", "content": f"parcel {i}"}, {"role": "assistant", "content": "Which one?"},
                           {"role": "user", "content": "The red"}], "label": "ab"[i % 2]} for i in n]  # fmt: skip
    log = [(f"2026-01-01T00:{i:02d}:00", ("INFO", "ERROR")[i % 2], f'host{i} "GET /a, b" {200 + i}') for i in n]
    table(folder / "log.csv", "timestamp,level,line", log)
    table(
        folder / "pairs.csv",
        "product1,product2,match",
        [(f"fan {i}", f"fan nr {i + i % 2}", ("no", "yes")[i % 2]) for i in n],
    )
    table(folder / "fraud.csv", "note,is_fraud", [(f"payment note {i}", int(i % 20 == 0)) for i in range(120)])
    code = [(f"int f{i}() {{ return {i}; }}", "C++") if i % 2 else (f"var f{i} = () => {i};", "C#") for i in n]
    table(folder / "code.csv", "code,language", code)
    return {
        "intents": (("--csv", "intents.csv"), "intents.csv"),
        "reviews": (("--csv", "reviews.csv"), "reviews.csv"),
        "tickets": (("--csv", "tickets.csv", "--target", "queue"), "tickets.csv"),
        "emails": (("--csv", "emails.csv", "--input", "email"), "emails.csv"),
        "squad": (("--jsonl", lines("squad.jsonl", squad)), "squad.jsonl"),
        "tags": (("--jsonl", lines("tags.jsonl", tags)), "tags.jsonl"),
        "stars": (("--csv", "stars.tsv"), "stars.tsv"),
        "chats": (("--jsonl", lines("chats.jsonl", chats)), "chats.jsonl"),
        "log": (("--csv", "log.csv", "--input", "line", "--target", "level", "--split-by", "timestamp"), "log.csv"),
        "pairs": (("--csv", "pairs.csv", "--target", "match"), "pairs.csv"),
        "fraud": (("--csv", "fraud.csv", "--target", "is_fraud"), "fraud.csv"),
        "code": (("--csv", "code.csv"), "code.csv"),
    }


SHAPES = ("intents", "reviews", "tickets", "emails", "squad", "tags", "stars", "chats", "log", "pairs", "fraud", "code")


@pytest.mark.parametrize(
    "name",
    [name if name in {"reviews", "tags"} else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES],
)
def test_twelve_shapes_train_evaluate_and_predict_with_one_command_each(cli: Shell, name: str):
    given, file = shapes(cli.folder)[name]
    train(cli, *given, rows=231 if name == "intents" else 24)
    report = recorded(cli)["data"]["report"]
    assert report["rows"] == report["used"] + sum(report["dropped"].values())
    ok(cli("eval", "runs/a"))
    records = ok(cli("predict", "runs/a", "--file", file, "--json")).records
    assert len(records) == report["rows"]
    assert all(record["label"] is not None or record["reason"] for record in records)


@pytest.mark.parametrize("form", ["csv", "jsonl", "json"])
def test_a_table_on_standard_input_is_read_as_one(cli: Shell, form: str, monkeypatch: pytest.MonkeyPatch):
    table(cli.folder / "mail.csv", "memo,kind", ROWS)
    cli.trained("train", "--csv", "mail.csv", "--input", "memo", *TINY, run_dir="runs/memo")
    rows = [{"memo": x, "n": i} for i, (x, _) in enumerate(ROWS[:3])]
    text = {
        "csv": "memo,n\n" + "".join(f'"{r["memo"]}",{r["n"]}\n' for r in rows),
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows, indent=1),
    }[form]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    done = ok(cli("predict", "runs/memo", "-", "--json"))
    assert [record["input"] for record in done.records] == [row["memo"] for row in rows]
    assert "a table, not lines of text (--file-format lines reads it as lines)" in done.err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    lines = ok(cli("predict", "runs/memo", "-", "--file-format", "lines", "--json")).records
    assert [record["input"] for record in lines] == [line.strip() for line in text.rstrip().split("\n")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sheet", "one"), "a file of this format has no sheet"),
        (("--file-format", "jsonl", "--delimiter", ";"), "a file of this format has no delimiter"),
    ],
)
def test_an_option_that_a_format_does_not_have_is_refused(cli: Shell, words: tuple[str, ...], said: str):
    table(cli.folder / "mail.csv", "memo,kind", ROWS)
    refused = cli("train", "--csv", "mail.csv", *words, *TINY)
    assert (refused.code, said in refused.err) == (2, True), refused.err
