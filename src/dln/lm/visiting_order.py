"""In which order the leaves of a prefix tree are visited: what shares a prefix stays together, the longest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["common_prefix", "longest_first"]


@dataclass(slots=True)
class _Inner:
    """A prefix that several sequences share."""

    depth: int
    weight: float = 0.0
    ends: bool = False
    children: list[_Inner | int] = field(default_factory=list["_Inner | int"])


def longest_first(shared: Sequence[int], weights: Sequence[float], last: int | None = None) -> list[int]:
    """A preorder of the prefix tree in which, at every fork, the branch of the largest weight comes first.

    Args:
        shared: for each of the lexicographically sorted distinct sequences, how much it shares with the one before.
        weights: of each sequence, usually its length.
        last: the sequence that is to be visited last: at every fork its branch comes behind all others of finite
            weight.

    Returns:
        Every index once. Sequences that share a prefix stand side by side. Equal weights keep their order.
    """
    if not weights:
        return []
    stack = [_Inner(-1)]
    leaf: int = 0
    for index in range(1, len(weights) + 1):
        cut = shared[index] if index < len(weights) else -1
        closed: _Inner | int = leaf
        if stack[-1].depth < cut:
            stack.append(_Inner(cut))
        while stack[-1].depth > cut:
            _attach(stack[-1], closed, weights, last)
            closed = stack.pop()
            if stack[-1].depth < cut:
                stack.append(_Inner(cut))
        _attach(stack[-1], closed, weights, last)
        leaf = index
    order: list[int] = []
    pending: list[_Inner | int] = [stack[0]]
    while pending:
        node = pending.pop()
        if isinstance(node, int):
            order.append(node)
        else:
            ordered = sorted(node.children, key=lambda child: (_ends(child, last), -_weight(child, weights)))
            pending.extend(ordered[::-1])  # a stack gives back the last first
    return order


def common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common prefix of two tuples or two texts."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit - 1  # a[:low] == b[:low] and the first difference is at most at `high`
    while low < high:
        middle = (low + high) // 2
        if a[low : middle + 1] == b[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low


def _attach(node: _Inner, child: _Inner | int, weights: Sequence[float], last: int | None) -> None:
    node.children.append(child)
    node.weight = max(node.weight, _weight(child, weights))
    node.ends = (node.ends or _ends(child, last)) and node.weight < math.inf


def _weight(child: _Inner | int, weights: Sequence[float]) -> float:
    return weights[child] if isinstance(child, int) else child.weight


def _ends(child: _Inner | int, last: int | None) -> bool:
    """Whether the branch leads to the last sequence; one that must come first does not count."""
    return child == last if isinstance(child, int) else child.ends
