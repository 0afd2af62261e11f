"""How each of the paper's tasks is divided into train, dev and test.

Every function gets the task's name, its files, the generator and whether the original's leaks stay; it returns the
three parts and notes on what was done. Only the legacy generator gives the original's samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dln.data.dataset import text_key
from dln.data.paper_files import Item, read_items

__all__ = ["LETTERS", "N_TEST", "Splits", "big_bench", "gsm8k", "leopard", "ordered_prompt"]

N_TEST = 250
"""Test examples of a task whose source has more."""
LETTERS = tuple(f"({letter})" for letter in "ABCDEFG")
"""How BIG-bench names its options."""
_URL = re.compile(r"https?://\S*")
Splits = tuple[list[Item], list[Item], list[Item], list[str]]


def ordered_prompt(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
    """mpqa, trec, subj: 1000 / 256 / 250."""
    train, dev, test = (read_items(files[part]) for part in ("train", "dev_subsample", "test"))
    train = _permuted(train, rng)
    test = _permuted(test, rng)
    if leaky:
        return train[:1000], dev, test[:N_TEST], []
    notes: list[str] = []
    pool = _distinct(train, text_key, "train.jsonl", notes)
    clean = _distinct(test, text_key, "test.jsonl", notes)
    chosen = {text_key(item.input) for item in dev}
    apart = [item for item in clean if text_key(item.input) not in chosen]
    if len(apart) >= 2 * N_TEST:  # dev stays the source's: the classes of mpqa have other proportions in train
        size, dev = len(dev), _distinct(dev, text_key, "dev_subsample.jsonl, made up from test.jsonl", notes)
        missing = size - len(dev)
        dev, apart = [*dev, *apart[:missing]], apart[missing:]
        chosen = {text_key(item.input) for item in dev}
        notes.append(f"{len(clean) - len(apart)} items of test.jsonl that are in dev_subsample.jsonl left out of test")
        pool = [item for item in pool if text_key(item.input) not in chosen]
        train, clean = pool[:1000], apart
    else:
        notes.append(f"dev is {len(dev)} examples drawn from train.jsonl: half of test.jsonl is in dev_subsample.jsonl")
        train, dev = pool[:1000], pool[1000 : 1000 + len(dev)]
    seen = {text_key(item.input) for item in (*train, *dev)}
    unseen = [item for item in clean if text_key(item.input) not in seen]
    if len(unseen) < len(clean):
        notes.append(f"{len(clean) - len(unseen)} items of test.jsonl that are in train or dev replaced by others")
    return train, dev, unseen[:N_TEST], notes


def leopard(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
    """Disaster, airline: 1000 / 250 / 250."""
    items = read_items(files["all"])
    items = _permuted(items, rng)
    notes: list[str] = []
    if not leaky:  # a repeated tweet has a new shortened link each time
        items = _distinct(items, lambda text: text_key(_URL.sub(" ", text)), f"{name}_eval.json (links apart)", notes)
    return items[:1000], items[1000:1250], items[1250:1500], notes


def big_bench(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
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


def gsm8k(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
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
    lines = [f"{letter} {options[i]}" for letter, i in zip(LETTERS, order, strict=False)]
    target = LETTERS[order.index(LETTERS.index(item.target))]
    return Item(question + marker + "\n".join(lines), target, item.id)
