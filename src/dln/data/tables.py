"""Row and Table: what every reader gives; nested fields, chat messages, and tables that are in memory.

pandas, polars and datasets are optional: their tables are read through the few methods of the protocols below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np

from dln.errors import InputError

__all__ = [
    "PART_NAMES",
    "Row",
    "Table",
    "cell_of",
    "columns_of",
    "conversation",
    "table_of_dicts",
    "table_of_frame",
    "table_of_hf",
]


class Row(NamedTuple):
    """A record: its line or row number from 1, its cells by column, and why it is unusable ("" if it is not)."""

    line: int
    cells: Mapping[str, object]
    problem: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        source: its name for messages.
        columns: names of the columns; nested fields have dotted names.
        rows: the rows in order, unusable ones too.
        facts: how the file was read: format, encoding, delimiter, quotechar, header.
        notes: what was guessed or unusual.
        unit: what `Row.line` counts: "line" or "row".
        blank: number of blank lines, which are no rows.
    """

    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    unit: str = "line"
    blank: int = 0

    def where(self, row: Row) -> str:
        """Return the place of a row for messages."""
        return f"{row.source or self.source}, {self.unit} {row.line}"


CHAT = (".text", ".prompt", ".reply")
"""What a column of chat messages can be read as: all of it, all before the last reply, and the last reply."""

_ROLES, _CONTENTS = ("role", "from", "speaker"), ("content", "value", "text", "message")


def conversation(value: object) -> list[tuple[str, str]] | None:
    """The (role, text) pairs of chat messages; None if the value is something else.

    >>> conversation([{"role": "user", "content": "hi"}])
    [('user', 'hi')]
    """
    if not isinstance(value, list | tuple) or not value:
        return None
    found: list[tuple[str, str]] = []
    for message in cast("Sequence[object]", value):
        if not isinstance(message, Mapping):
            return None
        fields = cast("Mapping[str, object]", message)
        role = next((fields[name] for name in _ROLES if isinstance(fields.get(name), str)), None)
        content = next((fields[name] for name in _CONTENTS if name in fields), None)
        if role is None or not (content is None or isinstance(content, str | list)):
            return None
        if isinstance(content, list):  # parts of a message; only texts can be read
            pieces = cast("list[object]", content)
            texts = [cast("Mapping[str, object]", part).get("text") for part in pieces if isinstance(part, Mapping)]
            content = "\n".join(text for text in texts if isinstance(text, str))
        found.append((str(role), content or ""))
    return found


def _told(messages: Sequence[tuple[str, str]]) -> str:
    """Messages as a text; a single one is its content."""
    return messages[0][1] if len(messages) == 1 else "\n".join(f"{role}: {text}" for role, text in messages)


_REPLIES = ("assistant", "gpt", "bot", "model", "agent")


def _chat_part(value: object, part: str) -> object:
    messages = conversation(value)
    if messages is None:
        return None
    if part == ".text":
        return _told(messages)
    last = next((i for i in reversed(range(len(messages))) if messages[i][0].lower() in _REPLIES), None)
    if part == ".reply":
        return None if last is None else messages[last][1]
    before = messages if last is None else messages[:last]
    return _told(before) if before else None


def cell_of(cells: Mapping[str, object], column: str) -> object:
    """The value of a column; dots go into nested fields and lists; None where there is nothing.

    >>> cell_of({"ticket": {"body": ["a", "b"]}}, "ticket.body.1")
    'b'
    """
    if column in cells:
        return cells[column]
    for part in CHAT:
        if column.endswith(part) and (found := _chat_part(cell_of(cells, column.removesuffix(part)), part)) is not None:
            return found
    return _inside(cells, column.split("."))


def _inside(value: object, names: list[str]) -> object:
    """The value at a path of fields and positions; of a list of objects the values of all."""
    if not names:
        return value
    if isinstance(value, Mapping):
        inner = cast("Mapping[str, object]", value)
        # a key may itself hold dots: the longest one that is there
        n = next((n for n in range(len(names), 0, -1) if ".".join(names[:n]) in inner), 0)
        return _inside(inner[".".join(names[:n])], names[n:]) if n else None
    if not isinstance(value, list | tuple):
        return None
    items = cast("Sequence[object]", value)
    if names[0].isdecimal():
        return _inside(items[int(names[0])], names[1:]) if int(names[0]) < len(items) else None
    found = [_inside(cast("object", one), names) for one in items if isinstance(one, Mapping)]
    return [one for one in found if one is not None] or None


def columns_of(rows: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    """Names of all columns, nested fields with dotted names, in order of first occurrence."""
    names: dict[str, None] = {}
    for cells in rows:
        for name in _names(cells, ""):
            names.setdefault(name)
    # {"a": null} in one row and {"a": {"b": 1}} in another: the leaves count
    return tuple(name for name in names if not any(other.startswith(f"{name}.") for other in names))


def _names(value: Mapping[str, object], prefix: str) -> Iterator[str]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner:
            yield from _names(cast("Mapping[str, object]", inner), f"{name}.")
        elif conversation(cast("object", inner)) is not None:
            yield from (name + part for part in CHAT)
        elif isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in cast("list[object]", inner)):
            for one in cast("list[Mapping[str, object]]", inner[:3]):
                yield from _names(one, f"{name}.")
        else:
            yield name


def table_of_dicts(records: Iterable[Mapping[str, object]], name: str = "list", *, unit: str = "row") -> Table:
    """A table of dictionaries, numbered from 1.

    Raises:
        InputError: a record is not a mapping of names to values.
    """
    rows: list[Row] = []
    for i, record in enumerate(cast("Iterable[object]", records), start=1):
        if not isinstance(record, Mapping):
            raise InputError(
                "a record is not an object",
                where=f"{name}, {unit} {i}",
                got=f"{type(record).__name__} {str(record)[:60]}",
                expected='an object such as {"input": "…", "target": "…"}',
                fix="give every record the names of its fields",
            )
        rows.append(Row(i, {str(k): _plain(v) for k, v in cast("Mapping[object, object]", record).items()}))
    return Table(name, columns_of(row.cells for row in rows), tuple(rows), {"format": "records"}, unit=unit)


@runtime_checkable
class _Pandas(Protocol):
    columns: Iterable[object]

    def itertuples(self, *, index: bool, name: None) -> Iterator[tuple[object, ...]]: ...


@runtime_checkable
class _Polars(Protocol):
    columns: list[str]

    def iter_rows(self) -> Iterator[tuple[object, ...]]: ...


def table_of_frame(frame: object, name: str = "data frame") -> Table:
    """Read the rows of a pandas or polars data frame, or of an Arrow table, numbered from 1 whatever the index.

    An index with a name is a column. A Hugging Face dataset is read as one (see `table_of_hf`).

    Raises:
        InputError: not a data frame, or a column name occurs twice.
    """
    if hasattr(frame, "collect") and not hasattr(frame, "iter_rows"):  # a lazy polars frame
        frame = cast("object", cast(Any, frame).collect())
    if hasattr(frame, "features") and hasattr(frame, "column_names"):
        return table_of_hf(frame, split=None)
    if hasattr(frame, "reset_index") and any(one is not None for one in cast(Any, frame).index.names):
        named = cast(Any, frame)
        frame = named if set(named.index.names) & set(named.columns) else cast("object", named.reset_index())
    if isinstance(frame, _Pandas):
        columns, values = frame.columns, frame.itertuples(index=False, name=None)
    elif isinstance(frame, _Polars):
        columns, values = frame.columns, frame.iter_rows()
    elif hasattr(frame, "to_pylist") and hasattr(frame, "column_names"):
        arrow = cast(Any, frame)
        columns, values = arrow.column_names, (tuple(record.values()) for record in arrow.to_pylist())
    else:
        raise InputError(
            "this is not a data frame",
            where=name,
            got=type(frame).__name__,
            expected="a pandas.DataFrame, a polars.DataFrame or a pyarrow.Table",
            fix="pandas.DataFrame({'text': …, 'label': …})",
        )
    names = tuple(str(column) for column in cast("Iterable[object]", columns))
    repeated = sorted({c for c in names if names.count(c) > 1})
    if repeated:
        raise InputError("a column name occurs twice", where=name, got=", ".join(repeated), fix="rename one of them")
    rows = tuple(
        Row(i, {c: _plain(value) for c, value in zip(names, row, strict=True)}) for i, row in enumerate(values, start=1)
    )
    nested = columns_of(row.cells for row in rows[:100]) if rows else names
    return Table(name, nested, rows, {"format": "data frame"}, unit="row")


@runtime_checkable
class _HubDataset(Protocol):
    column_names: list[str]
    features: Mapping[str, object]

    def __iter__(self) -> Iterator[Mapping[str, object]]: ...


class _LabelFeature(Protocol):
    names: list[str]


PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "validation", "valid", "val", "eval", "development"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of parts in split columns, folders and Hugging Face datasets, in lower case."""


def table_of_hf(name_or_dataset: object, *, split: str | None = "train", subset: str | None = None) -> Table:
    """Read a Hugging Face dataset; integer classes become their names.

    Args:
        name_or_dataset: a name on the hub, a local dataset folder, or a dataset in memory (with or without splits).
        split: name of the split, if there are several; None reads all, with the column `split`.
        subset: the configuration of a hub dataset.

    Raises:
        InputError: the library is missing, or there is no such dataset or split.
    """
    name = name_or_dataset if isinstance(name_or_dataset, str) else "Hugging Face dataset"
    dataset = _loaded(name, split, subset) if isinstance(name_or_dataset, str) else name_or_dataset
    if isinstance(dataset, Mapping):
        splits = cast("Mapping[str, object]", dataset)
        if split is None:
            tables = {part: table_of_hf(one, split=None) for part, one in splits.items()}
            rows = [(part, row) for part, table in tables.items() for row in table.rows]
            merged = (Row(i, {**row.cells, "split": part}) for i, (part, row) in enumerate(rows, 1))
            columns = dict.fromkeys(c for table in tables.values() for c in table.columns)
            return Table(name, (*columns, "split"), tuple(merged), {"format": "hf"}, unit="row")
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
    columns = columns_of(row.cells for row in rows[:100]) if rows else tuple(dataset.column_names)
    return Table(name, columns, rows, {"format": "hf"}, unit="row")


def _loaded(name: str, split: str | None, subset: str | None) -> object:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise InputError("the library `datasets` is not installed", where=name, fix="pip install 'dln[hf]'") from error
    try:
        return cast("object", datasets.load_dataset(name, subset, split=split))
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            "the dataset could not be loaded",
            where=f"{name} [{split or 'all splits'}]",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the name, the split and the network connection; or load it yourself and pass the dataset",
        ) from error


def _plain(value: object) -> object:
    """Convert numpy and pandas values to Python ones, dates to texts, and missing values of any kind to None."""
    if isinstance(value, np.generic):
        value = cast("object", value.item())
    if isinstance(value, np.ndarray):
        value = cast("object", value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "isoformat"):  # a date at midnight is a date
        return str(cast(Any, value).isoformat()).removesuffix("T00:00:00")
    return value


def _named(value: object, names: list[str] | None) -> object:
    if names is None or not isinstance(value, int):
        return _plain(value)
    return names[value] if 0 <= value < len(names) else None  # -1 marks a hidden label
