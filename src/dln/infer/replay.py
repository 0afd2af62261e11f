"""Growing evidence: candidates of the output layer are judged on examples of earlier steps as well.

    s^n = (1 / (B + E)) [ Σ_{i in batch} + Σ_{i of earlier steps} ]  Σ_k w_i^k log p(y_i | F(h_i^k, x_i, π^n))

A winner picked on twenty examples by luck is not progress. The hidden texts of earlier examples keep the
posterior weights of the step they were inferred in, and each step renews those of its own batch: incremental
EM (Neal and Hinton, 1998), whose partial E-steps climb the same bound. With one layer nothing is hidden and
the terms are exact. What an unchanged prompt says of an earlier example is the same question as before, which
a cached model does not evaluate again.

No prompt can win by containing the answer: an example that any candidate shows judges none of them
(`dln.infer.mstep`). Where batches and demonstrations are drawn from different examples that costs no judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dln.infer.candidates import Candidates
from dln.infer.posterior import Posterior
from dln.lm.base import Completion, Target, text_of
from dln.nn.sequential import Trace
from dln.particles import Particles

__all__ = ["Earlier", "Replay"]


@dataclass(frozen=True, slots=True)
class Earlier:
    """An example of an earlier step.

    Attributes:
        x: the network's input.
        y: the wanted output.
        below: what the output layer reads, with posterior weights: hidden texts, or x itself with one layer.
    """

    x: str
    y: str
    below: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Replay:
    """Examples of earlier steps, the newest last; an input's newest version replaces older ones."""

    examples: tuple[Earlier, ...] = ()

    def add(self, trace: Trace, posterior: Posterior, limit: int) -> Replay:
        """With the scored examples of a step; at most `limit`, the newest."""
        if limit <= 0:
            return self
        depth = len(trace.hidden)
        fresh: dict[str, Earlier] = {}
        for i in np.flatnonzero(posterior.scored):
            x, below = trace.x[int(i)], posterior.levels[depth - 1][int(i)]
            texts = tuple((text_of(h), float(w)) for h, w in zip(below.values, below.weights, strict=True) if w > 0)
            fresh[x] = Earlier(x, text_of(posterior.levels[depth][int(i)].mode), texts)
        together = [*(e for e in self.examples if e.x not in fresh), *fresh.values()]
        return Replay(tuple(together[max(0, len(together) - limit) :]))

    def joined(self, situation: Candidates) -> Candidates:
        """The output layer's situation with the earlier examples behind those of the batch."""
        batch = set(situation.trace.x)
        earlier = [example for example in self.examples if example.x not in batch]
        if not earlier or not situation.is_output:
            return situation
        trace, posterior, depth = situation.trace, situation.posterior, situation.depth
        levels: list[tuple[Particles[Target], ...]] = []
        hidden: list[tuple[Completion, ...]] = []
        for level in range(depth + 1):
            added = tuple(_particles(example, level, depth) for example in earlier)
            levels.append((*posterior.levels[level], *added))
            if level:
                hidden.append((*trace.hidden[level - 1], *(Completion(text_of(p.mode)) for p in added)))
        yes = np.ones(len(earlier), dtype=np.bool_)
        return replace(
            situation,
            trace=Trace((*trace.x, *(example.x for example in earlier)), tuple(hidden)),
            posterior=replace(posterior, levels=tuple(levels), scored=np.concatenate([posterior.scored, yes])),
            correct=np.concatenate([situation.correct, yes]),
            counted=np.concatenate([situation.counted, yes]),
        )


def _particles(example: Earlier, level: int, depth: int) -> Particles[Target]:
    """Levels below the one that the output layer reads are not looked at: x stands for them."""
    if level == depth:
        return Particles[Target].point(example.y)
    if level < depth - 1:
        return Particles[Target].point(example.x)
    texts: tuple[Target, ...] = tuple(text for text, _ in example.below)
    return Particles[Target](texts, np.log([weight for _, weight in example.below]))
