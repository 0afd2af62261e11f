"""Tasks: an instruction, labels, three disjoint datasets and a metric; by name or from a file.

A task: an instruction, a set of labels, three disjoint datasets and a metric.

Tasks that come with the package: JSON lines written by this project's own tools, with fixed splits.

First prompts of tasks done in two steps, with the same worked examples for one layer and for two.

The bundled task "questions": what kind of answer does a question ask for?

608 questions in eight classes, written for this project by `tools/make_questions.py`; any model can
be tried on it without a download.

The bundled task "asked": two people ask something, and what kind of answer does the last one want?

608 talks with the classes of the task "questions", whose questions they are made of, written for this project by
`tools/make_asked.py`.

Why depth: the last speaker's question is meant, and one of another kind stands before it. A network of one layer
has to find the question and its kind at once, with the question words of both in sight. In two steps each is
easy: copy the last question (no knowledge of kinds is needed), then say its kind (which is the task "questions",
since nothing else is left of the input).

The bundled task "corrected": somebody asks for something, changes their mind, and what holds in the end?

552 inputs in six classes, written for this project by `tools/make_corrected.py`.

Why depth: the kind of the last request is the answer, and a request of another kind stands before it. A network of
one layer has to find out what still holds and what kind it is at once, with the words of both before it. In
two steps each is easy: copy the last request (no knowledge of kinds is needed), then say its kind (no knowledge of
corrections is needed, since nothing else is left of the input).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

from dln.arguments import Seed, checked
from dln.data.dataset import Dataset, Example
from dln.data.labels import label_names
from dln.data.metrics import ExactMatch, Metric, load_metric
from dln.data.splits import split
from dln.errors import CorruptDataError, InputError

__all__ = [
    "ASKED_SPLITS",
    "CORRECTED_LABELS",
    "CORRECTED_SPLITS",
    "QUESTION_LABELS",
    "QUESTION_SPLITS",
    "Packaged",
    "Task",
    "Worked",
    "asked_task",
    "corrected_task",
    "default_instruction",
    "find_step",
    "in_one_step",
    "questions_task",
]


@checked
@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learnt, with the data to learn, select and test on.

    Attributes:
        name: short name for files and reports.
        instruction: the initial prompt of the output layer.
        labels: label specifications, canonical name first ("yes|Yes"); None for free-form targets.
            `label_names` has the canonical names, which the datasets' targets are.
        train: examples to train on.
        dev: examples to select prompts on.
        test: examples for the final number only.
        metric: score of one prediction, 0 to 1; a name or a callable (see `dln.data.metrics`) becomes a `NamedMetric`.
        notes: what a reader of the results should know about the data.
        input_name: what an input is, in one word ("sentence", "question").
        stages: instructions of the steps that the task can be done in, in their order; each step reads only what
            the one before wrote, the last one gives the label. They are the initial prompts of a network with as
            many layers. Empty where no such steps are known.
        hidden_instruction: the initial prompt of hidden layers that think; None where the task has none of its own.
    """

    name: str
    instruction: str
    labels: tuple[str, ...] | None
    train: Dataset
    dev: Dataset
    test: Dataset
    metric: Metric | str
    notes: tuple[str, ...] = ()
    input_name: str = "input"
    stages: tuple[str, ...] = ()
    hidden_instruction: str | None = None

    def __post_init__(self) -> None:
        for name in ("notes", "stages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "metric", load_metric(self.metric, self.labels))
        names = self.label_names
        for part in ("train", "dev", "test"):
            dataset: Dataset = getattr(self, part)
            if len(dataset) == 0:
                raise InputError(
                    "a task needs examples in every split",
                    where=f"{self.name}.{part}",
                    got="no examples",
                    expected="one example or more",
                    fix="dln.Task.from_dataset(dataset) divides one dataset into three",
                )
            if dataset.labels != names:
                raise InputError(
                    "a split has other labels than the task",
                    where=f"{self.name}.{part}",
                    got=dataset.labels,
                    expected=names,
                    fix="dataset.with_labels(labels)",
                )
        if names is not None and len(names) < 2:
            raise InputError(
                "a classification task needs at least two classes",
                where=self.name,
                got=f"only {', '.join(names)}",
                fix="check that the right column is the target; for free texts say free_form=True",
            )

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The canonical names of the labels."""
        return None if self.labels is None else label_names(self.labels)

    def content_hash(self) -> str:
        """SHA-256 (hex) of the three datasets' contents."""
        hashes = [dataset.content_hash() for dataset in (self.train, self.dev, self.test)]
        return Dataset.from_pairs(zip(("train", "dev", "test"), hashes, strict=True)).content_hash()

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        *,
        instruction: str | None = None,
        labels: Sequence[str] | None = None,
        seed: Seed = 42,
        dev_fraction: float = 0.25,
        test_fraction: float = 0.25,
        metric: Metric | str | None = None,
        name: str | None = None,
        input_name: str = "input",
    ) -> Task:
        """A task of one dataset, divided at random with the same class distribution in each split.

        Args:
            dataset: all examples; what the fractions leave is the training set.
            instruction: the initial prompt; None writes one from the label set.
            labels: label specifications with alternative spellings, if the dataset's names are too few.
            seed: of the split.
            dev_fraction: share of the examples to select prompts on.
            test_fraction: share of the examples for the final number.
            metric: None takes exact match among the labels.
            name: None takes the dataset's.
            input_name: what an input is, in one word.

        Raises:
            InputError: one class only, too few examples, or fractions that leave nothing to train on.
        """
        if min(dev_fraction, test_fraction) <= 0 or dev_fraction + test_fraction >= 1:
            raise InputError(
                "dev_fraction and test_fraction must be positive and leave something to train on",
                where=dataset.name,
                got=f"{dev_fraction} and {test_fraction}",
                expected="two numbers > 0 with a sum below 1",
                fix="dev_fraction=0.25, test_fraction=0.25",
            )
        data = dataset if labels is None else dataset.with_labels(labels)
        specs = data.labels if labels is None else tuple(labels)
        present = [label for label, n in data.counts().items() if n > 0]
        if specs is not None and len(present) < 2:
            raise InputError(
                "a classification task needs at least two classes",
                where=data.name,
                got=f"only {', '.join(present) or 'no example at all'}",
                fix="check that the right column is the target; for free texts say free_form=True",
            )
        train_fraction = 1.0 - dev_fraction - test_fraction
        train, dev, test = split(data, (train_fraction, dev_fraction, test_fraction), seed)
        missing = [
            f"no example of {label!r} in {part}"
            for part, subset in (("train", train), ("dev", dev), ("test", test))
            for label, n in (subset.counts() if specs is not None else {}).items()
            if n == 0
        ]
        return cls(
            name=name or data.name,
            instruction=instruction if instruction is not None else default_instruction(data.labels, input_name),
            labels=specs,
            train=train,
            dev=dev,
            test=test,
            metric=ExactMatch(specs or ()) if metric is None else load_metric(metric, specs),
            notes=(*data.notes, f"split at random with seed {seed}: {len(train)}/{len(dev)}/{len(test)}", *missing),
            input_name=input_name,
        )

    def with_metric(self, metric: Metric | str) -> Task:
        """The same task, judged by another metric."""
        return replace(self, metric=load_metric(metric, self.labels))


def default_instruction(labels: Sequence[str] | None, input_name: str = "input") -> str:
    """An instruction that names what there is to choose from.

    >>> default_instruction(("no", "yes"), "sentence")
    'Read the following sentence, then choose whether it is no or yes.'
    """
    if labels is None:
        return f"Read the following {input_name}, then give the answer."
    *others, last = labels
    choice = f"{', '.join(others)} or {last}" if others else last
    return f"Read the following {input_name}, then choose whether it is {choice}."


@dataclass(frozen=True, slots=True)
class Packaged:
    """What is said of a packaged task beside its examples; calling it reads those from `bundled/<name>.jsonl`.

    Attributes:
        name: of the task and its file.
        instruction: the initial prompt of the output layer.
        labels: the classes.
        splits: lines of train, dev and test, which are consecutive blocks of the file with every class equally often.
        notes: what a reader of the results should know.
        stages: see `Task`.
        input_name: what an input is, in one word.
    """

    name: str
    instruction: str
    labels: tuple[str, ...]
    splits: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    input_name: str = "input"

    def __call__(self) -> Task:
        """The task, always with the same splits.

        Raises:
            CorruptDataError: the packaged file is damaged.
        """
        source = resources.files("dln.data") / "bundled" / f"{self.name}.jsonl"
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
            records = [cast(dict[str, str], json.loads(line)) for line in lines]
            examples = [Example(r["input"], r["target"], f"{self.name}:{i}") for i, r in enumerate(records, start=1)]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(source, repr(error)) from error
        if len(examples) != sum(self.splits):
            raise _damaged(source, f"{len(examples)} examples instead of {sum(self.splits)}")
        train, dev, test = (
            Dataset(tuple(examples[a:b]), self.labels, name=f"{self.name}.{part}")
            for part, (a, b) in zip(("train", "dev", "test"), pairwise([0, *accumulate(self.splits)]), strict=True)
        )
        return Task(
            name=self.name,
            instruction=self.instruction,
            labels=self.labels,
            train=train,
            dev=dev,
            test=test,
            metric=ExactMatch(self.labels),
            notes=self.notes,
            input_name=self.input_name,
            stages=self.stages,
        )


def _damaged(source: object, got: str) -> CorruptDataError:
    return CorruptDataError("the bundled task is damaged", where=source, got=got, fix="reinstall the package")


class Worked(NamedTuple):
    """An example written by hand: the input, the text in it that is meant, and the label of that."""

    input: str
    meant: str
    label: str


def in_one_step(task: str, meant: str, examples: Sequence[Worked]) -> str:
    """The prompt of a network of one layer: what to do, which texts are meant in the examples, and the examples."""
    named = " ".join(f"{number}. {example.meant}" for number, example in enumerate(examples, start=1))
    shown = "\n\n".join(f"Input: {example.input}\nLabel: {example.label}" for example in examples)
    return f"{task}\n\nIn these examples {meant} is: {named}\n\n{shown}"


def find_step(task: str, examples: Sequence[Worked]) -> str:
    """The first layer's prompt in a network of two: what to find, and the examples."""
    shown = "\n\n".join(f"Input: {example.input}\nOutput: {example.meant}" for example in examples)
    return f"{task}\n\n{shown}"


QUESTION_LABELS = ("definition", "method", "number", "object", "person", "place", "reason", "time")
"""What a question can ask for."""

QUESTION_SPLITS = (304, 120, 184)
"""Train, dev and test are consecutive blocks of the file, each with as many examples of every class."""

questions_task = Packaged(
    name="questions",
    instruction=(
        "Read the following question, then choose whether it asks for a definition, method, number, object, person, "
        "place, reason or time."
    ),
    labels=QUESTION_LABELS,
    splits=QUESTION_SPLITS,
    notes=("generated questions with a fixed split; no two questions share more than 60 % of their words",),
    input_name="question",
)
"""The task, always with the same splits."""


ASKED_SPLITS = (304, 120, 184)
"""Train, dev and test are consecutive blocks of the file, each with as many examples of every class."""

_KINDS = "it asks for a definition, method, number, object, person, place, reason or time"

_EXAMPLES = (
    Worked("Ruth: Who is your boss?\nMax: What does a stamp cost?", "What does a stamp cost?", "number"),
    Worked("Max: How old is the oak?\nIda: Where do you keep the keys?", "Where do you keep the keys?", "place"),
    Worked("Ida: When is lunch?\nPeter: What does brisk mean?", "What does brisk mean?", "definition"),
    Worked("Peter: Where is the exit?\nRuth: Why are you late?", "Why are you late?", "reason"),
    Worked("Ruth: What is a canoe?\nIda: Which tool cuts wire?", "Which tool cuts wire?", "object"),
    Worked("Max: Why is the shop shut?\nRuth: Who sang that song?", "Who sang that song?", "person"),
    Worked("Ida: What do bees make?\nMax: How do I fold a napkin?", "How do I fold a napkin?", "method"),
    Worked("Peter: How do you spell rhythm?\nIda: When did the bus leave?", "When did the bus leave?", "time"),
)

asked_task = Packaged(
    name="asked",
    instruction=in_one_step(
        f"Two people ask something. Find the question of the last one, then choose whether {_KINDS}.",
        "the last question",
        _EXAMPLES,
    ),
    labels=QUESTION_LABELS,
    splits=ASKED_SPLITS,
    notes=(
        "generated talks with a fixed split; no question of one split stands in another",
        "depth: the question that is meant must be found before its kind can be told; the one before it is of "
        "another kind",
    ),
    stages=(
        find_step("Two people ask something. Write down the question of the last one.", _EXAMPLES),
        f"Read the following question, then choose whether {_KINDS}.",
    ),
    input_name="talk",
)
"""The task, always with the same splits."""


CORRECTED_LABELS = ("booking", "cancellation", "complaint", "directions", "payment", "repair")
"""What a request can be."""

CORRECTED_SPLITS = (288, 120, 144)
"""Train, dev and test are consecutive blocks of the file, each with as many examples of every class."""

_CORRECTED_KINDS = "a booking, cancellation, complaint, directions, payment or repair"

_CORRECTED_EXAMPLES = (
    Worked("Your gardener is rude. No, wait: Mend my umbrella.", "Mend my umbrella.", "repair"),
    Worked("Mend the kettle. Scrap that. Save me two seats.", "Save me two seats.", "booking"),
    Worked("Reserve a pony. Forget that. Which way is the mill?", "Which way is the mill?", "directions"),
    Worked("Where is the lift? Actually, no: Call off the picnic.", "Call off the picnic.", "cancellation"),
    Worked("Drop my order of milk. Sorry, I meant: Charge it to my card.", "Charge it to my card.", "payment"),
    Worked("I will pay in coins. Strike that. The soup was cold again.", "The soup was cold again.", "complaint"),
)

corrected_task = Packaged(
    name="corrected",
    instruction=in_one_step(
        "The following request is taken back and replaced. Find the last request, the one that holds, then choose "
        f"whether it is {_CORRECTED_KINDS}.",
        "the last request",
        _CORRECTED_EXAMPLES,
    ),
    labels=CORRECTED_LABELS,
    splits=CORRECTED_SPLITS,
    notes=(
        "generated requests with a fixed split; no request of one split stands in another",
        "depth: what holds must be found before its kind can be told; the request before it is of another kind",
    ),
    stages=(
        find_step(
            "A request is taken back and replaced. Write down the last request, the one that holds.",
            _CORRECTED_EXAMPLES,
        ),
        f"Read the following request, then choose whether it is {_CORRECTED_KINDS}.",
    ),
    input_name="request",
)
"""The task, always with the same splits."""
