"""A table with its title and notes, printed on a terminal or written as Markdown from the same rows."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

__all__ = ["Section", "as_markdown", "show"]


@dataclass(frozen=True)
class Section:
    """What one benchmark has to say.

    Attributes:
        name: which benchmark; the page's markers are called after it.
        title: one line.
        columns: headings; the first column is words, the others are numbers.
        rows: cells as text.
        notes: sentences under the table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def show(console: Console, section: Section) -> None:
    """Print the table."""
    table = Table(title=section.title, title_justify="left", caption_justify="left")
    for i, column in enumerate(section.columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*row)
    console.print(table)
    for note in section.notes:
        console.print(f"  {note}", highlight=False, markup=False)


def as_markdown(section: Section) -> str:
    """The table as Markdown, its title in bold above it."""
    lines = [
        f"**{section.title}**",
        "",
        "| " + " | ".join(map(_cell, section.columns)) + " |",
        "|" + "|".join("---" if i == 0 else "---:" for i in range(len(section.columns))) + "|",
        *("| " + " | ".join(map(_cell, row)) + " |" for row in section.rows),
    ]
    if section.notes:
        lines += ["", *(f"- {note}" for note in section.notes)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
