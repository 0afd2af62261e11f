"""The E-step: an approximate posterior over the hidden texts of every layer, top down.

    h_l^k ~ q(h | ĥ_{l-1}, ĥ_l, h*_{l+1})                 K proposals per example
    log w^k = α^k + β^k   with   α^k = log p(h_l^k | ĥ_{l-1}, π_l),  β^k = log p(h*_{l+1} | h_l^k, π_{l+1})
    h*_l = the heaviest particle, and the next layer below is told to reach it

(paper: Algorithm 2, lines 2–3; Algorithm 3 of Appendix E for any depth). Which terms enter log w is
the choice of a `Weighting`, and so is what stands for β where h*_{l+1} cannot be scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dln.infer.hidden import HiddenProposal, HiddenRequest
from dln.infer.hidden_draws import HiddenDraw, draw_together
from dln.infer.score import Convention
from dln.infer.weights import Weigher
from dln.keys import Key
from dln.lm.base import Completion, Target
from dln.nn.sequential import Sequential, Trace
from dln.numerics import Floats
from dln.particles import Particles

__all__ = ["EStep", "HiddenLevel", "Posterior"]


@dataclass(frozen=True, eq=False)
class HiddenLevel:
    """What was proposed and weighed at one hidden level.

    Attributes:
        proposals: [B][K] the texts, in proposal order, before equal ones are merged.
        sources: [B][K] which proposal each comes from.
        alpha: [B, K] log p(h^k | ĥ below, π) under the step's scoring convention; NaN = unusable or unknown.
        beta: [B, K] log p(h* above | h^k, π above), likewise, or what stands for it (see `Weighting`).
        weights: [B, K] posterior weights q^k; rows sum to one.
    """

    proposals: tuple[tuple[Completion, ...], ...]
    sources: tuple[tuple[str, ...], ...]
    alpha: Floats
    beta: Floats
    weights: Floats


@dataclass(frozen=True, eq=False)
class Posterior:
    """q(h_1, …, h_{L-1} | x, y) = Π_l q(h_l), per example, with x and y as points at the ends.

    Attributes:
        levels: levels[l][i] are the particles of h_l of example i; l = 0 is x and l = L is y.
        hidden: diagnostics of levels 1 … L-1.
        scored: [B] False where no particle of some level could be scored: left out of the M-step.
    """

    levels: tuple[tuple[Particles[Target], ...], ...]
    hidden: tuple[HiddenLevel, ...]
    scored: npt.NDArray[np.bool_]

    def mode(self, level: int) -> list[Target]:
        """h*_l: the heaviest particle of each example."""
        return [particles.mode for particles in self.levels[level]]

    def entropy(self) -> float:
        """Σ_l H[q(h_l)], mean over the scored examples, in nats."""
        per_example = [sum(level[i].entropy for level in self.levels) for i in np.flatnonzero(self.scored)]
        return float(np.mean(per_example)) if per_example else float("nan")

    def ess(self, level: int) -> float:
        """Effective sample size of level l, mean over examples, in particles."""
        return float(np.mean([particles.ess for particles in self.levels[level]]))


@dataclass(frozen=True)
class EStep:
    """The choices of an E-step; calling it infers every hidden level, from the output down to the input.

    Args:
        proposal: q, where the particles come from.
        weighting: how they get their weights.
        num_hidden: K, proposals per example.
        convention: how α and β are measured.
        include_forward: whether the forward pass's own ĥ is a particle too. The first released code has it, Algorithm 2
            and the last released code leave it out.
    """

    proposal: HiddenProposal
    weighting: Weigher
    num_hidden: int
    convention: Convention
    include_forward: bool = True

    def __call__(
        self, key: Key, network: Sequential, trace: Trace, y: Sequence[str], rewrite: Sequence[bool] | None = None
    ) -> Posterior:
        """Posterior over the hidden texts of `trace` given the wanted outputs `y`.

        Examples that `rewrite` (all, by default) leaves out keep ĥ as their only particle.
        """
        depth = len(network)
        levels: list[tuple[Particles[Target], ...]] = [()] * (depth + 1)
        levels[0] = tuple(Particles[Target].point(x) for x in trace.x)
        levels[depth] = tuple(Particles[Target].point(target) for target in y)
        scored = np.ones(len(trace), dtype=np.bool_)
        hidden: list[HiddenLevel] = []
        for position in reversed(range(depth - 1)):
            request = HiddenRequest(
                layer=network.layers[position],
                above=network.layers[position + 1],
                inputs=tuple(trace.inputs(position)),
                outputs=trace.outputs(position),
                wanted=tuple(particles.mode for particles in levels[position + 2]),
                y=tuple(y),
                beyond=network.layers[position + 2 :],
            )
            draws = self._draws(key.child("hidden", position), request, rewrite)
            level = self._weigh(request, draws)
            usable = np.asarray(np.isfinite(level.weights.sum(axis=1)))
            scored &= usable
            log_weights = _log(np.where(usable[:, None], level.weights, 1.0))
            levels[position + 1] = tuple(
                Particles[Target](row, log_row).merged(_identity)
                for row, log_row in zip(level.proposals, log_weights, strict=True)
            )
            hidden.insert(0, level)
        return Posterior(tuple(levels), tuple(hidden), scored)

    def _draws(self, key: Key, request: HiddenRequest, rewrite: Sequence[bool] | None) -> list[list[HiddenDraw]]:
        own = [HiddenDraw.of(h, "forward") for h in request.outputs]
        again = [i for i in range(len(own)) if rewrite is None or rewrite[i]]
        drawn = draw_together(self.proposal(key, request.subset(again), self.num_hidden)) if again else []
        head = 1 if self.include_forward else 0
        # an example that keeps ĥ has as many copies of it as the others have particles
        rows = [[forward] * (self.num_hidden + head) for forward in own]
        for i, row in zip(again, drawn, strict=True):
            rows[i] = [own[i]] * head + row
        return rows

    def _weigh(self, request: HiddenRequest, draws: list[list[HiddenDraw]]) -> HiddenLevel:
        proposals = tuple(tuple(draw.completion for draw in row) for row in draws)
        log_q = np.array([[draw.log_q for draw in row] for row in draws])
        evidence = self.weighting.evidence(request, proposals, log_q, self.convention)
        return HiddenLevel(
            proposals=proposals,
            sources=tuple(tuple(draw.source for draw in row) for row in draws),
            alpha=evidence.alpha,
            beta=evidence.beta,
            weights=self.weighting(evidence),
        )


def _identity(target: Target) -> tuple[str, tuple[int, ...] | None]:
    return (target, None) if isinstance(target, str) else target.identity


def _log(weights: Floats) -> Floats:
    return np.log(weights, out=np.full(weights.shape, -np.inf), where=weights > 0)
