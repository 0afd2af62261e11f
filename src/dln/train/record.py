"""From a step's `Info` to its event."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dln.infer import vi
from dln.infer.candidates import Stopped
from dln.infer.mstep import LayerInfo
from dln.infer.scoring_modes import ScoringModes
from dln.nn import ChoiceLayer
from dln.train.events import StepDone
from dln.train.records import (
    CandidateRecord,
    ExampleRecord,
    HiddenRecord,
    LayerRecord,
    ScoringModesRecord,
    StoppedRecord,
)

__all__ = ["scoring_modes_record", "step_event"]


def step_event(state: vi.State, info: vi.Info, targets: Sequence[str]) -> StepDone:
    """The record of the step that led to `state`."""
    return StepDone(
        step=state.step,
        elbo=_number(info.elbo),
        accuracy=info.accuracy,
        excluded=info.excluded,
        examples=[
            ExampleRecord(x=x, y=y, prediction=p, correct=c)
            for x, y, p, c in zip(info.trace.x, targets, info.trace.predictions, info.correct, strict=True)
        ],
        hidden=_hidden(info),
        layers=[_layer(layer) for layer in info.layers],
        parameters=state.network.state_dict(),
        scoring_modes=scoring_modes_record(info.scoring_modes),
    )


def scoring_modes_record(modes: ScoringModes) -> ScoringModesRecord:
    """The scoring modes, for events and run.yaml."""
    return ScoringModesRecord(weights=modes.weights, hidden=modes.hidden, output=modes.output, lost=list(modes.lost))


def _hidden(info: vi.Info) -> list[HiddenRecord]:
    return [
        HiddenRecord(
            level=number,
            example=i,
            forward=info.trace.hidden[number - 1][i].text,
            texts=[completion.text for completion in level.proposals[i]],
            token_ids=[None if c.token_ids is None else list(c.token_ids) for c in level.proposals[i]],
            sources=list(level.sources[i]),
            alpha=[_number(a) for a in level.alpha[i]],
            beta=[_number(b) for b in level.beta[i]],
            weights=[_number(w) for w in level.weights[i]],
            ess=info.posterior.levels[number][i].ess,
        )
        for number, level in enumerate(info.posterior.hidden, 1)
        for i in range(len(info.trace))
    ]


def _layer(info: LayerInfo) -> LayerRecord:
    return LayerRecord(
        layer=info.position,
        candidates=[
            CandidateRecord(
                prompt=proposal.prompt.to_json(),
                source=proposal.source,
                detail=proposal.detail,
                objective=_number(objective),
                penalty=float(penalty),
                score=_number(score),
                bias=layer.bias.tolist() if isinstance(layer, ChoiceLayer) else None,
                temperature=layer.temperature if isinstance(layer, ChoiceLayer) else None,
                stopped=None if stopped is None else _stopped(stopped),
            )
            for proposal, layer, objective, penalty, score, stopped in zip(
                info.proposals,
                info.layers,
                info.objective,
                info.penalties,
                info.scores,
                info.stopped or (None,) * len(info.proposals),
                strict=True,
            )
        ],
        winner=info.winner,
        examples=int(info.used.sum()),
        dropped=info.dropped,
        share=info.share,
    )


def _stopped(stopped: Stopped) -> StoppedRecord:
    return StoppedRecord(round=stopped.round, examples=stopped.examples, score=_number(stopped.score))


def _number(value: float) -> float | None:
    """None for what is not a finite number, so that it is never read as one."""
    return float(value) if np.isfinite(value) else None
