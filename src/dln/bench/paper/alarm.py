"""What a cell's model passes on besides answers: that everybody's budget is spent, and that all shall stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event
from typing import TypeVar

from dln.errors import BudgetReached
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs
from dln.lm.wrapper import Wrapper
from dln.numerics import Floats

__all__ = ["Alarm"]

A = TypeVar("A")


class Alarm(Wrapper):
    """Tells the two budgets apart, and lets a cell be left in the middle.

    Training ends well when a cell's own budget is spent, and takes the refusal of the model below for that; so
    such a refusal is remembered here.

    Args:
        inner: a model whose wrapper holds the budget of all cells.
        stop: once it is set, the next request raises `KeyboardInterrupt` in the thread that makes it.
    """

    def __init__(self, inner: LanguageModel, stop: Event | None = None) -> None:
        super().__init__(inner)
        self._refused: BudgetReached | None = None
        self._stop = stop or Event()

    def check(self) -> None:
        """Raise what the model below raised, if it did."""
        if self._refused is not None:
            raise self._refused

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """As the wrapped model draws."""
        return self._watched(lambda: self._inner.sample(contexts, sampling, seeds))

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """As the wrapped model scores."""
        return self._watched(lambda: self._inner.log_prob(contexts, targets))

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """As the wrapped model scores."""
        return self._watched(lambda: self._inner.choice_log_probs(contexts, labels))

    def _watched(self, call: Callable[[], A]) -> A:
        if self._stop.is_set():
            raise KeyboardInterrupt("the bench is being stopped")
        try:
            return call()
        except BudgetReached as error:
            self._refused = error
            raise
