"""Example, Dataset and batches.

Datasets are immutable. A batch is a pure function of a key, so a resumed run draws the same batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, overload

from dln.arguments import Count, checked, shown
from dln.data.labels import Labels, label_names, label_specs
from dln.data.resolve import Item, ReadReport, Resolved, resolve, text_key
from dln.data.spec import DataSpec
from dln.data.tables import Table, table_of_dicts, table_of_frame, table_of_hf
from dln.errors import InputError
from dln.random import Key

__all__ = ["Dataset", "Example", "batch_indices", "columns_of", "examples_of", "text_key"]


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

    Slicing gives a `Dataset`; `select` takes indices. Constructors: `from_pairs`, `from_file`, `from_frame`,
    `from_dicts`, `from_hf`.

    Attributes:
        examples: the examples in order.
        labels: canonical label names, to which every target belongs; None for free-form targets.
        notes: what the reader guessed, dropped or decided.
        name: name of the source for messages.
        report: how it was read, if it was read.

    Raises:
        InputError: a target is not one of `labels`, or a label is repeated.
    """

    examples: tuple[Example, ...]
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    name: str = "dataset"
    report: ReadReport | None = field(default=None, repr=False, compare=False)

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
    def from_file(
        cls,
        path: str | Path | Sequence[str | Path],
        input: str | Sequence[str] | None = None,  # noqa: A002
        target: str | None = None,
        **options: Any,
    ) -> Dataset:
        """Read a file, or several of the same kind: CSV, JSON, JSON Lines, Excel, Parquet, a folder of texts.

        Args:
            path: the files; compressed ones too, "-" for standard input, "hf/<name>" for a Hugging Face dataset.
            input: the input column, or several, which are joined; default guessed.
            target: the target column; default guessed.
            options: further fields of `dln.DataSpec`: `encoding="cp1252"`, `labels={"0": "no", "1": "yes"}`.

        Raises:
            InputError: the file, its columns or its labels are invalid; names file and line.
        """
        return cls._read(DataSpec.make(path, "Dataset.from_file", input=columns_of(input), target=target, **options))

    @classmethod
    def from_frame(
        cls,
        frame: object,
        input: str | Sequence[str] | None = None,  # noqa: A002
        target: str | None = None,
        *,
        name: str = "data frame",
        **options: Any,
    ) -> Dataset:
        """Convert a pandas or polars data frame, or an Arrow table; see `from_file`."""
        spec = DataSpec.make((), "Dataset.from_frame", input=columns_of(input), target=target, **options)
        return cls._read(spec, table_of_frame(frame, name))

    @classmethod
    def from_dicts(
        cls,
        records: Iterable[Mapping[str, object]],
        input: str | Sequence[str] | None = None,  # noqa: A002
        target: str | None = None,
        *,
        name: str = "list",
        **options: Any,
    ) -> Dataset:
        """Convert a list of dictionaries, one per example; see `from_file`."""
        spec = DataSpec.make((), "Dataset.from_dicts", input=columns_of(input), target=target, **options)
        return cls._read(spec, table_of_dicts(records, name))

    @classmethod
    def from_hf(
        cls,
        name_or_dataset: object,
        input: str | Sequence[str] | None = None,  # noqa: A002
        target: str | None = None,
        *,
        split: str | None = "train",
        subset: str | None = None,
        **options: Any,
    ) -> Dataset:
        """Convert a Hugging Face dataset, loaded by name or in memory (extra `hf`); see `from_file`.

        Args:
            name_or_dataset: its name, or the dataset, with or without splits.
            input: the input column, or several.
            target: the target column.
            split: the split to read, if there are several; None reads all.
            subset: the configuration of a hub dataset.
            options: further fields of `dln.DataSpec`.
        """
        spec = DataSpec.make((), "Dataset.from_hf", input=columns_of(input), target=target, **options)
        return cls._read(spec, table_of_hf(name_or_dataset, split=split, subset=subset))

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        input: str | Sequence[str] | None = None,  # noqa: A002
        target: str | None = None,
        **options: Any,
    ) -> Dataset:
        """Read a CSV file, whatever its suffix; see `from_file`."""
        kind = "tsv" if str(path).lower().endswith(".tsv") else "csv"
        return cls.from_file(path, input, target, **{"format": kind, **options})

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        input: str | Sequence[str] | None = None,  # noqa: A002
        target: str | None = None,
        **options: Any,
    ) -> Dataset:
        """Read a file of one JSON object per line, whatever its suffix; see `from_file`."""
        return cls.from_file(path, input, target, **{"format": "jsonl", **options})

    from_pandas = from_frame

    @classmethod
    def _read(cls, spec: DataSpec, table: Table | None = None) -> Dataset:
        resolved = resolve(spec, None if table is None else [table])
        return examples_of(resolved)

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


def columns_of(given: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    """Input columns as `DataSpec` has them: None, one, or several."""
    return given if given is None or isinstance(given, str) else tuple(given)


def examples_of(resolved: Resolved, items: Sequence[Item] | None = None, name: str | None = None) -> Dataset:
    """The dataset of resolved rows, or of some of them."""
    chosen = resolved.items if items is None else items
    examples = tuple(Example(item.input, item.target, _place(item)) for item in chosen)
    report, labels = resolved.report, resolved.labels
    names = None if labels is None else label_names(labels)
    return Dataset(examples, names, report.notes, name or report.source, report)


def _place(item: Item) -> str:
    """The place of a row as an identifier: `mail.csv:17`."""
    return f"{item.source.rpartition(', ')[0]}:{item.row}"
