"""Writing measured tables into a Markdown page, between two marker comments each.

<!-- measured: cpu scoring -->
(replaced)
<!-- end of cpu scoring -->
"""

from __future__ import annotations

import re
from pathlib import Path

from dln.errors import InputError

__all__ = ["write_section"]


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name`; nothing else of the page is touched.

    Raises:
        InputError: the page is not there, or has not exactly one such pair of markers.
    """
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of {name} -->"
    if not page.is_file():
        raise InputError("there is no such page", where=page, expected="a Markdown file with markers")
    old = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(old)) != 1:
        raise InputError(
            "the page has no place for these figures",
            where=page,
            got=f"{len(pattern.findall(old))} pairs of markers",
            expected=f"one: {begin} … {end}",
        )
    new = pattern.sub(lambda _: f"{begin}\n\n{text.strip()}\n\n{end}", old)
    page.write_text(new, encoding="utf-8")
