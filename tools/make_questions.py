"""Write the bundled task: `python tools/make_questions.py [PATH]`.

Of all sentences that the templates give, 76 per class are chosen so that every template is used
before any is used again and any two questions have at most 60 % of their words in common. The choice and
all orders come from hashes of the texts, so that the file is the same, byte for byte, on every
machine and Python version. The file's lines are the splits one after another: 38 questions of each
class to train on, 15 for dev, 23 for test.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from itertools import zip_longest
from pathlib import Path

from question_templates import TEMPLATES

__all__ = ["PER_CLASS", "nearest_overlaps", "overlap", "questions", "render"]

PER_CLASS = {"train": 38, "dev": 15, "test": 23}
MAX_OVERLAP = 0.6
SEED = 7
DESTINATION = Path(__file__).parents[1] / "src/dln/data/bundled/questions.jsonl"


def main() -> None:
    """Write the file, and report how near the splits come to each other."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DESTINATION
    splits = questions()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(render(splits))
    print(f"{path}: {sum(map(len, splits.values()))} questions")
    for part in ("dev", "test"):
        nearest = nearest_overlaps(splits, part)
        print(f"{part}: overlap with the nearest training question: "
              f"mean {sum(nearest) / len(nearest):.2f}, largest {max(nearest):.2f}")  # fmt: skip


def questions() -> dict[str, list[tuple[str, str]]]:
    """(question, label) of each split, classes mixed."""
    taken: list[str] = []
    splits: dict[str, list[tuple[str, str]]] = {part: [] for part in PER_CLASS}
    for label in sorted(TEMPLATES):
        chosen: list[str] = []
        for question in candidates(TEMPLATES[label]):
            if len(chosen) < sum(PER_CLASS.values()) and all(overlap(question, q) <= MAX_OVERLAP for q in taken):
                chosen.append(question)
                taken.append(question)
        if len(chosen) < sum(PER_CLASS.values()):
            raise SystemExit(f"only {len(chosen)} questions of class {label}: add templates or fillers")
        chosen.sort(key=order)
        for part, n in PER_CLASS.items():
            splits[part] += [(question, label) for question in chosen[:n]]
            chosen = chosen[n:]
    return {part: sorted(pairs, key=lambda pair: order("mix", pair[0])) for part, pairs in splits.items()}


def candidates(templates: dict[str, str]) -> list[str]:
    """Every sentence of one class: all templates once, then all twice, and so on."""
    columns = [
        sorted((sentence(template, filler) for filler in fillers.split(" | ")), key=order)
        for template, fillers in sorted(templates.items(), key=lambda item: order(item[0]))
    ]
    return [question for rank in zip_longest(*columns) for question in rank if question is not None]


def sentence(template: str, filler: str) -> str:
    """The filled template with a capital first letter."""
    text = template.format(filler)
    return text[0].upper() + text[1:]


def order(*parts: str) -> str:
    """A pseudo-random sort key."""
    return hashlib.sha256("\n".join([str(SEED), *parts]).encode()).hexdigest()


def overlap(a: str, b: str) -> float:
    """|A ∩ B| / |A ∪ B| of the two questions' word sets."""
    words_a, words_b = (set(re.findall(r"\w+", text.lower())) for text in (a, b))
    return len(words_a & words_b) / len(words_a | words_b)


def nearest_overlaps(splits: dict[str, list[tuple[str, str]]], part: str) -> list[float]:
    """For each question of a split, the overlap with the training question that is most like it."""
    return [max(overlap(question, other) for other, _ in splits["train"]) for question, _ in splits[part]]


def render(splits: dict[str, list[tuple[str, str]]]) -> bytes:
    """The file: one JSON object per line, train first, then dev, then test."""
    lines = [
        json.dumps({"input": question, "target": label}, ensure_ascii=False)
        for part in PER_CLASS
        for question, label in splits[part]
    ]
    return ("\n".join(lines) + "\n").encode()


if __name__ == "__main__":
    main()
