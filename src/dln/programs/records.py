"""The events of a program's run: those of any run, so that reports and listings read it.

A parameter has the place of a layer: its text is the prompt, its candidates are those of an M-step. A hidden stage has
the place of a hidden level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dln.nn.prompt import Prompt
from dln.programs.posterior import StagePosterior
from dln.programs.proposals import Candidate
from dln.programs.step import FULL, ProgramState, RaceResult, StepInfo
from dln.train.evaluate import interval
from dln.train.events import (
    CandidateRecord,
    ExampleRecord,
    Finished,
    HiddenRecord,
    LayerRecord,
    ResultRecord,
    ScoringModesRecord,
    Started,
    StepDone,
    StoppedRecord,
    Validated,
)
from dln.train.run import versions

__all__ = ["finished_event", "program_network", "started_event", "step_event", "validated_event"]


def program_network(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The parameters in the layout of a network file, one layer each."""
    return {
        "schema": 1,
        "layers": [
            {"kind": "parameter", "name": name, "prompt": Prompt(text).to_json()} for name, text in parameters.items()
        ],
    }


def started_event(
    meta: Mapping[str, Any], run_dir: str | Path | None, train_size: int, dev_size: int, steps: int
) -> Started:
    """The run begins."""
    return Started(
        run="" if run_dir is None else Path(run_dir).name,
        task=meta["task"],
        labels=None,
        train_size=train_size,
        dev_size=dev_size,
        steps=steps,
        network=meta["network"],
        options=meta["options"],
        versions=versions(),
        data_hash=meta["data_hash"],
    )


def step_event(
    state: ProgramState,
    info: StepInfo,
    before: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    usage: Mapping[str, float],
    seconds: float,
) -> StepDone:
    """The record of the step that led to `state`, from the parameters `before` and (input, wanted output) pairs."""
    scores = [outcome.score for outcome in info.forward]
    known = [score for score in scores if np.isfinite(score)]
    scored = [posterior.scored for _, posterior in info.posteriors]
    weights = None
    if scored:
        how = "log-probabilities and rewards" if all(scored) else "rewards"
        weights = f"{how}, τ = {info.temperature:.3g}"
    return StepDone(
        step=state.step,
        elbo=None,
        accuracy=float(np.mean(known)) if known else 0.0,
        excluded=len(scores) - len(known),
        examples=[
            ExampleRecord(x=x, y=y, prediction=outcome.output, correct=bool(outcome.score >= FULL))
            for (x, y), outcome in zip(pairs, info.forward, strict=True)
        ],
        hidden=[_hidden(b, posterior, info) for b, posterior in info.posteriors],
        layers=[] if info.race is None else _layers(info.race, before, info),
        parameters=program_network(dict(state.parameters)),
        usage=dict(usage),
        seconds=seconds,
        scoring_modes=ScoringModesRecord(weights=weights, hidden="rewards", output="rewards"),
    )


def _hidden(place: int, posterior: StagePosterior, info: StepInfo) -> HiddenRecord:
    hidden = [stage.name for stage in posterior.forward.rollout.stages if stage.parameters]
    stages = [outcome.rollout.find(posterior.stage.name) for outcome in posterior.outcomes]
    return HiddenRecord(
        level=1 + hidden.index(posterior.stage.name),
        example=place,
        forward=posterior.stage.text,
        texts=list(posterior.particles.values),
        token_ids=[None] * len(posterior.particles),
        sources=["forward", *["proposal"] * (len(posterior.particles) - 1)],
        alpha=[None if stage is None else stage.log_prob for stage in stages],
        beta=[float(reward / info.temperature) for reward in posterior.rewards],
        weights=[float(weight) for weight in posterior.particles.weights],
        ess=posterior.particles.ess,
    )


def _layers(race: RaceResult, before: Mapping[str, str], info: StepInfo) -> list[LayerRecord]:
    """One record per parameter that had candidates; candidate 0 is the incumbent."""
    found: list[LayerRecord] = []
    used = int(np.isfinite(race.per_example[race.winner]).sum())
    for place, (name, text) in enumerate(before.items()):
        mine = [0, *(n for n, c in enumerate(race.candidates) if n and c.changes[0][0] == name)]
        if len(mine) == 1:
            continue
        found.append(
            LayerRecord(
                layer=place,
                candidates=[_candidate(race, n, text) for n in mine],
                winner=mine.index(race.winner) if race.winner in mine else 0,
                examples=used,
                dropped=dict(info.dropped.get(name, {})),
                share=float(np.isfinite(race.per_example[mine]).mean()),
            )
        )
    return found


def _candidate(race: RaceResult, n: int, incumbent: str) -> CandidateRecord:
    candidate: Candidate = race.candidates[n]
    score = None if np.isnan(race.scores[n]) else float(race.scores[n])
    stopped = race.stopped[n]
    return CandidateRecord(
        prompt=Prompt(candidate.changes[0][1] if candidate.changes else incumbent).to_json(),
        source=candidate.source,
        detail=candidate.detail,
        objective=score,
        penalty=0.0,
        score=score,
        stopped=None
        if stopped is None
        else StoppedRecord(
            round=stopped.round,
            examples=stopped.examples,
            score=stopped.score if np.isfinite(stopped.score) else None,
        ),
    )


def validated_event(
    step: int, scores: Sequence[float], unscored: int, best: bool, usage: Mapping[str, float], seconds: float
) -> Validated:
    """The mean reward on the dev examples."""
    mean = interval(scores)
    return Validated(
        step=step,
        score=mean.mean,
        select_by="reward",
        best=best,
        result=ResultRecord(n=len(scores), accuracy=mean.mean, low=mean.low, high=mean.high, unscored=unscored),
        usage=dict(usage),
        seconds=seconds,
    )


def finished_event(
    step: int, reason: str, best_step: int, score: float, network: Mapping[str, Any], usage: Mapping[str, float]
) -> Finished:
    """Training ended."""
    return Finished(
        step=step,
        reason=reason,
        best_step=best_step,
        score=score if np.isfinite(score) else None,
        network=dict(network),
        usage=dict(usage),
    )
