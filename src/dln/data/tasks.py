"""Task: an instruction, labels, three disjoint datasets and a metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dln.arguments import Seed, checked
from dln.data.dataset import Dataset
from dln.data.labels import label_names
from dln.data.metrics import ExactMatch, Metric, load_metric
from dln.data.splits import split
from dln.errors import InputError

__all__ = ["Task", "default_instruction"]


@checked
@dataclass(frozen=True, slots=True)
class Task:
    """A task, with the data to train, select and test on.

    Attributes:
        name: short name for files and reports.
        instruction: the initial prompt of the output layer.
        labels: label specifications, canonical name first ("yes|Yes"); None for free-form targets. The targets of the
            datasets are the canonical names, `label_names`.
        train: examples to train on.
        dev: examples to select prompts on.
        test: examples for the final score only.
        metric: score of one prediction, 0 to 1; a name or a callable (see `dln.data.metrics`) becomes a `NamedMetric`.
        notes: notes on the data for readers of the results.
        input_name: name of an input, in one word ("sentence", "question").
        stages: instructions of the steps of the task in order, if known: each step reads only the output of the
            previous one, the last one gives the label. They are the initial prompts of a network of this depth.
        hidden_instruction: the initial prompt of hidden layers that generate a thought; None for the default.
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
                    fix="dln.Task.from_dataset(dataset) splits a dataset into three",
                )
            if dataset.labels != names:
                raise InputError(
                    "a split has other labels than the task",
                    where=f"{self.name}.{part}",
                    got=dataset.labels,
                    expected=names,
                    fix="dataset.with_labels(labels)",
                )
        if names is not None:
            _check_classes(names, self.name)

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
        """Make a task of one dataset, split at random with the same class distribution in each part.

        Args:
            dataset: all examples.
            instruction: the initial prompt; default a sentence that names the labels.
            labels: label specifications with alternative spellings, if the dataset lacks them.
            seed: seed of the split.
            dev_fraction: fraction of the examples to select prompts on.
            test_fraction: fraction of the examples for the final score; the rest is the training set.
            metric: default exact match among the labels.
            name: default the dataset's.
            input_name: name of an input, in one word.

        Raises:
            InputError: one class only, too few examples, or fractions that leave nothing to train on.
        """
        if min(dev_fraction, test_fraction) <= 0 or dev_fraction + test_fraction >= 1:
            raise InputError(
                "dev_fraction and test_fraction must be positive and leave examples to train on",
                where=dataset.name,
                got=f"{dev_fraction} and {test_fraction}",
                expected="two numbers > 0 with a sum below 1",
                fix="dev_fraction=0.25, test_fraction=0.25",
            )
        data = dataset if labels is None else dataset.with_labels(labels)
        specs = data.labels if labels is None else tuple(labels)
        present = [label for label, n in data.counts().items() if n > 0]
        if specs is not None:
            _check_classes(present, data.name)
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
        """Return the same task with another metric."""
        return replace(self, metric=load_metric(metric, self.labels))


def _check_classes(names: Sequence[str], where: str) -> None:
    if len(names) < 2:
        raise InputError(
            "a classification task needs at least two classes",
            where=where,
            got=f"only {', '.join(names) or 'no example at all'}",
            fix="check that the right column is the target; for free texts use free_form=True",
        )


def default_instruction(labels: Sequence[str] | None, input_name: str = "input") -> str:
    """Return an instruction that names the labels.

    >>> default_instruction(("no", "yes"), "sentence")
    'Read the following sentence, then choose whether it is no or yes.'
    """
    if labels is None:
        return f"Read the following {input_name}, then give the answer."
    *others, last = labels
    choice = f"{', '.join(others)} or {last}" if others else last
    return f"Read the following {input_name}, then choose whether it is {choice}."
