"""The contract of a method, the protocol that all methods share, and the recipe that a result records.

Test examples are the same for all seeds and methods. Train and dev examples are drawn for each seed; the dev set keeps
the natural class proportions, because sixty balanced examples were seen to mislead by twelve points. An ablation must
never use test examples: it splits the dev set, one half for selection and one for evaluation.

A result records the settings of its method. If a default changes, the method changes although its name does not, and
results of the old method must not pass for results of the new one.
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
from dln.nn import ChoiceLayer, Demonstration, LayerInput, Prediction, Prompt, Sequential
from dln.nn.ensemble import AnyNetwork
from dln.nn.readout import WordReadout
from dln.train import resolve_options
from dln.train.build import calibrator
from dln.train.evaluate import Validation, validate, with_readout

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
    "read_words",
    "recipe_of",
]


class Predictor(Protocol):
    """Anything that answers inputs, such as a `Sequential` or an `Ensemble`."""

    def predict_many(self, x: Sequence[str]) -> list[Prediction]:
        """Return one prediction per input."""
        ...


@dataclass(frozen=True)
class Setup:
    """The input of a method; it must not use test targets.

    Attributes:
        task: instruction, labels, and the train and dev examples of this seed.
        lm: the model, metered for training.
        seed: the random seed.
        options: changes to the training preset.
        budget: maximum tokens for training; None for the method's own amount.
        encoder: sentences → [N, D] unit vectors; None for the usual one of each method.
        workspace: directory for runs.
        known: finished methods of the same task and seed, by name.
        readable: test inputs, only for their lengths: prompts must leave room for them.
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
    """The result of a method.

    Attributes:
        predictor: answers inputs with the setup's model.
        prompts: its prompts, or a description.
        dev_score: the score it was selected by.
        notes: notes for the reader.
    """

    predictor: Predictor
    prompts: tuple[str, ...] = ()
    dev_score: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """The network (None if there is none) and the training tokens of a finished method, for those that build on it."""

    network: AnyNetwork | None
    tokens: int


class Method(Protocol):
    """A row of the table."""

    @property
    def name(self) -> str:
        """Name on the command line and in the table."""
        ...

    @property
    def about(self) -> str:
        """A description in one sentence."""
        ...

    @property
    def after(self) -> tuple[str, ...]:
        """Methods whose results on the same task and seed this one needs."""
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
        encoder: sentence encoder of the methods that have one; None for the usual one of each.
        leaky: the source's splits with their leaks.
        rule: how answers to the paper's tasks are judged.
    """

    train_size: int = 400
    dev_size: int = 128
    test_size: int = 250
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    equal_tokens: int | None = None
    encoder: str | None = None
    leaky: bool = False
    rule: str = "exact_match"

    def examples(self, task: Task, seed: int) -> Task:
        """The task as the methods see it under `seed`, in its natural class proportions."""
        return replace(
            task,
            train=subsample(task.train, self.train_size, seed),
            dev=subsample(task.dev, self.dev_size, seed),
            test=subsample(task.test, self.test_size, 42),
        )

    def record(self, model: str) -> dict[str, Any]:
        """Return the protocol as plain data."""
        record = {**asdict(self), "options": dict(self.options), "model": model}
        if self.rule == "exact_match":  # as in version 0.1
            del record["rule"]
        return record


@dataclass(frozen=True)
class DevelopmentProtocol(EvaluationProtocol):
    """The protocol of an ablation: half of the dev set replaces the test set, which is not used.

    Args:
        dev_size: examples of the half that selects, at most.
        test_size: examples of the half that judges, at most.
    """

    def examples(self, task: Task, seed: int) -> Task:
        """Return the task with the halves of its dev set as dev and test set.

        Raises:
            InputError: the dev set cannot be divided.
        """
        if len(set(task.dev.inputs)) < 4:
            raise InputError(
                "the dev set is too small to be split for an ablation",
                where=f"task {task.name}",
                got=f"{len(task.dev)} dev examples",
                fix="leave the task out",
            )
        selects, judges = split(task.dev, (0.5, 0.5), seed)
        return super().examples(replace(task, dev=selects, test=judges), seed)

    def record(self, model: str) -> dict[str, Any]:
        """Return the protocol as plain data."""
        return {**super().record(model), "judged_on": "half of the dev set"}


PAPER, SAME_LINE = "classify_answer", "classify"
"""Templates: the label on a line of its own under "Answer:", and on the same line as "Label:"."""


def output_layer(setup: Setup, template: str = SAME_LINE, examples: Sequence[Example] = ()) -> ChoiceLayer:
    """Build an output layer with the task's instruction and labels, and these demonstrations.

    Raises:
        InputError: the task has no labels.
    """
    task = setup.task
    return ChoiceLayer(setup.lm, template, Prompt(task.instruction, demonstrations(examples)), labels_of(task))


def labels_of(task: Task) -> tuple[str, ...]:
    """Return the labels of a task.

    Raises:
        InputError: the task has no labels.
    """
    if task.labels is None:
        raise InputError(
            "this command supports classification only",
            where=f"task {task.name}",
            got="free-form targets",
            fix="leave the task out, or train on it with `dln train`",
        )
    return task.labels


def demonstrations(examples: Sequence[Example]) -> tuple[Demonstration, ...]:
    """Turn examples into demonstrations of a first layer."""
    return tuple(Demonstration(e.input, e.input, e.target) for e in examples)


def fitted(layer: ChoiceLayer, dataset: Dataset) -> tuple[Sequential, float]:
    """Fit bias and temperature on `dataset`; return the network and its cross-fitted mean log p(y|x).

    Raises:
        InputError: not one example could be scored.
    """
    found = validate(Sequential(layer), dataset, exact_match, PenalisedLikelihood())
    if found.log_likelihood is None or found.evaluation.unscored == len(dataset):
        raise InputError("no example could be scored", where=dataset.name, got="no finite label scores")
    return found.network, found.log_likelihood


def read_words(layer: ChoiceLayer, train: Dataset, dev: Dataset, options: Mapping[str, Any]) -> Validation:
    """Choose a readout of words on the train examples and fit it to train and dev, as training does.

    Args:
        layer: an output layer; examples that it shows have no part in the fit.
        train: of which `fit_examples` are used.
        dev: examples to measure on, each by a fit without it.
        options: changes to the default preset: `words`, `fit_examples`.

    Raises:
        InputError: the model does not tell the probabilities of words, or not one example could be scored.
    """
    resolved = resolve_options("default", dict(options), {"inference": {"output_layer": "words"}})
    fit = calibrator(resolved.inference)
    ready = with_readout(Sequential(layer), fit, train.inputs)
    last = ready.layers[-1].classifier
    if last is None or not isinstance(last.readout, WordReadout):
        raise InputError(
            "a word readout needs the probabilities of words",
            where=f"model {layer.lm.name}",
            got="no log-probabilities of next tokens",
            fix="label words alone: 0-shot-fitted, label-words, dln-1-labels",
        )
    support = [(LayerInput(e.input, e.input), e.target) for e in train][: resolved.fit_examples]
    found = validate(ready, dev, exact_match, fit, support)
    if found.log_likelihood is None or found.evaluation.unscored == len(dev):
        raise InputError("no example could be scored", where=dev.name, got="no finite word scores")
    return found


def recipe_of(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method as plain data, with the resolved training options if it has a preset.

    Args:
        method: a row of the table.
        options: changes to the preset common to all methods.

    Raises:
        InputError: an invalid option.
    """
    plain: dict[str, Any] = asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}
    for said in ("name", "what"):
        plain.pop(said, None)
    preset = plain.get("preset")
    if isinstance(preset, str):
        changes = cast(dict[str, Any], plain.pop("changes", {}))
        resolved = resolve_options(preset, dict(options), changes).model_dump(mode="json")
        plain["options"] = {name: value for name, value in resolved.items() if name not in ("preset", "seed")}
    # as read back from a file: tuples become lists
    return json.loads(json.dumps({"method": type(method).__name__, **plain}, default=str))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of settings that differ; settings of one side only are ignored.

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
