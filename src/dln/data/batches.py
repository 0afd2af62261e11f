"""Minibatches as a pure function of a key: a resumed run draws the same batches."""

from __future__ import annotations

from dln.arguments import Count, checked
from dln.data.dataset import Dataset
from dln.errors import InputError
from dln.keys import Key

__all__ = ["batch_indices"]


@checked
def batch_indices(dataset: Dataset, batch_size: Count, key: Key, balanced: bool = True) -> tuple[int, ...]:
    """Positions of one batch, without replacement within it, in random order.

    Balanced, the classes that occur take turns, in a random order of classes, until the batch is full;
    a class that runs out is passed over. So class counts differ by at most 1 where there are enough
    examples, and each class is equally likely to have the odd one. Free-form datasets, and
    `balanced=False`, give a uniform draw.

    Args:
        dataset: where to draw from.
        batch_size: how many examples.
        key: for step t, `key.child("step", t, "batch")`.
        balanced: equal classes rather than the natural distribution.

    Raises:
        InputError: the batch is empty or larger than the dataset.
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
