"""docs/data.md: the table of inputs, of what is done and what is said, made by reading each of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dln.data import Dataset
from dln.data.resolve import resolve
from dln.data.spec import DataSpec
from dln.errors import InputError

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
ROWS = [(f"please send {i} boxes", "order") if i % 2 else (f"{i} tiles broke", "return") for i in range(20)]
HEADER = "text,label"
PARTS = [(x, f"{y},{'train' if i % 3 else 'test'}") for i, (x, y) in enumerate(ROWS)]


def lines(*more: str, header: str = HEADER, rows: list[tuple[str, str]] = ROWS, delimiter: str = ",") -> str:
    return "\n".join([header, *(delimiter.join(row) for row in rows), *more]) + "\n"


def objects(change: Callable[[str, str], object]) -> str:
    return "\n".join(json.dumps(change(x, y), ensure_ascii=False) for x, y in ROWS)


CASES: dict[str, tuple[str, str | bytes]] = {
    "a byte order mark": ("t.csv", b"\xef\xbb\xbf" + lines().encode()),
    "UTF-16, as of Excel": ("t.csv", lines().encode("utf-16")),
    "a first line `sep=;`": ("t.csv", "sep=;\n" + lines(header="text;label", delimiter=";")),
    "another delimiter": ("t.csv", lines(header="text|label", delimiter="|")),
    "cp1252": ("t.csv", lines(rows=[(f"{x} für das Café", y) for x, y in ROWS]).encode("cp1252")),
    "one byte that is not UTF-8": ("t.csv", lines("für mich,order").encode("latin-1")),
    "rows of delimiters": ("t.csv", lines(",", ",")),
    "an empty cell": ("t.csv", lines("hello,", ",order")),
    "a row with too many cells": ("t.csv", lines("a,b,order")),
    "most rows with too many cells": ("t.csv", "text,label\na, b,order\nc, d,return\n"),
    "a row with too few cells": ("t.csv", lines("no label")),
    "an unclosed quote": ("t.csv", lines('"no end,order')),
    "no header line": ("t.csv", lines(header="a tile,order")),
    "a title above the header": ("t.csv", "Report of May\n\n" + lines()),
    "a column named twice": ("t.csv", lines(header="text,text")),
    "columns a, b and c": ("t.csv", lines(header="a,b,c", rows=[(x, f"{y},{i}") for i, (x, y) in enumerate(ROWS)])),
    "a JSON list": ("t.json", json.dumps([{"text": x, "label": y} for x, y in ROWS])),
    "nested fields": ("t.jsonl", objects(lambda x, y: {"ticket": {"body": x}, "meta": {"label": y}})),
    "several labels in a cell": ("t.jsonl", objects(lambda x, y: {"text": x, "labels": [y, "urgent"]})),
    "labels divided by a bar": ("t.csv", lines(rows=[(x, f"{y}|urgent") for x, y in ROWS])),
    "chat messages": (
        "t.jsonl",
        objects(lambda x, y: {"messages": [{"role": "user", "content": x}, {"role": "assistant", "content": y}]}),
    ),
    "a text that is a list": ("t.jsonl", objects(lambda x, y: {"text": [x], "label": y})),
    "labels that differ in white space": ("t.csv", lines("one,order  ", 'two,"ord\u200ber"')),
    "labels that differ in case": ("t.csv", lines("one,Order", "two,Order")),
    "a label NaN": ("t.csv", lines("one,NaN", "two,NaN")),
    "labels of an ordered scale": ("t.csv", lines(rows=[(x, str(i % 5 + 1)) for i, (x, _) in enumerate(ROWS)])),
    "contradicting labels": ("t.csv", lines("x y,order", "x y,return", "z,order", "z,order", "z,return")),
    "repeated rows": ("t.csv", lines("2 tiles broke,return")),
    "a split column": ("t.csv", lines(header="text,label,split", rows=PARTS)),
    "answers instead of labels": ("t.csv", lines(rows=[(x, f"answer {i}") for i, (x, _) in enumerate(ROWS)])),
    "a table in a text file": ("t.txt", lines(header="text;label", delimiter=";")),
    "spaces before quotes": ("t.csv", "text, label\n" + "".join(f'"{x}, now", "{y}"\n' for x, y in ROWS)),
    "a Markdown table": ("t.md", "| text | label |\n|---|---|\n" + "".join(f"| {x} | {y} |\n" for x, y in ROWS)),
    "a JSON list of lists": ("t.json", json.dumps([["text", "label"], *ROWS])),
    "JSON objects by name": ("t.json", json.dumps({f"r{i}": {"text": x, "label": y} for i, (x, y) in enumerate(ROWS)})),
    "NaN in JSON": ("t.jsonl", objects(lambda x, y: {"text": x, "label": y}) + '\n{"text": "x", "label": NaN}'),
    "JSON Lines with commas": ("t.jsonl", objects(lambda x, y: {"text": x, "label": y}).replace("\n", ",\n") + ","),
    "a PDF document": ("t.csv", b"%PDF-1.4\n"),
    "an empty file": ("t.csv", ""),
}  # fmt: skip
"""What stands in a file, its name and its content."""

COMMON = re.compile(
    r"column '\w+' taken as the input, column '\w+' taken as the target$"
    r"|targets taken as 2 labels: order \(1\d\), return"
)


def row(folder: Path, what: str) -> str:
    """A line of the table."""
    name, content = CASES[what]
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        report = resolve(DataSpec(path=str(path))).report
    except InputError as error:
        done, said = "refused", f"{error.message}; {error.fix}" if error.fix else error.message
    else:
        done = f"{report.used} of {report.rows} rows used"
        said = "; ".join(note for note in report.notes if not COMMON.match(note)) or "–"
    cells = [cell.replace("|", "\\|").replace("\u200b", "") for cell in (what, done, said)]
    return f"| {' | '.join(cells)} |"


def test_the_table_of_the_page_is_what_reading_gives(tmp_path: Path) -> None:
    made = ["| input | what is done | what is said |", "|---|---|---|", *(row(tmp_path, what) for what in CASES)]
    page = PAGE.read_text("utf-8")
    start, end = "<!-- made by tests/test_data_page.py -->", "<!-- end -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    wanted = f"{before}{start}\n\n" + "\n".join(made) + f"\n\n{end}{after}"
    if page != wanted and __name__ == "__main__":
        PAGE.write_text(wanted, encoding="utf-8")
        return
    assert page == wanted, "run: python tests/test_data_page.py"


def test_frames_and_files_share_one_report() -> None:
    data = Dataset.from_dicts([{"text": x, "label": y} for x, y in ROWS])
    assert data.report is not None
    assert (data.report.rows, data.report.used) == (20, 20)
    for wrong in ({"encoding": "klingon"}, {"delimiter": ";;"}, {"inptu": "a"}, {"input": "a", "target": "a"}):
        with pytest.raises(InputError, match="DataSpec"):
            DataSpec(**wrong)
    merged = DataSpec(target="t").over(DataSpec(path="a.csv", input="x", encoding="cp1252"))
    assert merged.given() == {"path": "a.csv", "input": "x", "encoding": "cp1252", "target": "t"}
    with pytest.raises(InputError, match="did you mean 'encoding'"):
        Dataset.from_dicts([{"text": "a", "label": "b"}], encodng="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        test_the_table_of_the_page_is_what_reading_gives(Path(folder))
