"""Readers: files of every format to tables, with line numbers."""

from __future__ import annotations

import csv
import gc
import io
import json
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import dropwhile
from pathlib import Path
from typing import Any, cast

from dln.arguments import unknown_name
from dln.data.delimited import LONG, SNIFFED, check_names, dialect_of, even_rows, read_csv, row_of
from dln.data.files import STANDARD_INPUT, Text, decoded, read_bytes, source_name
from dln.data.json_records import read_json, read_json_lines
from dln.data.spec import DataSpec, suffix_format
from dln.data.tables import PART_NAMES, Row, Table, columns_of, table_of_dicts, table_of_hf
from dln.errors import InputError

__all__ = ["LONG", "read_table"]


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
    _check_kind(data, source_name(path))
    kind = spec.format or suffix_format(path) or _format_of(data, default)
    name = source_name(path)
    _check_options(spec, kind, name)
    if kind == "xlsx":
        return _xlsx(data, name, spec.sheet)
    if kind == "parquet":
        return _parquet(data, name)
    text = decoded(data, path, spec.encoding)
    facts = {"format": kind, "encoding": text.encoding}
    notes: list[str] = []
    if text.known_by == "guess":
        notes.append(f"not UTF-8: read as {text.encoding} (recognised by its letters; another one: encoding=…)")
    elif text.known_by == "mark" or (text.known_by == "given" and text.encoding not in ("utf-8", "ascii")):
        notes.append(f"read as {text.encoding}")
    if kind == "lines" and spec.format is None:
        kind = _format_of_lines(text, columns, default)
        notes += [] if kind == "lines" else ["a table, not lines of text (format=lines reads it as lines)"]
        facts["format"] = kind
    if kind in ("csv", "tsv"):
        table = read_csv(text, name, spec, kind, columns)
    elif kind == "lines":
        lines = text.text.replace("\r\n", "\n").rstrip("\n \t").split("\n")  # blank lines at the end are no rows
        table = Table(name, ("text",), tuple(Row(n, {"text": line}) for n, line in enumerate(lines, 1)))
    else:
        table = read_json(text, name, spec) if kind == "json" else read_json_lines(text, name, spec)
    return replace(table, facts={**facts, **table.facts}, notes=(*notes, *table.notes))


_OTHERS = {
    b"%PDF": "a PDF document", b"\xd0\xcf\x11\xe0": "an Office file of before 2007 (.xls, .doc)",
    b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"ARROW1": "an Arrow file",
    b"SQLite format 3": "a SQLite database",
    b"7z\xbc\xaf": "a 7-Zip archive", b"Rar!": "a RAR archive",
    b"\x80\x04\x95": "a pickle", b"\x80\x05\x95": "a pickle",
}  # fmt: skip
"""First bytes of files that are not read."""


def _check_kind(data: bytes, name: str) -> None:
    """Refuse what is no table, by its first bytes."""
    found = next((kind for mark, kind in _OTHERS.items() if data.startswith(mark)), None)
    if data[257:262] == b"ustar":
        found = "a tar archive"
    if data.startswith(b"PK\x03\x04") and b"word/document.xml" in data:
        found = "a Word document"
    if found is not None:
        raise InputError(
            "this is no table of texts",
            where=name,
            got=found,
            expected="CSV, JSON, JSON Lines, Excel (.xlsx), Parquet, or text",
            fix="unpack it" if "archive" in found else "save it as CSV or .xlsx",
        )


_OF_TEXT = ("csv", "tsv", "lines")
_OPTIONS = {"delimiter": _OF_TEXT, "quotechar": _OF_TEXT, "sheet": ("xlsx",), "encoding": (*_OF_TEXT, "json", "jsonl")}
"""Options that only some formats have."""


def _check_options(spec: DataSpec, kind: str, name: str) -> None:
    """Refuse an option that would have no effect."""
    for option, kinds in _OPTIONS.items():
        if getattr(spec, option) is not None and kind not in kinds:
            raise InputError(
                f"a file of this format has no {option}", where=name, got=f"{kind}, {option}={getattr(spec, option)!r}",
                fix=f"leave out {option}",
            )  # fmt: skip


def _format_of(data: bytes, default: str) -> str:
    """The format of a file without a suffix that tells it."""
    if data.startswith(b"PAR1"):
        return "parquet"
    if data.startswith(b"PK\x03\x04"):
        return "xlsx"
    if default == "lines":
        return default
    head = data[:4000].lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb'\{\s*("|\}|$)', head):
        return "jsonl"
    return "json" if re.match(rb'\[\s*([\[{"\]]|$)', head) else default


def _fields_of(text: str) -> set[str] | None:
    """The fields of a JSON object, or of the first of a list; None of another text."""
    try:
        value = cast("object", json.loads(text))
    except (ValueError, RecursionError):
        return None
    first = next(iter(cast("list[object]", value)), None) if isinstance(value, list) else value
    return set(columns_of([cast("dict[str, object]", first)])) if isinstance(first, dict) else None


def _format_of_lines(text: Text, columns: Sequence[str], default: str) -> str:
    """What a file of lines is: a table if it has the wanted columns, or several columns where lines are of no use."""
    stream = text.lines()
    head, complete = stream.read(SNIFFED), not stream.read(1)
    first = head.lstrip().split("\n", 1)[0]
    if columns or default != "lines":
        for kind, start, one in (("jsonl", "{", first), ("json", "[", text.text if head.lstrip()[:1] == "[" else "")):
            fields = _fields_of(one) if one.lstrip().startswith(start) else None
            if fields is not None and set(columns) <= fields:
                return kind
    delimiter, quote, _ = dialect = dialect_of(head, None, None, columns, complete=complete)
    header = csv.reader([first.rstrip("\r")], delimiter=delimiter, quotechar=quote or '"')
    names = {cell.strip() for cells in header for cell in cells}
    if columns and set(columns) <= names:
        return "csv"
    if default == "lines" or len(names) < 2:
        return "lines"
    return "csv" if even_rows(head, dialect, complete=complete) else "lines"


def _xlsx(data: bytes, name: str, wanted: str | None) -> Table:
    """A sheet of an Excel file, the first with rows unless it is named; its first filled row names the columns."""
    try:
        import openpyxl
    except ImportError as error:
        raise InputError(
            "reading Excel files needs openpyxl", where=name, fix="pip install 'dln[excel]', or save it as CSV"
        ) from error

    # a book in full, with its merged cells, takes fifty times its size
    small = len(data) < _SMALL_BOOK

    def book(*, values: bool = True) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # styles and extensions that hold no data
            return openpyxl.load_workbook(io.BytesIO(data), read_only=not small, data_only=values)

    notes: list[str] = []
    try:
        sheets: dict[str, Any] = {str(sheet.title): sheet for sheet in book().worksheets}
        if wanted is not None and wanted not in sheets:
            raise unknown_name("sheet", wanted, list(sheets), where=name)
        filled = (title for title in sheets if any(_excel(cell) for row in _cells(sheets[title]) for cell in row))
        title = wanted or next(filled, None)
        rows = [] if title is None else _cells(sheets[title])
        if title is not None and small:
            notes += _merged(sheets[title], rows)
            if any(None in row for row in rows):
                notes += _unsaved_formulas(rows, _cells(book(values=False)[title]))
    except InputError:
        raise
    except Exception as error:  # the library lets errors of zipfile, xml and its own pass
        raise InputError(
            "the Excel file cannot be read", where=name, got=f"{type(error).__name__}: {error}", fix="save it as .xlsx"
        ) from error
    numbered = [(n, [_excel(cell) for cell in row]) for n, row in enumerate(rows, 1)]
    numbered = list(dropwhile(lambda row: not _filled(row), numbered))
    above = next((i for i, row in enumerate(numbered) if _filled(row) > 1), 0)
    if above and max(map(_filled, numbered[:above])) == 1:
        notes.append(f"{above} row{'s' * (above > 1)} above the header skipped")
        numbered = numbered[above:]
    if not numbered:
        raise InputError("the file is empty", where=name, got="no filled cell", expected="a header and rows")
    width = max(n for _, cells in numbered for n, cell in enumerate(cells, 1) if cell.strip())
    head, columns = numbered[0][0], tuple(cell.strip() for cell in numbered[0][1][:width])
    check_names(columns, name, head)
    last = max(n for n, cells in numbered if any(cell.strip() for cell in cells))
    body = tuple(row_of(n, cells[:width], columns) for n, cells in numbered[1:] if n <= last)
    if not body:
        raise InputError("the file has a header line but no rows", where=f"{name}, row {head}", got=", ".join(columns))
    if len(sheets) > 1 and wanted is None:
        notes.insert(0, f"sheet {title!r} of {', '.join(sheets)} (sheet=… reads another)")
    return Table(name, columns, body, {"format": "xlsx", "sheet": title}, tuple(notes), unit="row")


def _filled(row: tuple[int, list[str]]) -> int:
    return sum(bool(cell.strip()) for cell in row[1])


_SMALL_BOOK = 300_000
"""Bytes of an Excel file up to which merged cells and formulas are looked at."""


def _cells(sheet: Any) -> list[list[object]]:
    return [list(row) for row in sheet.iter_rows(values_only=True)]


def _merged(sheet: Any, rows: list[list[object]]) -> list[str]:
    """Give every cell of a merged range its value; a note on how many."""
    count = 0
    for area in sheet.merged_cells.ranges:
        value = cast("object", rows[area.min_row - 1][area.min_col - 1])
        if value is None or area.min_row == area.max_row:  # a title across columns is no value of each of them
            continue
        count += 1
        for row in rows[area.min_row - 1 : area.max_row]:
            row[area.min_col - 1 : area.max_col] = [value] * (area.max_col - area.min_col + 1)
    return [f"{count} merged cell{'s' * (count > 1)}: each of their rows has the value"] if count else []


def _unsaved_formulas(rows: list[list[object]], formulas: list[list[object]]) -> list[str]:
    """A note on formulas whose values the file does not hold."""
    pairs = zip(rows, formulas, strict=False)
    count = sum(
        value is None and isinstance(formula, str) and formula.startswith("=")
        for row, other in pairs
        for value, formula in zip(row, other, strict=False)
    )
    plural = f"{count} formula{'s' * (count > 1)}"
    return [f"{plural} without a saved value, read as empty: save the file in a spreadsheet program"] if count else []


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
