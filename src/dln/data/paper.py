"""The paper's nine tasks and gsm8k, with the conventions of the original loader.

What the loader does is reproduced: label names, instructions, which items it samples under its fixed
seed of 42, and the shuffling of answer options. Where its splits leak, the default closes the leak
and says so in the task's notes; `leaky=True` gives the original's splits, item by item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dln.data.dataset import Dataset, Example, text_key
from dln.data.labels import canonical_label
from dln.data.metrics import ExactMatch, number_presence
from dln.data.paper_files import Item, files_of, read_items
from dln.data.task import Task

__all__ = ["PAPER_TASKS", "paper_task"]

_LETTERS = tuple(f"({letter})" for letter in "ABCDEFG")
_URL = re.compile(r"https?://\S*")
Splits = tuple[list[Item], list[Item], list[Item], list[str]]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one task is read: `splits` divides its files, `names` maps the files' labels to ours."""

    instruction: str
    splits: Callable[[str, Mapping[str, Path], np.random.RandomState, bool], Splits]
    labels: tuple[str, ...] | None
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    input_name: str = "sentence"
    lists_options: bool = False


def paper_task(
    name: str, data: Path, *, leaky: bool = False, seed: int = 42, options: bool | None = None, synthetic: bool = False
) -> Task:
    """One of `PAPER_TASKS`, from a directory in the original's layout.

    Args:
        name: the task.
        data: the directory (see `dln.data.paper_files`).
        leaky: the original's splits exactly, with what leaks from test into dev and train.
        seed: of the sampling; the original's is 42.
        options: append "Options:" and the labels to each input of mpqa, trec, subj, disaster and
            airline, as the original does; None does so with `leaky`. The instruction names the labels anyway.
        synthetic: hyperbaton only: train and dev from the generated file that stands in for BIG-bench's.

    Raises:
        InputError: a file is missing or damaged.
    """
    recipe = PAPER_TASKS[name]
    files = files_of(name, data)
    if synthetic:
        files["rest"] = data / "bb_minus_bbh" / "hyperbaton_synthetic.json"
    # the legacy generator, because only it gives the original's samples
    rng = np.random.RandomState(seed)
    train, dev, test, notes = recipe.splits(name, files, rng, leaky)
    if synthetic:
        notes.append("train and dev are generated (hyperbaton_synthetic.json), not BIG-bench data; test is genuine")
    names = None if recipe.labels is None else tuple(canonical_label(spec) for spec in recipe.labels)
    suffix = ""
    if recipe.lists_options and (leaky if options is None else options) and names is not None:
        suffix = "\n".join(["", "Options:", *(f"- {label}" for label in names)])

    def dataset(part: str, items: Iterable[Item]) -> Dataset:
        examples = tuple(_example(item, recipe, suffix) for item in items)
        return Dataset(examples, names, name=f"{name}.{part}")

    return Task(
        name=name,
        instruction=recipe.instruction,
        labels=recipe.labels,
        train=dataset("train", train),
        dev=dataset("dev", dev),
        test=dataset("test", test),
        metric=number_presence if recipe.labels is None else ExactMatch(recipe.labels),
        notes=tuple(
            ["splits of the original loader, its leaks included", *notes] if leaky and name != "gsm8k" else notes
        ),
        input_name=recipe.input_name,
    )


def _example(item: Item, recipe: _Recipe, suffix: str) -> Example:
    if recipe.labels is None:
        rationale, _, answer = item.target.rpartition("#### ")
        return Example(item.input, answer.strip(), item.id, rationale.strip())
    return Example(item.input + suffix, recipe.names.get(item.target, item.target), item.id)


def _ordered_prompt(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
    """mpqa, trec, subj: 1000 / 256 / 250."""
    train, dev, test = (read_items(files[part]) for part in ("train", "dev_subsample", "test"))
    train = _permuted(train, rng)
    test = _permuted(test, rng)
    if leaky:
        return train[:1000], dev, test[:250], []
    notes = [f"dev is {len(dev)} examples drawn from train.jsonl: all of dev_subsample.jsonl is also in test.jsonl"]
    pool = _distinct(train, text_key, "train.jsonl", notes)
    train, dev = pool[:1000], pool[1000 : 1000 + len(dev)]
    seen = {text_key(item.input) for item in (*train, *dev)}
    clean = _distinct(test, text_key, "test.jsonl", notes)
    unseen = [item for item in clean if text_key(item.input) not in seen]
    if len(unseen) < len(clean):
        notes.append(f"{len(clean) - len(unseen)} items of test.jsonl that are in train or dev replaced by others")
    return train, dev, unseen[:250], notes


def _leopard(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
    """Disaster, airline: 1000 / 250 / 250."""
    items = read_items(files["all"])
    items = _permuted(items, rng)
    notes: list[str] = []
    if not leaky:  # a repeated tweet has a new shortened link each time
        items = _distinct(items, lambda text: text_key(_URL.sub(" ", text)), f"{name}_eval.json (links apart)", notes)
    return items[:1000], items[1000:1250], items[1250:1500], notes


def _big_bench(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
    """BIG-bench without BBH, halved, at most 1000 each; test is BBH."""
    rest, test = read_items(files["rest"]), read_items(files["test"])
    n_train = min(len(rest) // 2, 1000)
    n_dev = min(len(rest) - len(rest) // 2, 1000)
    rng.shuffle(rest)  # pyright: ignore[reportArgumentType] - any mutable sequence will do
    rest = rest[: n_train + n_dev]
    if name != "navigate":
        rest = [_shuffle_options(item, rng) for item in rest]
    train, dev = rest[:n_train], rest[n_train:]
    notes: list[str] = []
    if name == "hyperbaton":
        dev = dev[:300]
        if len(train) < 1000:
            notes.append(f"the file has only {len(train)} and {len(dev)} items for train and dev, not 1000 and 300")
    if name == "date_understanding":
        if leaky:
            dev = [*train, *dev]
        else:
            notes.append(f"train is not added to dev, so dev has only {len(dev)} examples")
    if name == "logical_deduction_seven_objects":
        notes.append("the source asks several questions about one paragraph: paragraphs of test recur in train and dev")
    return train, dev, test, notes


def _gsm8k(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
    """The training file in random order, halved; test is the test file."""
    items, test = read_items(files["train"]), read_items(files["test"])
    items = _permuted(items, rng)
    half = len(items) // 2
    return items[:half], items[half:], test, ["the original's shuffled order of train and dev is not reproduced"]


def _permuted(items: list[Item], rng: np.random.RandomState) -> list[Item]:
    """All items in random order; a prefix is what the original's `choice` without replacement draws."""
    return [items[int(i)] for i in rng.permutation(len(items))]


def _distinct(items: list[Item], key: Callable[[str], str], source: str, notes: list[str]) -> list[Item]:
    """Each text once; texts with contradicting labels not at all."""
    targets: dict[str, set[str]] = {}
    first: dict[str, Item] = {}
    for item in items:
        k = key(item.input)
        targets.setdefault(k, set()).add(item.target)
        first.setdefault(k, item)
    kept = [item for k, item in first.items() if len(targets[k]) == 1]
    if len(first) < len(items):
        contradicting = len(first) - len(kept)
        notes.append(
            f"{source}: {len(items) - len(first)} repeats and {contradicting} texts with contradicting labels left out"
        )
    return kept


def _shuffle_options(item: Item, rng: np.random.RandomState) -> Item:
    """The same question with its options in random order, and the target's new letter."""
    question, marker, listed = item.input.partition("\nOptions:\n")
    options = [line.partition(" ")[2] for line in listed.strip().split("\n")]
    order = [int(i) for i in rng.permutation(len(options))]
    lines = [f"{letter} {options[i]}" for letter, i in zip(_LETTERS, order, strict=False)]
    target = _LETTERS[order.index(_LETTERS.index(item.target))]
    return Item(question + marker + "\n".join(lines), target, item.id)


_SEVEN_OBJECTS = (
    "The following paragraphs each describe a set of seven objects arranged in a fixed order. "
    "The statements are logically consistent within each paragraph."
)

PAPER_TASKS: Mapping[str, _Recipe] = {
    "mpqa": _Recipe(
        "Read the following review, then choose whether it is negative or positive.",
        _ordered_prompt,
        ("negative", "positive"),
        {"0": "negative", "1": "positive"},
        "review",
        lists_options=True,
    ),
    "trec": _Recipe(
        "Read the following question, then choose whether it is about a description, entity, expression, human, "
        "location or number.",
        _ordered_prompt,
        ("description", "entity", "expression", "human", "location", "number"),
        dict(zip("012345", ("description", "entity", "expression", "human", "location", "number"), strict=True)),
        "question",
        lists_options=True,
    ),
    "subj": _Recipe(
        "Read the following sentence, then choose whether it is subjective or objective.",
        _ordered_prompt,
        ("subjective", "objective"),
        {"0": "subjective", "1": "objective"},
        lists_options=True,
    ),
    "disaster": _Recipe(
        "Read the following sentence, then choose whether it is relevant to a disaster.",
        _leopard,
        ("no", "yes"),
        {"Not Relevant": "no", "Relevant": "yes"},
        lists_options=True,
    ),
    "airline": _Recipe(
        "Read the following sentence, then choose whether it is positive, negative, or neutral.",
        _leopard,
        ("positive", "negative", "neutral"),
        lists_options=True,
    ),
    "hyperbaton": _Recipe(
        "Which sentence has the correct adjective order:", _big_bench, _LETTERS[:2], input_name="question"
    ),
    "navigate": _Recipe(
        "If you follow these instructions, do you return to the starting point?",
        _big_bench,
        ("Yes|yes", "No|no"),
        input_name="question",
    ),
    "date_understanding": _Recipe("Infer the date from context.", _big_bench, _LETTERS[:6], input_name="question"),
    "logical_deduction_seven_objects": _Recipe(_SEVEN_OBJECTS, _big_bench, _LETTERS, input_name="question"),
    "gsm8k": _Recipe("Solve the problem and give the final number.", _gsm8k, None, input_name="question"),
}
