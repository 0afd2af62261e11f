"""What is known of a run while it goes on, put together from its events."""

from __future__ import annotations

import time
from typing import Any, cast

from dln.lm.metered import Meter, Usage
from dln.train.events import Backtracked, Event, Finished, Resumed, Started, StepDone, Validated

__all__ = ["Board"]


class Board:
    """The state that panels and lines show.

    Args:
        task: name of the task.
        steps: planned updates.
        meter: what the models have done.
        prompts: the present prompts, as texts.
    """

    def __init__(self, task: str, steps: int, meter: Meter, prompts: list[str]) -> None:
        self.task = task
        self.planned = steps
        self.meter = meter
        self.prompts = prompts
        self.step = 0
        self.elbos: list[float] = []
        self.batch_accuracy: float | None = None
        self.dev_accuracy: float | None = None
        self.best: tuple[int, float, float] | None = None
        self.phase = "starting"
        self._began = time.monotonic()
        self._used = meter.snapshot()
        self._durations: list[float] = []

    def see(self, event: Event) -> None:
        """Take an event in."""
        if isinstance(event, Started):
            self.phase = "first validation" if event.dev_size else "step 1"
        elif isinstance(event, Resumed):
            self.step = max(0, event.step)
            self.phase = f"step {self.step + 1}"
        elif isinstance(event, StepDone):
            self.step, self.batch_accuracy = event.step, event.accuracy
            self._durations.append(event.seconds)
            if event.elbo is not None:
                self.elbos.append(event.elbo)
            self.prompts = [_prompt(layer) for layer in cast(list[dict[str, Any]], event.parameters["layers"])]
            self.phase = f"step {event.step + 1}"
        elif isinstance(event, Validated):
            self.dev_accuracy = event.result.accuracy
            if event.best:
                self.best = (event.step, event.result.accuracy, event.score)
            self.phase = f"step {event.step + 1}"
        elif isinstance(event, Backtracked):
            self.phase = f"step {event.step + 1}, from the prompts of step {event.to_step}"
        elif isinstance(event, Finished):
            self.phase = "done"

    @property
    def elapsed(self) -> float:
        """Seconds since this process began to work."""
        return time.monotonic() - self._began

    @property
    def used(self) -> Usage:
        """Calls and tokens of the whole run."""
        return self.meter.snapshot()

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this process per second."""
        return (self.used.tokens - self._used.tokens) / max(self.elapsed, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds to the last step, from the mean of the steps done; None before the first one."""
        if not self._durations:
            return None
        return sum(self._durations) / len(self._durations) * max(0, self.planned - self.step)


def _prompt(layer: dict[str, Any]) -> str:
    prompt = cast(dict[str, Any], layer["prompt"])
    shown = cast(list[Any], prompt.get("demonstrations") or [])
    return str(prompt.get("instruction", "")) + (f" [{len(shown)} demonstrations]" if shown else "")
