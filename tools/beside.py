"""Choose the texts of other classes, from the same split, that stand beside a text in a generated input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from make_questions import order

__all__ = ["beside"]


def beside(pairs: list[tuple[str, str]], count: int, rounds: int = 1) -> Iterator[tuple[str, str, list[str]]]:
    """(text, its label, `count` texts of as many other classes) for each pair, `rounds` times over.

    The classes, and of a class the text, that were picked least so far are next, and of equals hashes decide.
    """
    members = {label: [text for text, other in pairs if other == label] for _, label in pairs}
    picked: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for number in map(str, range(rounds)):
        for text, label in pairs:
            chosen: list[str] = []
            ranked = sorted(members.keys() - {label}, key=lambda name: (used[name], order("class", number, text, name)))
            for name in ranked[:count]:
                chosen.append(min(members[name], key=lambda other: (picked[other], order(number, text, other))))
                picked[chosen[-1]] += 1
                used[name] += 1
            yield text, label, chosen
