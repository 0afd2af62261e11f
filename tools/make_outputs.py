"""Write the bundled tasks of other outputs than one label: `python tools/make_outputs.py [FOLDER]`.

    topics   several labels: what a message to a shop is about, which may be nothing
    stars    ordered labels: how many stars go with a review
    orders   a text: an order in plain words, rewritten in a fixed form
    fields   JSON: the fields of the same orders

Sentences are drawn from lists by hashes of their places, so that the files are the same, byte for byte, everywhere.
Test sentences are their own: no sentence of `topics` and `stars` is in two splits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from make_questions import order, render
from output_sentences import CITIES, DAYS, GREETINGS, ITEMS, NUMBERS, ORDERS, REVIEWS, TOPICS

__all__ = ["SIZES", "fields", "orders", "stars", "topics"]

Split = list[tuple[str, str]]
SIZES = {"topics": (128, 64, 96), "stars": (100, 60, 100), "orders": (64, 40, 80), "fields": (64, 40, 80)}
PARTS = ("train", "dev", "test")
SHARES = (0.5, 0.75)
"""Ends of the sentences of train and of dev; the rest are those of test."""
FOLDER = Path(__file__).parents[1] / "src/dln/data/bundled"


def main() -> None:
    """Write the four files."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for make in (topics, stars, orders, fields):
        splits = make()
        (folder / f"{make.__name__}.jsonl").write_bytes(render(splits))
        print(f"{make.__name__}: {', '.join(f'{len(rows)} {part}' for part, rows in splits.items())}")


def topics() -> dict[str, Split]:
    """Messages of one to three sentences; each topic is in about three of ten."""
    return {part: _drawn(part, size, _message) for part, size in zip(PARTS, SIZES["topics"], strict=True)}


def stars() -> dict[str, Split]:
    """Reviews of two sentences that go with the same number of stars, or with numbers beside it."""
    return {part: _drawn(part, size, _review) for part, size in zip(PARTS, SIZES["stars"], strict=True)}


def orders() -> dict[str, Split]:
    """(order in plain words, the same in the fixed form)."""
    return {
        part: [(text, f"{count} x {item} -> {city}, {day}") for text, (count, item, city, day) in rows]
        for part, rows in _orders().items()
    }


def fields() -> dict[str, Split]:
    """(order in plain words, its fields as JSON)."""
    names = ("count", "item", "city", "day")
    return {
        part: [(text, json.dumps(dict(zip(names, values, strict=True)))) for text, values in rows]
        for part, rows in _orders().items()
    }


def _drawn(part: str, size: int, make: Callable[[str, int], tuple[str, str]]) -> Split:
    found: dict[str, str] = {}
    number = 0
    while len(found) < size:
        text, target = make(part, number)
        found.setdefault(text, target)
        number += 1
    return list(found.items())


def _of(sentences: list[str], part: str) -> list[str]:
    """The sentences of a part: their order is that of hashes."""
    ordered = sorted(sentences, key=order)
    first, second = (round(share * len(ordered)) for share in SHARES)
    return {"train": ordered[:first], "dev": ordered[first:second], "test": ordered[second:]}[part]


def _pick(choices: list[str], *place: str) -> str:
    return min(choices, key=lambda choice: order(*place, choice))


def _message(part: str, number: int) -> tuple[str, str]:
    place = (part, str(number))
    count = int(_pick(["0", "1", "1", "1 ", "1  ", "2", "2 ", "2  ", "3"], "count", *place))
    chosen = sorted(sorted(TOPICS, key=lambda topic: order("topic", *place, topic))[:count])
    sentences = [_pick(_of(TOPICS[topic], part), "sentence", topic, *place) for topic in chosen]
    sentences.append(_pick(_of(GREETINGS, part), "greeting", *place))
    return " ".join(sorted(sentences, key=lambda text: order("mix", *place, text))), ", ".join(chosen) or "none"


def _review(part: str, number: int) -> tuple[str, str]:
    place = (part, str(number))
    star = number % 5 + 1
    other = min(5, max(1, star + int(_pick(["0", "-1", "1", "0 "], "beside", *place))))
    sentences = [
        _pick(_of(REVIEWS[level], part), "sentence", str(at), *place) for at, level in enumerate((star, other))
    ]
    return " ".join(dict.fromkeys(sentences)), str(star)


def _orders() -> dict[str, list[tuple[str, tuple[int, str, str, str]]]]:
    found: dict[str, list[tuple[str, tuple[int, str, str, str]]]] = {}
    for part, size in zip(PARTS, SIZES["orders"], strict=True):
        rows: dict[str, tuple[int, str, str, str]] = {}
        for number in range(size):
            place = (part, str(number))
            word = _pick(list(NUMBERS), "number", *place)
            item, city = _pick(_of(ITEMS, part), "item", *place), _pick(CITIES, "city", *place)
            day = _pick(DAYS, "day", *place)
            form = _pick(_of(ORDERS, part), "form", *place)
            rows[form.format(count=word, item=item, city=city, day=day)] = (NUMBERS[word], item, city, day)
        found[part] = list(rows.items())
    return found


if __name__ == "__main__":
    main()
