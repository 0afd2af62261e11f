"""Which column is the input and which the target: named by the user, or guessed and said so."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dln.errors import InputError

__all__ = ["INPUT_NAMES", "TARGET_NAMES", "ColumnChoice", "choose_columns"]

INPUT_NAMES = (
    "input",
    "text",
    "sentence",
    "question",
    "review",
    "x",
    "content",
    "document",
    "body",
    "message",
    "comment",
    "tweet",
    "utterance",
    "query",
    "prompt",
    "title",
    "sentence1",
    "description",
)
"""Column names that are taken as the input, most telling first; case does not count."""

TARGET_NAMES = (
    "target",
    "label",
    "answer",
    "class",
    "y",
    "output",
    "category",
    "labels",
    "gold",
    "sentiment",
    "intent",
    "topic",
    "tag",
    "rating",
    "completion",
    "response",
)
"""Column names that are taken as the target, most telling first; case does not count."""


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The two columns, and what was guessed about them."""

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
    close = difflib.get_close_matches(wanted.casefold(), list(by_case), n=1)
    raise InputError(
        f"there is no column {wanted!r}",
        where=source,
        got=_listed(columns),
        fix=f"did you mean {by_case[close[0]]!r}?" if close else "name one of the columns found",
    )


def _by_name(names: Sequence[str], columns: Sequence[str], taken: str | None) -> str | None:
    by_name = {c.strip().casefold(): c for c in reversed(columns) if c != taken}
    return next((by_name[name] for name in names if name in by_name), None)


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(c[:40]) for c in columns[:12])
    return f"columns {shown}" + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
