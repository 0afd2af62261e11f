"""What training returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dln.nn import Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble

__all__ = ["FitResult"]


@dataclass(frozen=True)
class FitResult:
    """What training returns.

    Attributes:
        network: the best network by validation (the last one without a dev set).
        initial: the network that training started from.
        best_step: the step it is from; 0 means that nothing better was found.
        score: its validation score, NaN without a dev set.
        reason: why training ended: "steps", "early stopping" or "budget".
        steps: updates done.
        run_dir: the run directory, if there is one.
        ensemble: the best networks by validation, where several answer together (option `ensemble`); None where
            one answers.
    """

    network: Sequential
    initial: Sequential = field(repr=False)
    best_step: int
    score: float
    reason: str
    steps: int
    run_dir: Path | None = None
    ensemble: Ensemble | None = None

    @property
    def predictor(self) -> AnyNetwork:
        """What answers: the ensemble where there is one, else the network. A run's network.json holds it."""
        return self.network if self.ensemble is None else self.ensemble
