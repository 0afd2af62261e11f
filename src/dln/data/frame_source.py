"""Tables already in memory: pandas data frames and Hugging Face datasets.

Both libraries are optional; frames are read through the few methods named in the protocols, so that
this module needs neither to be imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, cast, runtime_checkable

import numpy as np

from dln.data.rows import Row, Table
from dln.errors import InputError

__all__ = ["table_of_hf", "table_of_pandas"]


@runtime_checkable
class _Frame(Protocol):
    columns: Iterable[object]

    def itertuples(self, *, index: bool, name: None) -> Iterator[tuple[object, ...]]: ...


@runtime_checkable
class _HubDataset(Protocol):
    column_names: list[str]
    features: Mapping[str, object]

    def __iter__(self) -> Iterator[Mapping[str, object]]: ...


class _LabelFeature(Protocol):
    names: list[str]


def table_of_pandas(frame: object, name: str = "data frame") -> Table:
    """The rows of a data frame, numbered from 1 in their order (the index does not count).

    Raises:
        InputError: not a data frame, or a column name occurs twice.
    """
    if not isinstance(frame, _Frame):
        raise InputError(
            "this is not a pandas data frame",
            where=name,
            got=type(frame).__name__,
            expected="a pandas.DataFrame",
            fix="pandas.DataFrame({'text': …, 'label': …})",
        )
    columns = tuple(str(column) for column in frame.columns)
    repeated = sorted({c for c in columns if columns.count(c) > 1})
    if repeated:
        raise InputError("a column name occurs twice", where=name, got=", ".join(repeated))
    rows = tuple(
        Row(i, {c: _plain(value) for c, value in zip(columns, values, strict=True)})
        for i, values in enumerate(frame.itertuples(index=False, name=None), start=1)
    )
    return Table(name, columns, rows, unit="row")


def table_of_hf(name_or_dataset: object, *, split: str = "train", subset: str | None = None) -> Table:
    """The rows of one split; integer classes become their names.

    Args:
        name_or_dataset: a name on the hub or a local dataset folder, or a dataset in memory (of
            several splits or one).
        split: which split, where there are several.
        subset: the configuration of a hub dataset.

    Raises:
        InputError: the library is missing, or there is no such dataset or split.
    """
    dataset = _loaded(name_or_dataset, split, subset) if isinstance(name_or_dataset, str) else name_or_dataset
    name = name_or_dataset if isinstance(name_or_dataset, str) else "Hugging Face dataset"
    if isinstance(dataset, Mapping):
        splits = cast(Mapping[str, object], dataset)
        if split not in splits:
            raise InputError(f"there is no split {split!r}", where=name, got=", ".join(splits), fix="name one of them")
        dataset = splits[split]
        name = f"{name} [{split}]"
    if not isinstance(dataset, _HubDataset):
        raise InputError("this is not a Hugging Face dataset", where=name, got=type(dataset).__name__)
    names = {
        column: list(cast(_LabelFeature, feature).names)
        for column, feature in (dataset.features or {}).items()
        if type(feature).__name__ == "ClassLabel"
    }
    rows = tuple(
        Row(i, {c: _named(value, names.get(c)) for c, value in record.items()}) for i, record in enumerate(dataset, 1)
    )
    return Table(name, tuple(dataset.column_names), rows, unit="row")


def _loaded(name: str, split: str, subset: str | None) -> object:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise InputError("the library `datasets` is not installed", where=name, fix="pip install 'dln[hf]'") from error
    try:
        return cast(object, datasets.load_dataset(name, subset, split=split))
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            "the dataset could not be loaded",
            where=f"{name} [{split}]",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the name, the split and the network; or load it yourself and pass the dataset",
        ) from error


def _plain(value: object) -> object:
    """numpy and pandas scalars as Python values; every kind of missing value as None."""
    if isinstance(value, np.generic):
        value = cast(object, value.item())
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _named(value: object, names: list[str] | None) -> object:
    if names is None or not isinstance(value, int):
        return _plain(value)
    return names[value] if 0 <= value < len(names) else None  # -1 marks a hidden label
