"""Tells the two budgets apart: training ends well when a cell's own is spent, and not when everybody's is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from dln.errors import BudgetReached
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs
from dln.lm.wrapper import Wrapper
from dln.numerics import Floats

__all__ = ["Alarm"]

A = TypeVar("A")


class Alarm(Wrapper):
    """Remembers that the model below refused for want of budget, which training takes for its own end.

    Args:
        inner: a model whose wrapper holds the budget of all cells.
    """

    def __init__(self, inner: LanguageModel) -> None:
        super().__init__(inner)
        self._refused: BudgetReached | None = None

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
        try:
            return call()
        except BudgetReached as error:
            self._refused = error
            raise
