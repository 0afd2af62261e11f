"""Demonstration proposals: a candidate is the instruction plus verbatim labelled examples.

Small models write poor instructions but use examples well. Examples come from a pool that is not
scored in the same step, so that a prompt cannot win by containing the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dln.errors import InputError
from dln.infer.feedback import Feedback
from dln.infer.prompts import Proposal
from dln.keys import Key
from dln.nn.prompt import Demonstration
from dln.nn.sequential import AnyLayer

__all__ = ["DemonstrationProposal"]


@dataclass(frozen=True)
class DemonstrationProposal:
    """The present instruction with k demonstrations from the pool.

    Half of the candidates are fresh draws, the other half change the present set: some of its
    examples are exchanged for others from the pool and the order is drawn anew. Long examples are fewer:
    together they take at most `room` of the model's context.

    Args:
        sizes: k is one of these, drawn at random; the most that is shown.
        balanced: outputs as equally frequent among the k as the pool allows.
        keep: part of the present demonstrations that an exchange keeps.
        room: part of the model's context that demonstrations may take, in tokens of their texts.
    """

    sizes: tuple[int, ...] = (4, 8, 16)
    balanced: bool = True
    keep: float = 0.5
    room: float = 0.25

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise InputError("demonstration counts must be 1 or more", where="demonstrations", got=self.sizes)

    def __call__(self, key: Key, layer: AnyLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """`num` candidates; none if the pool is empty."""
        if not feedback.pool:
            return []
        proposals: list[Proposal] = []
        fits = self._fitting(layer)
        for index in range(num):
            rng = key.child("demonstrations", index).generator()
            size = int(rng.choice(self.sizes))
            present = layer.prompt.demonstrations if index % 2 else ()
            kept = _some(rng, present, min(size, round(len(present) * self.keep)))
            fresh = [d for d in dict.fromkeys(feedback.pool) if d not in kept]
            chosen = fits([*kept, *self._draw(rng, fresh, size - len(kept), kept)])
            if not chosen:
                continue
            order = rng.permutation(len(chosen))
            prompt = layer.prompt.with_demonstrations(tuple(chosen[int(i)] for i in order))
            detail = f"k={len(chosen)}" + (f", {len(set(kept) & set(chosen))} kept" if kept else "")
            proposals.append(Proposal(prompt, "demonstrations", detail))
        return proposals

    def _fitting(self, layer: AnyLayer) -> Callable[[list[Demonstration]], list[Demonstration]]:
        """Leaves out what does not fit any more, example by example."""
        length = layer.lm.capabilities.context_length
        if length is None:
            return lambda chosen: chosen
        both, most = layer.template.residual, self.room * length

        def fits(chosen: list[Demonstration]) -> list[Demonstration]:
            shown: list[Demonstration] = []
            used = 0
            for d in chosen:
                used += layer.lm.count_tokens(f"{d.x} {d.h} {d.y}" if both else f"{d.h} {d.y}")
                if used > most:
                    break
                shown.append(d)
            return shown

        return fits

    def _draw(
        self, rng: np.random.Generator, pool: Sequence[Demonstration], size: int, kept: Sequence[Demonstration]
    ) -> list[Demonstration]:
        shuffled = [pool[int(i)] for i in rng.permutation(len(pool))]
        if not self.balanced:
            return shuffled[:size]
        counts = {d.y: 0 for d in shuffled} | {d.y: 0 for d in kept}
        for demonstration in kept:
            counts[demonstration.y] += 1
        chosen: list[Demonstration] = []
        while shuffled and len(chosen) < size:
            # the next of the rarest output so far; ties fall to the shuffled order
            best = min(range(len(shuffled)), key=lambda i: counts[shuffled[i].y])
            demonstration = shuffled.pop(best)
            counts[demonstration.y] += 1
            chosen.append(demonstration)
        return chosen


def _some(rng: np.random.Generator, items: Sequence[Demonstration], size: int) -> list[Demonstration]:
    return [items[int(i)] for i in rng.permutation(len(items))[:size]]
