"""From a specification to examples: cells, labels, repeats, contradictions, and a report of what was done.

Every row of the file is either used or counted in `ReadReport.dropped` with the reason.
"""

from __future__ import annotations

import ast
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast
from zlib import crc32

from dln.data.columns import ColumnChoice, Unusable, choose_columns, input_text, require_column, text_of
from dln.data.labels import (
    MISSING_LIKE,
    folded,
    label_lookup,
    label_names,
    label_order,
    label_specs,
    lookalikes,
    ordered_scale,
    similar_key,
)
from dln.data.readers import LONG, read_table
from dln.data.spec import DataSpec
from dln.data.tables import PART_NAMES, Row, Table, cell_of
from dln.errors import InputError

__all__ = ["MAX_LABELS", "Item", "ReadReport", "Resolved", "read_items", "resolve", "row_hash", "text_key"]

LEAST, NOT_SAMPLED = 500, "not in the sample"
"""Rows that every label keeps in a sample of a large file, and why the others are not used."""

MAX_LABELS = 100
"""Maximum number of distinct targets that are taken as labels, unless labels are given."""


def text_key(text: str) -> str:
    r"""Normalize a text for comparison: compatibility form, case and white space are ignored.

    >>> text_key("  Two  Words\n") == text_key("two words")
    True
    """
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def row_hash(text: str) -> str:
    """The identity of a row: 16 hexadecimal digits of the hash of its input, whatever its case and white space."""
    return hashlib.sha256(text_key(text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Item(NamedTuple):
    """A row as it is used: its place, its texts, and why it is not used ("" if it is).

    `source` is what stands in messages before the number of its line or row, as "mail.csv, line". `key` is the
    normalized input (see `text_key`), "" where rows are not compared.
    """

    source: str
    row: int
    input: str
    target: str = ""
    id: str = ""
    problem: str = ""
    cells: Mapping[str, object] = {}
    key: str = ""

    @property
    def place(self) -> str:
        """The place of the row, for messages."""
        return f"{self.source} {self.row}"


@dataclass(frozen=True)
class ReadReport:
    """What was read, guessed, folded and dropped; `rows` = `used` + the sum of `dropped`.

    Attributes:
        source: name of the file or frame.
        facts: format, encoding, delimiter, quote character, and whether there is a header line.
        rows: rows of the file; blank lines are none.
        used: rows that became examples.
        input: the input columns.
        target: the target column.
        id: the column of identifiers.
        unused: the columns that are not read.
        dropped: how many rows were left out, by reason.
        notes: what was guessed, folded, dropped and decided, in sentences.
    """

    source: str
    facts: Mapping[str, Any]
    rows: int
    used: int
    input: tuple[str, ...]
    target: str | None
    id: str | None
    unused: tuple[str, ...]
    dropped: Mapping[str, int]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def summary(self) -> str:
        """What was read, in one line."""
        how = [str(self.facts[name]) for name in ("format", "encoding") if self.facts.get(name)]
        if self.facts.get("delimiter"):
            how.append(f"delimiter {self.facts['delimiter']!r}")
        columns = [f"input {' + '.join(map(repr, self.input))}"]
        columns += [f"{name} {value!r}" for name, value in (("target", self.target), ("id", self.id)) if value]
        columns += [f"not used: {', '.join(map(repr, self.unused[:8]))}"] if self.unused else []
        return f"read {self.source} ({', '.join(how)}): {self.used} of {self.rows} rows; {'; '.join(columns)}"

    @property
    def lines(self) -> tuple[str, ...]:
        """The summary and all notes."""
        return (self.summary, *self.notes)

    def to_json(self) -> dict[str, Any]:
        """Plain data for run.yaml."""
        return {
            "source": self.source,
            **{name: value for name, value in self.facts.items() if value is not None},
            "rows": self.rows,
            "used": self.used,
            "input": list(self.input),
            "target": self.target,
            "id": self.id,
            "unused": list(self.unused),
            "dropped": dict(self.dropped),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Resolved:
    """The examples of a table: rows that are used in order, label specifications or None, and the report."""

    spec: DataSpec
    items: tuple[Item, ...]
    labels: tuple[str, ...] | None
    report: ReadReport


def read_items(
    spec: DataSpec,
    tables: Sequence[Table] | None = None,
    *,
    with_target: bool = True,
    default: str = "csv",
    most: int | None = None,
) -> tuple[DataSpec, list[Item], ReadReport]:
    """Read all rows of the files of a specification, with the problems of those that cannot be used.

    Returns:
        The specification with its columns, one item per row in order, and a report in which nothing is dropped yet
        but the rows that are not in a sample of about `most` rows.

    Raises:
        InputError: a file cannot be read, a column is missing, or an option refuses a row.
    """
    known = tuple(c for c in (*spec.input, spec.target if with_target else None, spec.id) if c)
    if tables is None:
        tables = [read_table(spec, path, columns=known, default=default) for path in spec.path]
    if not tables:
        raise InputError("no file is named", where="path", got="nothing", expected="a file", fix='path="mail.csv"')
    first = tables[0]
    choice = choose_columns(first, spec, with_target=with_target)
    for table in tables[1:]:
        for column in (*choice.input, choice.target):
            if column is not None:
                require_column(column, table)
    several = len(tables) > 1
    notes = [f"{table.source}: {text}" if several else text for table in tables for text in table.notes]
    notes += choice.notes
    columns = dict.fromkeys(c for table in tables for c in table.columns if c)
    for table in tables:
        notes += [f"{table.source}: {n}" if several else n for n in _shape(table, spec)]
    total = sum(len(table.rows) for table in tables)
    if most is not None and total > most:
        tables = _sampled(tables, choice, spec, most)
    items = [item for table in tables for item in _items(table, choice, spec, with_target=with_target)]
    if len(items) < total:
        notes.append(
            f"a sample of {len(items):,} of {total:,} rows is used, chosen by content; every label keeps {LEAST} rows, "
            "or all that it has"
        )
    if with_target:
        spec = _with_split_column(spec, items, choice, list(columns), notes)
    extra = (spec.split_column, spec.group, spec.split_by)
    read = (*choice.input, *(c for c in (choice.target, choice.id, *extra) if c is not None))
    chats = tuple(c.rpartition(".")[0] + "." for c in read if c.endswith((".text", ".prompt", ".reply")))
    unused = tuple(c for c in columns if c not in read and not (chats and c.startswith(chats)))
    report = ReadReport(
        ", ".join(table.source for table in tables),
        first.facts,
        rows=total,
        used=len(items),
        input=choice.input,
        target=choice.target,
        id=choice.id,
        unused=unused,
        dropped={NOT_SAMPLED: total - len(items)} if len(items) < total else {},
        notes=tuple(notes),
    )
    chosen = spec.model_copy(update={"input": choice.input, "target": choice.target or spec.target, "id": choice.id})
    return chosen, items, report


def _sampled(tables: Sequence[Table], choice: ColumnChoice, spec: DataSpec, most: int) -> list[Table]:
    """The tables with about `most` of their rows, in order.

    A row is in the sample if a hash of its input in [0, 1) is below the share of its label and part, so that rows of
    equal input are in it together. Rows that cannot be used are counted in full.
    """
    parts = [c for c in tables[0].columns if c == spec.split_column or c.lower() in _SPLIT_COLUMNS]
    total = sum(len(table.rows) for table in tables)
    counts: Counter[tuple[str, ...]] = Counter()
    named: list[str] = []
    for named in ([*([choice.target] if choice.target else []), *parts], parts):
        counts = Counter(_values(row, named) for table in tables for row in table.rows)
        if len(counts) <= 10 * MAX_LABELS:  # else the targets are free texts
            break
    share = {values: max(most / total, min(1.0, LEAST / n)) for values, n in counts.items()}

    def is_in(row: Row) -> bool:
        text = "\n".join(str(cell_of(row.cells, column) or "").strip() for column in choice.input)
        place = crc32(text.encode("utf-8", "surrogatepass")) / 2**32
        return bool(row.problem) or not text.strip() or place < share[_values(row, named)]

    return [replace(table, rows=tuple(filter(is_in, table.rows))) for table in tables]


def _values(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(cell_of(row.cells, column)) for column in columns)


def _shape(table: Table, spec: DataSpec) -> list[str]:
    """Notes on uneven rows; refuses them where the option, or their number, says so."""
    long = [row for row in table.rows if row.problem.startswith(LONG)]
    notes = [f"{_count(table.blank, 'blank line')} skipped"] if table.blank else []
    if not long:
        return notes
    lines = _places([Item(f"{table.source}, {table.unit}", row.line, "") for row in long])
    if spec.long_rows == "cut":
        return [*notes, f"{_count(len(long), 'row')} with more cells than columns cut ({lines})"]
    if spec.long_rows == "refuse" or (spec.long_rows is None and len(long) > 0.2 * len(table.rows)):
        raise InputError(
            f"{_count(len(long), 'row')} of {len(table.rows)} and the header have different numbers of cells",
            where=table.where(long[0]),
            got=long[0].problem.removeprefix(LONG).strip(" ()").replace("instead", "cells instead"),
            expected=f"{len(table.columns)} ({', '.join(table.columns[:8])}), "
            f"divided by {table.facts.get('delimiter')!r}",
            fix='put cells that contain the delimiter in double quotes; or long_rows="skip", long_rows="cut", '
            "or another delimiter",
        )
    return [*notes, f"{_count(len(long), 'row')} with more cells than columns skipped ({lines})"]


def _items(table: Table, choice: ColumnChoice, spec: DataSpec, *, with_target: bool) -> list[Item]:
    missing, cut = set(spec.missing), spec.long_rows == "cut"
    target_column = choice.target if with_target else None
    no_input, no_target = f"empty {' and '.join(choice.input)}", f"empty {choice.target}"
    keep_input = spec.empty == "keep"
    keep_target = (keep_input and bool(spec.free_form)) or (isinstance(spec.labels, dict) and "" in spec.labels)
    usual = f"{table.source}, {table.unit}"
    items: list[Item] = []
    for line, cells, reason, own in table.rows:
        source = f"{own}, {table.unit}" if own else usual
        problem = "" if cut and reason.startswith(LONG) else reason
        text = target = identifier = ""
        if not problem:
            try:
                text = input_text(cells, choice.input)
                if choice.id is not None:
                    identifier = text_of(cell_of(cells, choice.id))
            except Unusable as error:
                problem = _unusable(f"{source} {line}", choice.input, error, refuse=with_target)
            if target_column is not None and not problem:
                try:
                    target = _target_text(cell_of(cells, target_column))
                except Unusable as error:
                    problem = _unusable(f"{source} {line}", (target_column,), error, refuse=True)
        if missing:
            text, target = ("" if one in missing else one for one in (text, target))
        if not problem and not text and not keep_input:
            problem = no_input
        if with_target and not problem and not target and not keep_target:
            problem = no_target
        if with_target and spec.empty == "refuse" and problem.startswith("empty"):
            raise InputError(
                f"column {problem.removeprefix('empty ')!r} is empty",
                where=f"{source} {line}",
                got="no text",
                expected="a text",
                fix="fill the cell or remove the row",
            )
        key = text_key(text) if with_target and not problem else ""
        items.append(Item(source, line, text, target, identifier, problem, cells, key))
    return items


_SPLIT_COLUMNS = ("split", "fold", "part", "partition", "subset", "set")


def _with_split_column(
    spec: DataSpec, items: Sequence[Item], choice: ColumnChoice, columns: Sequence[str], notes: list[str]
) -> DataSpec:
    """The specification with the column that names the parts of the rows, if there is one and no other way is given."""
    if spec.split_column == "none":
        return spec.model_copy(update={"split_column": None})
    if spec.split_column is not None:
        if spec.split_column not in columns:
            require_column(spec.split_column, Table("the file", tuple(columns), ()))
        return spec
    if spec.group or spec.split_by or spec.test_file:
        return spec
    for column in columns:
        if column.lower() not in _SPLIT_COLUMNS or column in choice.input:
            continue
        said = {str(cell_of(item.cells, column) or "").strip().lower() for item in items if not item.problem}
        if (
            column != choice.target
            and {"train", "test"} <= {PART_NAMES.get(word, "") for word in said} - {""}
            and all(word in PART_NAMES for word in said)
        ):
            notes.append(f"column {column!r} taken as the parts of the rows (split_column=none ignores it)")
            return spec.model_copy(update={"split_column": column})
    return spec


def _unusable(place: str, columns: Sequence[str], error: Unusable, *, refuse: bool) -> str:
    """The problem of a row; where its text is needed, an error."""
    problem = f"{' and '.join(columns)}: {error}"
    if refuse:
        raise InputError(
            f"column {' + '.join(columns)!r} has a value that is not a text",
            where=place,
            got=str(error),
            expected="a text or a number",
            fix=f'name what is inside: "{columns[0]}.0" is the first of a list, "{columns[0]}.name" a field',
        )
    return problem


_SEPARATOR = "\x1f"
"""Between the labels of one cell, until it is decided what several labels mean."""


def _target_text(value: object) -> str:
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    if not isinstance(value, list | tuple):
        return text_of(value)
    texts = list(dict.fromkeys(text for text in map(text_of, cast("Sequence[object]", value)) if text))
    return _SEPARATOR.join(texts)


def resolve(
    spec: DataSpec, tables: Sequence[Table] | None = None, *, evaluation: bool = False, most: int | None = None
) -> Resolved:
    """Read the examples of a specification, and decide what is a label and what is left out.

    Args:
        spec: what is read and how.
        tables: tables in memory instead of the files of `spec.path`.
        evaluation: keep repeated and contradictory rows: every row of the file counts.
        most: rows from which on a sample of about this size is used; default all rows are.

    Raises:
        InputError: no rows, no such column, or a target that is not a label.
    """
    chosen, items, report = read_items(spec, tables, most=most)
    if not items:
        raise InputError("there are no rows", where=report.source, got="none", expected="at least one example")
    dropped = Counter(item.problem.partition(" (")[0].partition(":")[0] for item in items if item.problem)
    dropped.update(report.dropped)
    notes = list(report.notes)
    notes += [
        f"{_count(n, 'row')} with {reason} dropped ({_places([i for i in items if i.problem == reason])})"
        for reason, n in dropped.items()
        if reason.startswith(("empty", "no text"))
    ]
    kept = [item for item in items if not item.problem]
    if not kept:
        raise InputError(
            "no row can be used",
            where=report.source,
            got="; ".join(f"{_count(n, 'row')} with {reason}" for reason, n in dropped.items()),
            expected=f"rows with {' and '.join(chosen.input)} and {chosen.target}",
            fix="check the columns, or name others: input=…, target=…",
        )
    before = len(notes)
    kept = _several(kept, chosen, notes, report.source)
    if len(notes) > before:
        chosen = chosen.model_copy(update={"several": chosen.several or "combine"})
    kept, specs = _labelled(kept, chosen, notes, report.source)
    if not evaluation:
        kept = _distinct(kept, specs, dropped, notes, report.source)
    specs = _announced(kept, specs, chosen, notes)
    final = replace(report, used=len(kept), dropped=dict(dropped), notes=tuple(notes))
    return Resolved(chosen.model_copy(update={"free_form": specs is None}), tuple(kept), specs, final)


def _several(items: list[Item], spec: DataSpec, notes: list[str], source: str) -> list[Item]:
    """Give cells with several labels one target: their combination, or the first."""
    items = _listed_labels(items, spec)
    lists = [item for item in items if _SEPARATOR in item.target]
    separator = _SEPARATOR if lists else _separator_of([item.target for item in items], spec)
    if separator is None:
        return items
    several = [item for item in items if separator in item.target]
    names = Counter(part for item in items for part in _parts(item.target, separator))
    shown = ", ".join(f"{name} ({n})" for name, n in names.most_common(10)) + (", …" if len(names) > 10 else "")
    if spec.several == "refuse":
        raise InputError(
            "a cell holds several labels",
            where=several[0].place,
            got=several[0].target.replace(_SEPARATOR, ", "),
            expected="one label",
            fix='several="combine" makes each combination a class, several="first" takes the first',
        )
    how = "only the first of them counts" if spec.several == "first" else "each combination is one class"
    divided = "" if separator == _SEPARATOR else f", divided by {separator!r}"
    notes.append(
        f"{len(several)} of {_count(len(items), 'row')} have several labels in {spec.target!r}{divided}: {shown}; "
        f"{how} (several=combine, first or refuse)"
    )
    result: list[Item] = []
    for item in items:
        parts = _parts(item.target, separator)
        result.append(_with_target(item, parts[0] if spec.several == "first" else ", ".join(sorted(parts))))
    return result


def _listed_labels(items: list[Item], spec: DataSpec) -> list[Item]:
    """Cells that are all written lists of texts, as in JSON or Python: `["a", "b"]` or `['a']`."""
    if spec.free_form or not all(item.target.startswith("[") and item.target.endswith("]") for item in items):
        return items
    result: list[Item] = []
    for item in items:
        try:
            value = cast("object", ast.literal_eval(item.target))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return items
        if not isinstance(value, list) or not all(isinstance(one, str | int) for one in cast("list[object]", value)):
            return items
        parts = [str(one).strip() for one in cast("list[object]", value)]
        result.append(_with_target(item, _SEPARATOR.join(dict.fromkeys(filter(None, parts))) or "[]"))
    return result


def _is_json(text: str) -> bool:
    try:
        return text[:1] in "{[" and isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _parts(target: str, separator: str) -> list[str]:
    return list(dict.fromkeys(folded(part) for part in target.split(separator) if part.strip())) or [target]


def _separator_of(targets: Sequence[str], spec: DataSpec) -> str | None:
    """What divides the labels of a cell, if the cells are made of parts that recur in other combinations."""
    if spec.free_form or (spec.labels is not None and spec.several is None):
        return None
    distinct = set(targets)
    if len(distinct) > 5 * MAX_LABELS or any(target[:1] in ("{", "[") for target in distinct):
        return None
    if spec.several is not None:  # it is known that cells may hold several
        return next((s for s in ("|", ";", ",") if any(len(_parts(target, s)) > 1 for target in distinct)), None)
    for separator in ("|", ";", ","):
        joined = [target for target in distinct if len(_parts(target, separator)) > 1]
        if not joined:
            continue
        parts = Counter(part for target in distinct for part in _parts(target, separator))
        if separator == "|" and max(map(len, parts)) <= 40:
            recurring = [part for part, n in parts.items() if n > 1]
            if recurring or len(distinct) <= MAX_LABELS:
                return separator
        if len(parts) <= 50 and max(map(len, parts)) <= 40 and len(parts) < len(distinct) + 2:
            recurring = sum(parts[part] > 1 for target in joined for part in _parts(target, separator))
            if recurring >= 0.7 * sum(len(_parts(target, separator)) for target in joined):
                return separator
    return None


def _labelled(
    items: list[Item], spec: DataSpec, notes: list[str], source: str
) -> tuple[list[Item], tuple[str, ...] | None]:
    """Targets as canonical labels, and the label specifications; None where targets are free texts."""
    if spec.labels is not None:
        return _given_labels(items, spec, notes)
    if spec.free_form:
        return items, None
    if spec.free_form is None and all(_is_json(item.target) for item in items):
        notes.append("targets are JSON values: treated as free-form texts, not as labels")
        return items, None
    names, folds = _canonical([item.target for item in items], merge=bool(spec.merge_labels))
    distinct = label_order(list(dict.fromkeys(names.values())))
    mostly_unique = (
        len(distinct) > 3
        and all(  # the first rows tell it of a large file
            len(distinct) > len({(item.key, names[item.target]) for item in some}) / 2 for some in (items[:2000], items)
        )
    )
    if spec.free_form is None and (len(distinct) > MAX_LABELS or mostly_unique):
        told = f"{len(distinct)} distinct targets in {_count(len(items), 'row')}"
        notes.append(f"{told}: treated as free-form texts, not as labels")
        return items, None
    if any("|" in name for name in distinct):
        where = next(item for item in items if "|" in item.target)
        raise InputError(
            "a label must not contain '|', which separates spellings",
            where=where.place,
            got=repr(where.target),
            fix=f'rename it: labels={{"{where.target}": "another name", …}}',
        )
    notes += folds
    return [_with_target(item, names[item.target]) for item in items], distinct


def _with_target(item: Item, target: str) -> Item:
    return item if item.target == target else item._replace(target=target)


def _given_labels(items: list[Item], spec: DataSpec, notes: list[str]) -> tuple[list[Item], tuple[str, ...]]:
    specs, names = label_specs(cast("Any", spec.labels))
    lookup = label_lookup(names)
    if spec.merge_labels:
        by_key = {similar_key(value): label for value, label in lookup.items()}
        lookup = {folded(item.target): by_key[key] for item in items if (key := similar_key(item.target)) in by_key}
    unknown = [item for item in items if folded(item.target) not in lookup]
    if unknown:
        others = Counter(item.target for item in unknown)
        listed = ", ".join(f"{value!r} ({n} rows)" for value, n in others.most_common(6))
        same = {similar_key(value) for value in lookup} & {similar_key(value) for value in others}
        example = next(iter(others))
        raise InputError(
            "a target is not one of the labels",
            where=unknown[0].place,
            got=listed + (", …" if len(others) > 6 else ""),
            expected=", ".join(dict.fromkeys(names.values())),
            fix="merge_labels=True ignores case and number forms"
            if same
            else f'map it: labels={{"{example}": "label", …}}, or add it as another spelling: "label|{example}"',
        )
    renamed = Counter((item.target, lookup[folded(item.target)]) for item in items)
    told = [f"{value!r} → {label!r} ({n})" for (value, label), n in renamed.items() if value != label]
    if told:
        notes.append(f"targets renamed: {', '.join(told[:10])}{', …' if len(told) > 10 else ''}")
    return [_with_target(item, lookup[folded(item.target)]) for item in items], specs


def _canonical(targets: Sequence[str], *, merge: bool) -> tuple[dict[str, str], list[str]]:
    """The label of each distinct target, and notes: invisible differences are folded, visible ones if asked."""
    counts = Counter(targets)
    groups: dict[str, list[str]] = {}
    for target in counts:
        groups.setdefault(folded(target), []).append(target)
    names = {target: label for label, group in groups.items() for target in group}
    notes: list[str] = []
    alike = [(label, group) for label, group in groups.items() if len(group) > 1]
    if alike:
        listed = "; ".join(f"{label!r} ({len(group)} spellings)" for label, group in alike[:5])
        notes.append(
            f"labels that differ only in white space, Unicode normal form or zero-width characters are one: {listed}"
        )
    frequency = Counter[str]()
    for target, n in counts.items():
        frequency[names[target]] += n
    if merge:
        for group in lookalikes(frequency):
            best = min(group, key=lambda label: (-frequency[label], label))
            names = {target: best if label in group else label for target, label in names.items()}
            notes.append(f"labels merged into {best!r}: {', '.join(repr(one) for one in group if one != best)}")
        missing = [label for label in dict.fromkeys(names.values()) if label.lower() in MISSING_LIKE]
        if len(missing) > 1:
            best = min(missing, key=lambda label: (-frequency[label], label))
            names = {target: best if label in missing else label for target, label in names.items()}
            notes.append(f"labels merged into {best!r}: {', '.join(repr(one) for one in missing if one != best)}")
    return names, notes


def _distinct(
    items: list[Item], specs: tuple[str, ...] | None, dropped: Counter[str], notes: list[str], source: str
) -> list[Item]:
    """One row per input and target; of contradicting labels the majority, none if there is no majority."""
    first, contradicting = _first_rows(items)
    repeats = len(items) - len(first)
    if specs is None:
        if repeats:
            dropped["repeated input and target"] += repeats
            notes.append(f"{_count(repeats, 'repeated row')} (same input, same target) dropped")
        return first
    counts: dict[str, Counter[str]] = {key: Counter() for key in contradicting}
    for item in items if counts else ():
        if item.key in counts:
            counts[item.key][item.target] += 1
    winners: dict[str, str | None] = {}
    for key, count in counts.items():
        ranked = count.most_common(2)
        winners[key] = None if ranked[0][1] == ranked[1][1] else ranked[0][0]
    kept = [item for item in first if winners.get(item.key, item.target) == item.target]
    decided = [(c, winner) for key, c in counts.items() if (winner := winners[key]) is not None]
    outvoted = sum(n for c, winner in decided for target, n in c.items() if target != winner)
    undecided = sum(sum(c.values()) for key, c in counts.items() if winners[key] is None)
    repeats = len(items) - len(kept) - outvoted - undecided
    if repeats:
        dropped["repeated input and target"] += repeats
        notes.append(f"{_count(repeats, 'repeated row')} (same input, same target) dropped")
    if outvoted:
        dropped["outvoted label"] += outvoted
        notes.append(_conflicts([key for key in counts if winners[key] is not None], items, "the majority counts"))
    if undecided:
        dropped["contradicting labels"] += undecided
        notes.append(_conflicts([key for key in counts if winners[key] is None], items, "no majority, dropped"))
    if not kept:
        raise InputError("every input occurs with contradicting labels", where=source, got=notes[-1])
    return kept


def _first_rows(items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """The first row of every input and target, and the inputs with several targets."""
    first: list[Item] = []
    said: dict[str, str] = {}
    others: dict[tuple[str, str], None] = {}
    for item in items:
        known = said.get(item.key)
        if known is None:
            said[item.key] = item.target
            first.append(item)
        elif known != item.target and (item.key, item.target) not in others:
            others[item.key, item.target] = None
            first.append(item)
    return first, list(dict.fromkeys(key for key, _ in others))


def _conflicts(keys: Sequence[str], items: Sequence[Item], decision: str) -> str:
    """A note on inputs with contradicting labels, with the lines of the first of them."""
    lines: dict[str, list[str]] = {key: [] for key in keys[:5]}
    for item in items:
        if item.key in lines:
            lines[item.key].append(str(item.row))
    listed = ", ".join("/".join(places) for places in lines.values())
    unit = items[0].source.rpartition(" ")[2]
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{_count(len(keys), 'input')} with contradicting labels: {decision} ({unit}s {listed}{more})"


def _announced(
    items: Sequence[Item], specs: tuple[str, ...] | None, spec: DataSpec, notes: list[str]
) -> tuple[str, ...] | None:
    """Notes on the labels; labels without a row are dropped unless they were given."""
    if specs is None:
        return None
    names, counts = label_names(specs), Counter(item.target for item in items)
    lost = [name for name in names if not counts[name]]
    if lost and spec.labels is None:
        notes.append(f"labels without a row that is left, dropped: {', '.join(map(repr, lost))}")
        specs = tuple(one for one, name in zip(specs, names, strict=True) if counts[name])
        names = label_names(specs) if specs else ()
    elif lost:
        notes.append(f"no row has the label {', '.join(map(repr, lost))}")
    listed = [f"{name} ({counts[name]})" for name in names]
    shown = ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
    if spec.labels is None and spec.free_form is None:
        notes.append(f"targets taken as {len(listed)} labels: {shown}")
    scale = ordered_scale(names)
    if scale is not None:
        notes.append(
            f"the labels look like an ordered scale, {' < '.join(scale)}: accuracy counts every wrong label alike, and "
            "the metric qwk how far off it is"
        )
    similar = [group for group in lookalikes(names) if not spec.merge_labels]
    if similar:
        listed = ["/".join(map(repr, group)) for group in similar[:5]]
        notes.append(
            f"labels that look alike are different classes: {', '.join(listed)}; merge_labels=True merges them"
        )
    missing = [name for name in names if name.lower() in MISSING_LIKE]
    if missing and spec.labels is None:
        ways = "; merge_labels=True merges them" if len(missing) > 1 else ""
        notes.append(
            f"{', '.join(map(repr, missing))} is a class, though it looks like a missing value; "
            f"missing={missing[0]!r} drops its rows{ways}"
        )
    return specs


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _places(items: Sequence[Item]) -> str:
    """The numbers of rows, with what they count: lines of a file, rows of a table."""
    listed, unit = [str(item.row) for item in items], items[0].source.rpartition(" ")[2]
    shown = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
    return f"{unit}{'s' * (len(listed) > 1)} {shown}"
