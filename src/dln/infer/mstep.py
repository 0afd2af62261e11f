"""The M-step of one layer: propose prompts, score them under the posterior, keep the best.

    π ← argmax_n  s^n − penalties^n ,   n = 0 is the present prompt

A `Selector` chooses the winner (a tie keeps the incumbent); a `Penalty` is subtracted from each candidate's objective:
the trust region and the exploration reward.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dln.errors import InputError
from dln.infer.constraints import Constraint
from dln.infer.memory import Feedback
from dln.infer.objective import Candidates, Objective, Stopped, comparable
from dln.infer.prompts import PromptProposal, Proposal, screen
from dln.nn.layers import Convention, Layer, LayerInput, PromptedLayer, score_pairs
from dln.nn.prompt import Prompt
from dln.numerics import Floats, kl_divergence
from dln.random import Key

__all__ = ["Best", "BestByMargin", "Exploration", "LayerInfo", "MStep", "Penalty", "Selector", "TrustRegion"]


class Selector(Protocol):
    """The choice among candidates."""

    def __call__(self, scores: Floats, per_example: Floats) -> int:
        """Index of the winner, from [N] penalised scores and their [N, B] per-example terms (NaN = unused)."""
        ...


@dataclass(frozen=True)
class Best:
    """argmax_n s^n (the paper's choice)."""

    def __call__(self, scores: Floats, per_example: Floats) -> int:
        """The first of equals; candidates without a score cannot win."""
        return 0 if np.isnan(scores).all() else int(np.nanargmax(scores))


@dataclass(frozen=True)
class BestByMargin:
    """The best candidate whose lead over the incumbent is not noise.

    A candidate replaces the incumbent only if the mean of its paired per-example differences, plus the
    difference of the penalties, exceeds `z` standard errors of that mean: a winner picked on twenty
    examples by luck is not progress.
    """

    z: float = 1.0

    def __call__(self, scores: Floats, per_example: Floats) -> int:
        """The incumbent unless a candidate is clearly better."""
        used = comparable(np.isfinite(per_example))
        count = int(used.sum())
        if count < 2:
            return 0
        differences = per_example[:, used] - per_example[0, used]
        error = differences.std(axis=1, ddof=1) / np.sqrt(count)
        lead = scores - scores[0]
        eligible = lead > self.z * error
        return int(np.argmax(np.where(eligible, scores, -np.inf))) if eligible.any() else 0


class Penalty(Protocol):
    """A number per candidate that is subtracted from its score."""

    def __call__(self, candidates: Candidates, fitted: tuple[Layer, ...]) -> Floats:
        """[N] penalties, given the candidates as proposed and as fitted."""
        ...


@dataclass(frozen=True)
class TrustRegion:
    """trust_factor · KL( p(y|ĥ, π) ‖ p(y|ĥ, π^n) ), output layer only: a step size (released code, not the paper).

    The expectation is under the present prompt π, so a candidate pays for probability that it takes away from labels
    that π believes in. The divergence is the mean over the batch's forward inputs, in nats; the incumbent's is zero
    unless its bias and temperature were fitted anew.

    Args:
        trust_factor: weight of the divergence.
        min_depth: fewest layers of a network that has a trust region; the released code has it with two layers only.
    """

    trust_factor: float
    min_depth: int = 1

    def __call__(self, candidates: Candidates, fitted: tuple[Layer, ...]) -> Floats:
        """[N]; zeros for hidden layers and for networks of fewer than `min_depth` layers."""
        if not candidates.is_output or self.trust_factor == 0 or candidates.depth < self.min_depth:
            return np.zeros(len(candidates.layers))
        layers = [layer.classifier for layer in fitted if layer.classifier is not None]
        incumbent = candidates.layers[0].classifier
        if len(layers) != len(fitted) or incumbent is None:
            raise InputError(
                "the trust region compares label distributions and needs a ChoiceLayer on top",
                where="inference.trust_factor",
                got=self.trust_factor,
                fix="trust_factor=0",
            )
        inputs = candidates.trace.inputs(candidates.position)
        scores = score_pairs(candidates.layers, inputs, [incumbent.names[0]] * len(inputs))
        features = scores.features
        if features is None:
            raise InputError("the output layer returned no label scores", where="inference.trust_factor")
        old = incumbent.readout.log_probs(features[0])
        changed = [layer.readout.log_probs(f) for layer, f in zip(layers, features, strict=True)]
        divergences = np.stack([kl_divergence(old, rows) for rows in changed])
        finite = comparable(np.isfinite(divergences)) & candidates.counted
        if not finite.any():
            return np.zeros(len(layers))
        return self.trust_factor * _known(divergences[:, finite].mean(axis=1))


@dataclass(frozen=True)
class Exploration:
    """λ_t · (1/B) Σ_{i: ŷ_i ≠ y_i} log p(ĥ_i | x_i, π^n), hidden layers only.

    Subtracted from the score it rewards prompts under which the texts that led astray are unlikely. As in the released
    code the sum over the wrong examples is divided by all B of the batch, so that the reward weighs as much against
    the objective, a mean over B, as there are errors. Examples that do not count or cannot be scored are not in B.
    λ_t falls linearly from `weight` to zero over `total_steps`, or stays at `weight` where it is not annealed.
    `burn_in` is as in `score_pairs`.
    """

    weight: float
    total_steps: int
    convention: Convention
    annealed: bool = True
    burn_in: float = 0.0

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise InputError("total_steps must be 1 or more", where="exploration", got=self.total_steps)

    def at(self, step: int) -> float:
        """λ_t = weight · max(0, 1 − t / total_steps) where annealed, else weight."""
        return self.weight * max(0.0, 1.0 - step / self.total_steps) if self.annealed else self.weight

    def __call__(self, candidates: Candidates, fitted: tuple[Layer, ...]) -> Floats:
        """[N]; zeros for the output layer and where everything was right."""
        strength = self.at(candidates.step)
        wrong = np.flatnonzero(~candidates.correct & candidates.counted)
        if candidates.is_output or strength == 0 or not len(wrong):
            return np.zeros(len(candidates.layers))
        inputs = candidates.trace.inputs(candidates.position)
        outputs = candidates.trace.outputs(candidates.position)
        texts = [outputs[i] for i in wrong]
        scores = score_pairs(candidates.layers, [inputs[i] for i in wrong], texts, self.burn_in)
        usable = comparable(scores.usable)
        if not usable.any():
            return np.zeros(len(candidates.layers))
        size = np.count_nonzero(candidates.counted) - np.count_nonzero(~usable)
        sums = np.ascontiguousarray(scores.by(self.convention)[:, usable]).sum(axis=1)
        return strength * _known(sums / size)


def _known(means: Floats) -> Floats:
    """A candidate that cannot be scored at all has no penalty: it has no score either."""
    return np.where(np.isfinite(means), means, 0.0)


@dataclass(frozen=True, eq=False)
class LayerInfo:
    """One M-step: the candidates, their scores and the winner.

    Attributes:
        position: the layer, 0-based.
        proposals: [N] candidates; the incumbent first.
        layers: [N] the same as layers, with fitted output numbers.
        objective: [N] mean objective, NaN where nothing could be scored.
        penalties: [N] what was taken off.
        scores: [N] objective − penalties.
        winner: index of the winner; 0 keeps the incumbent.
        dropped: screened-out proposals by reason.
        used: [B + E] the examples that the scores are a mean of: of the batch, then of earlier steps.
        missing: [B + E] examples that should have been used but could not be scored.
        stopped: [N] where a candidate left the race, None for those that stayed; empty without a race.
        share: pairs that were scored, as a part of all pairs of all candidates.
        branch: of parallel layers, which one, 0-based.
        row: the number of layers before this one, those side by side counted one by one.
    """

    position: int
    proposals: tuple[Proposal, ...]
    layers: tuple[Layer, ...]
    objective: Floats
    penalties: Floats
    scores: Floats
    winner: int
    dropped: dict[str, int]
    used: npt.NDArray[np.bool_]
    missing: npt.NDArray[np.bool_]
    stopped: tuple[Stopped | None, ...] = ()
    share: float = 1.0
    branch: int = 0
    row: int = 0

    def runners_up(self, num: int) -> tuple[Layer, ...]:
        """The `num` best candidates beside the winner, best first; none that left the race or has no score."""
        stayed = [stopped is None for stopped in self.stopped] or [True] * len(self.layers)
        finite = np.isfinite(self.scores)
        best = [int(i) for i in np.argsort(-self.scores, kind="stable") if i != self.winner and finite[i] and stayed[i]]
        return tuple(self.layers[i] for i in best[:num])


@dataclass(frozen=True)
class MStep:
    """The choices of an M-step; calling it improves one layer.

    Args:
        proposal: q(π), where candidates come from.
        num_prompts: N, proposals per layer and step.
        hidden_objective: judges candidates of hidden layers.
        output_objective: judges candidates of the last layer.
        penalties: subtracted from the objective.
        select: picks the winner.
        layer_steps: repetitions per layer; 0 freezes a layer. One number for all, or one each.
        max_prompt_tokens: instructions longer than this and than the present one are dropped, in tokens.
        longest: the longest x that the network is to read; candidates that leave no room for it are dropped.
        constraints: what a candidate must be besides.
    """

    proposal: PromptProposal
    num_prompts: int
    hidden_objective: Objective
    output_objective: Objective
    penalties: tuple[Penalty, ...] = ()
    select: Selector = field(default_factory=Best)
    layer_steps: int | tuple[int, ...] = 1
    max_prompt_tokens: int = 256
    longest: str = ""
    constraints: tuple[Constraint, ...] = ()

    def __call__(
        self,
        key: Key,
        layer: PromptedLayer,
        incumbent: Candidates,
        feedback: Feedback,
        remembered: tuple[Prompt, ...],
        tried: tuple[Prompt, ...] = (),
    ) -> tuple[PromptedLayer, tuple[LayerInfo, ...]]:
        """The improved layer and one `LayerInfo` per repetition (none for a frozen layer).

        Args:
            key: randomness of the step.
            layer: the present layer.
            incumbent: the same as the only candidate, with the posterior it is judged under.
            feedback: what the proposals learn from.
            remembered: the memory's prompts of this layer; they are candidates too.
            tried: prompts that a person wants tried, likewise.
        """
        seen = [*feedback.inputs, *incumbent.pairs.inputs]
        h = max((item.h for item in seen), key=len, default="") if incumbent.position else self.longest
        seen.append(LayerInput(self.longest, h))
        infos: list[LayerInfo] = []
        for repeat in range(self.repeats(incumbent.position, incumbent.depth)):
            branch = ("branch", incumbent.branch) if incumbent.beside is not None else ()
            address = key.child("prompts", incumbent.position, repeat, *branch)
            memory, _ = screen([Proposal(prompt, "memory") for prompt in remembered], layer, self.max_prompt_tokens)
            informed = replace(feedback, memory=tuple(proposal.prompt for proposal in memory))
            drawn = self.proposal(address, layer, informed, self.num_prompts)
            asked = [Proposal(prompt, "human") for prompt in tried]
            kept, dropped = screen(
                [*asked, *memory, *drawn], layer, self.max_prompt_tokens, seen, self.constraints, incumbent.row
            )
            kept = _leave_judges(kept, layer, incumbent, dropped)
            proposals = (Proposal(layer.prompt, "incumbent"), *kept)
            candidates = replace(
                incumbent,
                key=address,
                layers=(layer, *(layer.with_prompt(p.prompt) for p in kept)),
                counted=incumbent.counted & _unseen(proposals, incumbent),
            )
            info = self._choose(candidates, proposals, dict(dropped))
            infos.append(info)
            layer = info.layers[info.winner].prompted or layer
        return layer, tuple(infos)

    def repeats(self, position: int, depth: int) -> int:
        """How often the layer at `position` is improved per step; 0 for a frozen one."""
        if isinstance(self.layer_steps, int):
            return self.layer_steps
        if len(self.layer_steps) != depth:
            raise InputError(
                "one number of steps per layer is needed",
                where="inference.layer_steps",
                got=self.layer_steps,
                expected=f"{depth} numbers",
            )
        return self.layer_steps[position]

    def _choose(self, candidates: Candidates, proposals: tuple[Proposal, ...], dropped: dict[str, int]) -> LayerInfo:
        objective = self.output_objective if candidates.is_output else self.hidden_objective
        scored = objective(candidates)
        penalties = np.sum([p(candidates, scored.layers) for p in self.penalties], axis=0) + np.zeros(len(proposals))
        scores = scored.scores - penalties
        return LayerInfo(
            position=candidates.position,
            branch=candidates.branch,
            row=candidates.row,
            proposals=proposals,
            layers=scored.layers,
            objective=scored.scores,
            penalties=penalties,
            scores=scores,
            winner=self.select(scores, scored.per_example),
            dropped=dropped,
            used=scored.used,
            missing=candidates.counted & ~scored.used,
            stopped=scored.stopped,
            share=scored.share,
        )


def _leave_judges(
    proposals: list[Proposal], layer: PromptedLayer, candidates: Candidates, dropped: Counter[str]
) -> list[Proposal]:
    """Drop the proposals whose demonstrations would leave less than a quarter of the batch to judge."""
    kept: list[Proposal] = []
    shown = {d.x for d in layer.prompt.demonstrations}
    for proposal in proposals:
        more = shown | {d.x for d in proposal.prompt.demonstrations}
        judges = sum(x not in more for x in candidates.trace.x)
        if more != shown and 4 * judges < len(candidates.trace):
            dropped["shows the batch"] += 1
            continue
        shown = more
        kept.append(proposal)
    return kept


def _unseen(proposals: tuple[Proposal, ...], candidates: Candidates) -> npt.NDArray[np.bool_]:
    """[B] examples that no candidate shows among its demonstrations: only those may judge."""
    shown = {d.x for proposal in proposals for d in proposal.prompt.demonstrations}
    return np.array([x not in shown for x in candidates.trace.x], dtype=np.bool_)
