"""What training remembers: the best networks by validation, and worked examples of each layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dln.nn.prompt import Demonstration, Prompt
from dln.nn.sequential import Sequential

__all__ = ["Reservoir", "Snapshot", "remember"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network at a validation.

    Attributes:
        network: with its prompts, bias and temperature.
        score: the validation score (higher is better).
        step: updates done by then.
    """

    network: Sequential
    score: float
    step: int

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """π_1 … π_L."""
        return self.network.parameters()


def remember(memory: Sequence[Snapshot], snapshot: Snapshot, size: int) -> tuple[Snapshot, ...]:
    """The `size` best snapshots, best first, each set of prompts once; the earlier of equals stays ahead.

    A score that is not a number is worse than any other.
    """
    kept = [s for s in memory if s.prompts != snapshot.prompts]
    same = [s for s in memory if s.prompts == snapshot.prompts]
    best = min([*same, snapshot], key=_rank)
    return tuple(sorted([*kept, best], key=_rank)[:size])


def _rank(snapshot: Snapshot) -> tuple[float, int]:
    return (math.inf if math.isnan(snapshot.score) else -snapshot.score, snapshot.step)


@dataclass(frozen=True)
class Reservoir:
    """Worked examples per layer, newest last: where deep networks take their demonstrations from."""

    layers: tuple[tuple[Demonstration, ...], ...] = ()

    def add(self, rows: Sequence[Sequence[Demonstration]], limit: int) -> Reservoir:
        """With the examples of one batch; an input's newest version replaces older ones."""
        if not rows:
            return self
        present = self.layers or ((),) * len(rows)
        merged: list[tuple[Demonstration, ...]] = []
        for old, row in zip(present, rows, strict=True):
            latest = {d.x: d for d in row}
            together = [*(d for d in old if d.x not in latest), *latest.values()]
            merged.append(tuple(together[max(0, len(together) - limit) :]))
        return Reservoir(tuple(merged))

    def outside(self, position: int, inputs: Collection[str]) -> tuple[Demonstration, ...]:
        """Examples of one layer whose input is none of `inputs`."""
        if not self.layers:
            return ()
        excluded = set(inputs)
        return tuple(d for d in self.layers[position] if d.x not in excluded)
