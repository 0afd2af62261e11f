"""Length-bucketed batches: rows of like length share a forward, so that little is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["bucket"]


def bucket(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Split rows into batches of at most `max_tokens` padded tokens and `max_rows` rows, longest first.

    The longest batch comes first, so that a shortage of memory shows at once and not after minutes. A row
    longer than `max_tokens` is a batch of its own. The result depends on the arguments alone.

    Args:
        lengths: length of each row, in tokens.
        max_tokens: bound on rows × longest row of a batch, in tokens.
        max_rows: bound on the rows of a batch.

    Returns:
        Row indices per batch; every index occurs once.
    """
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and len(batches[-1]) < max_rows and (len(batches[-1]) + 1) * width <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = max(1, lengths[index])
    return batches
