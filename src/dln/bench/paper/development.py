"""The protocol of an ablation: what is chosen by it must never have seen a test example.

The dev set is cut in two by a stratified split under the seed. One half selects, as the dev set does in the paper's
comparison; the other half judges, and stands where the test set stands there. Train examples are as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dln.bench.paper.protocol import Protocol
from dln.data import Task, split
from dln.errors import InputError

__all__ = ["DevelopmentProtocol"]


@dataclass(frozen=True)
class DevelopmentProtocol(Protocol):
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
