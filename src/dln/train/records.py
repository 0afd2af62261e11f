"""The parts that a run's events are made of: examples, particles, candidates, results."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "CandidateRecord",
    "ComparedRecord",
    "EstimateRecord",
    "ExampleRecord",
    "HiddenRecord",
    "LayerRecord",
    "MemberRecord",
    "Record",
    "ResultRecord",
    "ScoringModesRecord",
    "StoppedRecord",
]


class Record(BaseModel):
    """A frozen record; unknown fields are an error. NaN and infinities are written as null."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="null")


class EstimateRecord(Record):
    """What a run was expected to use at most.

    Attributes:
        calls: requests to models.
        prompt_tokens: tokens read.
        completion_tokens: tokens drawn.
        usd: US dollars; null where a price is not known.
        seconds: time; null where nobody could say.
        tokens_by: how tokens were counted.
    """

    calls: float
    prompt_tokens: float
    completion_tokens: float
    usd: float | None = None
    seconds: float | None = None
    tokens_by: str = ""


class ExampleRecord(Record):
    """One example of a batch: input, wanted output, prediction, and whether that was right."""

    x: str
    y: str
    prediction: str
    correct: bool


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
        unscored: examples without a usable score; they count as wrong.
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


class ComparedRecord(Record):
    """One example under both networks; `before` is null where only one was evaluated."""

    x: str
    y: str
    before: str | None
    after: str
    before_correct: bool | None
    after_correct: bool
    hidden: list[str] = Field(default_factory=list)
    probability: float | None = None
