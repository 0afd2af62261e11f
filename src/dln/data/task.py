"""A task: an instruction, a set of labels, three disjoint datasets and a metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dln.arguments import Seed, checked
from dln.data.dataset import Dataset
from dln.data.labels import label_names
from dln.data.metrics import ExactMatch, Metric, load_metric
from dln.data.split import split
from dln.errors import InputError

__all__ = ["Task", "default_instruction"]


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
