"""What a random frame in a random dialect becomes; every format; splits and labels; 300 damaged files."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.data import Dataset, DataSpec, Task, task_from_file
from dln.data.labels import folded
from dln.data.readers import read_table
from dln.data.resolve import read_items, resolve, text_key
from dln.data.splits import PARTS, assign, by_time
from dln.errors import InputError

ROWS = [(f"please send {i} boxes", "order") if i % 2 else (f"{i} tiles broke", "return") for i in range(40)]


def write(path: Path, rows: object = ROWS, header: str = "text,label", encoding: str = "utf-8") -> Path:
    lines = [header, *(",".join(row) for row in rows)] if not isinstance(rows, str) else [rows]
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def said(task: Task | Dataset) -> str:
    assert task.report is not None
    return "\n".join((*task.report.lines, *task.notes))


def counted(task: Task) -> None:
    """Every row of the file is used or counted as dropped."""
    report = task.report
    assert report is not None
    assert report.rows == report.used + sum(report.dropped.values())


TEXT = st.text(st.characters(blacklist_characters="\x00\ufeff", blacklist_categories=["Cs", "Cc"]), max_size=12)
CELL = st.one_of(TEXT, st.sampled_from(["a,b", 'say "x"', "line\nbreak", "it's", "semi;colon", "pi|pe", "tab\there"]))


@st.composite
def frames(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    width = draw(st.integers(2, 5))
    rows = draw(st.lists(st.lists(CELL, min_size=width, max_size=width), min_size=1, max_size=8))
    return [f"column {i}" for i in range(width)], [row for row in rows if any(cell.strip() for cell in row)] or [
        ["x"] * width
    ]


@given(
    frames(),
    st.sampled_from(",;\t|^~"),
    st.sampled_from("\"'"),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_in_a_named_dialect_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    frame: tuple[list[str], list[list[str]]],
    delimiter: str,
    quote: str,
    quoting: Any,
    encoding: str,
    ending: str,
) -> None:
    header, rows = frame
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, quotechar=quote, quoting=quoting, lineterminator=ending)
    writer.writerows([header, *rows])
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_bytes(buffer.getvalue().encode(encoding))
    table = read_table(DataSpec(delimiter=delimiter, quotechar=quote), str(path))
    assert table.columns == tuple(header)
    assert [list(row.cells.values()) for row in table.rows] == rows
    if quoting == csv.QUOTE_ALL:  # nothing is named: the dialect is found
        table = read_table(DataSpec(), str(path), columns=header)
        assert [list(row.cells.values()) for row in table.rows] == rows


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=12))
def test_every_row_gives_one_item_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("text", "more"), *rows])
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    _, items, report = read_items(DataSpec(path=str(path), input="text"), with_target=False)
    assert report.rows == len(items) == len(rows)
    assert [item.cells["text"] for item in items] == [text for text, _ in rows]
    assert all(bool(item.problem) == (not text.strip()) for item, (text, _) in zip(items, rows, strict=True))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("t.csv.gz", gzip.compress),
        ("t.csv.bz2", bz2.compress),
        ("t.csv.xz", lzma.compress),
        ("t.csv.zip", lambda data: zipped({"t.csv": data})),
    ],
)
def test_compressed_files(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    plain = write(tmp_path / "t.csv")
    packed = tmp_path / name
    packed.write_bytes(pack(plain.read_bytes()))
    assert Dataset.from_file(packed).content_hash() == Dataset.from_file(plain).content_hash()
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"damaged|cannot|closed|does not"):
        Dataset.from_file(packed)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.zip").write_bytes(zipped({"a.csv": b"x", "b.csv": b"y"}))
    with pytest.raises(InputError, match="does not hold one file"):
        Dataset.from_file(tmp_path / "t.zip")


def records() -> list[dict[str, Any]]:
    return [{"text": x, "label": y} for x, y in ROWS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", lambda: "\n".join(map(json.dumps, records()))),
        ("t.json", lambda: json.dumps(records())),
        ("t.json", lambda: json.dumps({"data": records()})),
        ("t.json", lambda: json.dumps({"text": [x for x, _ in ROWS], "label": [y for _, y in ROWS]})),
        ("t.json", lambda: "\n".join(map(json.dumps, records()))),
        ("t.jsonl", lambda: json.dumps(records(), indent=1)),
        ("t.json", lambda: json.dumps({"columns": ["text", "label"], "data": ROWS})),
        ("t.csv", lambda: "sep=;\ntext;label\n" + "\n".join(f"{x};{y}" for x, y in ROWS)),
        ("t.tsv", lambda: "text\tlabel\n" + "\n".join(f"{x}\t{y}" for x, y in ROWS)),
        ("export", lambda: "text,label\n" + "\n".join(f"{x},{y}" for x, y in ROWS)),
        ("t.csv", lambda: "text,label,\n" + "\n".join(f"{x},{y}," for x, y in ROWS)),
    ],
)
def test_every_text_format_gives_the_same_examples(tmp_path: Path, name: str, content: Callable[[], str]) -> None:
    path = tmp_path / name
    path.write_text(content(), encoding="utf-8")
    data = Dataset.from_file(path)
    assert list(zip(data.inputs, data.targets, strict=True)) == ROWS
    assert data.content_hash() == Dataset.from_dicts(records()).content_hash()


LISTS = [["text", "label"], *map(list, ROWS)]


@pytest.mark.parametrize(
    ("name", "content", "said_too"),
    [
        ("t.txt", lambda: "text;label\n" + "\n".join(f"{x};{y}" for x, y in ROWS), "a table, not lines of text"),
        ("t.txt", lambda: "\n".join(map(json.dumps, records())), "a table, not lines of text"),
        ("t.json", lambda: json.dumps(LISTS), "a list of lists, whose first list names the columns"),
        ("t.jsonl", lambda: "\n".join(map(json.dumps, LISTS)), "a list of lists"),
        ("t.jsonl", lambda: ",\n".join(map(json.dumps, records())) + ",", "have commas between them"),
        ("t.jsonl", lambda: "".join(json.dumps(r, indent=1) for r in records()), "not one per line"),
        ("t.json", lambda: json.dumps({f"r{i}": r for i, r in enumerate(records())}), ""),
        ("t.csv", lambda: "text, label\n" + "\n".join(f'"{x}", "{y}"' for x, y in ROWS), ""),
        ("t.md", lambda: "| text | label |\n|---|:--|\n" + "\n".join(f"| {x} | {y} |" for x, y in ROWS), "Markdown"),
        ("t.csv", lambda: ("text,label\n" + "\n".join(f"{x},{y}" for x, y in ROWS)).replace("\n", "\r\n", 9), ""),
    ],
)
def test_looser_forms_give_the_same_examples_and_are_said(
    tmp_path: Path, name: str, content: Callable[[], str], said_too: str
) -> None:
    path = tmp_path / name
    path.write_text(content(), encoding="utf-8", newline="")
    data = Dataset.from_file(path)
    assert list(zip(data.inputs, data.targets, strict=True)) == ROWS
    assert said_too in said(data)


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_numbers_that_json_does_not_have_are_empty_cells(tmp_path: Path, name: str) -> None:
    rows = [*records(), {"text": "x", "label": float("nan")}, {"text": float("-inf"), "label": "order"}]
    (tmp_path / name).write_text(json.dumps(rows) if name == "t.json" else "\n".join(map(json.dumps, rows)))
    task = task_from_file(tmp_path / name)
    counted(task)
    assert task.report is not None and task.report.dropped == {"empty label": 1, "empty text": 1}
    assert "2 values NaN or Infinity" in said(task)


def test_lists_of_lists_have_headers_as_csv_files_do(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(LISTS[1:]))
    with pytest.raises(InputError, match="looks like data"):
        Dataset.from_file(path)
    data = Dataset.from_file(path, header=False)
    assert list(zip(data.inputs, data.targets, strict=True)) == ROWS
    path.write_text(json.dumps([*LISTS, ["one"], ["a", "b", "c"]]))
    assert sum(resolve(DataSpec(path=str(path))).report.dropped.values()) == 2
    path.write_text("[]")
    with pytest.raises(InputError, match="the file is empty"):
        Dataset.from_file(path)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"%PDF-1.4\n", "a PDF document"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an Office file"),
        (b"\x89PNG\r\n", "a picture"),
        (b"a.csv" + bytes(252) + b"ustar", "a tar archive"),
        (b"\x80\x04\x95", "a pickle"),
    ],
)
def test_files_that_are_no_tables_are_named(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "t.csv").write_bytes(start + bytes(600))
    with pytest.raises(InputError, match=kind):
        Dataset.from_file(tmp_path / "t.csv")


def test_a_zst_file(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    plain = write(tmp_path / "t.csv")
    with arrow.output_stream(str(tmp_path / "t.csv.zst"), compression="zstd") as stream:
        stream.write(plain.read_bytes())
    assert Dataset.from_file(tmp_path / "t.csv.zst").content_hash() == Dataset.from_file(plain).content_hash()


def test_sheets_merged_cells_and_formulas(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["about", "this"])
    sheet = book.create_sheet("mail")
    sheet.append(["A long title"])
    sheet.merge_cells("A1:B1")
    sheet.append(["text", "label"])
    for i, (x, y) in enumerate(sorted(ROWS, key=lambda row: row[1])):
        sheet.append([x, y if i in (0, 20) else None])
    sheet.merge_cells("B3:B22")
    sheet.merge_cells("B23:B42")
    sheet.append(["one more", '=IF(A3="","order","return")'])
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="there is no sheet 'mial'"):
        Dataset.from_file(tmp_path / "t.xlsx", sheet="mial")
    data = Dataset.from_file(tmp_path / "t.xlsx", sheet="mail")
    assert set(zip(data.inputs, data.targets, strict=True)) == set(ROWS)
    assert "2 merged cells: each of their rows has the value" in said(data)
    assert "1 formula without a saved value" in said(data)
    assert "1 row above the header skipped" in said(data)


def test_excel_parquet_frames_and_a_folder_give_the_same_examples(tmp_path: Path) -> None:
    openpyxl, pandas = pytest.importorskip("openpyxl"), pytest.importorskip("pandas")
    wanted = Dataset.from_dicts(records()).content_hash()
    book = openpyxl.Workbook()
    book.active.append(["text", "label", "when"])
    for x, y in ROWS:
        book.active.append([x, y, None])
    book.create_sheet("empty")
    for _ in range(3):
        book.active.append([None, " ", None])
    book.save(tmp_path / "t.xlsx")
    data = Dataset.from_file(tmp_path / "t.xlsx", "text", "label")
    assert data.content_hash() == wanted
    assert data[0].id == "t.xlsx:2"
    frame = pandas.DataFrame(records())
    assert Dataset.from_frame(frame).content_hash() == wanted
    frame.to_parquet(tmp_path / "t.parquet")
    assert Dataset.from_file(tmp_path / "t.parquet").content_hash() == wanted
    for i, (x, y) in enumerate(ROWS):
        (tmp_path / "texts" / y).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / y / f"{i:02d}.txt").write_text(x)
    folder = Dataset.from_file(tmp_path / "texts")
    assert {(e.input, e.target) for e in folder} == set(ROWS)
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 broken")
    for name in ("t.xlsx", "t.parquet"):
        with pytest.raises(InputError, match="cannot be read"):
            Dataset.from_file(tmp_path / name)


def test_frames_in_other_forms_give_the_same_examples() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(records())
    wanted = Dataset.from_frame(frame).content_hash()
    others = [
        frame.set_index("text"),
        frame.set_index(frame.index + 100),
        frame.assign(label=frame["label"].astype("category")),
        frame.astype("string"),
        frame.assign(text=[x.encode() for x, _ in ROWS]),
    ]
    assert [Dataset.from_frame(other, "text", "label").content_hash() for other in others] == [wanted] * len(others)
    days = frame.assign(label=pandas.to_datetime(["2026-01-01", "2026-01-02"] * 20))
    assert Dataset.from_frame(days).labels == ("2026-01-01", "2026-01-02")
    holes = frame.assign(label=pandas.array([0, 1, None, 1] * 10, dtype="Int64"))
    assert "10 rows with empty label dropped (rows 3, 7, 11, 15, 19 and 5 more)" in said(Dataset.from_frame(holes))
    with pytest.raises(InputError, match="bytes that are no UTF-8"):
        Dataset.from_dicts([{"text": b"\xff\xfe", "label": "a"}])


def test_a_task_of_a_frame_has_groups_times_and_parts() -> None:
    rows = [{**record, "who": f"c{i % 9}", "day": i, "part": "train"} for i, record in enumerate(records())]
    task = Task.from_frame(rows, group="who")
    who = {row["text"]: row["who"] for row in rows}
    assert not {who[x] for x in task.train.inputs} & {who[x] for x in task.test.inputs}
    assert len(Task.from_frame(rows, split_by="day", split_column=None).train) == 20
    datasets = pytest.importorskip("datasets")
    parts = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows[:30]), "test": datasets.Dataset.from_list(rows[30:])}
    )
    task = Task.from_frame(parts, "text", "label")
    assert set(task.test.inputs) == {row["text"] for row in rows[30:]}
    assert len(Dataset.from_hf(parts, "text", "label", split=None)) == 40


class Polars:
    """The two members of a polars frame that are used."""

    columns = ("text", "label")

    def iter_rows(self) -> Any:
        return iter(ROWS)


def test_a_polars_frame() -> None:
    assert Dataset.from_frame(Polars()).content_hash() == Dataset.from_dicts(records()).content_hash()
    polars = pytest.importorskip("polars")
    assert (
        Dataset.from_frame(polars.DataFrame(records())).content_hash() == Dataset.from_dicts(records()).content_hash()
    )


ALPHABETS = {
    "cp1252": "Fliesen für das Café – groß",
    "cp1251": "Пришлите мне плитку для кухни",
    "koi8-r": "Пришлите мне плитку для кухни",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "iso8859-2": "Zażółć gęślą jaźń",
    "cp1253": "Στείλτε μου πλακάκια για την κουζίνα",
    "cp1254": "Lütfen bana mutfak için şık ğ İ ı çini gönderin",
    "cp1255": "שלחו לי אריחים למטבח בבקשה",
    "cp1256": "الطعام بطيء ومخيب للآمال",
    "cp932": "とても良い商品でした、また買います",
    "euc-jp": "とても良い商品でした、また買います",
    "gb18030": "外卖非常满意，推荐。味道不错",
    "big5": "外賣非常滿意，推薦。味道不錯",
    "cp949": "배송이 정말 빨라서 좋아요",
    "mac_roman": "Fliesen für das Café groß",
}


@pytest.mark.parametrize("encoding", ALPHABETS)
def test_legacy_encodings_are_recognised_and_said(tmp_path: Path, encoding: str) -> None:
    rows = [(f"{ALPHABETS[encoding]} {i}", "ab"[i % 2]) for i in range(20)]
    data = Dataset.from_file(write(tmp_path / "t.csv", rows, encoding=encoding))
    assert data.inputs == tuple(x.strip() for x, _ in rows)
    assert any(f"read as {encoding}" in note for note in data.notes)
    named = Dataset.from_file(tmp_path / "t.csv", encoding=encoding)
    assert named.content_hash() == data.content_hash()


@pytest.mark.parametrize("words", ["пришлите коробок", "плиток разбито в пути", "возврат заказ", "доставка опоздала"])
def test_short_russian_texts_are_not_read_as_hebrew(tmp_path: Path, words: str) -> None:
    path = write(tmp_path / "t.csv", [(f"{words} {i}", "ab"[i % 2]) for i in range(20)], encoding="cp1251")
    assert Dataset.from_file(path).inputs[0] == f"{words} 0"


@pytest.mark.parametrize("above", ["# made by a tool, version 3\n# of May\n", "Report of May\n\n", "Report\r\n"])
def test_lines_above_the_header_are_skipped_and_counted(tmp_path: Path, above: str) -> None:
    plain = write(tmp_path / "plain.csv", "text;label\n" + "\n".join(f"{x};{y}" for x, y in ROWS))
    path = write(tmp_path / "t.csv", above + plain.read_text("utf-8"))
    data = Dataset.from_file(path)
    assert data.content_hash() == Dataset.from_file(plain).content_hash()
    lines = above.count("\n")
    assert any(note == f"{lines} line{'s' * (lines > 1)} above the header skipped" for note in data.notes)
    assert data[0].id and str(lines + 2) in data[0].id


def test_a_column_of_texts_has_no_lines_above_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "review\nthe text, label and all\nok, fine\n")
    assert len(read_table(DataSpec(path=str(path)), str(path)).rows) == 2


def test_rows_of_delimiters_empty_cells_and_long_rows_are_counted(tmp_path: Path) -> None:
    lines = ["text,label", *(",".join(row) for row in ROWS), ",", " , ", "no label,", ",order", "a,b,c", "short"]
    path = write(tmp_path / "t.csv", "\n".join(lines))
    task = task_from_file(path)
    counted(task)
    assert task.report is not None and task.report.rows == 46 and task.report.used == 40
    for words in (
        "2 rows with no text in any cell dropped (lines 42, 43)",
        "2 rows with empty label",
        "1 row with empty text",
    ):
        assert words in said(task)
    assert "1 row with more cells than columns skipped (line 46)" in said(task)
    assert len(Dataset.from_file(path, long_rows="cut")) == 41
    with pytest.raises(InputError, match="line 46"):
        Dataset.from_file(path, long_rows="refuse")
    with pytest.raises(InputError, match="line 44"):
        Dataset.from_file(path, empty="refuse")
    assert len(Dataset.from_file(path, empty="keep", free_form=True)) == 43
    many = write(tmp_path / "m.csv", "text,label\na, b,x\nc, d,y\ne,x\n")
    with pytest.raises(InputError, match="2 rows of 3"):
        Dataset.from_file(many)


def test_no_header_and_several_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", ROWS[1:20], header=",".join(ROWS[0]))
    second = write(tmp_path / "b.csv", ROWS[21:], header=",".join(ROWS[20]))
    with pytest.raises(InputError, match="header=False"):
        Dataset.from_file(first)
    data = Dataset.from_file([first, second], header=False)
    assert list(zip(data.inputs, data.targets, strict=True)) == ROWS
    assert (data[0].id, data[20].id) == ("a.csv:1", "b.csv:1")


def test_nested_fields_chats_and_lists(tmp_path: Path) -> None:
    nested = [{"id": i, "t": {"body": x, "n": [1, {"k": y}]}} for i, (x, y) in enumerate(ROWS)]
    data = Dataset.from_dicts(nested, "t.body", "t.n.1.k")
    assert list(zip(data.inputs, data.targets, strict=True)) == ROWS
    chat = [{"role": "system", "content": "Help."}, {"role": "user", "content": "hi"}]
    rows = [{"messages": [*chat, {"role": "assistant", "content": f"answer {i}"}]} for i in range(9)]
    data = Dataset.from_dicts(rows)
    assert (data[0].input, data[0].target) == ("system: Help.\nuser: hi", "answer 0")
    labelled = Dataset.from_dicts(
        [{"messages": [*chat, {"role": "user", "content": str(i)}], "label": "ab"[i % 2]} for i in range(8)]
    )
    assert labelled[1].input == "system: Help.\nuser: hi\nuser: 1"
    assert labelled.labels == ("a", "b")
    with pytest.raises(InputError, match=r"row 1.*not a text"):
        Dataset.from_dicts([{"text": ["a", "b"], "label": "x"}])


SPELLINGS = ("yes", "yes ", "ye\u200bs", "nai\u0308ve", "na\u00efve", "No", "no", "no")


def test_columns_are_guessed_by_name_and_content() -> None:
    rows = [
        {"timestamp": f"2024-01-{i % 28 + 1:02d}", "user_id": i % 7, "msg": f"{x} now", "is_spam": i % 2}
        for i, (x, _) in enumerate(ROWS)
    ]
    data = Dataset.from_dicts(rows)
    assert data.report is not None
    assert (data.report.input, data.report.target) == (("msg",), "is_spam")
    two = [{"mood": "ab"[i % 2], "tone": "cd"[i % 2], "said": x} for i, (x, _) in enumerate(ROWS)]
    with pytest.raises(InputError, match="cannot tell which column is the target"):
        Dataset.from_dicts(two)
    with pytest.raises(InputError, match="add a column with the targets"):
        Dataset.from_dicts([{"text": x} for x, _ in ROWS])


def test_labels_are_folded_and_lookalikes_named(tmp_path: Path) -> None:
    rows = [
        (f"text {i}", y)
        for i, y in enumerate(["yes", "yes ", "ye\u200bs", "nai\u0308ve", "na\u00efve", "No", "no", "no"] * 3)
    ]
    data = Dataset.from_dicts([{"text": x, "label": y} for x, y in rows])
    assert data.labels == ("naïve", "No", "no", "yes")
    assert "are one: 'yes' (2 spellings); 'naïve' (2 spellings)" in said(data)
    assert "'No'/'no'; merge_labels=True" in said(data)
    merged = Dataset.from_dicts([{"text": x, "label": y} for x, y in rows], merge_labels=True)
    assert merged.labels == ("naïve", "no", "yes")
    numbers = Dataset.from_dicts(
        [{"text": f"t{i}", "label": ["1", "1.0", "2", "NaN", "nan"][i % 5]} for i in range(40)]
    )
    assert "'1'/'1.0'" in said(numbers)
    assert "missing='NaN'" in said(numbers)
    dropped = Dataset.from_dicts(
        [{"text": f"t{i}", "label": ["1", "1.0", "2", "NaN", "nan"][i % 5]} for i in range(40)],
        merge_labels=True,
        missing=["NaN", "nan"],
    )
    assert (dropped.labels, len(dropped)) == (("1", "2"), 24)


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({0: "no", 1: "yes"}, ("0", "1")),
        ({"0": "no", "1": "yes"}, (0, 1)),
        ({0: "no", 1: "yes"}, ("0.0", "1.0")),
        ({False: "no", True: "yes"}, ("false", "true")),
        ({False: "no", True: "yes"}, ("No", "Yes")),
    ],
)
def test_a_mapping_takes_numbers_and_booleans_as_keys(labels: dict[Any, str], values: tuple[Any, Any]) -> None:
    rows = [{"text": f"t{i}", "label": values[i % 2]} for i in range(10)]
    data = Dataset.from_dicts(rows, labels=labels)
    assert set(data.targets) == {"no", "yes"}
    with pytest.raises(InputError, match="not one of the labels"):
        Dataset.from_dicts([*rows, {"text": "z", "label": "7"}], labels=labels)


def test_emoji_and_persian_joiners_stay() -> None:
    assert folded("👨\u200d👩\u200d👧") != folded("👨👩👧")
    assert folded("می\u200cخواهم") == "می\u200cخواهم"
    assert folded("ye\u200ds ") == "yes"


@given(st.lists(st.text(max_size=5), min_size=1, max_size=60), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_part_of_a_row_depends_on_its_text_and_the_seed_alone(
    texts: list[str], seed: int, rng: random.Random
) -> None:
    texts = [f"{i} {text}" for i, text in enumerate(texts)] + [f"more {i}" for i in range(40)]
    keys = [text_key(text) for text in texts]
    parts = dict(zip(keys, assign(keys, None, seed)[0], strict=True))
    fewer = rng.sample(keys, k=max(20, len(keys) // 2))
    grown = [*fewer, *(f"other {i}" for i in range(rng.randrange(30)))]
    again = dict(zip(grown, assign(grown, None, seed)[0], strict=True))
    if set(PARTS) <= set(again.values()) and "one is moved" not in str(assign(fewer, None, seed)[1]):
        assert all(again[key] == parts[key] for key in fewer)
    groups = [str(i % 7) for i in range(len(keys))]
    grouped = assign(keys, None, seed, groups=groups)[0]
    assert all(len({p for p, g in zip(grouped, groups, strict=True) if g == one}) == 1 for one in set(groups))


def test_the_only_row_of_a_label_is_in_train() -> None:
    keys = [f"text {i}" for i in range(60)]
    for seed in range(8):
        targets = ["common"] * 59 + ["rare"]
        parts, notes = assign(keys, targets, seed)
        assert parts[-1] == "train"
        assert "'rare'" in notes[0]


def test_time_columns_groups_and_other_files(tmp_path: Path) -> None:
    rows = [
        {"text": x, "label": y, "day": f"2026-01-{i // 2 + 1:02d}", "who": f"c{i % 10}"}
        for i, (x, y) in enumerate(ROWS)
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(rows))
    by_day = {row["text"]: row["day"] for row in rows}
    task = task_from_file(path, split_by="day")
    days = [[by_day[x] for x in part.inputs] for part in (task.train, task.dev, task.test)]
    assert max(days[0]) < min(days[1]) and max(days[1]) < min(days[2])
    by_who = {row["text"]: row["who"] for row in rows}
    task = task_from_file(path, group="who")
    people = [{by_who[x] for x in part.inputs} for part in (task.train, task.dev, task.test)]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    with pytest.raises(InputError, match="neither a number nor a date"):
        task_from_file(path, split_by="who")
    test = write(tmp_path / "test.csv", [("please send 1 boxes", "order"), ("quite other", "return")])
    task = task_from_file(path, test_file=str(test))
    assert set(task.test.inputs) == {"please send 1 boxes", "quite other"}
    assert "please send 1 boxes" not in (*task.train.inputs, *task.dev.inputs)
    assert by_time(["1", "2", "3", "4"], "n") == ["train", "train", "dev", "test"]


@pytest.mark.parametrize("column", ["split", "fold"])
def test_a_split_column_is_used_and_said(tmp_path: Path, column: str) -> None:
    parts = ["train", "train", "valid", "test"]
    rows = [{"text": x, "label": y, column: parts[i // 2 % 4]} for i, (x, y) in enumerate(ROWS)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    task = task_from_file(tmp_path / "t.json")
    assert [len(part) for part in (task.train, task.dev, task.test)] == [20, 10, 10]
    assert f"column '{column}'" in said(task)
    ignored = task_from_file(tmp_path / "t.json", split_column="none")
    assert set(ignored.test.inputs) != set(task.test.inputs)


def test_a_large_file_is_sampled_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dln.data.tasks.MOST", {"train": 40, "dev": 20, "test": 20})
    rows = [(f"text {i}", "rare" if i == 7 else "ab"[i % 2]) for i in range(400)]
    task = task_from_file(write(tmp_path / "t.csv", rows))
    assert 40 <= len(task.train) <= 42
    assert "rare" in task.train.targets
    assert "a sample of" in said(task)


def test_a_sample_of_a_large_file_is_a_function_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"text {i}", "rare" if i % 97 == 7 else "ab"[i % 2]) for i in range(800)]
    monkeypatch.setattr("dln.data.resolve.LEAST", 10)
    whole = resolve(DataSpec(path=str(write(tmp_path / "t.csv", rows))))
    some = resolve(DataSpec(path=str(tmp_path / "t.csv")), most=200)
    again = resolve(DataSpec(path=str(write(tmp_path / "u.csv", rows[::-1]))), most=200)
    assert (len(whole.items), some.report.rows) == (800, 800)
    assert {item.input for item in some.items} == {item.input for item in again.items} < {i.input for i in whole.items}
    assert 150 < len(some.items) < 260
    assert sum(item.target == "rare" for item in some.items) == 9
    assert some.report.dropped == {"not in the sample": 800 - len(some.items)}
    assert f"a sample of {len(some.items)} of 800 rows" in "\n".join(some.report.notes)
    free = resolve(DataSpec(path=str(write(tmp_path / "f.csv", [(f"q {i}", f"a {i}") for i in range(1200)]))), most=100)
    assert free.labels is None and 60 < len(free.items) < 140


def test_an_emoji_does_not_widen_the_whole_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [(f"{'a long text ' * 400} {i} \U0001f600", "ab"[i % 2]) for i in range(400)])
    tracemalloc.start()
    try:
        assert len(read_table(DataSpec(), str(path)).rows) == 400
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * path.stat().st_size  # bytes, and rows of four bytes a character


def _damage(data: bytes, rng: random.Random) -> bytes:
    pieces = [
        b'"',
        b"'",
        b",",
        b";",
        b"\n",
        b"\r",
        b"\x00",
        b"\xff",
        b"\\",
        b"{",
        b"[",
        b"\xef\xbb\xbf",
        b"|",
        b"\t",
        b"\xc3",
    ]
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        cut = rng.randrange(3)
        if cut == 0:
            data = data[:at] + rng.choice(pieces) + data[at:]
        elif cut == 1:
            data = data[:at] + data[at + rng.randrange(1, 30) :]
        else:
            data = data[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5))) + data[at:]
    return data


def _fuzz(folder: Path, n: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    seeds = {
        ".csv": write(folder / "s.csv").read_bytes(),
        ".tsv": b"text\tlabel\n" + b"".join(f"{x}\t{y}\n".encode() for x, y in ROWS),
        ".jsonl": "\n".join(map(json.dumps, records())).encode(),
        ".json": json.dumps(records()).encode(),
        ".csv.gz": gzip.compress(write(folder / "s.csv").read_bytes()),
        "": b"\xef\xbb\xbfsep=;\ntext;label\n" + b"".join(f'"{x}";"{y}"\n'.encode() for x, y in ROWS),
    }
    for i in range(n):
        suffix = rng.choice(list(seeds))
        path = folder / f"fuzzed{suffix}"
        path.write_bytes(_damage(seeds[suffix], rng))
        try:
            resolved = resolve(DataSpec(path=str(path)))
        except InputError:
            continue
        report = resolved.report
        assert report.rows == report.used + sum(report.dropped.values()), (i, path.read_bytes())
        assert report.used == len(resolved.items)
        if report.dropped:
            assert any(word in "\n".join(report.notes) for word in ("drop", "skip", "majority")), report.notes


def test_damaged_files_are_read_with_a_count_or_refused(tmp_path: Path) -> None:
    _fuzz(tmp_path, 300, 0)


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    _fuzz(tmp_path, 10_000, 1)
