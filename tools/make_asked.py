"""Write the bundled task "asked": `python tools/make_asked.py [PATH]`.

An input is a talk of two people who each ask something; the question that is meant is the last speaker's.
Every question of the bundled task "questions" is meant once and stands before another about once, always within
its own split, so that what is read in one split says nothing about another. The two questions of an input are of
two classes, so that the words of an input do not give the class away. All choices come from hashes of the texts,
so that the file is the same, byte for byte, on every machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from beside import beside
from make_questions import order, questions, render

__all__ = ["NAMES", "asked"]

BEFORE = 1
NAMES = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Irene",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Nick",
    "Olga",
    "Paul",
    "Rosa",
    "Simon",
    "Tina",
    "Victor",
)
DESTINATION = Path(__file__).parents[1] / "src/dln/data/bundled/asked.jsonl"


def main() -> None:
    """Write the file."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DESTINATION
    splits = asked()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(render(splits))
    print(f"{path}: {sum(map(len, splits.values()))} inputs")


def asked() -> dict[str, list[tuple[str, str]]]:
    """(input, label of the question that is meant) of each split, classes mixed."""
    return {part: _inputs(pairs) for part, pairs in questions().items()}


def _inputs(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One input per question of a split, in the split's order."""
    inputs: list[tuple[str, str]] = []
    for question, label, others in beside(pairs, BEFORE):
        people = sorted(NAMES, key=lambda name: order("name", question, name))
        said = zip(people, [*others, question], strict=False)
        inputs.append(("\n".join(f"{name}: {words}" for name, words in said), label))
    return inputs


if __name__ == "__main__":
    main()
