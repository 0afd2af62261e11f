"""Example, Dataset, batches, and the conversion of tables to datasets.

Datasets are immutable. A batch is a pure function of a key, so a resumed run draws the same batches.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, overload

from dln.arguments import Count, checked, shown
from dln.data.labels import Labels, label_names, label_order, label_specs
from dln.data.readers import Row, Table, choose_columns, read_csv, read_jsonl, table_of_hf, table_of_pandas
from dln.errors import InputError
from dln.random import Key

__all__ = ["MAX_LABELS", "Dataset", "Example", "batch_indices", "cell_text", "dataset_of_table", "text_key"]


@checked
@dataclass(frozen=True, slots=True)
class Example:
    """An input text and its target.

    Attributes:
        input: x, the input of the network.
        target: y, the canonical name of a label, or a free text.
        id: source of the example for messages and reports, such as `reviews.csv:17`.
        rationale: a worked solution, if the source has one; never an input of the network.
    """

    input: str
    target: str
    id: str | None = None
    rationale: str | None = None


@checked
@dataclass(frozen=True, slots=True)
class Dataset(Sequence[Example]):
    """An immutable sequence of examples.

    Slicing gives a `Dataset`; `select` takes indices. Constructors: `from_pairs`, `from_csv`, `from_jsonl`,
    `from_pandas`, `from_hf`.

    Attributes:
        examples: the examples in order.
        labels: canonical label names, to which every target belongs; None for free-form targets.
        notes: what the reader guessed, dropped or decided.
        name: name of the source for messages.

    Raises:
        InputError: a target is not one of `labels`, or a label is repeated.
    """

    examples: tuple[Example, ...]
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    name: str = "dataset"

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        object.__setattr__(self, "notes", tuple(self.notes))
        if self.labels is None:
            return
        object.__setattr__(self, "labels", label_names(tuple(self.labels)))
        known = set(self.labels)
        for i, example in enumerate(self.examples):
            if example.target not in known:
                raise InputError(
                    "a target is not one of the labels",
                    where=example.id or f"{self.name}, example {i + 1}",
                    got=repr(example.target),
                    expected=f"one of {', '.join(self.labels)}",
                    fix='map it: labels={"value in the data": "label", …}, or add a spelling: "label|value"',
                )

    @classmethod
    def from_pairs(
        cls, pairs: Iterable[tuple[str, str]], labels: Sequence[str] | None = None, name: str = "dataset"
    ) -> Dataset:
        """Make a dataset of (input, target) pairs, unchanged."""
        examples: list[Example] = []
        # `checked` does not look into an iterator: check the pairs here
        for position, pair in enumerate(cast("Iterable[object]", pairs)):
            match pair:
                case (str() as x, str() as y):
                    examples.append(Example(x, y))
                case _:
                    raise InputError(
                        "the argument 'pairs' cannot be used",
                        where="Dataset.from_pairs",
                        got=f"{shown(pair)} at pairs[{position}]",
                        expected="a pair (input, target) of texts",
                        fix='dln.Dataset.from_pairs([("an input", "its target"), …])',
                    )
        return cls(tuple(examples), None if labels is None else tuple(labels), name=name)

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        input: str | None = None,  # noqa: A002
        target: str | None = None,
        *,
        labels: Labels | None = None,
        free_form: bool | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
    ) -> Dataset:
        """Read a CSV file with a header line; see `dln.data.readers.read_csv`."""
        table = read_csv(path, delimiter=delimiter, encoding=encoding, wanted=(input, target))
        return dataset_of_table(table, input, target, labels=labels, free_form=free_form)

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        input: str | None = None,  # noqa: A002
        target: str | None = None,
        *,
        labels: Labels | None = None,
        free_form: bool | None = None,
        encoding: str = "utf-8",
    ) -> Dataset:
        """Read a file of one JSON object per line; see `dln.data.readers.read_jsonl`."""
        return dataset_of_table(read_jsonl(path, encoding=encoding), input, target, labels=labels, free_form=free_form)

    @classmethod
    def from_pandas(
        cls,
        frame: object,
        input: str | None = None,  # noqa: A002
        target: str | None = None,
        *,
        labels: Labels | None = None,
        free_form: bool | None = None,
        name: str = "data frame",
    ) -> Dataset:
        """Convert two columns of a pandas data frame."""
        return dataset_of_table(table_of_pandas(frame, name), input, target, labels=labels, free_form=free_form)

    @classmethod
    def from_hf(
        cls,
        name_or_dataset: object,
        input: str | None = None,  # noqa: A002
        target: str | None = None,
        *,
        split: str = "train",
        subset: str | None = None,
        labels: Labels | None = None,
        free_form: bool | None = None,
    ) -> Dataset:
        """Convert two columns of a Hugging Face dataset, loaded by name or in memory (extra `hf`)."""
        table = table_of_hf(name_or_dataset, split=split, subset=subset)
        return dataset_of_table(table, input, target, labels=labels, free_form=free_form)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Example | Dataset:
        if isinstance(index, slice):
            return replace(self, examples=self.examples[index])
        return self.examples[index]

    def __repr__(self) -> str:
        kind = "free-form" if self.labels is None else f"{len(self.labels)} labels"
        return f"Dataset({self.name!r}, {len(self)} examples, {kind})"

    @property
    def inputs(self) -> tuple[str, ...]:
        """x of every example."""
        return tuple(example.input for example in self.examples)

    @property
    def targets(self) -> tuple[str, ...]:
        """y of every example."""
        return tuple(example.target for example in self.examples)

    def labels_of(self) -> tuple[int, ...]:
        """Return the position in `labels` of every target.

        Raises:
            InputError: the dataset is free-form.
        """
        if self.labels is None:
            raise InputError("a free-form dataset has no labels", where=self.name)
        position = {label: i for i, label in enumerate(self.labels)}
        return tuple(position[example.target] for example in self.examples)

    def counts(self) -> dict[str, int]:
        """Count the examples per target, in the order of the labels or of first occurrence."""
        result = dict.fromkeys(self.labels or (), 0)
        for example in self.examples:
            result[example.target] = result.get(example.target, 0) + 1
        return result

    def select(self, indices: Iterable[int]) -> Dataset:
        """Return the examples at these positions, in this order."""
        chosen = list(indices)
        wrong = [i for i in chosen if not -len(self) <= i < len(self)]
        if wrong:
            raise InputError(
                "the argument 'indices' cannot be used",
                where="Dataset.select",
                got=f"{wrong[0]}",
                expected=f"positions from 0 to {len(self) - 1}",
                fix=f"the dataset has {len(self)} examples",
            )
        return replace(self, examples=tuple(self.examples[i] for i in chosen))

    def with_examples(self, examples: Iterable[Example]) -> Dataset:
        """Return the dataset with other examples."""
        return replace(self, examples=tuple(examples))

    def with_labels(self, labels: Labels | None) -> Dataset:
        """Return the dataset with targets renamed to canonical labels; None makes them free-form.

        Raises:
            InputError: a target is neither a spelling of a label nor a mapped value.
        """
        if labels is None:
            return replace(self, labels=None)
        specs, names = label_specs(labels)
        examples = tuple(replace(e, target=names.get(e.target, e.target)) for e in self.examples)
        return replace(self, examples=examples, labels=label_names(specs))

    def with_notes(self, *notes: str) -> Dataset:
        """Return the dataset with these notes added."""
        return replace(self, notes=(*self.notes, *notes))

    def with_name(self, name: str) -> Dataset:
        """Return the dataset under another name."""
        return replace(self, name=name)

    def content_hash(self) -> str:
        """SHA-256 (hex) of labels, inputs and targets in order, without ids, notes and name."""
        content = [self.labels, [(example.input, example.target) for example in self.examples]]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def text_key(text: str) -> str:
    r"""Normalize a text for comparison: compatibility form, case and white space are ignored.

    >>> text_key("  Two  Words\n") == text_key("two words")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@checked
def batch_indices(dataset: Dataset, batch_size: Count, key: Key, balanced: bool = True) -> tuple[int, ...]:
    """Draw the positions of a batch, without replacement, in random order.

    Balanced batches take classes in turn, in random order, until the batch is full; exhausted classes are skipped. So
    class counts differ by at most 1 if there are enough examples, and each class is equally likely to have one more.
    Free-form datasets, and `balanced=False`, give a uniform draw.

    Args:
        dataset: the dataset to draw from.
        batch_size: number of examples.
        key: for step t, `key.child("step", t, "batch")`.
        balanced: whether classes are equally frequent.

    Raises:
        InputError: the batch is larger than the dataset.
    """
    if not 1 <= batch_size <= len(dataset):
        raise InputError(
            "a batch must be at least 1 and at most as large as the dataset",
            where="batch_size",
            got=batch_size,
            expected=f"1 to {len(dataset)} ({dataset.name})",
            fix=f"batch_size={len(dataset)}",
        )
    generator = key.generator()
    if not balanced or dataset.labels is None:
        return tuple(int(i) for i in generator.permutation(len(dataset))[:batch_size])
    pools: dict[int, list[int]] = {}
    for i, label in enumerate(dataset.labels_of()):
        pools.setdefault(label, []).append(i)
    present = sorted(pools)
    shuffled = [generator.permutation(pools[label]).tolist() for label in present]
    turns = [shuffled[int(k)] for k in generator.permutation(len(present))]
    by_turn = [pool[turn] for turn in range(max(map(len, turns))) for pool in turns if turn < len(pool)]
    return tuple(int(i) for i in generator.permutation(by_turn[:batch_size]))


MAX_LABELS = 100
"""Maximum number of distinct targets that are taken as labels, unless labels are given."""


def dataset_of_table(
    table: Table,
    input_column: str | None,
    target_column: str | None,
    *,
    labels: Labels | None = None,
    free_form: bool | None = None,
) -> Dataset:
    """Convert two columns of a table to a dataset.

    Cells are stripped; numbers and booleans become texts. Repeated (input, target) rows are dropped except the first.
    With labels, inputs with contradicting targets are dropped, because the correct label is unknown. The notes say so.

    Args:
        table: the rows.
        input_column: name of the input column; None guesses.
        target_column: name of the target column; None guesses.
        labels: label specifications, or a mapping of the data's values to them; default the distinct targets.
        free_form: True keeps targets as free texts, False requires labels; default free-form if there are more than
            100 distinct targets, or if most of them occur once.

    Raises:
        InputError: no rows, no such column, an empty or missing cell, or a target that is not a label.
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
    """Return a cell as a stripped text; numbers and booleans become texts.

    Raises:
        InputError: it is missing, empty, or not a text; names its place.
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
            f"column {column!r} has a value that is not a text",
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
            f"column {column!r} has an invalid character",
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
            fix='add it to the labels, or as another spelling: "label|value"',
        )
    return Example(example.input, names[example.target], example.id)


def _distinct_labels(
    table: Table, examples: Sequence[Example], notes: list[str], *, insist: bool
) -> tuple[str, ...] | None:
    distinct = label_order([example.target for example in examples])
    mostly_unique = len(distinct) > max(3, len({(e.input, e.target) for e in examples}) / 2)
    if not insist and (len(distinct) > MAX_LABELS or mostly_unique):
        notes.append(
            f"{len(distinct)} distinct targets in {len(examples)} rows: treated as free-form texts, not as labels"
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
