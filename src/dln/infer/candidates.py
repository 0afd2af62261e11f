"""What the M-step compares: the candidates for one layer, the pairs they are scored on, their scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dln.infer.posterior import Posterior
from dln.keys import Key
from dln.lm.base import Target, text_of
from dln.nn.layer import LayerInput
from dln.nn.sequential import AnyLayer, Trace
from dln.numerics import Floats

__all__ = ["Candidates", "Pairs", "Scored", "Stopped", "comparable"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """One layer's candidates and all that may be looked at to judge them.

    Attributes:
        key: randomness for judges that draw.
        layers: [N] the candidates; the incumbent is the first.
        position: the layer's place, 0-based.
        depth: L, the number of layers.
        trace: the forward pass of the present network.
        posterior: the inferred hidden texts.
        correct: [B] whether the present network's prediction was right.
        counted: [B] examples that may be used (scored in the E-step, in no candidate's demonstrations).
        step: number of the training step, 0-based.
        above: the present network's layers over this one, the output layer last.
    """

    key: Key
    layers: tuple[AnyLayer, ...]
    position: int
    depth: int
    trace: Trace
    posterior: Posterior
    correct: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]
    step: int
    above: tuple[AnyLayer, ...] = ()

    @property
    def pairs(self) -> Pairs:
        """The weighted pairs that the candidates are scored on."""
        return Pairs.of(self.position, self.trace, self.posterior, self.counted)

    @property
    def is_output(self) -> bool:
        """Whether this is the network's last layer."""
        return self.position == self.depth - 1


@dataclass(frozen=True)
class Stopped:
    """A candidate that left the race (see `dln.infer.race`).

    Attributes:
        round: after which round, 1 is the first.
        examples: how many its partial score is a mean of.
        score: the mean over those; another candidate was clearly ahead on the same ones.
    """

    round: int
    examples: int
    score: float


@dataclass(frozen=True, eq=False)
class Scored:
    """Candidates with their objective.

    Attributes:
        layers: [N] the candidates, with their fitted bias and temperature where that applies.
        per_example: [N, B] terms of the objective, NaN for examples that were not used.
        stopped: [N] where a candidate left the race, None for those that stayed; empty without a race.
        share: pairs that were scored, as a part of all pairs of all candidates.
    """

    layers: tuple[AnyLayer, ...]
    per_example: Floats
    stopped: tuple[Stopped | None, ...] = ()
    share: float = 1.0

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        """[B] whether an example counted."""
        return comparable(np.isfinite(self.per_example))

    @property
    def scores(self) -> Floats:
        """[N] mean over the used examples; NaN if there was none, and for a candidate without any score."""
        used = self.used
        if not used.any():
            return np.full(len(self.per_example), np.nan)
        # row by row in memory: a candidate's last bits must not depend on how many others there are
        return np.ascontiguousarray(self.per_example[:, used]).mean(axis=1)


@dataclass(frozen=True, eq=False)
class Pairs:
    """(input particle, output particle) pairs with weight w_{l-1}^k · w_l^k', zero weights left out."""

    inputs: list[LayerInput]
    outputs: list[Target]
    weights: Floats
    examples: npt.NDArray[np.int64]

    @classmethod
    def of(cls, position: int, trace: Trace, posterior: Posterior, counted: npt.NDArray[np.bool_]) -> Pairs:
        """The pairs of the layer at `position`, for every counted example."""
        inputs: list[LayerInput] = []
        outputs: list[Target] = []
        weights: list[float] = []
        examples: list[int] = []
        for i in np.flatnonzero(counted):
            below, above = posterior.levels[position][i], posterior.levels[position + 1][i]
            for h, w in zip(below.values, below.weights, strict=True):
                for target, v in zip(above.values, above.weights, strict=True):
                    if w * v > 0:
                        inputs.append(LayerInput(trace.x[i], text_of(h)))
                        outputs.append(target)
                        weights.append(float(w * v))
                        examples.append(int(i))
        return cls(inputs, outputs, np.array(weights), np.array(examples, dtype=np.int64))

    def sum_by_example(self, values: Floats, size: int) -> Floats:
        """[N, P] → [N, B]: weighted sums; NaN for an example without pairs, or with a NaN for any candidate."""
        totals = np.full((len(values), size), np.nan)
        # a pair that is unusable for one candidate makes its example NaN for all: never averaged in
        clean = np.where(np.isfinite(values) & comparable(np.isfinite(values)), values, np.nan)
        for example in np.unique(self.examples):
            inside = self.examples == example
            totals[:, example] = np.ascontiguousarray(clean[:, inside] * self.weights[inside]).sum(axis=1)
        return totals


def comparable(usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[N, M] → [M]: what is usable for every candidate, those aside that are usable nowhere.

    A candidate that cannot be scored at all is out of the election; it must not spoil it for the others.
    """
    nowhere = ~usable.any(axis=1, keepdims=True)
    return np.asarray((usable | nowhere).all(axis=0) & ~nowhere.all(), dtype=np.bool_)
