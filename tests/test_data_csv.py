"""A stranger's CSV: everything well-formed loads, everything else is one error with file and line."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.data import Dataset, load_task, task_from_file
from dln.errors import InputError

ROWS = "good film,pos\nbad film,neg\nfine film,pos\npoor film,neg\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def check(path: Path, line: int | None, *words: str, **options: Any) -> InputError:
    """Reading the file is one InputError that names the file, the line and what is wrong."""
    with pytest.raises(InputError) as caught:
        Dataset.from_csv(path, **options)
    message = str(caught.value)
    assert path.name in message
    assert line is None or f"line {line}" in message.partition("\n")[0]
    assert all(word in message for word in words), message
    return caught.value


cells = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]), min_size=1).filter(
    lambda s: s.strip() == s and s.strip("\ufeff")
)


@given(st.lists(st.tuples(cells, st.sampled_from(["yes", "no"])), min_size=1, max_size=6), st.sampled_from(",;\t|"))
@settings(deadline=None, max_examples=60)
def test_what_a_csv_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    path = write(tmp_path_factory.mktemp("csv") / "t.csv", buffer.getvalue().encode())
    data = Dataset.from_csv(path, "text", "label", free_form=True)
    assert set(zip(data.inputs, data.targets, strict=True)) <= set(rows)
    assert {y for _, y in rows} == set(data.targets)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    content = "text,label\n" + ROWS
    data = Dataset.from_csv(write(tmp_path / "t.csv", content.replace(",", delimiter)))
    assert data.targets == ("pos", "neg", "pos", "neg")
    assert data.labels == ("neg", "pos")
    assert any(repr(delimiter) in note for note in data.notes) == (delimiter != ",")


def test_the_delimiter_is_found_among_others(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'text;label\n"a, b; c";x\nd, e;y\nno comma;x\n')
    assert Dataset.from_csv(path).inputs == ("a, b; c", "d, e", "no comma")


def test_quoted_newlines_unicode_bom_and_blank_lines(tmp_path: Path) -> None:
    content = '\ufefftext,label\r\n"two\nlines, and ""quotes""",ja\r\n\r\nÅsa 日本語 🎈,nein\r\n'
    data = Dataset.from_csv(write(tmp_path / "t.csv", content))
    assert data.inputs == ('two\nlines, and "quotes"', "Åsa 日本語 🎈")
    assert data[0].id == "t.csv:2"
    assert data[1].id == "t.csv:5"  # the physical line, counting the quoted newline and the blank line


def test_a_megabyte_in_a_cell_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    data = Dataset.from_csv(write(tmp_path / "t.csv", f"text,label\n{'long ' * 200_000},a\nshort,b\n"))
    assert len(data[0].input) == 999_999
    assert csv.field_size_limit() == before


def test_columns_are_guessed_and_said(tmp_path: Path) -> None:
    data = Dataset.from_csv(write(tmp_path / "t.csv", "Review,id,Label\nok,1,a\nbad,2,b\n"))
    assert data.inputs == ("ok", "bad")
    assert any("'Review' taken as the input" in n and "'Label' taken as the target" in n for n in data.notes)
    unknown = Dataset.from_csv(write(tmp_path / "u.csv", "mood,words\n" + "a,eins\nb,zwei\na,drei\n"))
    assert unknown.inputs == ("eins", "zwei", "drei")
    named = Dataset.from_csv(tmp_path / "t.csv", "Review", "Label", id="id", free_form=False)
    assert named.notes == ()


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("", None, ["empty"]),
        ("\ufeff\n \n", None, ["empty"]),
        ('""\n', None, ["empty"]),
        ("text,label\n", 1, ["header", "no rows"]),
        ("text,label\ngood,pos\nbad,so,neg\n", 3, ["3 cells"]),
        ("text,label\ngood,pos\nba\x00d,neg\n", 3, ["NUL"]),
        ("text,label\n,pos\n,neg\n", None, ["no row can be used", "2 rows with empty text"]),
        ('text,label\ngood,pos\n"bad,neg\nfine,pos\n', 3, ["never closed"]),
        ('text,label\ngood,pos\n"bad" film,neg\n', 3, ["after a closing"]),
        ("text,text\na,b\n", 1, ["twice"]),
        ("good,pos\nbad,neg\nfine,pos\nokay,pos\n", 1, ["looks like data"]),
        ("text\na\nb\n", None, ["which column is the target"]),
        ("one,two,three\na,b,c\nd,e,f\n", None, ["which column"]),
    ],
)
def test_a_bad_file_is_one_error_with_its_line(
    tmp_path: Path, content: str, line: int | None, words: list[str]
) -> None:
    check(write(tmp_path / "strange.csv", content), line, *words)


def test_a_missing_column_lists_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "sentence,label\n" + ROWS)
    check(path, None, "'sentense'", "did you mean 'sentence'", "'label'", input="sentense")
    check(path, None, "no column 'qqq'", input="qqq")
    check(path, None, "same column", input="label", target="label")


def test_an_encoding_is_not_guessed_from_one_letter(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "text,label\nx,a\ncafé,b\n".encode("cp1252"))
    check(path, 3, "0xe9", "at byte 18", "cp1252")
    assert Dataset.from_csv(path, encoding="cp1252").inputs == ("x", "café")
    wide = write(tmp_path / "w.csv", "text,label\nx,a\ny,b\n".encode("utf-16"))
    assert Dataset.from_csv(wide).inputs == Dataset.from_csv(wide, encoding="utf-16").inputs == ("x", "y")
    check(path, None, "unknown encoding", encoding="klingon")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    check(tmp_path / "absent.csv", None, "no such file")
    check(tmp_path, None, "no files")
    check(write(tmp_path / "t.csv", "text,label\na,b\n"), None, "delimiter", delimiter=";;")


def test_repeats_and_contradictions_are_dropped_and_said(tmp_path: Path) -> None:
    content = "text,label\ngood,pos\nGood ,pos\nbad,neg\nodd,pos\nodd,neg\nfine,pos\n"
    data = Dataset.from_csv(write(tmp_path / "t.csv", content))
    assert data.inputs == ("good", "bad", "fine")
    assert any("1 repeated row " in note for note in data.notes)
    assert any("1 input with contradicting labels" in note and "5/6" in note for note in data.notes)
    most = Dataset.from_csv(write(tmp_path / "m.csv", content + "odd,neg\n"))
    assert dict(zip(most.inputs, most.targets, strict=True))["odd"] == "neg"
    assert any("the majority counts" in note and "5/6/8" in note for note in most.notes)
    with pytest.raises(InputError, match="every input"):
        Dataset.from_csv(write(tmp_path / "u.csv", "text,label\na,x\na,y\n"))


def test_free_form_targets_are_recognised(tmp_path: Path) -> None:
    rows = "".join(f"question {i},answer {i}\n" for i in range(30))
    path = write(tmp_path / "t.csv", "question,answer\n" + rows)
    data = Dataset.from_csv(path)
    assert data.labels is None
    assert any("free-form" in note for note in data.notes)
    assert len(Dataset.from_csv(path, free_form=False).labels or ()) == 30
    task = load_task(path)
    assert task.labels is None
    assert len(task.train) + len(task.dev) + len(task.test) == 30


@pytest.mark.parametrize("classes", [2, 3, 17, 40])
def test_two_to_forty_classes_make_a_task(tmp_path: Path, classes: int) -> None:
    rows = "".join(f"text number {i} ü,class {i % classes}\n" for i in range(classes * 8))
    task = load_task(write(tmp_path / "t.csv", "body;kind\n" + rows.replace(",", ";")))
    assert len(task.labels or ()) == classes
    assert sum(len(part) for part in (task.train, task.dev, task.test)) == classes * 8
    assert task.name == "t"


def test_one_class_is_no_task_and_labels_can_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two classes"):
        task_from_file(write(tmp_path / "t.csv", "text,label\na,x\nb,x\nc,x\nd,x\n"))
    path = write(tmp_path / "n.csv", "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(20)))
    task = task_from_file(path, labels={"0": "negative|bad", "1": "positive"})
    assert task.labels == ("negative|bad", "positive")
    assert task.train.labels == ("negative", "positive")
    with pytest.raises(InputError, match=r"n\.csv, line 3"):
        task_from_file(path, labels={"0": "negative"})
    with pytest.raises(InputError, match="no rows"):
        task_from_file(write(tmp_path / "t.xml", "x"))


def test_labels_that_are_prefixes_of_each_other(tmp_path: Path) -> None:
    names = ["new", "new york", "new york city"]
    rows = "".join(f"text {i},{names[i % 3]}\n" for i in range(24))
    task = load_task(write(tmp_path / "t.csv", "text,label\n" + rows))
    assert task.labels == tuple(names)
    assert task.metric("new york", "new") == 0.0


def test_a_named_column_may_be_called_like_one_of_its_values(tmp_path: Path):
    path = write(tmp_path / "spam.csv", "message,spam\n" + "win now,spam\nhello there,ham\nwin more,spam\n")
    check(path, 1, "header=True")
    data = Dataset.from_csv(path, "message", "spam")
    assert data.targets == ("spam", "ham", "spam")


def test_an_empty_last_column_without_a_name_is_no_missing_header(tmp_path: Path):
    path = write(tmp_path / "excel.csv", "text,label,\n" + "".join(row + ",\n" for row in ROWS.splitlines()))
    assert len(Dataset.from_csv(path)) == 4
