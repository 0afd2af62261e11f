"""Read CSV strictly: what is not well-formed is an error with its line, never a guess."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from dln.data.rows import Row, Table
from dln.data.text_file import read_text
from dln.errors import InputError

__all__ = ["DELIMITERS", "read_csv"]

DELIMITERS = (",", ";", "\t", "|")
"""Cell delimiters that are tried, in this order."""

_SNIFFED_ROWS = 50


def read_csv(
    path: str | Path,
    *,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    wanted: tuple[str | None, ...] = (),
) -> Table:
    """The records of a CSV file whose first line names the columns.

    Cells may be quoted with `"`, doubled inside; quoted cells may hold delimiters and newlines, and a
    cell may be of any length. Blank lines are skipped.

    Args:
        path: the file.
        delimiter: None finds out which of comma, semicolon, tab and bar divides the lines alike.
        encoding: of the file; a UTF-8 byte order mark is dropped.
        wanted: columns that must be there; they help to find the delimiter.

    Raises:
        InputError: an unreadable or empty file, a header alone, a row of another length than the
            header, a quote that is not closed or text behind a closed one; with the line number.
    """
    text = read_text(path, encoding)
    name = Path(path).name
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InputError("a delimiter is one character, not a quote or newline", where=name, got=repr(delimiter))
    with _any_cell_size():
        chosen = delimiter or _delimiter_of(text, wanted)
        records = _records(text, chosen, name)
        header_line, header = next(records, (1, list[str]()))
        if not header:
            raise InputError("the file is empty", where=name, got="blank lines", expected="a header and rows")
        columns = tuple(cell.strip() for cell in header)
        named = [c for c in columns if c]
        repeated = sorted({c for c in named if named.count(c) > 1})
        if repeated:
            raise InputError("a column name occurs twice", where=f"{name}, line {header_line}", got=", ".join(repeated))
        rows: list[Row] = []
        for line, cells in records:
            if len(cells) != len(columns):
                raise InputError(
                    "a row has another number of cells than the header",
                    where=f"{name}, line {line}",
                    got=f"{len(cells)} cells",
                    expected=f"{len(columns)} ({', '.join(columns)}), divided by {chosen!r}",
                    fix="put cells that hold the delimiter or a newline in double quotes",
                )
            rows.append(Row(line, dict(zip(columns, cells, strict=True))))
    if not rows:
        raise InputError(
            "the file has a header line but no rows", where=f"{name}, line {header_line}", got=", ".join(columns)
        )
    if not set(wanted) & set(columns):  # somebody who names a column knows that there is a header
        _check_header(name, header_line, columns, rows)
    notes = () if delimiter is not None or chosen == "," else (f"{name}: cells are divided by {chosen!r}",)
    return Table(name, columns, tuple(rows), notes)


@contextmanager
def _any_cell_size() -> Generator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """(line the record starts on, cells) of every record that is not a blank line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) or len(cells) > 1:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        unclosed = "unexpected end of data" in str(error)
        raise InputError(
            "a double quote is opened but never closed" if unclosed else "there is text behind a closing double quote",
            where=f"{name}, line {start}",
            got=str(error) if reader.line_num <= start else f"{error}, read up to line {reader.line_num}",
            fix='write a double quote inside a quoted cell twice: ""',
        ) from error


def _delimiter_of(text: str, wanted: tuple[str | None, ...]) -> str:
    """The delimiter that gives the wanted columns, then the most alike rows, then the most columns."""

    def merit(delimiter: str) -> tuple[int, float, int]:
        lengths: list[int] = []
        header: list[str] = []
        try:
            for _, cells in _records(text, delimiter, ""):
                header = header or [cell.strip() for cell in cells]
                lengths.append(len(cells))
                if len(lengths) > _SNIFFED_ROWS:
                    break
        except InputError:
            lengths.append(0)  # not well-formed with this delimiter, or not at all: then the reading will say so
        if len(header) < 2:
            return (0, 0.0, 0)
        alike = sum(n == len(header) for n in lengths) / len(lengths)
        return (sum(name in header for name in wanted if name is not None), alike, len(header))

    return max(DELIMITERS, key=merit)


def _check_header(name: str, line: int, columns: tuple[str, ...], rows: list[Row]) -> None:
    """A first line that repeats as a value below is data: the file has no header."""
    for column in columns:
        if column and sum(row.cells[column] == column for row in rows) > 1:
            raise InputError(
                "the first line looks like data, not like column names",
                where=f"{name}, line {line}",
                got=f"{column!r}, which is also a value of its column",
                expected="a header such as: text,label",
                fix="add a header line; if this is one, name its columns (--input, --target)",
            )
