"""Read JSON lines: one object per line, its fields are the columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from dln.data.rows import Row, Table
from dln.data.text_file import read_text
from dln.errors import InputError

__all__ = ["read_jsonl"]


def read_jsonl(path: str | Path, *, encoding: str = "utf-8") -> Table:
    """The objects of a JSON-lines file; blank lines are skipped.

    Raises:
        InputError: an unreadable or empty file, a line that is not JSON or not an object, or a field
            that only some lines have; with the line number.
    """
    name = Path(path).name
    rows: list[Row] = []
    # splitlines() would also divide at U+2028 and others, which JSON texts may hold as they are
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
                fix="the file looks like one JSON list: write each item on a line of its own" if whole_list else None,
            ) from error
        if not isinstance(value, dict):
            raise InputError(
                "a line is JSON but not an object",
                where=f"{name}, line {number}",
                got=line.strip()[:60],
                expected='an object such as {"input": "…", "target": "…"}',
                fix="write each item of the list on a line of its own" if isinstance(value, list) else None,
            )
        rows.append(Row(number, cast(dict[str, object], value)))
    columns = tuple(dict.fromkeys(key for row in rows for key in row.cells))
    return Table(name, columns, tuple(rows))


def _refuse_constant(constant: str) -> object:
    """NaN and Infinity, which Python would read but JSON does not have."""
    raise ValueError(f"{constant} is not a JSON value")
