"""The events of a run: one typed record per line of `events.jsonl`, which is the truth about the run.

Everything else (panels, reports, listings) is rebuilt from these records; see `dln.train.event_log`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from dln.train.records import (
    ComparedRecord,
    EstimateRecord,
    ExampleRecord,
    HiddenRecord,
    LayerRecord,
    MemberRecord,
    Record,
    ResultRecord,
    ScoringModesRecord,
)

__all__ = [
    "AnyEvent",
    "Backtracked",
    "Evaluated",
    "Event",
    "Finished",
    "Interrupted",
    "Resumed",
    "Started",
    "StepDone",
    "Validated",
]


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
        accuracy: of the batch, before the M-step.
        excluded: examples without a usable score.
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
        select_by: what that is, "accuracy" or "log_likelihood".
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


class Finished(Event):
    """Training ended.

    Attributes:
        reason: "steps", "early stopping" or "budget".
        best_step: the step whose parameters are the result.
        score: their validation score, null without a dev set.
        network: the best network, as in a network file.
        members: where several networks answer together, all of them, the best one first; empty where `network`
            answers alone, and in events of older versions.
    """

    kind: Literal["finished"] = "finished"
    step: int
    reason: str
    best_step: int
    score: float | None
    network: dict[str, Any]
    members: list[MemberRecord] = Field(default_factory=list[MemberRecord])
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
    usage: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0


AnyEvent = Annotated[
    Started | StepDone | Validated | Backtracked | Interrupted | Resumed | Finished | Evaluated,
    Field(discriminator="kind"),
]
