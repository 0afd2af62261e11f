"""Random demonstrations at equal tokens: what is left of training if nothing but luck and selection is used.

Prompts with k random worked examples are drawn and judged on the dev set, with the output layer fitted, until
as many tokens are used as the trained network took; the best one by cross-fitted log-likelihood is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from dln.bench.paper.baselines import draw_examples
from dln.bench.paper.layers import SAME_LINE, fitted, output_layer
from dln.bench.paper.method import Learnt, Setup
from dln.errors import BudgetReached
from dln.nn import LayerInput, Sequential

__all__ = ["RandomDemonstrations"]


@dataclass(frozen=True)
class RandomDemonstrations:
    """The best of random prompts, at the tokens of another method.

    Args:
        k: worked examples per prompt.
        equal_to: the method whose training tokens may be used.
        most: prompts that are drawn at most.
    """

    k: int = 24
    equal_to: str = "dln-1"
    most: int = 200
    name: str = "random-demonstrations"

    @property
    def after(self) -> tuple[str, ...]:
        """The method that says how many tokens there are."""
        return (self.equal_to,)

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"the best of random prompts with {self.k} examples, at the training tokens of {self.equal_to}"

    def __call__(self, setup: Setup) -> Learnt:
        """Draw and judge until the tokens are used."""
        allowed = setup.known[self.equal_to].tokens
        best: Sequential | None = None
        best_score, drawn, used = float("-inf"), 0, 0
        dev = setup.task.dev
        while drawn < self.most and (used < allowed or best is None):
            layer = output_layer(setup, SAME_LINE, draw_examples(setup, self.k, draw=drawn + 1))
            try:
                network, score = fitted(layer, dev)
            except BudgetReached:
                break
            drawn += 1
            used += sum(map(setup.lm.count_tokens, layer.contexts([LayerInput(x, x) for x in dev.inputs])))
            if score > best_score:
                best, best_score = network, score
        if best is None:
            raise BudgetReached("the budget does not suffice for one prompt", where=self.name, fix="raise the budget")
        return Learnt(best, tuple(map(str, best.parameters())), best_score, (f"{drawn} prompts drawn",))
