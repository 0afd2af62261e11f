"""From rows of cells to a dataset: choose columns, clean, decide between labels and free texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dln.data.columns import choose_columns
from dln.data.dataset import Dataset, Example, text_key
from dln.data.labels import label_names, label_order, label_specs
from dln.data.rows import Row, Table
from dln.errors import InputError

__all__ = ["MAX_LABELS", "cell_text", "dataset_of_table"]

MAX_LABELS = 100
"""More distinct targets than this are free-form texts, unless labels are given."""


def dataset_of_table(
    table: Table,
    input_column: str | None,
    target_column: str | None,
    *,
    labels: Sequence[str] | Mapping[str, str] | None = None,
    free_form: bool | None = None,
) -> Dataset:
    """The dataset in two columns of a table.

    Cells are stripped; numbers and truth values become texts. Repeats of the same input with the same
    target are dropped but for the first. In classification, inputs that occur with different targets
    are dropped altogether: nobody can say which label is right. Both are said in the notes.

    Args:
        table: the rows.
        input_column: name of the input column; None guesses.
        target_column: name of the target column; None guesses.
        labels: label specifications, or a mapping of the data's values to them; None takes the
            distinct targets.
        free_form: True keeps targets as free texts, False insists on labels, None decides: free-form
            if there are more than 100 distinct targets, or if most of them occur once.

    Raises:
        InputError: no rows, no such column, an empty or missing cell, a target that is not a label.
    """
    if not table.rows:
        raise InputError("there are no rows", where=table.source, expected="at least one example")
    choice = choose_columns(table.columns, [row.cells for row in table.rows], table.source, input_column, target_column)
    examples = [
        Example(
            input=cell_text(table, row, choice.input),
            target=cell_text(table, row, choice.target),
            id=f"{table.source}:{row.line}",
        )
        for row in table.rows
    ]
    notes = [*table.notes, *choice.notes]
    specs: tuple[str, ...] | None = None
    if labels is not None and not free_form:
        specs, names = label_specs(labels)
        examples = [_renamed(table, row, e, names) for row, e in zip(table.rows, examples, strict=True)]
    elif free_form is not True:
        specs = _distinct_labels(table, examples, notes, insist=free_form is False)
    examples = _without_repeats(examples, notes)
    if specs is not None:
        examples = _without_conflicts(table.source, examples, notes)
    names_of = None if specs is None else label_names(specs)
    return Dataset(tuple(examples), names_of, tuple(notes), table.source)


def cell_text(table: Table, row: Row, column: str) -> str:
    """A cell as a stripped text; numbers and truth values become texts.

    Raises:
        InputError: it is missing, empty, or no text; with its place.
    """
    value = row.cells.get(column)
    if isinstance(value, str):
        text = value.strip()
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        text = str(value)
    elif isinstance(value, float) and math.isfinite(value):
        text = str(int(value)) if value.is_integer() else repr(value)
    elif value is None or isinstance(value, float):
        text = ""
    else:
        raise InputError(
            f"column {column!r} holds something that is not a text",
            where=table.where(row),
            got=f"{type(value).__name__} {str(value)[:60]}",
            expected="a text or a number",
        )
    if not text:
        raise InputError(
            f"column {column!r} is empty",
            where=table.where(row),
            got=repr(value),
            expected="a text",
            fix="fill the cell or remove the row",
        )
    broken = next((c for c in text if c == "\x00" or "\ud800" <= c <= "\udfff"), None)
    if broken is not None:
        raise InputError(
            f"column {column!r} holds a character that no text has",
            where=table.where(row),
            got=f"U+{ord(broken):04X} at position {text.index(broken)}",
            fix="remove it, or export the data again",
        )
    return text


def _renamed(table: Table, row: Row, example: Example, names: Mapping[str, str]) -> Example:
    if example.target not in names:
        raise InputError(
            "a target is not one of the labels",
            where=table.where(row),
            got=repr(example.target),
            expected=", ".join(names),
            fix='add it to the labels, or as a spelling: "label|value"',
        )
    return Example(example.input, names[example.target], example.id)


def _distinct_labels(
    table: Table, examples: Sequence[Example], notes: list[str], *, insist: bool
) -> tuple[str, ...] | None:
    distinct = label_order([example.target for example in examples])
    mostly_unique = len(distinct) > max(3, len({(e.input, e.target) for e in examples}) / 2)
    if not insist and (len(distinct) > MAX_LABELS or mostly_unique):
        notes.append(
            f"{len(distinct)} distinct targets in {len(examples)} rows: taken as free-form texts, not as labels"
        )
        return None
    for row, example in zip(table.rows, examples, strict=True):
        if "|" in example.target:
            raise InputError(
                "a label must not contain '|', which separates spellings",
                where=table.where(row),
                got=repr(example.target),
                fix=f'rename it: labels={{"{example.target}": "another name", …}}',
            )
    return distinct


def _without_repeats(examples: Sequence[Example], notes: list[str]) -> list[Example]:
    kept: dict[tuple[str, str], Example] = {}
    for example in examples:
        kept.setdefault((text_key(example.input), example.target), example)
    if len(kept) < len(examples):
        notes.append(f"{len(examples) - len(kept)} repeated rows (same input, same target) dropped")
    return list(kept.values())


def _without_conflicts(source: str, examples: Sequence[Example], notes: list[str]) -> list[Example]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(text_key(example.input), []).append(example)
    conflicts = [group for group in groups.values() if len(group) > 1]
    if conflicts:
        places = ["/".join((e.id or "?").rpartition(":")[2] for e in group) for group in conflicts[:5]]
        more = f" and {len(conflicts) - 5} more" if len(conflicts) > 5 else ""
        notes.append(f"{len(conflicts)} inputs with contradicting labels dropped (lines {', '.join(places)}{more})")
    kept = [group[0] for group in groups.values() if len(group) == 1]
    if not kept:
        raise InputError("every input occurs with contradicting labels", where=source, got=notes[-1])
    return kept
