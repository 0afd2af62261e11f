"""JSON lines, data frames and hub datasets give the same datasets as CSV, and as clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dln.data import Dataset, load_task
from dln.errors import InputError


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"x": "a\u2028b", "y": 1}, "", {"x": "c", "y": 0}, {"x": 2.5, "y": 1.0})
    data = Dataset.from_jsonl(path)
    assert data.inputs == ("a\u2028b", "c", "2.5")
    assert data.targets == ("1", "0", "1")
    assert data.labels == ("0", "1")
    assert data[1].id == "t.jsonl:3"
    assert "'x' taken as the input" in data.notes[0]


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        ([{"text": "a", "label": "b"}, '{"text": "a", '], 2, ["not valid JSON", "column"]),
        ([{"text": "a", "label": "b"}, "[1, 2]"], 2, ["not an object"]),
        ([{"text": "a", "label": "b"}, '"text"'], 2, ["not an object"]),
        ([{"text": "a", "label": None}, {"text": "a"}], None, ["no row can be used", "2 rows with empty label"]),
        ([{"text": "a", "label": "b"}, {"text": ["a"], "label": "b"}], 2, ["not a text", "list"]),
        (['{"text": "a\x00", "label": "b"}'], 1, ["NUL"]),
        ([{"text": "a", "label": "b"}, '{"text": "\\ud800", "label": "b"}'], 2, ["U+D800"]),
        ([{"text": "a", "label": "b"}, '{"text": "a\\u0000", "label": "b"}'], 2, ["U+0000"]),
        ([{"text": "a", "label": "b"}, '{"text": ' + "9" * 5000 + "}"], 2, ["not valid JSON"]),
        ([{"text": "a", "label": "b"}, "[" * 100_000], 2, ["not valid JSON"]),
        (["["], 1, ["a JSON list"]),
        (["", " "], None, ["empty"]),
        ([{"text": "a"}], None, ["which column is the target"]),
    ],
)
def test_bad_json_lines_are_one_error_with_the_line(
    tmp_path: Path, lines: list[object], line: int | None, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        Dataset.from_jsonl(write(tmp_path / "strange.jsonl", *lines))
    message = str(caught.value)
    assert "strange.jsonl" in message
    assert line is None or f"line {line}" in message.partition("\n")[0]
    assert all(word in message for word in words), message


def test_a_number_that_json_does_not_have_is_an_empty_cell(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "b"}, '{"text": "a", "label": NaN}', {"text": "c", "label": "d"}]
    data = Dataset.from_jsonl(write(tmp_path / "strange.jsonl", *rows))
    assert data.inputs == ("a", "c")
    assert any("1 value NaN or Infinity" in note for note in data.notes)
    assert any("1 row with empty label dropped (line 2)" in note for note in data.notes)


def test_json_lines_make_a_task(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": bool(i % 2)} for i in range(20)]
    assert load_task(write(tmp_path / "t.ndjson", *rows)).labels == ("false", "true")


def test_a_data_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": [0, 1, 0], "other": [None, 1.5, 2]}, index=[7, 7, 9])
    data = Dataset.from_pandas(frame)
    assert data.inputs == ("a", "b", "c")
    assert data.labels == ("0", "1")
    csv_path = tmp_path / "t.csv"
    frame.to_csv(csv_path, index=False)
    assert Dataset.from_csv(csv_path, "text", "label").content_hash() == data.content_hash()
    assert Dataset.from_pandas(frame, "text", "other").inputs == ("b", "c")
    with pytest.raises(InputError, match=r"data frame, row 1"):
        Dataset.from_pandas(frame, "text", "other", empty="refuse")
    with pytest.raises(InputError, match="no column 'nope'"):
        Dataset.from_pandas(frame, "nope")
    with pytest.raises(InputError, match="no rows"):
        Dataset.from_pandas(frame[:0])
    with pytest.raises(InputError, match="not a data frame"):
        Dataset.from_pandas([1, 2])
    floats = pandas.DataFrame({"text": ["a", "b", "c"], "label": [1.0, float("nan"), 2.0]})
    assert Dataset.from_pandas(floats).labels == Dataset.from_pandas(floats.dropna()).labels == ("1", "2")
    assert any("1 row with empty label dropped (row 2)" in note for note in Dataset.from_pandas(floats).notes)


def test_a_hub_dataset_in_memory() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    hub = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    data = Dataset.from_hf(hub)
    assert data.targets == ("neg", "pos", "pos")
    assert Dataset.from_hf(datasets.DatasetDict({"validation": hub}), split="validation").targets == data.targets
    with pytest.raises(InputError, match="no split 'train'"):
        Dataset.from_hf(datasets.DatasetDict({"validation": hub}))
    hidden = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    assert Dataset.from_hf(hidden).inputs == ("a",)
    with pytest.raises(InputError, match="not a Hugging Face dataset"):
        Dataset.from_hf(3)


def test_a_hub_dataset_by_name(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "train.jsonl", {"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    assert Dataset.from_hf(str(folder)).targets == ("x", "y")
    with pytest.raises(InputError, match="could not be loaded"):
        Dataset.from_hf(str(tmp_path / "absent"))
