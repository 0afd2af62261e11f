"""Disjoint, reproducible splits.

The unit is the distinct input: an example and its repeats stay together, so no input is in two splits.

`assign` divides the rows of a file by content: the part of a row depends on its input (or its group) and the seed
alone, so that sorting, adding and removing rows moves no other row. `split` draws parts of exact sizes from a dataset.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from dln.arguments import Count, Seed, checked
from dln.data.dataset import Dataset
from dln.data.resolve import text_key
from dln.errors import InputError
from dln.random import Key

__all__ = ["PARTS", "assign", "by_time", "content_order", "split", "subsample", "thinned"]

PARTS = ("train", "dev", "test")


def _uniform(text: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that is a function of a text and a seed."""
    digest = hashlib.sha256(f"{seed}\x00{purpose}\x00{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def assign(
    keys: Sequence[str],
    targets: Sequence[str] | None,
    seed: int,
    *,
    dev_fraction: float = 0.25,
    test_fraction: float = 0.25,
    groups: Sequence[str] | None = None,
) -> tuple[list[str], list[str]]:
    """The part of every row: test below `test_fraction` of a hash in [0, 1), dev below the sum of both, else train.

    Two exceptions, which notes announce: the only row of a label is in train, and a part that would be empty takes
    one row from train.

    Args:
        keys: normalized input of every row (see `text_key`).
        targets: label of every row; None if the targets are no labels.
        seed: the random seed.
        dev_fraction: expected share of the dev set; 0 for none.
        test_fraction: expected share of the test set; 0 for none.
        groups: value of every row; rows of equal value are in one part. "" is no group.

    Returns:
        One of `PARTS` per row, and notes.
    """
    units = keys if groups is None else [f"group {g}" if g else k for g, k in zip(groups, keys, strict=True)]
    place = {unit: _uniform(unit, seed, "part") for unit in dict.fromkeys(units)}
    bounds = (test_fraction, test_fraction + dev_fraction)
    part = {u: "test" if x < bounds[0] else "dev" if x < bounds[1] else "train" for u, x in place.items()}
    notes: list[str] = []
    if targets is not None and groups is None:
        rows = Counter(dict(zip(keys, targets, strict=True)).values())
        single = [(t, u) for t, u in zip(targets, units, strict=True) if rows[t] == 1]
        part |= {unit: "train" for _, unit in single}
        if single:
            names = list(dict.fromkeys(repr(target) for target, _ in single))
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            notes.append(f"labels with a single row, which is in train: {shown}")
    for name, fraction in (("dev", dev_fraction), ("test", test_fraction)):
        train = [unit for unit in place if part[unit] == "train"]
        if fraction and name not in part.values() and len(train) > 1:
            part[min(train, key=lambda unit: (place[unit], unit))] = name
            notes.append(f"too few rows to divide by content: one is moved from train to {name}")
    return [part[unit] for unit in units], notes


def by_time(times: Sequence[str], where: str, *, dev_fraction: float = 0.25, test_fraction: float = 0.25) -> list[str]:
    """The part of every row by time: the latest rows are the test set, those before the dev set.

    Rows of equal time are in one part.

    Args:
        times: numbers, or dates in one form: ISO 8601, or d.m.y, or y/m/d.
        where: the column, for messages.
        dev_fraction: share of the dev set.
        test_fraction: share of the test set.

    Raises:
        InputError: a value is neither a number nor a date, or all are equal.
    """
    values = [_moment(text, where) for text in times]
    ordered = sorted(values)
    n = len(ordered)
    first_test = ordered[min(n - 1, math.ceil(n * (1 - test_fraction)))] if test_fraction else math.inf
    first_dev = ordered[min(n - 1, math.ceil(n * (1 - test_fraction - dev_fraction)))] if dev_fraction else first_test
    if ordered[0] == ordered[-1] or first_dev == ordered[0]:
        raise InputError(
            "the rows cannot be divided by time",
            where=where,
            got=f"{len(set(values))} distinct times in {n} rows",
            expected="enough distinct times for three parts",
            fix="leave out split_by",
        )
    return ["test" if value >= first_test else "dev" if value >= first_dev else "train" for value in values]


def _moment(text: str, where: str) -> float:
    try:
        value = float(text)
        if math.isfinite(value):
            return value
    except ValueError:
        pass
    dotted = re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(.*)", text)
    iso = f"{dotted[3]}-{int(dotted[2]):02d}-{int(dotted[1]):02d}{dotted[4]}" if dotted else text
    slashed = re.fullmatch(r"(\d{4})/(\d{1,2})/(\d{1,2})(.*)", iso)
    iso = f"{slashed[1]}-{int(slashed[2]):02d}-{int(slashed[3]):02d}{slashed[4]}" if slashed else iso
    try:
        moment = datetime.fromisoformat(iso.strip())
    except ValueError as error:
        raise InputError(
            "a value is neither a number nor a date",
            where=f"column {where!r}",
            got=repr(text[:40]),
            expected="numbers, or dates such as 2026-11-28 or 2026-11-28T09:30:00",
            fix="write dates as year-month-day",
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def content_order(keys: Sequence[str], seed: int) -> list[int]:
    """Positions in an order that is random but a function of the normalized inputs and the seed."""
    places = [_uniform(key, seed, "order") for key in keys]
    return sorted(range(len(keys)), key=lambda i: (places[i], keys[i]))


def thinned(targets: Sequence[str], size: int, least: int = 8) -> list[int]:
    """The first positions of a sample of about `size` rows in the proportions of the labels.

    Every label keeps `least` rows, or all that it has.
    """
    counts = Counter(targets)
    many = len(counts) > size / 4
    quota = {t: size if many else max(min(n, least), round(size * n / len(targets))) for t, n in counts.items()}
    kept: list[int] = []
    for i, target in enumerate(targets):
        if quota[target] > 0 and (not many or len(kept) < size):
            quota[target] -= 1
            kept.append(i)
    return kept


@checked
def split(
    dataset: Dataset, sizes: Sequence[int] | Sequence[float], seed: Seed, *, stratify: bool = True
) -> tuple[Dataset, ...]:
    """Split a dataset into disjoint parts, one per size.

    With `stratify`, a class of c of N inputs has c·n/N inputs in a split of n, rounded up or down, with exact totals;
    for very small classes the first splits come first. The order within a split is random. The same (dataset, sizes,
    seed) gives the same splits.

    Args:
        dataset: the dataset; the rest beyond the sizes is not used.
        sizes: numbers of distinct inputs (ints), or fractions of them (floats, sum ≤ 1).
        seed: the random seed.
        stratify: keep the label distribution; free-form datasets are split at random.

    Raises:
        InputError: a size is not positive, or the sizes exceed the dataset.
    """
    groups: dict[str, list[int]] = {}
    for i, example in enumerate(dataset):
        groups.setdefault(text_key(example.input), []).append(i)
    units = list(groups.values())
    counts = _counts(dataset, sizes, len(units))
    key = Key(seed).child("split")
    classes: dict[str, list[list[int]]] = {}
    for j in key.child("units").generator().permutation(len(units)):
        unit = units[int(j)]
        label = dataset[unit[0]].target if stratify and dataset.labels is not None else ""
        classes.setdefault(label, []).append(unit)
    # small classes choose first
    order = sorted(classes, key=lambda label: (len(classes[label]), label))
    shares = _shares([len(classes[label]) for label in order], counts, len(units))
    members: list[list[list[int]]] = [[] for _ in counts]
    for label, row in zip(order, shares, strict=True):
        position = 0
        for s, n in enumerate(row):
            members[s] += classes[label][position : position + n]
            position += n
    result: list[Dataset] = []
    for s, chosen in enumerate(members):
        shuffled = key.child("order", s).generator().permutation(len(chosen))
        result.append(dataset.select(i for j in shuffled for i in chosen[int(j)]))
    return tuple(result)


@checked
def subsample(dataset: Dataset, size: Count, seed: Seed) -> Dataset:
    """Draw at most `size` distinct inputs with their repeats, stratified by class.

    Inputs are distinct as in `split`. A dataset that is small enough is returned unchanged.

    Args:
        dataset: the dataset to draw from.
        size: maximum number of distinct inputs.
        seed: the random seed.
    """
    if size >= max(1, len({text_key(x) for x in dataset.inputs})):
        return dataset
    return split(dataset, (size,), seed)[0]


def _counts(dataset: Dataset, sizes: Sequence[int] | Sequence[float], total: int) -> list[int]:
    if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise InputError(
            "split sizes must be positive numbers",
            where="split sizes",
            got=list(sizes),
            expected="numbers of examples, or fractions that sum to at most 1",
            fix="sizes=(0.5, 0.25, 0.25)",
        )
    if all(isinstance(size, int) for size in sizes):
        counts = [int(size) for size in sizes]
    elif math.fsum(sizes) > 1 + 1e-9:
        raise InputError(
            "split fractions must sum to at most 1",
            where="split sizes",
            got=list(sizes),
            expected="a sum of at most 1",
            fix="sizes=(0.5, 0.25, 0.25)",
        )
    else:
        bounds = [round(total * min(1.0, math.fsum(sizes[: i + 1]))) for i in range(len(sizes))]
        counts = [b - a for a, b in zip([0, *bounds], bounds, strict=False)]
    if sum(counts) > total or min(counts) < 1:
        raise InputError(
            "too few distinct examples for these splits",
            where=f"split sizes of {dataset.name}",
            got=f"{total} distinct inputs",
            expected=f"splits of {', '.join(map(str, counts))} examples, each at least 1",
            fix="add examples, or use smaller splits",
        )
    return counts


def _shares(rows: list[int], counts: list[int], total: int) -> list[list[int]]:
    """Integers within 1 of rows·counts/total, with exact sums over the classes.

    The fractional shares, with the rest as a last column, are a feasible flow, so there is an integral flow with each
    cell rounded up or down; augmenting paths find it.
    """
    columns = [*counts, total - sum(counts)]
    table = [[row * n // total for n in columns] for row in rows]
    left = [n - sum(cells[s] for cells in table) for s, n in enumerate(columns)]
    extra: list[set[int]] = [set() for _ in rows]
    inexact = [[row * n % total > 0 for n in columns] for row in rows]

    def place(k: int, seen: set[int]) -> bool:
        free = [s for s in range(len(columns)) if inexact[k][s] and s not in extra[k] and s not in seen]
        for s in free:
            if left[s] > 0:
                left[s] -= 1
                extra[k].add(s)
                return True
        for s in free:
            seen.add(s)
            for other in range(len(rows)):  # move one unit of another class out of this split
                if s in extra[other] and other != k:
                    extra[other].remove(s)
                    if place(other, seen):
                        extra[k].add(s)
                        return True
                    extra[other].add(s)
        return False

    for k, row in enumerate(rows):
        for _ in range(row - sum(table[k])):
            if not place(k, set()):
                raise AssertionError("a feasible rounding exists by the integral flow theorem")
    for k, chosen in enumerate(extra):
        for s in chosen:
            table[k][s] += 1
    return [cells[: len(counts)] for cells in table]
