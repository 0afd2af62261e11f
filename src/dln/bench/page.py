"""Writing measured tables into a Markdown page, between two marker comments each.

<!-- measured: cpu scoring -->
(replaced)
<!-- end of cpu scoring -->
"""

from __future__ import annotations

import re
from pathlib import Path

from dln.errors import InputError

__all__ = ["check_section", "write_section"]


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name`; nothing else of the page is touched.

    Raises:
        InputError: the page is not there, has not exactly one such pair of markers, or cannot be written.
    """
    old, pattern = check_section(page, name)
    new = pattern.sub(lambda _: f"{_begin(name)}\n\n{text.strip()}\n\n{_end(name)}", old)
    try:
        page.write_text(new, encoding="utf-8")
    except OSError as error:
        raise InputError("the page cannot be written", where=page, got=error.strerror) from error


def check_section(page: Path, name: str) -> tuple[str, re.Pattern[str]]:
    """The page and what finds the section in it: asked before hours of measuring that shall be written there.

    Raises:
        InputError: the page is not there, or has not exactly one such pair of markers.
    """
    if not page.is_file():
        raise InputError("there is no such page", where=page, expected="a Markdown file with markers")
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(_begin(name)) + r".*?" + re.escape(_end(name)), re.DOTALL)
    found = len(pattern.findall(text))
    if found != 1:
        raise InputError(
            "the page has no place for these figures",
            where=page,
            got=f"{found} pairs of markers",
            expected=f"one: {_begin(name)} … {_end(name)}",
        )
    return text, pattern


def _begin(name: str) -> str:
    return f"<!-- measured: {name} -->"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->"
