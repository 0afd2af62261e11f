"""JSON to tables: a value per line, lists of objects or of lists, columns, parts, data sets of other tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from dln.data.columns import INPUT_NAMES, TARGET_NAMES
from dln.data.delimited import check_header, check_names, row_of
from dln.data.files import Text
from dln.data.spec import DataSpec
from dln.data.tables import PART_NAMES, Row, Table, columns_of, table_of_dicts
from dln.errors import InputError

__all__ = ["read_json", "read_json_lines"]


class _Parser:
    """Reads JSON values; NaN and Infinity, which are no JSON, are null and counted."""

    def __init__(self) -> None:
        self.constants = 0
        self._decoder = json.JSONDecoder(parse_constant=self._constant)

    def _constant(self, name: str) -> None:
        self.constants += 1

    def value(self, text: str) -> object:
        """The one value of a text.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            return cast("object", self._decoder.decode(text))
        except RecursionError as error:
            raise ValueError("nested too deeply") from error

    def values(self, text: str) -> Iterator[tuple[int, object]]:
        """(Line, value) of values one after another, with white space and commas between them.

        Raises:
            ValueError: something else is between them.
        """
        place = counted = 0
        line = 1
        while True:
            while place < len(text) and text[place] in " \t\r\n,":
                place += 1
            if place == len(text):
                return
            line, counted = line + text.count("\n", counted, place), place
            value, place = self._decoder.raw_decode(text, place)
            yield line, value

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the values."""
        n = self.constants
        return (f"{n} value{'s' * (n > 1)} NaN or Infinity, which JSON does not have, read as empty",) if n else ()


def read_json_lines(text: Text, name: str, spec: DataSpec) -> Table:
    """Read one JSON object, or list of cells, per line; blank lines are skipped.

    A file that is one JSON value is read as such, and values that are divided otherwise are told.

    Raises:
        InputError: a line is not JSON, or neither an object nor a list; names the line.
    """
    parser = _Parser()
    found: list[tuple[int, object]] = []
    notes: list[str] = []
    # only \n ends a line: JSON texts may contain U+2028 and others
    for number, line in enumerate(text.lines("\n"), start=1):
        line = line.strip()  # noqa: PLW2901
        if not line:
            continue
        try:
            found.append((number, parser.value(line)))
        except ValueError as error:
            if number == 1 and _is_value(text.text):
                return replace(read_json(text, name, spec), notes=("one JSON value, not JSON Lines",))
            parser = _Parser()
            try:
                found = list(parser.values(text.text))
            except (ValueError, RecursionError):
                found = []
            if len(found) < 2 or not all(isinstance(value, dict) for _, value in found):
                raise _not_json(error, line, f"{name}, line {number}") from error
            notes.append("JSON objects that are not one per line, or have commas between them")
            break
    if len(found) == 1 and isinstance(found[0][1], list):
        return replace(read_json(text, name, spec), notes=("a JSON list, not JSON Lines",))
    if found and all(isinstance(value, list) for _, value in found):
        table = _of_lists([(n, cast("list[object]", value)) for n, value in found], name, spec, "line")
        return replace(table, facts={**table.facts, "format": "jsonl"}, notes=(*table.notes, *parser.notes))
    rows: list[Row] = []
    for number, value in found:
        if not isinstance(value, dict):
            raise InputError(
                "a line is JSON but not an object",
                where=f"{name}, line {number}",
                got=json.dumps(value, ensure_ascii=False)[:60],
                expected='an object such as {"input": "…", "target": "…"}',
                fix="write each item of the list on its own line" if isinstance(value, list) else None,
            )
        rows.append(Row(number, cast("dict[str, object]", value)))
    columns = columns_of(row.cells for row in rows)
    return Table(name, columns, tuple(rows), {"format": "jsonl"}, (*notes, *parser.notes))


def _not_json(error: ValueError, line: str, where: str) -> InputError:
    reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return InputError(
        "a line is not valid JSON",
        where=where,
        got=f"{reason}: {line[:60]}",
        expected="one JSON object on one line",
        fix="the file looks like a JSON list: name its format, json" if line.startswith("[") else None,
    )


def _is_value(text: str) -> bool:
    try:
        _Parser().value(text)
    except ValueError:
        return False
    return True


def read_json(content: Text, name: str, spec: DataSpec) -> Table:
    """Read a JSON list of objects, of lists or of texts, or an object that holds one, columns, or parts.

    Raises:
        InputError: it is not JSON, or holds no records.
    """
    text, parser = content.text, _Parser()
    try:
        value = parser.value(text)
    except ValueError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1 and _is_value(lines[0]) and lines[0].lstrip().startswith("{"):
            table = read_json_lines(content, name, spec)
            return replace(table, notes=("JSON Lines, not one JSON value", *table.notes))
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise InputError(
            "the file is not valid JSON",
            where=f"{name}, line {line}",
            got=str(error)[:80],
            expected="a list of objects",
        ) from error
    if isinstance(value, list) and not value:
        raise InputError("the file is empty", where=name, got="an empty list", expected="a list of objects")
    items = cast("list[object]", value) if isinstance(value, list) else []
    if items and all(isinstance(item, list) for item in items):
        lists = cast("list[list[object]]", items)
        table = _of_lists(list(enumerate(lists, 1)), name, spec, "row")
        return replace(table, notes=(*table.notes, *parser.notes))
    texts = bool(items) and all(isinstance(item, str) for item in items)
    records = [{"text": item} for item in items] if texts else _objects(cast("object", value))
    if records is None:
        raise InputError(
            "the JSON file holds no list of objects",
            where=name,
            got=text.strip()[:50],
            expected='[{"input": "…", "target": "…"}, …]',
            fix="write a list of objects, or one object per line (.jsonl)",
        )
    return replace(table_of_dicts(records, name), facts={"format": "json"}, notes=parser.notes)


def _of_lists(lists: Sequence[tuple[int, list[object]]], name: str, spec: DataSpec, unit: str) -> Table:
    """Lists of cells: the first names the columns, as in a CSV file."""
    number, head = lists[0]
    if spec.header is False:
        columns = tuple(str(n) for n in range(1, len(head) + 1))
        body, note = lists, f"no header: the columns are {columns[0]} to {columns[-1]}"
    else:
        columns = tuple(str(cell).strip() for cell in head)
        check_names(columns, name, number)
        body, note = lists[1:], "a list of lists, whose first list names the columns"
    if not body or not columns:
        raise InputError("the file has a header but no rows", where=f"{name}, {unit} {number}", got=", ".join(columns))
    rows = tuple(_row(n, cells, columns) for n, cells in body)
    if spec.header is None and not {*spec.input, spec.target} & set(columns):
        check_header(name, number, columns, rows)
    return Table(name, columns, rows, {"format": "json", "header": spec.header is not False}, (note,), unit=unit)


def _row(number: int, cells: list[object], columns: tuple[str, ...]) -> Row:
    """The cells by column; a row of another length is judged as a line of a CSV file is."""
    if len(cells) == len(columns):
        return Row(number, dict(zip(columns, cells, strict=True)))
    return row_of(number, ["" if cell is None else str(cell) for cell in cells], columns)


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
    if (indexed := _by_index(fields)) is not None:
        return indexed
    dicts = {key: list(cast("dict[str, Any]", v).values()) for key, v in fields.items() if isinstance(v, dict)}
    plain = {**lists, **dicts}
    if plain and len(plain) == len(fields) and len({len(values) for values in plain.values()}) == 1:
        return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return None


def _by_index(fields: dict[str, object]) -> list[Any] | None:
    """The records of an object of records, {"17": {"text": …}, …}; None of columns, {"text": {"17": …}, …}."""
    records = [cast("dict[str, object]", value) for value in fields.values() if isinstance(value, dict)]
    if not records or len(records) < len(fields):
        return None
    inner = {name for record in records for name in record}
    if len(inner) > len(records) or set(map(str.lower, fields)) & {*INPUT_NAMES, *TARGET_NAMES}:
        return None
    return [{"id": key, **record} for key, record in zip(fields, records, strict=True)]


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
