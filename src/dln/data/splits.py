"""Disjoint, stratified, reproducible splits.

The unit is the distinct input: an example and its repeats stay together, so no input is in two splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dln.arguments import Count, Seed, checked
from dln.data.dataset import Dataset, text_key
from dln.errors import InputError
from dln.random import Key

__all__ = ["split", "subsample"]


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
