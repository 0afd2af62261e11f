"""The trained network's best prompts answering together: what averaging over the posterior gives, and what it costs.

Training that keeps several networks takes the same steps and the same tokens as training that keeps one; only the
answers cost more, as many times as there are prompts. So this row builds upon the cell of the trained network where
that keeps several, and trains by itself where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dln.bench.paper.method import Learnt, Setup
from dln.bench.paper.trained import trained
from dln.nn import load_network
from dln.nn.ensemble import AnyNetwork, Ensemble, members_of
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
        kept: object = setup.known[self.start].network
        if isinstance(kept, Ensemble):
            note = f"training tokens are those of {self.start}, whose training it is"
            return Learnt(kept, _prompts(kept), None, (_together(kept), note))
        if setup.workspace is not None:
            return self._trained(setup, setup.workspace)
        with TemporaryDirectory() as place:
            return self._trained(replace(setup, workspace=Path(place)), Path(place))

    def _trained(self, setup: Setup, workspace: Path) -> Learnt:
        network = standard_network(setup.task, setup.lm, 1, preset=self.preset)
        learnt = trained(setup, network, self.preset, {**self.changes, "ensemble": self.size})
        predictor = load_network(workspace / "run" / "network.json", setup.lm)
        return Learnt(predictor, _prompts(predictor), learnt.dev_score, (*learnt.notes, _together(predictor)))


def _prompts(network: AnyNetwork) -> tuple[str, ...]:
    return tuple(str(prompt) for member in members_of(network) for prompt in member.parameters())


def _together(network: AnyNetwork) -> str:
    if not isinstance(network, Ensemble):
        return "training found one network alone"
    return f"{len(network.members)} prompts, weights {', '.join(f'{weight:.3f}' for weight in network.weights)}"
