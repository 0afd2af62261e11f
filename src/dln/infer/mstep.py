"""The M-step of one layer: propose prompts, score them under the posterior, keep the best.

π ← argmax_n  s^n − penalties^n ,   n = 0 is the present prompt
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dln.errors import InputError
from dln.infer.candidates import Candidates, Stopped
from dln.infer.feedback import Feedback
from dln.infer.objective import Objective
from dln.infer.prompts import PromptProposal, Proposal, screen
from dln.infer.regularize import Penalty
from dln.infer.select import Best, Selector
from dln.keys import Key
from dln.nn.layer import LayerInput
from dln.nn.prompt import Prompt
from dln.nn.sequential import AnyLayer
from dln.numerics import Floats

__all__ = ["LayerInfo", "MStep"]


@dataclass(frozen=True, eq=False)
class LayerInfo:
    """One M-step: who stood for election, with which scores, and who won.

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
    """

    position: int
    proposals: tuple[Proposal, ...]
    layers: tuple[AnyLayer, ...]
    objective: Floats
    penalties: Floats
    scores: Floats
    winner: int
    dropped: dict[str, int]
    used: npt.NDArray[np.bool_]
    missing: npt.NDArray[np.bool_]
    stopped: tuple[Stopped | None, ...] = ()
    share: float = 1.0

    def runners_up(self, num: int) -> tuple[AnyLayer, ...]:
        """The `num` best candidates beside the winner, best first; nobody who left the race or has no score."""
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

    def __call__(
        self, key: Key, situation: Candidates, feedback: Feedback, remembered: tuple[Prompt, ...]
    ) -> tuple[AnyLayer, tuple[LayerInfo, ...]]:
        """The improved layer and one `LayerInfo` per repetition (none for a frozen layer).

        Args:
            key: randomness of the step.
            situation: the layer as the only candidate, with the posterior it is judged under.
            feedback: what the proposals learn from.
            remembered: the memory's prompts of this layer; they are candidates too.
        """
        layer = situation.layers[0]
        seen = [*feedback.inputs, *situation.pairs.inputs]
        h = max((item.h for item in seen), key=len, default="") if situation.position else self.longest
        seen.append(LayerInput(self.longest, h))
        infos: list[LayerInfo] = []
        for repeat in range(self.repeats(situation.position, situation.depth)):
            address = key.child("prompts", situation.position, repeat)
            memory, _ = screen([Proposal(prompt, "memory") for prompt in remembered], layer, self.max_prompt_tokens)
            informed = replace(feedback, memory=tuple(proposal.prompt for proposal in memory))
            drawn = self.proposal(address, layer, informed, self.num_prompts)
            kept, dropped = screen([*memory, *drawn], layer, self.max_prompt_tokens, seen)
            kept = _leave_judges(kept, layer, situation, dropped)
            proposals = (Proposal(layer.prompt, "incumbent"), *kept)
            candidates = replace(
                situation,
                key=address,
                layers=(layer, *(layer.with_prompt(p.prompt) for p in kept)),
                counted=situation.counted & _unseen(proposals, situation),
            )
            info = self._choose(candidates, proposals, dict(dropped))
            infos.append(info)
            layer = info.layers[info.winner]
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
    proposals: list[Proposal], layer: AnyLayer, situation: Candidates, dropped: Counter[str]
) -> list[Proposal]:
    """Drop the proposals whose demonstrations would leave less than a quarter of the batch to judge."""
    kept: list[Proposal] = []
    shown = {d.x for d in layer.prompt.demonstrations}
    for proposal in proposals:
        more = shown | {d.x for d in proposal.prompt.demonstrations}
        judges = sum(x not in more for x in situation.trace.x)
        if more != shown and 4 * judges < len(situation.trace):
            dropped["shows the batch"] += 1
            continue
        shown = more
        kept.append(proposal)
    return kept


def _unseen(proposals: tuple[Proposal, ...], situation: Candidates) -> npt.NDArray[np.bool_]:
    """[B] examples that no candidate shows among its demonstrations: only those may judge."""
    shown = {d.x for proposal in proposals for d in proposal.prompt.demonstrations}
    return np.array([x not in shown for x in situation.trace.x], dtype=np.bool_)
