"""Readers: files of every format to tables, with line numbers.

CSV is read by the standard library: it imports in 15 ms (pandas: 1.7 s), keeps every cell as it is written, and tells
the line of every row; what it cannot do (dialects, uneven rows, encodings) is decided here and said in notes.
"""

from __future__ import annotations

import csv
import gc
import io
import json
import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from dln.data.columns import INPUT_NAMES, TARGET_NAMES
from dln.data.files import STANDARD_INPUT, Text, decoded, read_bytes, source_name
from dln.data.spec import DataSpec, suffix_format
from dln.data.tables import PART_NAMES, Row, Table, columns_of, table_of_dicts, table_of_hf
from dln.errors import InputError

__all__ = ["DELIMITERS", "LONG", "read_table"]

DELIMITERS = (",", ";", "\t", "|", "^", "~", "\x1f")
"""Delimiters to try, in this order."""

BLANK, LONG = "no text in any cell", "more cells than columns"
"""Reasons why a row of a CSV file is unusable."""

_SNIFFED = 60_000
"""Characters of which the dialect is recognised."""


def read_table(spec: DataSpec, path: str, *, columns: Sequence[str] = (), default: str = "csv") -> Table:
    """Read a file.

    Args:
        spec: how it is read.
        path: the file, `-` for standard input, a folder of texts, or "hf/<name>".
        columns: columns that must exist; they help to find the dialect of a CSV file.
        default: the format where neither the suffix nor the content tells it.

    Raises:
        InputError: the file cannot be read as this format; names file and line.
    """
    with _uncollected():
        return _read(spec, path, columns, default)


@contextmanager
def _uncollected() -> Generator[None]:
    """Pause the collector of cycles, which would go through all rows again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _read(spec: DataSpec, path: str, columns: Sequence[str], default: str) -> Table:
    if path.startswith("hf/") and not Path(path).exists():
        return table_of_hf(path.removeprefix("hf/"), split=None)
    if path not in STANDARD_INPUT and Path(path).is_dir():
        return _folder(Path(path), spec)
    data = read_bytes(path)
    kind = spec.format or suffix_format(path) or _format_of(data, default)
    name = source_name(path)
    if kind == "xlsx":
        return _xlsx(data, name)
    if kind == "parquet":
        return _parquet(data, name)
    text = decoded(data, path, spec.encoding)
    facts = {"format": kind, "encoding": text.encoding}
    notes: list[str] = []
    if text.known_by == "guess":
        notes.append(f"not UTF-8: read as {text.encoding} (recognised by its letters; another one: encoding=…)")
    elif text.known_by == "mark" or (text.known_by == "given" and text.encoding not in ("utf-8", "ascii")):
        notes.append(f"read as {text.encoding}")
    if kind in ("csv", "tsv"):
        table = _csv(text, name, spec, kind, columns)
    elif kind == "lines":
        lines = text.text.replace("\r\n", "\n").rstrip("\n \t").split("\n")  # blank lines at the end are no rows
        table = Table(name, ("text",), tuple(Row(n, {"text": line}) for n, line in enumerate(lines, 1)))
    else:
        table = _json(text, name) if kind == "json" else _json_lines(text, name)
    return replace(table, facts={**facts, **table.facts}, notes=(*notes, *table.notes))


def _format_of(data: bytes, default: str) -> str:
    if data.startswith(b"PAR1"):
        return "parquet"
    if data.startswith(b"PK\x03\x04"):
        return "xlsx"
    head = data[:4000].lstrip(b"\xef\xbb\xbf \t\r\n")
    return {b"[": "json", b"{": "jsonl"}.get(head[:1], default)


def _csv(text: Text, name: str, spec: DataSpec, kind: str, wanted: Sequence[str]) -> Table:
    notes: list[str] = []
    stream = text.lines()
    head, complete = stream.read(_SNIFFED), not stream.read(1)
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
        delimiter, quote = _dialect_of(head, given, spec.quotechar, wanted, complete=complete)
        records, escaped = _all_records(lines, delimiter, quote, name, first, quote_given=spec.quotechar is not None)
    if escaped is None:
        notes.append("quote characters are read as text: they are not balanced, and every line has the same cells")
        quote = None
    elif escaped:
        notes.append("quotes are escaped by backslashes")
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
        _check_names(columns, name, header_line)
        if not body:
            raise InputError(
                "the file has a header line but no rows", where=f"{name}, line {header_line}", got=", ".join(columns)
            )
    within = [a for (a, _), (b, _) in pairwise(records) if b - a > 1]
    if within:
        shown = ", ".join(map(str, within[:5])) + (f" and {len(within) - 5} more" if len(within) > 5 else "")
        notes.append(f"{len(within)} row{'s' * (len(within) > 1)} with line breaks within quotes (from lines {shown})")
    last = max(line for line, _ in filled)
    blank = sum(not cells and line < last for line, cells in records)
    rows = tuple(_row(line, cells, columns) for line, cells in body)
    if spec.header is None and not set(wanted) & set(columns):  # naming a column implies a header
        _check_header(name, header_line, columns, rows)
    if delimiter != "," and spec.delimiter is None and kind != "tsv":
        notes.append(f"delimiter {delimiter!r}")
    if quote is not None and quote != '"' and spec.quotechar is None:
        notes.append(f"quote character {quote!r}")
    facts = {"format": "csv", "delimiter": delimiter, "quotechar": quote or "none", "header": spec.header is not False}
    return Table(name, columns, rows, facts, tuple(notes), blank=blank)


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


def _row(line: int, cells: list[str], columns: tuple[str, ...]) -> Row:
    n = len(columns)
    if len(cells) == n:
        named = dict(zip(columns, cells, strict=True))
    else:
        extra = any(cell.strip() for cell in cells[n:])
        named = dict(zip(columns, [*cells[:n], *[""] * (n - len(cells))], strict=True))
        if extra:
            return Row(line, named, LONG + f" ({len(cells)} instead of {n})")
    return Row(line, named, "" if n == 1 or any(map(str.strip, cells)) else BLANK)


def _check_names(columns: tuple[str, ...], name: str, line: int) -> None:
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


def _check_header(name: str, line: int, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
    """Refuse a first line whose cells are values of their columns: the file has no header."""
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


def _records(
    lines: Iterable[str], delimiter: str, quote: str | None, escape: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every record; a blank line has no cells."""
    options: dict[str, Any] = {"delimiter": delimiter, "strict": True}
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
    lines: Callable[[], Iterable[str]], delimiter: str, quote: str | None, name: str, first: int, *, quote_given: bool
) -> tuple[Records, bool | None]:
    """All records; and True if quotes are escaped by backslashes, None if quotes turned out to be text.

    Raises:
        InputError: an unclosed quote, or text after a closing one; names the line.
    """
    records: Records = []
    try:
        for line, cells in _records(lines(), delimiter, quote):
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
            other = [(line + first - 1, cells) for line, cells in _records(lines(), delimiter, attempt, escape)]
        except csv.Error:
            continue
        lengths = {len(cells) for _, cells in other if cells}
        # quotes are text only if that explains a table of several columns whose lines are all alike
        if len(lengths) == 1 and (escape or (max(lengths) > 1 and delimiter == "\t")):
            return other, verdict
    line = _line_after(lines(), delimiter, quote, start - first + 1) + first - 1
    unclosed = "unexpected end of data" in str(failed)
    raise InputError(
        "a double quote is never closed" if unclosed else "there is text after a closing double quote",
        where=f"{name}, line {line}",
        got=str(failed),
        expected="quotes in pairs around a cell",
        fix='write a double quote inside a quoted cell twice: "", or name another quote character',
    ) from failed


def _line_after(lines: Iterable[str], delimiter: str, quote: str | None, start: int) -> int:
    """The line on which the record begins that could not be read."""
    reader = csv.reader(lines, delimiter=delimiter, quotechar=quote or '"', strict=True)
    line = 1
    try:
        for _ in reader:
            line = reader.line_num + 1
    except csv.Error:
        return line
    return start


def _dialect_of(
    head: str, delimiter: str | None, quote: str | None, wanted: Sequence[str], *, complete: bool
) -> tuple[str, str | None]:
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

    def merit(dialect: tuple[str, str | None]) -> tuple[int, float, int]:
        lengths: list[int] = []
        header: list[str] = []
        try:
            for _, cells in _records(io.StringIO(head, newline=""), *dialect):
                if not cells:
                    continue
                header = header or [cell.strip() for cell in cells]
                lengths.append(len(cells))
                if len(lengths) > 200:
                    break
        except csv.Error as error:
            if "unexpected end of data" not in str(error) or complete:
                lengths.append(0)  # malformed, perhaps only in this dialect; otherwise reading reports it
        if len(header) < 2:
            return (0, 0.0, 0)
        alike = sum(n == len(header) for n in lengths) / len(lengths)
        return (sum(name in header for name in wanted), alike, len(header))

    def best(quoting: str | None) -> tuple[str, str | None]:
        known = (delimiter,) if delimiter else DELIMITERS
        return max([(d, quoting) for d in known if d != quoting], key=merit)

    if quote is not None:
        return best(None if quote == "none" else quote)
    double, single = best('"'), best("'")
    # apostrophes are common: they are quotes only if all names are within them, or if only so the rows are even
    names = head.partition("\n")[0].rstrip("\r").split(single[0])
    enclosed = len(names) > 1 and all(len(name) > 1 and name[0] == name[-1] == "'" for name in names)
    even = merit(double)[1] < 1 and merit(single)[1] == 1 and re.search(r"(?:^|[^\w\s])'", head, re.MULTILINE)
    return single if enclosed or even else double


def _json_lines(text: Text, name: str) -> Table:
    """One JSON object per line; blank lines are skipped. A file that is one JSON list is read as such."""
    rows: list[Row] = []
    # only \n ends a line: JSON texts may contain U+2028 and others
    for number, line in enumerate(text.lines("\n"), start=1):
        line = line.strip()  # noqa: PLW2901
        if not line:
            continue
        try:
            value = cast("object", json.loads(line, parse_constant=_refuse_constant))
        except (ValueError, RecursionError) as error:
            whole = number == 1 and _whole(text.text)
            if whole:
                return replace(_json(text, name), notes=("one JSON value, not JSON Lines",))
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(
                "a line is not valid JSON",
                where=f"{name}, line {number}",
                got=f"{reason}: {line[:60]}",
                expected="one JSON object on one line",
                fix="the file looks like a JSON list: name its format, json" if line.startswith("[") else None,
            ) from error
        if not isinstance(value, dict):
            if isinstance(value, list) and number == 1 and text.text.strip() == line:
                return replace(_json(text, name), notes=("a JSON list, not JSON Lines",))
            raise InputError(
                "a line is JSON but not an object",
                where=f"{name}, line {number}",
                got=line[:60],
                expected='an object such as {"input": "…", "target": "…"}',
                fix="write each item of the list on its own line" if isinstance(value, list) else None,
            )
        rows.append(Row(number, cast("dict[str, object]", value)))
    return Table(name, columns_of(row.cells for row in rows), tuple(rows), {"format": "jsonl"})


def _whole(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(constant: str) -> object:
    """Refuse NaN and Infinity, which Python accepts but JSON does not."""
    raise ValueError(f"{constant} is not a JSON value")


def _json(content: Text, name: str) -> Table:
    """A JSON list of objects, or an object that holds one, columns, or parts named train, dev and test."""
    text = content.text
    try:
        value = cast("object", json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1 and _whole(lines[0]) and lines[0].lstrip().startswith("{"):
            return replace(_json_lines(content, name), notes=("JSON Lines, not one JSON value",))
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise InputError(
            "the file is not valid JSON",
            where=f"{name}, line {line}",
            got=str(error)[:80],
            expected="a list of objects",
        ) from error
    records = _objects(value)
    if records is None:
        raise InputError(
            "the JSON file holds no list of objects",
            where=name,
            got=f"{type(value).__name__} {text.strip()[:50]}",
            expected='[{"input": "…", "target": "…"}, …]',
            fix="write a list of objects, or one object per line (.jsonl)",
        )
    return replace(table_of_dicts(records, name), facts={"format": "json"})


def _objects(value: object) -> list[Any] | None:
    """The records of a JSON value; None if there are none to find."""
    if isinstance(value, list):
        items = cast("list[object]", value)
        return _questions(items) or _tests(items) or items
    return _objects_within(cast("dict[str, object]", value)) if isinstance(value, dict) else None


def _objects_within(fields: dict[str, object]) -> list[Any] | None:
    """The records of an object: its parts, its columns, or the one list of objects that it holds."""
    lists = {key: cast("list[Any]", inner) for key, inner in fields.items() if isinstance(inner, list)}
    if lists and len(lists) == len(fields) and set(map(str.lower, lists)) <= set(PART_NAMES):
        return [{**row, "split": part} for part, rows in lists.items() for row in rows if isinstance(row, dict)]
    columns, data = lists.get("columns"), lists.get("data")
    if columns is not None and data is not None and all(isinstance(row, list) for row in data):
        return [dict(zip(columns, row, strict=False)) for row in data]
    objects = [rows for rows in lists.values() if rows and all(isinstance(row, dict) for row in rows)]
    if len(objects) == 1:
        return _objects(objects[0])
    dicts = {key: list(cast("dict[str, Any]", v).values()) for key, v in fields.items() if isinstance(v, dict)}
    plain = {**lists, **dicts}
    if plain and len(plain) == len(fields) and len({len(values) for values in plain.values()}) == 1:
        return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return None


def _questions(items: Sequence[object]) -> list[dict[str, object]] | None:
    """The questions of SQuAD's nested form: articles, paragraphs, questions and answers."""
    found: list[dict[str, object]] = []
    for article in items:
        paragraphs = cast("dict[str, Any]", article).get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            return None
        for paragraph in cast("list[dict[str, Any]]", paragraphs):
            questions = cast("list[dict[str, object]]", paragraph.get("qas", []))
            found += [{"context": paragraph.get("context"), **question} for question in questions]
    return found


def _tests(items: Sequence[object]) -> list[dict[str, object]] | None:
    """The tests of promptfoo: their variables, and as `expected` the value of the first assertion about a text."""
    found: list[dict[str, object]] = []
    for item in items:
        fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        values = fields.get("vars")
        if not isinstance(values, dict):
            return None
        checks = [check for check in fields.get("assert") or () if str(check.get("type")) in _TEXT_CHECKS]
        found.append({**cast("dict[str, object]", values), "expected": checks[0].get("value") if checks else None})
    return found


_TEXT_CHECKS = ("equals", "contains", "icontains", "starts-with", "similar")
"""Assertions of promptfoo whose value is an answer."""


def _xlsx(data: bytes, name: str) -> Table:
    """The first sheet with rows of an Excel file; its first filled row names the columns."""
    try:
        import openpyxl
    except ImportError as error:
        raise InputError(
            "reading Excel files needs openpyxl", where=name, fix="pip install 'dln[excel]', or save it as CSV"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # styles and extensions that hold no data
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
            sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
    except Exception as error:  # the library lets errors of zipfile, xml and its own pass
        raise InputError(
            "the Excel file cannot be read", where=name, got=f"{type(error).__name__}: {error}", fix="save it as .xlsx"
        ) from error
    filled = {title: rows for title, rows in sheets.items() if any(any(_excel(c) for c in row) for row in rows)}
    if not filled:
        raise InputError("the file is empty", where=name, got="no filled cell", expected="a header and rows")
    title, rows = next(iter(filled.items()))
    numbered = [(n, [_excel(cell) for cell in row]) for n, row in enumerate(rows, 1)]
    numbered = [(n, cells) for n, cells in numbered if any(cell.strip() for cell in cells) or n < len(rows)]
    while numbered and not any(cell.strip() for cell in numbered[0][1]):
        numbered.pop(0)
    width = max(n for _, cells in numbered for n, cell in enumerate(cells, 1) if cell.strip())
    head, columns = numbered[0][0], tuple(cell.strip() for cell in numbered[0][1][:width])
    _check_names(columns, name, head)
    last = max(n for n, cells in numbered if any(cell.strip() for cell in cells))
    body = tuple(_row(n, cells[:width], columns) for n, cells in numbered[1:] if n <= last)
    if not body:
        raise InputError("the file has a header line but no rows", where=f"{name}, row {head}", got=", ".join(columns))
    notes = (f"sheet {title!r} of {', '.join(sheets)}",) if len(sheets) > 1 else ()
    return Table(name, columns, body, {"format": "xlsx"}, notes, unit="row")


def _excel(value: object) -> str:
    """A cell of a sheet as text: whole numbers without decimals, dates as ISO."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if hasattr(value, "isoformat"):
        return str(cast(Any, value).isoformat()).removesuffix("T00:00:00")
    return str(value)


def _parquet(data: bytes, name: str) -> Table:
    try:
        arrow, parquet = cast("Any", import_module("pyarrow")), cast("Any", import_module("pyarrow.parquet"))
    except ImportError as error:
        raise InputError("reading Parquet files needs pyarrow", where=name, fix="pip install 'dln[parquet]'") from error
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        records = [record for batch in file.iter_batches() for record in batch.to_pylist()]
    except (arrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("the Parquet file cannot be read", where=name, got=reason, fix="write it again") from error
    return replace(table_of_dicts(records, name), facts={"format": "parquet"})


def _folder(folder: Path, spec: DataSpec) -> Table:
    """Text files of a folder: the sub-folder of a text is its label, and `train`, `dev` or `test` above it its part."""
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        return _saved_dataset(folder)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise InputError("the folder holds no files", where=folder, expected="text files in a sub-folder per class")
    rows: list[Row] = []
    encodings: dict[str, None] = {}
    for path in files:
        places = list(path.relative_to(folder).parts[:-1])
        cells: dict[str, object] = {}
        if places and places[0].lower() in PART_NAMES and (len(places) > 1 or _has_parts_only(folder)):
            cells["split"], places = places[0], places[1:]
        data = path.read_bytes()
        text = decoded(data, str(path), spec.encoding) if data.strip() else None
        if text is not None:
            encodings[text.encoding] = None
        cells |= {"text": "" if text is None else text.text.strip()}
        if places:
            cells["label"] = "/".join(places)
        cells["file"] = str(path.relative_to(folder))
        rows.append(Row(len(rows) + 1, cells, source=f"{folder.name}/{path.relative_to(folder)}"))
    columns = tuple(c for c in ("text", "label", "split", "file") if any(c in row.cells for row in rows))
    notes = (f"texts read as {', '.join(encodings)}",) if set(encodings) - {"utf-8"} else ()
    return Table(folder.name, columns, tuple(rows), {"format": "folder"}, notes, unit="file")


def _has_parts_only(folder: Path) -> bool:
    return all(path.name.lower() in PART_NAMES for path in folder.iterdir() if path.is_dir())


def _saved_dataset(folder: Path) -> Table:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "the library `datasets` is not installed", where=folder, fix="pip install 'dln[hf]'"
        ) from error
    load: Callable[[str], Mapping[str, object]] = cast(Any, datasets).load_from_disk
    return replace(table_of_hf(load(str(folder)), split=None), source=folder.name)
