"""The events of a run: one typed record per line of `events.jsonl`.

Everything else (panels, reports, listings) is rebuilt from these records; `dln.train.run` reads and writes them.
`step_event` makes the record of a training step from what the step returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from dln.infer import vi
from dln.infer.mstep import LayerInfo
from dln.infer.objective import Stopped
from dln.infer.scoring_modes import ScoringModes
from dln.nn.layers import Layer

__all__ = [
    "AnyEvent",
    "Backtracked",
    "BaselineRecord",
    "CandidateRecord",
    "ComparedRecord",
    "Controlled",
    "EstimateRecord",
    "Evaluated",
    "Event",
    "ExampleRecord",
    "Finished",
    "HiddenRecord",
    "Interrupted",
    "LayerRecord",
    "MemberRecord",
    "Record",
    "ResultRecord",
    "Resumed",
    "ScoringModesRecord",
    "Started",
    "StepDone",
    "StoppedRecord",
    "Validated",
    "scoring_modes_record",
    "step_event",
]


class Record(BaseModel):
    """A frozen record; unknown fields are an error. NaN and infinities are written as null."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="null")


class AmountsRecord(Record):
    """An estimated use of models.

    Attributes:
        calls: requests to models.
        prompt_tokens: tokens read.
        completion_tokens: tokens drawn.
        usd: US dollars; null where a price is not known.
        seconds: time; null where nobody could say.
    """

    calls: float
    prompt_tokens: float
    completion_tokens: float
    usd: float | None = None
    seconds: float | None = None


class EstimateRecord(AmountsRecord):
    """What a run was expected to use.

    Attributes:
        at_most: an upper bound; null in runs of version 0.1.
        tokens_by: how tokens were counted.
    """

    at_most: AmountsRecord | None = None
    tokens_by: str = ""


class ExampleRecord(Record):
    """One example of a batch: input, wanted output, prediction, and whether that was right.

    Attributes:
        reward: of the prediction by the metric; null where it gave none, and in events of older versions.
        feedback: what the metric said of the prediction.
    """

    x: str
    y: str
    prediction: str
    correct: bool
    reward: float | None = None
    feedback: str = ""


class HiddenRecord(Record):
    """The particles of one example at one hidden level (h_1 is level 1).

    Attributes:
        level: 1 … L-1.
        example: position in the batch.
        forward: ĥ, the text of the forward pass.
        texts: h^k.
        token_ids: the ids each was drawn as, null where the engine has none.
        sources: which proposal each comes from.
        alpha: log p(h^k | ĥ below, π), under the run's scoring convention, null where unusable.
        beta: log p(h* above | h^k, π above), likewise.
        weights: q^k; they sum to one.
        ess: effective sample size, equal texts counted as one.
        tau: τ where beta is R/τ of a reward R; null where it is a log-probability.
    """

    level: int
    example: int
    forward: str
    texts: list[str]
    token_ids: list[list[int] | None]
    sources: list[str]
    alpha: list[float | None]
    beta: list[float | None]
    weights: list[float | None]
    ess: float
    tau: float | None = None


class StoppedRecord(Record):
    """A candidate left the race after `round` (1 is the first), with this mean over `examples` examples."""

    round: int
    examples: int
    score: float | None


class CandidateRecord(Record):
    """One candidate prompt of an M-step (prompts as in network files).

    Attributes:
        prompt: instruction and demonstrations.
        source: which proposal it comes from.
        detail: of that proposal.
        objective: mean over the examples that counted, null where it was not scored on all of them.
        penalty: what was taken off.
        score: objective − penalty.
        bias: fitted with it, of an output layer over labels.
        temperature: likewise.
        stopped: where it left the race, null if it stayed or there was none.
    """

    prompt: dict[str, Any]
    source: str
    detail: str = ""
    objective: float | None
    penalty: float
    score: float | None
    bias: list[float] | None = None
    temperature: float | None = None
    stopped: StoppedRecord | None = None


class LayerRecord(Record):
    """One M-step: candidate 0 is the incumbent; `winner` is the position of the chosen one.

    Attributes:
        layer: 0-based position.
        examples: how many examples the scores are a mean of.
        dropped: screened-out proposals by reason.
        share: pairs that were scored, as a part of all pairs of all candidates; below 1 after a race.
    """

    layer: int
    candidates: list[CandidateRecord]
    winner: int
    examples: int
    dropped: dict[str, int]
    share: float = 1.0


class MemberRecord(Record):
    """One of the networks that answer together.

    Attributes:
        weight: q(π), its part of the answer; all of them sum to one.
        step: the step its parameters are from.
        score: their validation score, null where it is not known.
        parameters: its prompts, and the output layer's bias and temperature (`Sequential.state_dict`).
    """

    weight: float
    step: int
    score: float | None
    parameters: dict[str, Any]


class ScoringModesRecord(Record):
    """The scoring modes of a step.

    Attributes:
        weights: how hidden texts were weighed, null without hidden layers.
        hidden: how prompts of hidden layers were judged, likewise.
        output: how prompts of the output layer were judged.
        lost: what weaker scoring modes cost, in sentences.
    """

    weights: str | None
    hidden: str | None
    output: str
    lost: list[str] = Field(default_factory=list)


class ResultRecord(Record):
    """An evaluation in numbers.

    Attributes:
        n: examples.
        accuracy: mean metric.
        low: lower end of the 95 % interval.
        high: upper end.
        balanced_accuracy: mean of the per-class accuracies, null for free text.
        log_likelihood: mean log p(y|x) of the network, in nats, null for free text.
        label_mass: mean mass on all labels before normalising, null for free text.
        per_class: per label, {"n", "correct", "predicted"}.
        confusion: confusion[target][prediction] counts; predictions that are no label under "".
        unscored: examples that the network could not score; they count as wrong.
        metric: the metric's name.
        overall: value of a metric of all predictions together, with its bootstrap interval; null of other metrics.
        excluded: examples for which the metric gave no value; they are not counted.
        problems: why not, the first different reasons.
    """

    n: int
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float | None = None
    log_likelihood: float | None = None
    label_mass: float | None = None
    per_class: dict[str, dict[str, int]] = Field(default_factory=dict)
    confusion: dict[str, dict[str, int]] = Field(default_factory=dict)
    unscored: int = 0
    metric: str = "exact_match"
    overall: tuple[float, float, float] | None = None
    excluded: int = 0
    problems: list[str] = Field(default_factory=list)


class BaselineRecord(Record):
    """A baseline on the examples of an evaluation.

    Attributes:
        name: of the baseline.
        result: its evaluation.
        difference: accuracy of the trained network − baseline, with its 95 % interval.
        p_value: paired test of the trained network against the baseline.
    """

    name: str
    result: ResultRecord
    difference: tuple[float, float, float]
    p_value: float


class ComparedRecord(Record):
    """One example under both networks; `before` is null where only one was evaluated.

    Attributes:
        before_score: of the metric, null where it gave no value; likewise `after_score`.
        feedback: what the metric said of the answer after training.
    """

    x: str
    y: str
    before: str | None
    after: str
    before_correct: bool | None
    after_correct: bool
    hidden: list[str] = Field(default_factory=list)
    probability: float | None = None
    before_score: float | None = None
    after_score: float | None = None
    feedback: str = ""


class Event(Record):
    """What all events have.

    Attributes:
        time: seconds since 1970, when it was written. The only field that two equal runs differ in,
            beside `seconds` and `usage`.
    """

    time: float = 0.0


class Started(Event):
    """The run begins.

    Attributes:
        run: id of the run.
        task: name of the task.
        labels: label names, null for free text.
        train_size: examples to train on.
        dev_size: examples to select on.
        steps: planned steps.
        network: layout and initial prompts, as in a network file.
        options: resolved options.
        versions: of the program and of what it computes with.
        data_hash: SHA-256 of the data.
        estimate: what the run was expected to use, made before its first call; null where nobody made one.
        engines: by model name, what its server had shown that it can do.
    """

    kind: Literal["started"] = "started"
    run: str
    task: str
    labels: list[str] | None
    train_size: int
    dev_size: int
    steps: int
    network: dict[str, Any]
    options: dict[str, Any]
    versions: dict[str, str]
    data_hash: str
    estimate: EstimateRecord | None = None
    engines: dict[str, dict[str, Any]] = Field(default_factory=dict)


class StepDone(Event):
    """One update.

    Attributes:
        step: 1-based number.
        elbo: mean over the batch, in nats, before the M-step; null where it is not known.
        accuracy: of the batch, before the M-step: the mean reward.
        excluded: examples without a usable score.
        unrewarded: predictions for which the metric gave no value.
        examples: the batch.
        hidden: particles, per level and example.
        layers: M-steps.
        parameters: the network's parameters after the step (`Sequential.state_dict`).
        usage: calls, tokens and model seconds since the start of the run.
        seconds: wall-clock time of this step.
        scoring_modes: how texts and outputs were scored; null in events of older versions.
    """

    kind: Literal["step"] = "step"
    step: int
    elbo: float | None
    accuracy: float
    excluded: int
    unrewarded: int = 0
    examples: list[ExampleRecord]
    hidden: list[HiddenRecord]
    layers: list[LayerRecord]
    parameters: dict[str, Any]
    usage: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0
    scoring_modes: ScoringModesRecord | None = Field(None, validation_alias=AliasChoices("scoring_modes", "rungs"))


class Validated(Event):
    """The dev set was measured after `step` updates (step 0: the initial network).

    Attributes:
        score: what selection looks at (higher is better).
        select_by: what that is: "accuracy", "log_likelihood", or the name of a metric of all predictions together.
        best: whether this is the best so far.
    """

    kind: Literal["validation"] = "validation"
    step: int
    score: float
    select_by: str
    best: bool
    result: ResultRecord
    usage: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0


class Backtracked(Event):
    """No gain for `tolerance` validations: the best parameters were loaded again."""

    kind: Literal["backtracked"] = "backtracked"
    step: int
    to_step: int


class Controlled(Event):
    """What a person asked of the run (see `dln.train.control`), read after `step` updates.

    Attributes:
        request: line number in controls.jsonl.
        action: "prompt" made `text` a candidate of the next step; "like" and "dislike" are shown to the proposals from
            then on; "unknown" is a line that is no request.
        layer: 0-based number of the layer whose instruction `text` is.
        comment: why it is liked or disliked.
        refused: why it had no effect; empty where it had one.
    """

    kind: Literal["control"] = "control"
    step: int
    request: int
    action: Literal["pause", "resume", "stop", "prompt", "like", "dislike", "unknown"]
    layer: int | None = None
    text: str = ""
    comment: str = ""
    refused: str = ""


class Interrupted(Event):
    """The run stopped before its end and can be resumed.

    Attributes:
        usage: since the start of the run, with what the unfinished step has used; empty in events of older versions.
    """

    kind: Literal["interrupted"] = "interrupted"
    step: int
    reason: str
    usage: dict[str, float] = Field(default_factory=dict)


class Resumed(Event):
    """The run goes on from the checkpoint after `step` (−1: from the beginning); what followed is void."""

    kind: Literal["resumed"] = "resumed"
    step: int
    steps: int | None = None
    """Planned steps from here on; null in records of earlier versions."""


class Finished(Event):
    """Training ended.

    Attributes:
        reason: "steps", "nothing to gain", "early stopping", "stopper", "stopped" (by a person) or "budget".
        best_step: the step whose parameters are the result.
        score: their validation score, null without a dev set.
        network: the best network, as in a network file.
        members: where several networks answer together, all of them, the best one first; empty where `network`
            answers alone, and in events of older versions.
        bias: b of members that are a product of experts, in nats (see `dln.nn.Ensemble`); null of a mixture.
        copied: with private prompts, the runs of five words that instructions share with training inputs; else null.
    """

    kind: Literal["finished"] = "finished"
    step: int
    reason: str
    best_step: int
    score: float | None
    network: dict[str, Any]
    members: list[MemberRecord] = Field(default_factory=list[MemberRecord])
    bias: list[float] | None = None
    copied: list[str] | None = None
    usage: dict[str, float] = Field(default_factory=dict)


class Evaluated(Event):
    """A final evaluation, with the initial network on the same examples for comparison.

    Attributes:
        split: "test" or the name of a file.
        before: the initial network.
        after: the trained network.
        fixed: examples that were wrong before and are right now.
        broken: the other way round.
        p_value: exact McNemar test of the paired outcomes (Wilcoxon's where the metric is graded).
        difference: accuracy after − before, with its 95 % interval.
        examples: all of them, with both predictions.
        fitted: the initial prompts under an output layer fitted as the trained network's was: what bias
            and temperature alone give. None where nothing is fitted.
        fitted_p_value: the paired test of the trained network against that.
        members: how many networks `after` is, answering together.
        baselines: methods without training of prompts, fitted to the run's train and dev examples.
    """

    kind: Literal["evaluation"] = "evaluation"
    split: str
    before: ResultRecord | None
    after: ResultRecord
    fixed: int
    broken: int
    p_value: float | None
    difference: tuple[float, float, float] | None
    examples: list[ComparedRecord]
    fitted: ResultRecord | None = None
    fitted_p_value: float | None = None
    members: int = 1
    baselines: list[BaselineRecord] = Field(default_factory=list[BaselineRecord])
    usage: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0


AnyEvent = Annotated[
    Started | StepDone | Validated | Backtracked | Controlled | Interrupted | Resumed | Finished | Evaluated,
    Field(discriminator="kind"),
]


def step_event(state: vi.State, info: vi.Info, targets: Sequence[str]) -> StepDone:
    """The record of the step that led to `state`."""
    return StepDone(
        step=state.step,
        elbo=_number(info.elbo),
        accuracy=info.accuracy,
        excluded=info.excluded,
        unrewarded=info.unrewarded,
        examples=[
            ExampleRecord(x=x, y=y, prediction=p, correct=c, reward=_number(r.value), feedback=r.feedback)
            for x, y, p, c, r in zip(
                info.trace.x, targets, info.trace.predictions, info.correct, info.rewards, strict=True
            )
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
            tau=level.tau,
        )
        for number, level in enumerate(info.posterior.hidden, 1)
        for i in range(len(info.trace))
    ]


def _label_numbers(layer: Layer) -> dict[str, Any]:
    """Bias and temperature of a readout of the label words; the weights of a word readout are many and not recorded."""
    state = {} if layer.classifier is None else layer.classifier.readout.state()
    return {name: state[name] for name in ("bias", "temperature") if name in state}


def _layer(info: LayerInfo) -> LayerRecord:
    return LayerRecord(
        layer=info.row,
        candidates=[
            CandidateRecord(
                prompt=proposal.prompt.to_json(),
                source=proposal.source,
                detail=proposal.detail,
                objective=_number(objective),
                penalty=float(penalty),
                score=_number(score),
                **_label_numbers(layer),
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
