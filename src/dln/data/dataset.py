"""Examples and datasets: immutable values, wherever the rows came from."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, overload

from dln.arguments import checked, shown
from dln.data.labels import label_names, label_specs
from dln.errors import InputError

__all__ = ["Dataset", "Example", "text_key"]


@checked
@dataclass(frozen=True, slots=True)
class Example:
    """One input text with the text that is wanted for it.

    Attributes:
        input: x, what the network reads.
        target: y, a label's canonical name or a free text.
        id: where the example came from, for messages and reports (for example `reviews.csv:17`).
        rationale: a worked solution, where the source has one; never shown to the network as input.
    """

    input: str
    target: str
    id: str | None = None
    rationale: str | None = None


@checked
@dataclass(frozen=True, slots=True)
class Dataset(Sequence[Example]):
    """An immutable sequence of examples.

    Slicing gives a `Dataset`; `select` picks by index. Constructors: `from_csv`, `from_jsonl`,
    `from_pandas`, `from_hf`.

    Attributes:
        examples: the examples in order.
        labels: canonical label names, every target is one of them; None for free-form targets.
        notes: what the reader guessed, dropped or decided, in sentences for the user.
        name: what to call the source in messages.

    Raises:
        InputError: a target is not one of `labels`, or the labels are not distinct.
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
        """A dataset of (input, target) pairs, kept as they are."""
        examples: list[Example] = []
        # an iterator is not looked at before: its pairs are, one by one
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
        labels: Sequence[str] | Mapping[str, str] | None = None,
        free_form: bool | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
    ) -> Dataset:
        """Read a CSV file with a header line; see `dln.data.csv_source.read_csv`."""
        from dln.data.csv_source import read_csv
        from dln.data.table import dataset_of_table

        table = read_csv(path, delimiter=delimiter, encoding=encoding, wanted=(input, target))
        return dataset_of_table(table, input, target, labels=labels, free_form=free_form)

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        input: str | None = None,  # noqa: A002
        target: str | None = None,
        *,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        free_form: bool | None = None,
        encoding: str = "utf-8",
    ) -> Dataset:
        """Read a file of one JSON object per line; see `dln.data.jsonl_source.read_jsonl`."""
        from dln.data.jsonl_source import read_jsonl
        from dln.data.table import dataset_of_table

        return dataset_of_table(read_jsonl(path, encoding=encoding), input, target, labels=labels, free_form=free_form)

    @classmethod
    def from_pandas(
        cls,
        frame: object,
        input: str | None = None,  # noqa: A002
        target: str | None = None,
        *,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        free_form: bool | None = None,
        name: str = "data frame",
    ) -> Dataset:
        """Take two columns of a pandas data frame."""
        from dln.data.frame_source import table_of_pandas
        from dln.data.table import dataset_of_table

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
        labels: Sequence[str] | Mapping[str, str] | None = None,
        free_form: bool | None = None,
    ) -> Dataset:
        """Take two columns of a Hugging Face dataset, loaded by name or already in memory (extra `hf`)."""
        from dln.data.frame_source import table_of_hf
        from dln.data.table import dataset_of_table

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
        """The position in `labels` of every example's target.

        Raises:
            InputError: the dataset is free-form.
        """
        if self.labels is None:
            raise InputError("a free-form dataset has no labels", where=self.name)
        position = {label: i for i, label in enumerate(self.labels)}
        return tuple(position[example.target] for example in self.examples)

    def counts(self) -> dict[str, int]:
        """How many examples have each target; labels in their order, free-form targets as they come."""
        result = dict.fromkeys(self.labels or (), 0)
        for example in self.examples:
            result[example.target] = result.get(example.target, 0) + 1
        return result

    def select(self, indices: Iterable[int]) -> Dataset:
        """The examples at these positions, in this order."""
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
        """The same description with other examples."""
        return replace(self, examples=tuple(examples))

    def with_labels(self, labels: Sequence[str] | Mapping[str, str] | None) -> Dataset:
        """The same examples with targets renamed to canonical labels; None makes them free-form.

        Raises:
            InputError: a target is neither a spelling nor a mapped value.
        """
        if labels is None:
            return replace(self, labels=None)
        specs, names = label_specs(labels)
        examples = tuple(replace(e, target=names.get(e.target, e.target)) for e in self.examples)
        return replace(self, examples=examples, labels=label_names(specs))

    def with_notes(self, *notes: str) -> Dataset:
        """The same dataset with these notes added."""
        return replace(self, notes=(*self.notes, *notes))

    def with_name(self, name: str) -> Dataset:
        """The same dataset under another name."""
        return replace(self, name=name)

    def content_hash(self) -> str:
        """SHA-256 (hex) of the labels, inputs and targets in order; ids, notes and the name do not count."""
        content = [self.labels, [(example.input, example.target) for example in self.examples]]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def text_key(text: str) -> str:
    r"""What makes two inputs the same text: compatibility form, case and white space do not count.

    >>> text_key("  Two  Words\n") == text_key("two words")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
