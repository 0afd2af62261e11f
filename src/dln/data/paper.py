"""The paper's nine tasks and gsm8k, with the conventions of the original loader.

What the loader does is reproduced: label names, instructions, which items it samples under its fixed
seed of 42, and the shuffling of answer options. Where its splits leak, the default closes the leak
and says so in the task's notes; `leaky=True` gives the original's splits, item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dln.data.dataset import Dataset, Example
from dln.data.labels import canonical_label
from dln.data.metrics import ExactMatch, number_presence
from dln.data.paper_files import Item, files_of
from dln.data.paper_splits import LETTERS, Splits, big_bench, gsm8k, leopard, ordered_prompt
from dln.data.task import Task

__all__ = ["PAPER_TASKS", "paper_task"]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one task is read: `splits` divides its files, `names` maps the files' labels to ours.

    `question` is what the original loader writes before each input; `hidden` is the paper's initial prompt of a
    hidden layer (Table 4), None where the table has none.
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
    """One of `PAPER_TASKS`, from a directory in the original's layout.

    Args:
        name: the task.
        data: the directory (see `dln.data.paper_files`).
        leaky: the original's splits exactly, with what leaks from test into dev and train, and its inputs: those of
            disaster and airline begin with a question.
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
        notes=tuple(
            ["splits of the original loader, its leaks included", *notes] if leaky and name != "gsm8k" else notes
        ),
        input_name=recipe.input_name,
        hidden_instruction=recipe.hidden,
    )


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
