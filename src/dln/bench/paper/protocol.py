"""The protocol that all methods share: which examples train, which choose, which are answered once at the end.

Test examples are the same for all seeds and methods. Train and dev examples are drawn anew for each seed, dev in
the natural proportions of the classes: sixty balanced examples were seen to mislead by twelve points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dln.data import Task
from dln.data.split import subsample

__all__ = ["Protocol"]


@dataclass(frozen=True)
class Protocol:
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
