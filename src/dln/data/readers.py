"""Readers: CSV, JSON lines, pandas and Hugging Face tables to rows of cells, and the choice of columns.

Malformed files are errors with a line number, never guesses. Columns are named by the user, or guessed with a note.
pandas and datasets are optional: tables in memory are read through the few methods of the protocols below.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np

from dln.arguments import did_you_mean
from dln.errors import InputError
from dln.io import read_text

__all__ = [
    "DELIMITERS",
    "INPUT_NAMES",
    "TARGET_NAMES",
    "ColumnChoice",
    "Row",
    "Table",
    "choose_columns",
    "read_csv",
    "read_jsonl",
    "table_of_hf",
    "table_of_pandas",
]


@dataclass(frozen=True, slots=True)
class Row:
    """A record: its line or row number from 1, and its cells by column."""

    line: int
    cells: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `source` is its name for messages, and `unit` ("line" or "row") is what `Row.line` counts."""

    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    unit: str = "line"

    def where(self, row: Row) -> str:
        """Return the place of a row for messages."""
        return f"{self.source}, {self.unit} {row.line}"


INPUT_NAMES = (
    "input", "text", "sentence", "question", "review", "x", "content", "document", "body", "message", "comment",
    "tweet", "utterance", "query", "prompt", "title", "sentence1", "description",
)  # fmt: skip
"""Column names taken as the input (case-insensitive), the best first."""

TARGET_NAMES = (
    "target", "label", "answer", "class", "y", "output", "category", "labels", "gold", "sentiment", "intent", "topic",
    "tag", "rating", "completion", "response",
)  # fmt: skip
"""Column names taken as the target (case-insensitive), the best first."""


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The input and target columns, with notes on what was guessed."""

    input: str
    target: str
    notes: tuple[str, ...] = ()


def choose_columns(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    source: str,
    input_column: str | None,
    target_column: str | None,
) -> ColumnChoice:
    """The named columns; what is not named is guessed.

    A guess goes by name first; of the columns that remain, if there are just two, the one with fewer
    distinct values is the target; a single one is whatever is still missing.

    Raises:
        InputError: a named column is missing, a name occurs twice, or nothing can be guessed.
    """
    for wanted in (input_column, target_column):
        if wanted is not None:
            _require(wanted, columns, source)
    if input_column is not None and input_column == target_column:
        raise InputError("input and target are the same column", where=source, got=input_column)
    chosen_input = input_column or _by_name(INPUT_NAMES, columns, target_column)
    chosen_target = target_column or _by_name(TARGET_NAMES, columns, chosen_input)
    free = [c for c in columns if c not in (chosen_input, chosen_target)]
    if chosen_input is None and chosen_target is None and len(free) == 2:
        first, second = (len({str(row.get(c)) for row in rows}) for c in free)
        chosen_input, chosen_target = free if second <= first else reversed(free)
    elif chosen_input is None and chosen_target is not None and len(free) == 1:
        chosen_input = free[0]
    elif chosen_target is None and chosen_input is not None and len(free) == 1:
        chosen_target = free[0]
    if chosen_input is None or chosen_target is None:
        missing = "input" if chosen_input is None else "target"
        raise InputError(
            f"cannot tell which column is the {missing}",
            where=source,
            got=_listed(columns),
            expected="an input column and a target column",
            fix=f'name it: {missing}="{free[0] if free else "column"}"',
        )
    guessed = [
        f"column {chosen!r} taken as the {role}"
        for role, chosen, named in (("input", chosen_input, input_column), ("target", chosen_target, target_column))
        if named is None
    ]
    return ColumnChoice(chosen_input, chosen_target, (f"{source}: {', '.join(guessed)}",) if guessed else ())


def _require(wanted: str, columns: Sequence[str], source: str) -> None:
    if list(columns).count(wanted) == 1:
        return
    if wanted in columns:
        raise InputError(f"column {wanted!r} occurs more than once", where=source, got=_listed(columns))
    by_case = {c.casefold(): c for c in columns}
    close = did_you_mean(wanted.casefold(), by_case)
    raise InputError(
        f"there is no column {wanted!r}",
        where=source,
        got=_listed(columns),
        fix=f"did you mean {by_case[close]!r}?" if close else "name one of these columns",
    )


def _by_name(names: Sequence[str], columns: Sequence[str], taken: str | None) -> str | None:
    by_name = {c.strip().casefold(): c for c in reversed(columns) if c != taken}
    return next((by_name[name] for name in names if name in by_name), None)


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(c[:40]) for c in columns[:12])
    return f"columns {shown}" + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")


DELIMITERS = (",", ";", "\t", "|")
"""Delimiters to try, in this order."""

_SNIFFED_ROWS = 50


def read_csv(
    path: str | Path,
    *,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    wanted: tuple[str | None, ...] = (),
) -> Table:
    """Read a CSV file whose first line names the columns.

    Cells may be quoted with `"`, doubled inside; quoted cells may contain delimiters and newlines. Blank lines are
    skipped.

    Args:
        path: the file.
        delimiter: default the one of comma, semicolon, tab and bar that splits the lines most evenly.
        encoding: of the file; a UTF-8 byte order mark is dropped.
        wanted: columns that must exist; they help to find the delimiter.

    Raises:
        InputError: an unreadable or empty file, a header without rows, a row of another length than the header, an
            unclosed quote or text after a closing one; names the line.
    """
    text = read_text(path, encoding)
    name = Path(path).name
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InputError("a delimiter must be one character, not a quote or newline", where=name, got=repr(delimiter))
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
                    "a row and the header have different numbers of cells",
                    where=f"{name}, line {line}",
                    got=f"{len(cells)} cells",
                    expected=f"{len(columns)} ({', '.join(columns)}), divided by {chosen!r}",
                    fix="put cells that contain the delimiter or a newline in double quotes",
                )
            rows.append(Row(line, dict(zip(columns, cells, strict=True))))
    if not rows:
        raise InputError(
            "the file has a header line but no rows", where=f"{name}, line {header_line}", got=", ".join(columns)
        )
    if not set(wanted) & set(columns):  # naming a column implies a header
        _check_header(name, header_line, columns, rows)
    notes = () if delimiter is not None or chosen == "," else (f"{name}: delimiter {chosen!r}",)
    return Table(name, columns, tuple(rows), notes)


@contextmanager
def _any_cell_size() -> Generator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every record that is not blank."""
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
            "a double quote is never closed" if unclosed else "there is text after a closing double quote",
            where=f"{name}, line {start}",
            got=str(error) if reader.line_num <= start else f"{error}, read up to line {reader.line_num}",
            fix='write a double quote inside a quoted cell twice: ""',
        ) from error


def _delimiter_of(text: str, wanted: tuple[str | None, ...]) -> str:
    """The delimiter that gives the most wanted columns, then the most even rows, then the most columns."""

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
            lengths.append(0)  # malformed, perhaps only with this delimiter; otherwise reading reports it
        if len(header) < 2:
            return (0, 0.0, 0)
        alike = sum(n == len(header) for n in lengths) / len(lengths)
        return (sum(name in header for name in wanted if name is not None), alike, len(header))

    return max(DELIMITERS, key=merit)


def _check_header(name: str, line: int, columns: tuple[str, ...], rows: list[Row]) -> None:
    """Refuse a first line whose cells are values of their columns: the file has no header."""
    for column in columns:
        if column and sum(row.cells[column] == column for row in rows) > 1:
            raise InputError(
                "the first line looks like data, not like column names",
                where=f"{name}, line {line}",
                got=f"{column!r}, which is also a value of this column",
                expected="a header such as: text,label",
                fix="add a header line; if this is the header, name its columns (--input, --target)",
            )


def read_jsonl(path: str | Path, *, encoding: str = "utf-8") -> Table:
    """Read a file of one JSON object per line; blank lines are skipped.

    Raises:
        InputError: an unreadable or empty file, or a line that is not a JSON object; names the line.
    """
    name = Path(path).name
    rows: list[Row] = []
    # splitlines() would also split at U+2028 and others, which JSON texts may contain
    for number, line in enumerate(read_text(path, encoding).replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = cast(object, json.loads(line, parse_constant=_refuse_constant))
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            whole_list = number == 1 and line.lstrip().startswith("[")
            raise InputError(
                "a line is not valid JSON",
                where=f"{name}, line {number}",
                got=f"{reason}: {line.strip()[:60]}",
                expected="one JSON object on one line",
                fix="the file looks like a JSON list: write each item on its own line" if whole_list else None,
            ) from error
        if not isinstance(value, dict):
            raise InputError(
                "a line is JSON but not an object",
                where=f"{name}, line {number}",
                got=line.strip()[:60],
                expected='an object such as {"input": "…", "target": "…"}',
                fix="write each item of the list on its own line" if isinstance(value, list) else None,
            )
        rows.append(Row(number, cast(dict[str, object], value)))
    columns = tuple(dict.fromkeys(key for row in rows for key in row.cells))
    return Table(name, columns, tuple(rows))


def _refuse_constant(constant: str) -> object:
    """Refuse NaN and Infinity, which Python accepts but JSON does not."""
    raise ValueError(f"{constant} is not a JSON value")


@runtime_checkable
class _Frame(Protocol):
    columns: Iterable[object]

    def itertuples(self, *, index: bool, name: None) -> Iterator[tuple[object, ...]]: ...


@runtime_checkable
class _HubDataset(Protocol):
    column_names: list[str]
    features: Mapping[str, object]

    def __iter__(self) -> Iterator[Mapping[str, object]]: ...


class _LabelFeature(Protocol):
    names: list[str]


def table_of_pandas(frame: object, name: str = "data frame") -> Table:
    """Read the rows of a data frame, numbered from 1 whatever the index.

    Raises:
        InputError: not a data frame, or a column name occurs twice.
    """
    if not isinstance(frame, _Frame):
        raise InputError(
            "this is not a pandas data frame",
            where=name,
            got=type(frame).__name__,
            expected="a pandas.DataFrame",
            fix="pandas.DataFrame({'text': …, 'label': …})",
        )
    columns = tuple(str(column) for column in frame.columns)
    repeated = sorted({c for c in columns if columns.count(c) > 1})
    if repeated:
        raise InputError("a column name occurs twice", where=name, got=", ".join(repeated))
    rows = tuple(
        Row(i, {c: _plain(value) for c, value in zip(columns, values, strict=True)})
        for i, values in enumerate(frame.itertuples(index=False, name=None), start=1)
    )
    return Table(name, columns, rows, unit="row")


def table_of_hf(name_or_dataset: object, *, split: str = "train", subset: str | None = None) -> Table:
    """Read the rows of a split; integer classes become their names.

    Args:
        name_or_dataset: a name on the hub, a local dataset folder, or a dataset in memory (with or without splits).
        split: name of the split, if there are several.
        subset: the configuration of a hub dataset.

    Raises:
        InputError: the library is missing, or there is no such dataset or split.
    """
    dataset = _loaded(name_or_dataset, split, subset) if isinstance(name_or_dataset, str) else name_or_dataset
    name = name_or_dataset if isinstance(name_or_dataset, str) else "Hugging Face dataset"
    if isinstance(dataset, Mapping):
        splits = cast(Mapping[str, object], dataset)
        if split not in splits:
            raise InputError(f"there is no split {split!r}", where=name, got=", ".join(splits), fix="name one of them")
        dataset = splits[split]
        name = f"{name} [{split}]"
    if not isinstance(dataset, _HubDataset):
        raise InputError("this is not a Hugging Face dataset", where=name, got=type(dataset).__name__)
    names = {
        column: list(cast(_LabelFeature, feature).names)
        for column, feature in (dataset.features or {}).items()
        if type(feature).__name__ == "ClassLabel"
    }
    rows = tuple(
        Row(i, {c: _named(value, names.get(c)) for c, value in record.items()}) for i, record in enumerate(dataset, 1)
    )
    return Table(name, tuple(dataset.column_names), rows, unit="row")


def _loaded(name: str, split: str, subset: str | None) -> object:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise InputError("the library `datasets` is not installed", where=name, fix="pip install 'dln[hf]'") from error
    try:
        return cast(object, datasets.load_dataset(name, subset, split=split))
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            "the dataset could not be loaded",
            where=f"{name} [{split}]",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the name, the split and the network connection; or load it yourself and pass the dataset",
        ) from error


def _plain(value: object) -> object:
    """Convert numpy and pandas scalars to Python values, and missing values of any kind to None."""
    if isinstance(value, np.generic):
        value = cast(object, value.item())
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _named(value: object, names: list[str] | None) -> object:
    if names is None or not isinstance(value, int):
        return _plain(value)
    return names[value] if 0 <= value < len(names) else None  # -1 marks a hidden label
