"""Zero-shot chain of thought: think step by step, then answer. It is a network of two layers without training."""

from __future__ import annotations

from dataclasses import dataclass

from dln.bench.paper.induction import Induction, best_of, induced
from dln.bench.paper.layers import labels_of, output_layer
from dln.bench.paper.method import Learnt, Setup
from dln.nn import Prompt, Sequential
from dln.train.layout import standard_network

__all__ = ["ChainOfThought", "chain"]


@dataclass(frozen=True)
class ChainOfThought:
    """First "Let's think step by step", then the answer given question and thoughts.

    Args:
        name: in the table.
        induction: how the answer's instruction is induced; None keeps the task's.
        thoughts: longest chain, in tokens; the released code's 256.
        templates: of the two layers.
    """

    name: str = "cot"
    induction: Induction | None = None
    thoughts: int = 256
    templates: tuple[str, str] = ("think_steps", "classify_residual_answer")
    after: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return "think step by step, then answer" + ("" if self.induction is None else "; the instruction is induced")

    def __call__(self, setup: Setup) -> Learnt:
        """Nothing to learn, or the instruction of the answer."""
        network = chain(setup, self.templates, self.thoughts)
        if self.induction is None:
            return Learnt(network, tuple(map(str, network.parameters())))
        pool = induced(setup, output_layer(setup, self.templates[1]), self.induction.pool, self.induction.shown)
        network, score, notes = best_of(setup, network, pool, self.induction)
        return Learnt(network, tuple(map(str, network.parameters())), score, notes)


def chain(setup: Setup, templates: tuple[str, str], thoughts: int) -> Sequential:
    """The untrained two-layer network.

    Raises:
        InputError: the task has no labels.
    """
    labels_of(setup.task)
    prompts = [Prompt(""), Prompt(setup.task.instruction)]
    return standard_network(setup.task, setup.lm, 2, templates=templates, prompts=prompts, hidden_tokens=thoughts)
