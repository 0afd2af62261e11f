"""What stands beside a text in a generated input: texts of other classes from the same split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from make_questions import order

__all__ = ["beside"]


def beside(pairs: list[tuple[str, str]], count: int, rounds: int = 1) -> Iterator[tuple[str, str, list[str]]]:
    """(text, its label, `count` texts of as many other classes) for each pair, `rounds` times over.

    Classes are picked by hashes; of a class the text that was picked least so far is next.
    """
    members = {label: [text for text, other in pairs if other == label] for _, label in pairs}
    picked: Counter[str] = Counter()
    for number in map(str, range(rounds)):
        for text, label in pairs:
            chosen: list[str] = []
            for name in sorted(members.keys() - {label}, key=lambda name: order("class", number, text, name))[:count]:
                chosen.append(min(members[name], key=lambda other: (picked[other], order(number, text, other))))
                picked[chosen[-1]] += 1
            yield text, label, chosen
