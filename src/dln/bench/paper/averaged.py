"""The trained network's best prompts answering together: what averaging over the posterior gives, and what it costs.

Training that keeps several networks takes the same steps and the same tokens as training that keeps one; only the
answers cost more, as many times as there are prompts. So this row builds upon the cell of the trained network where
that keeps several, and trains by itself where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dln.bench.paper.method import Learnt, Predictor, Setup
from dln.bench.paper.trained import trained
from dln.nn.ensemble import Ensemble
from dln.train.layout import standard_network

__all__ = ["Averaged"]


@dataclass(frozen=True)
class Averaged:
    """The best networks of one training, answering together.

    Args:
        size: M, how many at most.
        name: in the table.
        start: the method whose training this is.
        preset: of the training options.
        changes: to the options of the preset.
    """

    size: int = 5
    name: str = "dln-1-ensemble"
    start: str = "dln-1"
    preset: str = "default"
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def after(self) -> tuple[str, ...]:
        """The method whose networks these are."""
        return (self.start,)

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"the {self.size} best networks of {self.start}'s training, their probabilities averaged"

    def __call__(self, setup: Setup) -> Learnt:
        """Take the networks that the other method kept, or train and keep them."""
        kept = setup.known[self.start].network
        if isinstance(kept, Ensemble):
            note = f"training tokens are those of {self.start}, whose training it is"
            prompts = tuple(str(prompt) for member in kept.members for prompt in member.parameters())
            return Learnt(kept, prompts, None, (_together(kept), note))
        network = standard_network(setup.task, setup.lm, 1, preset=self.preset)
        learnt = trained(setup, network, self.preset, {**self.changes, "ensemble": self.size})
        return replace(learnt, notes=(*learnt.notes, _together(learnt.predictor)))


def _together(predictor: Predictor) -> str:
    if not isinstance(predictor, Ensemble):
        return "training found one network alone"
    return f"{len(predictor.members)} prompts, weights {', '.join(f'{weight:.3f}' for weight in predictor.weights)}"
