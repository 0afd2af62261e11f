"""Output layers that the methods share: the paper's layout, the same-line layout, and a fitted one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dln.bench.paper.method import Setup
from dln.data import Dataset, Example
from dln.errors import InputError
from dln.infer.calibrate import PenalisedLikelihood
from dln.nn import ChoiceLayer, Demonstration, LayerInput, Prompt, Sequential

__all__ = ["PAPER", "SAME_LINE", "demonstrations", "fitted", "output_layer"]

PAPER, SAME_LINE = "classify_answer", "classify"
"""Templates: the label on a line of its own under "Answer:", and on the same line as "Label:"."""


def output_layer(setup: Setup, template: str = SAME_LINE, examples: Sequence[Example] = ()) -> ChoiceLayer:
    """The task's instruction, with worked examples, over the task's labels.

    Raises:
        InputError: the task has no labels.
    """
    task = setup.task
    if task.labels is None:
        raise InputError(
            "the table compares tasks with labels",
            where=f"task {task.name}",
            got="free-form targets",
            fix="leave the task out, or train on it with `dln train`",
        )
    return ChoiceLayer(setup.lm, template, Prompt(task.instruction, demonstrations(examples)), task.labels)


def demonstrations(examples: Sequence[Example]) -> tuple[Demonstration, ...]:
    """Worked examples of a first layer, whose input is the network's."""
    return tuple(Demonstration(e.input, e.input, e.target) for e in examples)


def fitted(layer: ChoiceLayer, dataset: Dataset) -> tuple[Sequential, float]:
    """A network of this layer with bias and temperature fitted on `dataset`, and its cross-fitted mean log p(y|x).

    Raises:
        InputError: not one example could be scored.
    """
    rows = [LayerInput(x, x) for x in dataset.inputs]
    masses = layer.label_log_masses(layer.contexts(rows))
    targets = np.array([layer.index(target) for target in dataset.targets], dtype=np.int64)
    usable = np.isfinite(masses).all(axis=1)
    if not usable.any():
        raise InputError("not one example could be scored", where=dataset.name, got="no finite label scores")
    count = int(usable.sum())
    result = PenalisedLikelihood()(layer, masses[usable], targets[usable], np.ones(count), np.arange(count))
    return Sequential(result.layer), float(result.log_prob.mean())
