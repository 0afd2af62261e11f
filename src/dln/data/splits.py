"""Disjoint, stratified, reproducible splits.

The unit is the distinct input text: an example and its repeats always go together, so that no text
is in two splits.
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
    """Draw one dataset per size; no input text is in two of them.

    With `stratify`, each class has in each split its share c·n/N of the split's n examples, rounded up
    or down (within 1, all totals exact). Of a class too small for that the first splits get more. The
    order within a split is random; the same (dataset, sizes, seed) gives the same splits.

    Args:
        dataset: what to divide; what the sizes do not ask for is left over.
        sizes: counts of distinct inputs (ints), or fractions of them (floats, sum ≤ 1).
        seed: the only source of randomness.
        stratify: keep the label distribution; free-form datasets are split at random.

    Raises:
        InputError: a size is not positive, or together they ask for more than there is.
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
    # small classes first: they are the first to be offered the first splits
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
    """At most `size` distinct inputs with their repeats, classes in their proportions; all where there are no more.

    Inputs that `text_key` takes for the same count once, as in `split`. A dataset that is not cut stays in its order.

    Args:
        dataset: what to draw from.
        size: distinct inputs at most.
        seed: the only source of randomness.

    Raises:
        InputError: `size` is not positive.
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
            fix="add examples, or ask for smaller splits",
        )
    return counts


def _shares(rows: list[int], counts: list[int], total: int) -> list[list[int]]:
    """Integers within 1 of rows·counts/total, with exact sums over the classes.

    The fractional shares (with what is left over as a last column) are a feasible flow; so there is
    one in whole numbers, each cell rounded up or down, which augmenting paths find.
    """
    columns = [*counts, total - sum(counts)]
    table = [[row * n // total for n in columns] for row in rows]
    room = [n - sum(cells[s] for cells in table) for s, n in enumerate(columns)]
    extra: list[set[int]] = [set() for _ in rows]
    inexact = [[row * n % total > 0 for n in columns] for row in rows]

    def place(k: int, seen: set[int]) -> bool:
        free = [s for s in range(len(columns)) if inexact[k][s] and s not in extra[k] and s not in seen]
        for s in free:
            if room[s] > 0:
                room[s] -= 1
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
