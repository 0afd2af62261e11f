"""Rows of cells, as a reader gives them: not yet examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Row", "Table"]


@dataclass(frozen=True, slots=True)
class Row:
    """One record: where it stands (a line or row number, from 1) and its cells by column."""

    line: int
    cells: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one source.

    Attributes:
        source: file name or description, for messages.
        columns: column names in order.
        rows: the records.
        notes: what the reader noticed.
        unit: what `Row.line` counts: "line" or "row".
    """

    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    unit: str = "line"

    def where(self, row: Row) -> str:
        """The place of a row, for messages."""
        return f"{self.source}, {self.unit} {row.line}"
