"""What a method of the table is: from a setup to something that answers test inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dln.data import Dataset, Task
from dln.lm.base import LanguageModel
from dln.nn import Prediction
from dln.nn.ensemble import AnyNetwork

__all__ = ["Known", "Learnt", "Method", "Predictor", "Setup"]


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
