"""Delimited text to tables: the dialect, the header, and uneven rows.

The standard library reads the records: it imports in 15 ms (pandas: 1.7 s), keeps every cell as it is written, and
tells the line of every row; what it cannot do is decided here and said in notes.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from dln.data.columns import INPUT_NAMES, TARGET_NAMES
from dln.data.files import Text
from dln.data.spec import DataSpec
from dln.data.tables import Row, Table
from dln.errors import InputError

__all__ = [
    "DELIMITERS",
    "LONG",
    "SNIFFED",
    "Dialect",
    "check_header",
    "check_names",
    "dialect_of",
    "even_rows",
    "read_csv",
    "row_of",
]

DELIMITERS = (",", ";", "\t", "|", "^", "~", "\x1f")
"""Delimiters to try, in this order."""

BLANK, LONG = "no text in any cell", "more cells than columns"
"""Reasons why a row of a CSV file is unusable."""

SNIFFED = 60_000
"""Characters of which the dialect is recognised."""


def read_csv(text: Text, name: str, spec: DataSpec, kind: str, wanted: Sequence[str]) -> Table:
    """Read delimited text.

    Args:
        text: the content.
        name: of the file, for messages.
        spec: what is known of the dialect.
        kind: csv or tsv.
        wanted: columns that must exist; they help to find the dialect.

    Raises:
        InputError: no rows, no usable header, or quotes that are not balanced; names the line.
    """
    notes: list[str] = []
    stream = text.lines()
    head, complete = stream.read(SNIFFED), not stream.read(1)
    announced = re.match(r'"?sep=(.)"?\r?\n', head, re.IGNORECASE)
    first = 1
    if announced:
        head, first = head[announced.end() :], 2
    elif spec.header is not False and (above := _lines_above(head, wanted)):
        head, first = head.split("\n", above)[-1], above + 1
        notes.append(f"{above} line{'s' * (above > 1)} above the header skipped")

    def lines() -> Iterable[str]:
        return text.lines(skipped=first - 1)

    with _any_cell_size():
        given = spec.delimiter or ("\t" if kind == "tsv" else announced[1] if announced else None)
        dialect = dialect_of(head, given, spec.quotechar, wanted, complete=complete)
        delimiter, quote = dialect.delimiter, dialect.quote
        records, escaped = _all_records(lines, dialect, name, first, quote_given=spec.quotechar is not None)
    if escaped is None:
        notes.append("quote characters are read as text: they are not balanced, and every line has the same cells")
        quote = None
    elif escaped:
        notes.append("quotes are escaped by backslashes")
    notes += _broken_lines(records)
    if delimiter == "|" and len(records) > 1 and _is_rule(records[1][1]):
        records = _without_frame(records)
        notes.append("a Markdown table")
    filled = [record for record in records if record[1]]
    if not filled or not any(cell.strip() for _, cells in filled for cell in cells):
        raise InputError("the file is empty", where=name, got="blank lines", expected="a header and rows")
    header_line = filled[0][0]
    if spec.header is False:
        columns = tuple(str(n) for n in range(1, len(filled[0][1]) + 1))
        body = filled
        notes.append(f"no header line: the columns are {columns[0]} to {columns[-1]}")
    else:
        columns = tuple(cell.strip() for cell in filled[0][1])
        body = filled[1:]
        check_names(columns, name, header_line)
        if not body:
            raise InputError(
                "the file has a header line but no rows", where=f"{name}, line {header_line}", got=", ".join(columns)
            )
    last = max(line for line, _ in filled)
    blank = sum(not cells and line < last for line, cells in records)
    rows = tuple(row_of(line, cells, columns) for line, cells in body)
    if spec.header is None and not set(wanted) & set(columns):  # naming a column implies a header
        check_header(name, header_line, columns, rows)
    notes += [f"delimiter {delimiter!r}"] * (delimiter != "," and spec.delimiter is None and kind != "tsv")
    notes += [f"quote character {quote!r}"] * (quote not in (None, '"') and spec.quotechar is None)
    facts = {"format": "csv", "delimiter": delimiter, "quotechar": quote or "none", "header": spec.header is not False}
    return Table(name, columns, rows, facts, tuple(notes), blank=blank)


def _broken_lines(records: Records) -> list[str]:
    """A note on rows of several lines."""
    within = [a for (a, _), (b, _) in pairwise(records) if b - a > 1]
    if not within:
        return []
    shown = ", ".join(map(str, within[:5])) + (f" and {len(within) - 5} more" if len(within) > 5 else "")
    return [f"{len(within)} row{'s' * (len(within) > 1)} with line breaks within quotes (from lines {shown})"]


def _is_rule(cells: list[str]) -> bool:
    """Whether a line is the one below the header of a Markdown table."""
    return any(cells) and all(re.fullmatch(r"\s*(:?-+:?)?\s*", cell) for cell in cells)


def _without_frame(records: Records) -> Records:
    """A Markdown table without its rule and the empty cells outside of its outer bars."""
    framed = not records[0][1][0].strip() and not records[0][1][-1].strip()
    return [
        (line, cells[1:-1] if framed and len(cells) > 2 else cells) for n, (line, cells) in enumerate(records) if n != 1
    ]


_MOST_ABOVE = 20


def _lines_above(text: str, wanted: Sequence[str]) -> int:
    """How many lines (a title, comments) stand above the header, which names an input and a target, or what is wanted.

    0 unless the first line is a comment (#) or has one cell.
    """
    lines = text.split("\n", _MOST_ABOVE + 1)[: _MOST_ABOVE + 1]
    if not lines[0].startswith("#") and any(d in lines[0] for d in DELIMITERS):
        return 0
    for number, line in enumerate(lines):
        for delimiter in DELIMITERS:
            cells = {cell.strip().strip("\"'").casefold() for cell in line.split(delimiter)}
            named = bool(cells & set(INPUT_NAMES) and cells & set(TARGET_NAMES))
            if len(cells) > 1 and (named or (len(wanted) > 1 and {name.casefold() for name in wanted} <= cells)):
                return number
    return 0


def row_of(line: int, cells: list[str], columns: tuple[str, ...]) -> Row:
    """The row of a line, with its problem: too many cells, or no text in any."""
    n = len(columns)
    if len(cells) == n:
        named = dict(zip(columns, cells, strict=True))
    else:
        extra = any(cell.strip() for cell in cells[n:])
        named = dict(zip(columns, [*cells[:n], *[""] * (n - len(cells))], strict=True))
        if extra:
            return Row(line, named, LONG + f" ({len(cells)} instead of {n})")
    return Row(line, named, "" if n == 1 or any(map(str.strip, cells)) else BLANK)


def check_names(columns: tuple[str, ...], name: str, line: int) -> None:
    """Refuse a name that two columns have.

    Raises:
        InputError: naming it.
    """
    named = [c for c in columns if c]
    repeated = sorted({c for c in named if named.count(c) > 1})
    if repeated:
        raise InputError(
            "a column name occurs twice",
            where=f"{name}, line {line}",
            got=", ".join(repeated),
            expected="a header with distinct names",
            fix="rename one; if this is no header: header=False",
        )


def check_header(name: str, line: int, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
    """Refuse a first line whose cells are values of their columns: the file has no header.

    Raises:
        InputError: naming the line and one of the values.
    """
    for column in columns:
        if column and sum(row.cells[column] == column for row in rows[:20_000]) > 1:
            raise InputError(
                "the first line looks like data, not like column names",
                where=f"{name}, line {line}",
                got=f"{column!r}, which is also a value of this column",
                expected="a header such as: text,label",
                fix="if there is no header: header=False; if this is the header: header=True",
            )


@contextmanager
def _any_cell_size() -> Generator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


Records = list[tuple[int, list[str]]]


class Dialect(NamedTuple):
    """How cells are divided and quoted; `spaced`: spaces after a delimiter are none of the cell."""

    delimiter: str
    quote: str | None
    spaced: bool = False


def _records(lines: Iterable[str], dialect: Dialect, escape: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every record; a blank line has no cells."""
    delimiter, quote, spaced = dialect
    options: dict[str, Any] = {"delimiter": delimiter, "strict": True, "skipinitialspace": spaced}
    if quote is None:
        options |= {"quoting": csv.QUOTE_NONE}
    else:
        options |= {"quotechar": quote, "escapechar": escape, "doublequote": escape is None}
    reader = csv.reader(lines, **options)
    start = 1
    for cells in reader:
        yield start, cells
        start = reader.line_num + 1


def _all_records(
    lines: Callable[[], Iterable[str]], dialect: Dialect, name: str, first: int, *, quote_given: bool
) -> tuple[Records, bool | None]:
    """All records; and True if quotes are escaped by backslashes, None if quotes turned out to be text.

    Raises:
        InputError: an unclosed quote, or text after a closing one; names the line.
    """
    quote = dialect.quote
    records: Records = []
    try:
        for line, cells in _records(lines(), dialect):
            records.append((line + first - 1, cells))
        return records, False
    except csv.Error as error:
        failed: Exception = error
    start = records[-1][0] if records else first
    attempts: list[tuple[str | None, str | None, bool | None]] = []
    if quote is not None and not quote_given:
        attempts = [(quote, "\\", True)] if any(f"\\{quote}" in line for line in lines()) else []
        attempts += [(None, None, None)]
    for attempt, escape, verdict in attempts:
        try:
            other = [
                (line + first - 1, cells) for line, cells in _records(lines(), dialect._replace(quote=attempt), escape)
            ]
        except csv.Error:
            continue
        lengths = {len(cells) for _, cells in other if cells}
        # quotes are text only if that explains a table of several columns whose lines are all alike
        if len(lengths) == 1 and (escape or (max(lengths) > 1 and dialect.delimiter == "\t")):
            return other, verdict
    line = _line_after(lines(), dialect, start - first + 1) + first - 1
    unclosed = "unexpected end of data" in str(failed)
    raise InputError(
        "a double quote is never closed" if unclosed else "there is text after a closing double quote",
        where=f"{name}, line {line}",
        got=str(failed),
        expected="quotes in pairs around a cell",
        fix='write a double quote inside a quoted cell twice: "", or name another quote character',
    ) from failed


def _line_after(lines: Iterable[str], dialect: Dialect, start: int) -> int:
    """The line on which the record begins that could not be read."""
    reader = csv.reader(lines, delimiter=dialect.delimiter, quotechar=dialect.quote or '"', strict=True)
    line = 1
    try:
        for _ in reader:
            line = reader.line_num + 1
    except csv.Error:
        return line
    return start


def _sizes(head: str, dialect: Dialect, *, complete: bool) -> tuple[list[str], list[int]]:
    """The first filled line, and the number of cells of the first 200."""
    header: list[str] = []
    lengths: list[int] = []
    try:
        for _, cells in _records(io.StringIO(head, newline=""), dialect):
            if not cells:
                continue
            header = header or [cell.strip() for cell in cells]
            lengths.append(len(cells))
            if len(lengths) > 200:
                break
    except csv.Error as error:
        if "unexpected end of data" not in str(error) or complete:
            lengths.append(0)  # malformed, perhaps only in this dialect; otherwise reading reports it
    return header, lengths


def even_rows(head: str, dialect: Dialect, *, complete: bool) -> bool:
    """Whether all lines at the start of a text have as many cells as the first, two or more."""
    header, lengths = _sizes(head, dialect, complete=complete)
    whole = lengths if complete else lengths[:-1]  # the last line may have been cut
    return len(header) > 1 and len(whole) > 1 and set(whole) == {len(header)}


def dialect_of(
    head: str, delimiter: str | None, quote: str | None, wanted: Sequence[str], *, complete: bool
) -> Dialect:
    """Delimiter and quote character: most wanted columns, then the most even rows, then the most columns.

    Args:
        head: the first characters of the text.
        delimiter: what is known of it.
        quote: what is known of it.
        wanted: columns that must exist.
        complete: whether this is all of the text.
    """
    if not complete:
        head = head[: head.rfind("\n") + 1] or head

    def merit(dialect: Dialect) -> tuple[int, float, int]:
        header, lengths = _sizes(head, dialect, complete=complete)
        if len(header) < 2:
            return (0, 0.0, 0)
        alike = sum(n == len(header) for n in lengths) / len(lengths)
        return (sum(name in header for name in wanted), alike, len(header))

    def best(quoting: str | None) -> Dialect:
        known = (delimiter,) if delimiter else DELIMITERS
        found = max([Dialect(d, quoting) for d in known if d != quoting], key=merit)
        apart = quoting is not None and re.search(rf"{re.escape(found.delimiter)} +{re.escape(quoting)}", head)
        spaced = found._replace(spaced=True)
        return spaced if apart and merit(spaced) >= merit(found) else found

    if quote is not None:
        return best(None if quote == "none" else quote)
    double, single = best('"'), best("'")
    # apostrophes are common: they are quotes only if all names are within them, or if only so the rows are even
    names = head.partition("\n")[0].rstrip("\r").split(single[0])
    enclosed = len(names) > 1 and all(len(name) > 1 and name[0] == name[-1] == "'" for name in names)
    even = merit(double)[1] < 1 and merit(single)[1] == 1 and re.search(r"(?:^|[^\w\s])'", head, re.MULTILINE)
    return single if enclosed or even else double
