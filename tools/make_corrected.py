"""Write the bundled task "corrected": `python tools/make_corrected.py [PATH]`.

An input is two requests, of two classes, of which the second takes back the first and holds. The requests of a
split are its own; each holds as often as every other and is taken back about as often, so that the words of an
input do not give the class away. All choices come from hashes of the texts, so that the
file is the same, byte for byte, on every machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from beside import beside
from make_questions import candidates, order, overlap, render
from request_templates import TEMPLATES

__all__ = ["PER_CLASS", "corrected", "requests"]

PER_CLASS = {"train": 24, "dev": 20, "test": 24}
ROUNDS = {"train": 2, "dev": 1, "test": 1}
MAX_OVERLAP = 0.7
BEFORE = 1
TURNS = (
    "No, wait:",
    "Scrap that.",
    "Sorry, I meant:",
    "Forget that.",
    "Actually, no:",
    "On second thoughts:",
    "Not that, this:",
    "Strike that.",
)
DESTINATION = Path(__file__).parents[1] / "src/dln/data/bundled/corrected.jsonl"


def main() -> None:
    """Write the file."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DESTINATION
    splits = corrected()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(render(splits))
    print(f"{path}: {sum(map(len, splits.values()))} inputs")


def corrected() -> dict[str, list[tuple[str, str]]]:
    """(input, class of the last request) of each split, classes mixed."""
    return {part: _inputs(pairs, ROUNDS[part]) for part, pairs in requests().items()}


def requests() -> dict[str, list[tuple[str, str]]]:
    """(request, class) of each split: no two of all requests share more than `MAX_OVERLAP` of their words."""
    taken: list[str] = []
    splits: dict[str, list[tuple[str, str]]] = {part: [] for part in PER_CLASS}
    for label in sorted(TEMPLATES):
        chosen: list[str] = []
        for request in candidates(TEMPLATES[label]):
            if len(chosen) < sum(PER_CLASS.values()) and all(overlap(request, other) <= MAX_OVERLAP for other in taken):
                chosen.append(request)
                taken.append(request)
        if len(chosen) < sum(PER_CLASS.values()):
            raise SystemExit(f"only {len(chosen)} requests of class {label}: add templates or fillers")
        chosen.sort(key=order)
        for part, n in PER_CLASS.items():
            splits[part] += [(request, label) for request in chosen[:n]]
            chosen = chosen[n:]
    return {part: sorted(pairs, key=lambda pair: order("mix", pair[0])) for part, pairs in splits.items()}


def _inputs(pairs: list[tuple[str, str]], rounds: int) -> list[tuple[str, str]]:
    """`rounds` inputs per request of a split, in the split's order, round after round."""
    inputs: list[tuple[str, str]] = []
    for last, label, before in beside(pairs, BEFORE, rounds):
        turns = sorted(TURNS, key=lambda turn: order("turn", last, *before, turn))
        said = [f"{request} {turn}" for request, turn in zip(before, turns, strict=False)]
        inputs.append((" ".join([*said, last]), label))
    return inputs


if __name__ == "__main__":
    main()
