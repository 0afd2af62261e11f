"""Output layers that the methods share: the paper's layout, the same-line layout, and a fitted one."""

from __future__ import annotations

from collections.abc import Sequence

from dln.bench.paper.method import Setup
from dln.data import Dataset, Example, Task, exact_match
from dln.errors import InputError
from dln.infer.calibrate import PenalisedLikelihood
from dln.nn import ChoiceLayer, Demonstration, Prompt, Sequential
from dln.train.validate import validate

__all__ = ["PAPER", "SAME_LINE", "demonstrations", "fitted", "labels_of", "output_layer"]

PAPER, SAME_LINE = "classify_answer", "classify"
"""Templates: the label on a line of its own under "Answer:", and on the same line as "Label:"."""


def output_layer(setup: Setup, template: str = SAME_LINE, examples: Sequence[Example] = ()) -> ChoiceLayer:
    """The task's instruction, with worked examples, over the task's labels.

    Raises:
        InputError: the task has no labels.
    """
    task = setup.task
    return ChoiceLayer(setup.lm, template, Prompt(task.instruction, demonstrations(examples)), labels_of(task))


def labels_of(task: Task) -> tuple[str, ...]:
    """The labels of a task that the table can have.

    Raises:
        InputError: the task has no labels.
    """
    if task.labels is None:
        raise InputError(
            "the table compares tasks with labels",
            where=f"task {task.name}",
            got="free-form targets",
            fix="leave the task out, or train on it with `dln train`",
        )
    return task.labels


def demonstrations(examples: Sequence[Example]) -> tuple[Demonstration, ...]:
    """Worked examples of a first layer, whose input is the network's."""
    return tuple(Demonstration(e.input, e.input, e.target) for e in examples)


def fitted(layer: ChoiceLayer, dataset: Dataset) -> tuple[Sequential, float]:
    """A network of this layer with bias and temperature fitted on `dataset`, and its cross-fitted mean log p(y|x).

    Raises:
        InputError: not one example could be scored.
    """
    found = validate(Sequential(layer), dataset, exact_match, PenalisedLikelihood())
    if found.log_likelihood is None or found.evaluation.unscored == len(dataset):
        raise InputError("not one example could be scored", where=dataset.name, got="no finite label scores")
    return found.network, found.log_likelihood
