"""What a method of the table is: from a setup to something that answers test inputs.

The protocol that all methods share: which examples train, which choose, which are answered once at the end.

Test examples are the same for all seeds and methods. Train and dev examples are drawn anew for each seed, dev in
the natural proportions of the classes: sixty balanced examples were seen to mislead by twelve points.

The protocol of an ablation: what is chosen by it must never have seen a test example.

The dev set is cut in two by a stratified split under the seed. One half selects, as the dev set does in the paper's
comparison; the other half judges, and stands where the test set stands there. Train examples are as they are.

Output layers that the methods share: the paper's layout, the same-line layout, and a fitted one.

What a cell was made with: the method's own settings and, where it trains, all options that these come to.

A default that is changed later changes what a method is, though not its name. Cells carry their recipe, so that
those of the old method are not taken for those of the new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from dln.data import Dataset, Example, Task, exact_match, split
from dln.data.splits import subsample
from dln.errors import InputError
from dln.infer.calibrate import PenalisedLikelihood
from dln.lm.base import LanguageModel
from dln.nn import ChoiceLayer, Demonstration, Prediction, Prompt, Sequential
from dln.nn.ensemble import AnyNetwork
from dln.train import resolve_options
from dln.train.evaluate import validate

__all__ = [
    "PAPER",
    "SAME_LINE",
    "DevelopmentProtocol",
    "EvaluationProtocol",
    "Known",
    "Learnt",
    "Method",
    "Predictor",
    "Setup",
    "changed_settings",
    "demonstrations",
    "fitted",
    "labels_of",
    "output_layer",
    "recipe_of",
]


class Predictor(Protocol):
    """What answers inputs; a `Sequential` is one, and so is an `Ensemble`."""

    def predict_many(self, x: Sequence[str]) -> list[Prediction]:
        """One prediction per input."""
        ...


@dataclass(frozen=True)
class Setup:
    """All that a method may look at: no test target is looked at.

    Attributes:
        task: the instruction, labels, and the train and dev examples of this seed.
        lm: the model, on the meter that pays for training.
        seed: of everything random.
        options: changes to the training preset.
        budget: tokens that training may use; None is what the method takes by itself.
        encoder: sentences → [N, D] unit vectors, for methods that look for similar examples.
        workspace: a directory for runs.
        known: finished methods of the same task and seed, by name.
        readable: the test inputs, for their lengths only: learnt prompts must leave room for them.
    """

    task: Task
    lm: LanguageModel
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    budget: int | None = None
    encoder: Callable[[Sequence[str]], Any] | None = None
    workspace: Path | None = None
    known: Mapping[str, Known] = field(default_factory=dict[str, "Known"])
    readable: Dataset | None = None


@dataclass(frozen=True)
class Learnt:
    """What a method found.

    Attributes:
        predictor: answers inputs, through the setup's model.
        prompts: its prompts, or what stands for them, to be read by people.
        dev_score: by which it was chosen.
        notes: what a reader should know.
    """

    predictor: Predictor
    prompts: tuple[str, ...] = ()
    dev_score: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """What is kept of a finished method for those that build upon it.

    Attributes:
        network: what it found, one network or several that answer together; None where that is no network.
        tokens: what its training took.
    """

    network: AnyNetwork | None
    tokens: int


class Method(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str:
        """As in the command line and in the table."""
        ...

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        ...

    @property
    def after(self) -> tuple[str, ...]:
        """Methods whose result of the same task and seed this one builds upon."""
        ...

    def __call__(self, setup: Setup) -> Learnt:
        """Learn from train and dev examples."""
        ...


@dataclass(frozen=True)
class EvaluationProtocol:
    """What every cell has in common.

    Args:
        train_size: examples to learn from, at most.
        dev_size: examples to choose by, at most.
        test_size: examples of the final number, at most.
        options: changes to the presets' training options.
        equal_tokens: training tokens of every method that trains; None lets each take what it takes.
        encoder: of the methods that look for similar examples.
        leaky: the source's splits with their leaks.
    """

    train_size: int = 400
    dev_size: int = 128
    test_size: int = 250
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    equal_tokens: int | None = None
    encoder: str = "words"
    leaky: bool = False

    def examples(self, task: Task, seed: int) -> Task:
        """The task as the methods see it under `seed`, in its natural class proportions."""
        return replace(
            task,
            train=subsample(task.train, self.train_size, seed),
            dev=subsample(task.dev, self.dev_size, seed),
            test=subsample(task.test, self.test_size, 42),
        )

    def record(self, model: str) -> dict[str, Any]:
        """Plain data that says under which conditions cells were made."""
        return {**asdict(self), "options": dict(self.options), "model": model}


@dataclass(frozen=True)
class DevelopmentProtocol(EvaluationProtocol):
    """As `Protocol`, with half of the dev set in the place of the test set, which is not looked at.

    Args:
        dev_size: examples of the half that selects, at most.
        test_size: examples of the half that judges, at most.
    """

    def examples(self, task: Task, seed: int) -> Task:
        """The task with the halves of its dev set as dev and test set.

        Raises:
            InputError: the dev set cannot be divided.
        """
        if len(set(task.dev.inputs)) < 4:
            raise InputError(
                "an ablation divides the dev set, and this one is too small",
                where=f"task {task.name}",
                got=f"{len(task.dev)} dev examples",
                fix="leave the task out",
            )
        selects, judges = split(task.dev, (0.5, 0.5), seed)
        return super().examples(replace(task, dev=selects, test=judges), seed)

    def record(self, model: str) -> dict[str, Any]:
        """Plain data that says under which conditions cells were made."""
        return {**super().record(model), "judged_on": "half of the dev set"}


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


def recipe_of(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data: the method's settings and, of a method with a preset, the resolved training options.

    Args:
        method: a row of the table.
        options: changes to the presets that all methods share.

    Raises:
        InputError: an option that is not possible.
    """
    plain: dict[str, Any] = asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}
    for said in ("name", "what"):
        plain.pop(said, None)
    preset = plain.get("preset")
    if isinstance(preset, str):
        changes = cast(dict[str, Any], plain.pop("changes", {}))
        resolved = resolve_options(preset, dict(options), changes).model_dump(mode="json")
        plain["options"] = {name: value for name, value in resolved.items() if name not in ("preset", "seed")}
    # as it comes back from a file: tuples are lists there
    return json.loads(json.dumps({"method": type(method).__name__, **plain}, default=str))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings whose value is another one, as in "inference.race"; what only one side has is left out.

    >>> changed_settings({"k": 5, "options": {"steps": 3}}, {"k": 5, "options": {"steps": 4, "race": True}})
    ['options.steps']
    """
    found: list[str] = []
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping) and name != "prompt_proposals":
            inner = cast(Mapping[str, Any], old), cast(Mapping[str, Any], new)
            found += changed_settings(*inner, f"{prefix}{name}.")
        elif old != new:
            found.append(prefix + name)
    return sorted(found)
