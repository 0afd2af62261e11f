"""The paper's nine tasks and gsm8k, with the conventions of the original loader.

Label names, instructions, the items sampled under seed 42, and the shuffling of answer options are the original's.
Where its splits leak, the default fixes the leak and adds a note; `leaky=True` gives the original's splits item by
item. The files have the layout of microsoft/deep-language-networks:

    ordered_prompt/{mpqa,trec,subj}/{train,dev_subsample,test}.jsonl
    leopard/{disaster,airline}/<task>_eval.json
    bbh/<task>.json and bb_minus_bbh/<task>.json
    gsm8k/{train,test}.jsonl

A split function takes the task's name, its files, the generator and whether to keep the leaks, and returns train, dev,
test and notes. Only numpy's legacy generator gives the original's samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from dln.data.dataset import Dataset, Example, text_key
from dln.data.labels import canonical_label
from dln.data.metrics import ExactMatch, number_presence
from dln.data.readers import read_table
from dln.data.spec import DataSpec
from dln.data.tasks import Task
from dln.errors import InputError
from dln.io import read_text

__all__ = [
    "LETTERS",
    "N_TEST",
    "PAPER_TASKS",
    "Item",
    "Splits",
    "big_bench",
    "files_of",
    "gsm8k",
    "leopard",
    "ordered_prompt",
    "paper_task",
    "read_items",
    "tasks_found",
    "with_published_rule",
]

_LAYOUT: Mapping[str, Mapping[str, str]] = {
    **{
        task: {part: f"ordered_prompt/{task}/{part}.jsonl" for part in ("train", "dev_subsample", "test")}
        for task in ("mpqa", "trec", "subj")
    },
    **{task: {"all": f"leopard/{task}/{task}_eval.json"} for task in ("disaster", "airline")},
    **{
        task: {"rest": f"bb_minus_bbh/{task}.json", "test": f"bbh/{task}.json"}
        for task in ("hyperbaton", "navigate", "date_understanding", "logical_deduction_seven_objects")
    },
    "gsm8k": {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"},
}

_FIELDS = {"ordered_prompt": ("sentence", "label"), "leopard": ("sentence1", "label"), "gsm8k": ("question", "answer")}


@dataclass(frozen=True, slots=True)
class Item:
    """A raw record: input, target as in the file, and file:position."""

    input: str
    target: str
    id: str


def files_of(task: str, data: Path) -> dict[str, Path]:
    """Return the files of a task by role.

    Raises:
        InputError: one is missing; names it, what is expected, and the tasks found in the directory.
    """
    files = {role: data / name for role, name in _LAYOUT[task].items()}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        found = tasks_found(data)
        raise InputError(
            f"data of the task {task} is missing",
            where=missing[0],
            got=f"no such file; tasks found in {data}: {', '.join(found) or 'none'}"
            if data.is_dir()
            else f"there is no directory {data}",
            expected=f"{', '.join(_LAYOUT[task].values())} under {data}",
            fix="give the directory that scripts/setup_data.sh of microsoft/deep-language-networks fills: data=…",
        )
    return files


def tasks_found(data: Path) -> tuple[str, ...]:
    """Return the tasks whose files are all in a directory."""
    return tuple(task for task, files in _LAYOUT.items() if all((data / name).is_file() for name in files.values()))


def read_items(path: Path) -> list[Item]:
    """Read the records of a file in order.

    Raises:
        InputError: not JSON, or a record without its two texts.
    """
    name = f"{path.parent.name}/{path.name}"
    if path.suffix == ".jsonl":
        rows = read_table(DataSpec(format="jsonl"), str(path)).rows
        records: Sequence[tuple[int, object]] = [(row.line, row.cells) for row in rows]
        unit = "line"
    else:
        records = list(enumerate(_json_list(path), start=1))
        unit = "item"
    family = next((family for family in _FIELDS if family in path.parts[-3:]), "")
    fields = _FIELDS.get(family, ("input", "target"))
    items: list[Item] = []
    for number, record in records:
        cells = cast(dict[str, object], record) if isinstance(record, dict) else {}
        texts = [value for field in fields if isinstance(value := cells.get(field), str) and value.strip()]
        if len(texts) != 2:
            raise InputError(
                f"a record needs the texts {fields[0]!r} and {fields[1]!r}",
                where=f"{path}, {unit} {number}",
                got=str(cells)[:80] if cells else "no object",
            )
        items.append(Item(texts[0], texts[1], f"{name}:{number}"))
    return items


def _json_list(path: Path) -> list[object]:
    try:
        value = cast(object, json.loads(read_text(path)))
    except json.JSONDecodeError as error:
        raise InputError("the file is not valid JSON", where=f"{path}, line {error.lineno}", got=error.msg) from error
    if isinstance(value, dict):
        value = cast(dict[str, object], value).get("examples")
    if not isinstance(value, list) or not value:
        raise InputError("the file does not contain a list of examples", where=path)
    return cast(list[object], value)


N_TEST = 250
"""Maximum number of test examples."""
LETTERS = tuple(f"({letter})" for letter in "ABCDEFG")
"""Names of options in BIG-bench."""
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
    if len(apart) >= 2 * N_TEST:  # keep the source's dev: the class proportions of mpqa differ in train
        size, dev = len(dev), _distinct(dev, text_key, "dev_subsample.jsonl, filled up from test.jsonl", notes)
        missing = size - len(dev)
        dev, apart = [*dev, *apart[:missing]], apart[missing:]
        chosen = {text_key(item.input) for item in dev}
        notes.append(
            f"{len(clean) - len(apart)} items of test.jsonl that are also in dev_subsample.jsonl excluded from test"
        )
        pool = [item for item in pool if text_key(item.input) not in chosen]
        train, clean = pool[:1000], apart
    else:
        notes.append(f"dev is {len(dev)} examples drawn from train.jsonl: half of test.jsonl is in dev_subsample.jsonl")
        train, dev = pool[:1000], pool[1000 : 1000 + len(dev)]
    seen = {text_key(item.input) for item in (*train, *dev)}
    unseen = [item for item in clean if text_key(item.input) not in seen]
    if len(unseen) < len(clean):
        notes.append(f"{len(clean) - len(unseen)} items of test.jsonl that are also in train or dev replaced by others")
    return train, dev, unseen[:N_TEST], notes


def leopard(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
    """Disaster, airline: 1000 / 250 / 250."""
    items = read_items(files["all"])
    items = _permuted(items, rng)
    notes: list[str] = []
    if not leaky:  # repeated tweets differ in their shortened links
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
        notes.append("the source has several questions per paragraph: paragraphs of test recur in train and dev")
    return train, dev, test, notes


def gsm8k(name: str, files: Mapping[str, Path], rng: np.random.RandomState, leaky: bool) -> Splits:
    """Split the training file randomly in halves; test is the test file."""
    items, test = read_items(files["train"]), read_items(files["test"])
    items = _permuted(items, rng)
    half = len(items) // 2
    return items[:half], items[half:], test, ["the original's shuffled order of train and dev is not reproduced"]


def _permuted(items: list[Item], rng: np.random.RandomState) -> list[Item]:
    """Permute the items; a prefix equals the original's `choice` without replacement."""
    return [items[int(i)] for i in rng.permutation(len(items))]


def _distinct(items: list[Item], key: Callable[[str], str], source: str, notes: list[str]) -> list[Item]:
    """Drop repeated texts, and texts with contradicting labels altogether."""
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
            f"{source}: {len(items) - len(first)} repeats and {contradicting} texts with contradicting labels excluded"
        )
    return kept


def _shuffle_options(item: Item, rng: np.random.RandomState) -> Item:
    """Shuffle the options of a question and adapt the target's letter."""
    question, marker, listed = item.input.partition("\nOptions:\n")
    options = [line.partition(" ")[2] for line in listed.strip().split("\n")]
    order = [int(i) for i in rng.permutation(len(options))]
    lines = [f"{letter} {options[i]}" for letter, i in zip(LETTERS, order, strict=False)]
    target = LETTERS[order.index(LETTERS.index(item.target))]
    return Item(question + marker + "\n".join(lines), target, item.id)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to read a task: `splits` splits its files, `names` maps the files' labels to canonical names.

    `question` is what the original loader writes before each input; `hidden` is the paper's initial prompt of a hidden
    layer (Table 4), None if it has none.
    """

    instruction: str
    splits: Callable[[str, Mapping[str, Path], np.random.RandomState, bool], Splits]
    labels: tuple[str, ...] | None
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    input_name: str = "sentence"
    lists_options: bool = False
    question: str = ""
    hidden: str | None = None


def paper_task(
    name: str, data: Path, *, leaky: bool = False, seed: int = 42, options: bool | None = None, synthetic: bool = False
) -> Task:
    """Load one of `PAPER_TASKS` from a directory in the original's layout.

    Args:
        name: name of the task.
        data: the directory.
        leaky: the original's splits, with what leaks from test into dev and train, and its inputs: those of disaster
            and airline start with a question.
        seed: seed of the sampling; the original's is 42.
        options: append "Options:" and the labels to each input of mpqa, trec, subj, disaster and airline, as the
            original does; default only with `leaky`, since the instruction names the labels.
        synthetic: for hyperbaton, train and dev from the generated stand-in for BIG-bench's file.

    Raises:
        InputError: a file is missing or damaged.
    """
    recipe = PAPER_TASKS[name]
    files = files_of(name, data)
    if synthetic:
        files["rest"] = data / "bb_minus_bbh" / "hyperbaton_synthetic.json"
    rng = np.random.RandomState(seed)
    train, dev, test, notes = recipe.splits(name, files, rng, leaky)
    if synthetic:
        notes.append("train and dev are generated (hyperbaton_synthetic.json), not BIG-bench data; test is original")
    names = None if recipe.labels is None else tuple(canonical_label(spec) for spec in recipe.labels)
    suffix = ""
    if recipe.lists_options and (leaky if options is None else options) and names is not None:
        suffix = "\n".join(["", "Options:", *(f"- {label}" for label in names)])

    prefix = recipe.question if leaky else ""

    def dataset(part: str, items: Iterable[Item]) -> Dataset:
        examples = tuple(_example(item, recipe, prefix, suffix) for item in items)
        return Dataset(examples, names, name=f"{name}.{part}")

    return Task(
        name=name,
        instruction=recipe.instruction,
        labels=recipe.labels,
        train=dataset("train", train),
        dev=dataset("dev", dev),
        test=dataset("test", test),
        metric=number_presence if recipe.labels is None else ExactMatch(recipe.labels),
        notes=tuple(["splits of the original loader, with its leaks", *notes] if leaky and name != "gsm8k" else notes),
        input_name=recipe.input_name,
        hidden_instruction=recipe.hidden,
    )


def with_published_rule(task: Task) -> Task:
    """The task with the metric under which its results were published: `paper` for the paper's label tasks."""
    recipe = PAPER_TASKS.get(task.name)
    return task if recipe is None or recipe.labels is None else task.with_metric("paper")


def _example(item: Item, recipe: _Recipe, prefix: str, suffix: str) -> Example:
    if recipe.labels is None:
        rationale, _, answer = item.target.rpartition("#### ")
        return Example(item.input, answer.strip(), item.id, rationale.strip())
    return Example(prefix + item.input + suffix, recipe.names.get(item.target, item.target), item.id)


_DECOMPOSE = "Decompose the problem to make it simpler:"

_SEVEN_OBJECTS = (
    "The following paragraphs each describe a set of seven objects arranged in a fixed order. "
    "The statements are logically consistent within each paragraph."
)

PAPER_TASKS: Mapping[str, _Recipe] = {
    "mpqa": _Recipe(
        "Read the following review, then choose whether it is negative or positive.",
        ordered_prompt,
        ("negative", "positive"),
        {"0": "negative", "1": "positive"},
        "review",
        lists_options=True,
    ),
    "trec": _Recipe(
        "Read the following question, then choose whether it is about a description, entity, expression, human, "
        "location or number.",
        ordered_prompt,
        ("description", "entity", "expression", "human", "location", "number"),
        dict(zip("012345", ("description", "entity", "expression", "human", "location", "number"), strict=True)),
        "question",
        lists_options=True,
    ),
    "subj": _Recipe(
        "Read the following sentence, then choose whether it is subjective or objective.",
        ordered_prompt,
        ("subjective", "objective"),
        {"0": "subjective", "1": "objective"},
        lists_options=True,
        hidden=_DECOMPOSE,
    ),
    "disaster": _Recipe(
        "Read the following sentence, then choose whether it is relevant to a disaster.",
        leopard,
        ("no", "yes"),
        {"Not Relevant": "no", "Relevant": "yes"},
        lists_options=True,
        question="Is the following tweet relevant to a disaster? ",
    ),
    "airline": _Recipe(
        "Read the following sentence, then choose whether it is positive, negative, or neutral.",
        leopard,
        ("positive", "negative", "neutral"),
        lists_options=True,
        question="Is the following tweet positive, negative, or neutral? ",
    ),
    "hyperbaton": _Recipe(
        "Which sentence has the correct adjective order:", big_bench, LETTERS[:2], input_name="question"
    ),
    "navigate": _Recipe(
        "Read the following sentence, then determine whether you return to the starting point.",
        big_bench,
        ("Yes|yes", "No|no"),
        input_name="question",
        hidden=_DECOMPOSE,
    ),
    "date_understanding": _Recipe(
        "Infer the date from context.", big_bench, LETTERS[:6], input_name="question", hidden=""
    ),
    "logical_deduction_seven_objects": _Recipe(_SEVEN_OBJECTS, big_bench, LETTERS, input_name="question", hidden=""),
    "gsm8k": _Recipe("Solve the problem and give the final number.", gsm8k, None, input_name="question"),
}
