"""How much of a long run a page shows: the events keep all of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is shown at most.

    Attributes:
        prompt: characters of a prompt in the network and in differences.
        text: characters of any other text (candidates, inputs, hidden texts).
        candidates: per M-step, best first; winner and incumbent are always among them.
        explained: examples per step whose hidden particles are shown.
        batch: examples per step.
        demonstrations: per candidate.
        changed: rows of each table of fixed, broken and unsolved examples.
    """

    prompt: int = 8000
    text: int = 1500
    candidates: int = 100
    explained: int = 3
    batch: int = 50
    demonstrations: int = 32
    changed: int = 100

    def tighter(self) -> Limits:
        """About half of it."""
        return Limits(
            prompt=max(400, self.prompt // 2),
            text=max(60, self.text // 2),
            candidates=max(3, self.candidates * 2 // 3),
            explained=max(1, self.explained - 1),
            batch=max(3, self.batch // 2),
            demonstrations=max(1, self.demonstrations // 2),
            changed=max(10, self.changed // 2),
        )
