"""What happened in each step: candidates by rank, why the winner won, and the hidden texts behind it.

The network's parameters through a run: one moment after the start, each step and each way back.

The networks that answer together, as a report shows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dln.nn.prompt import Prompt
from dln.nn.template import Template
from dln.train.events import (
    Backtracked,
    Event,
    ExampleRecord,
    Finished,
    HiddenRecord,
    LayerRecord,
    StepDone,
    StoppedRecord,
    Validated,
)
from dln.train.run import of_kind
from dln.view.format import Limits, PromptDifference, finite, prompt_difference, why_chosen
from dln.view.summary import layers_of, started_of
from dln.view.text import plain

__all__ = [
    "Candidate",
    "Change",
    "Choice",
    "Explained",
    "Hidden",
    "Layer",
    "LayerChange",
    "Member",
    "Moment",
    "Parameters",
    "Particle",
    "Step",
    "changes",
    "final_network",
    "history",
    "members",
    "parameters_of",
    "steps",
]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What one layer has learned: π, and the output layer's b (nats) and T."""

    prompt: Prompt
    bias: tuple[float | None, ...] | None
    temperature: float | None


@dataclass(frozen=True, slots=True)
class Moment:
    """The parameters at one time, and a name for it."""

    name: str
    layers: tuple[Parameters, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a network, as a report shows it.

    Attributes:
        number: 1 for the layer that reads x.
        kind: "language" or "choice".
        model: name of its model.
        fingerprint: of its model.
        template: name and version.
        residual: whether it sees x beside the text below.
        labels: of a choice layer, without other wordings.
        parameters: what it has learned.
        initial: the prompt it began with.
    """

    number: int
    kind: str
    model: str
    fingerprint: str
    template: str
    residual: bool
    labels: tuple[str, ...]
    parameters: Parameters
    initial: Prompt


@dataclass(frozen=True, slots=True)
class LayerChange:
    """How one layer's parameters changed."""

    number: int
    prompt: PromptDifference
    temperature: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Change:
    """The layers whose prompts changed between two moments."""

    name: str
    layers: tuple[LayerChange, ...]


def history(events: Sequence[Event]) -> tuple[Moment, ...]:
    """All moments in order, the result last if the run has one."""
    started = started_of(events)
    first = Moment("the initial network", parameters_of(started.network))
    at_step = {0: first.layers}
    moments = [first]
    for event in events:
        if isinstance(event, StepDone):
            at_step[event.step] = parameters_of(event.parameters)
            moments.append(Moment(f"step {event.step}", at_step[event.step]))
        elif isinstance(event, Backtracked) and event.to_step in at_step:
            moments.append(Moment(f"back to step {event.to_step} after step {event.step}", at_step[event.to_step]))
        elif isinstance(event, Finished):
            moments.append(Moment(f"the result, from step {event.best_step}", parameters_of(event.network)))
    return tuple(moments)


def final_network(events: Sequence[Event]) -> tuple[str, tuple[Layer, ...]]:
    """Which moment that is, and the layers: the result, or the newest state of a run without one."""
    moments = history(events)
    started = started_of(events)
    finished = of_kind(events, Finished)
    # only a result carries its layout; steps carry parameters of the layout at the start
    layout = plain(layers_of(finished[-1].network if finished else started.network))
    learned = zip(layout, moments[-1].layers, moments[0].layers, strict=True)
    return moments[-1].name, tuple(_layer(i, data, now, then) for i, (data, now, then) in enumerate(learned, 1))


def changes(moments: Sequence[Moment]) -> tuple[Change, ...]:
    """The differences between neighbouring moments, without those that changed no prompt."""
    found = [_change(new.name, old, new) for old, new in pairwise(moments)]
    return tuple(change for change in found if change.layers)


def _change(name: str, old: Moment, new: Moment) -> Change:
    layers = tuple(
        LayerChange(i, prompt_difference(before.prompt, after.prompt), (before.temperature, after.temperature))
        for i, (before, after) in enumerate(zip(old.layers, new.layers, strict=True), 1)
        if before.prompt != after.prompt
    )
    return Change(name, layers)


def parameters_of(data: dict[str, Any]) -> tuple[Parameters, ...]:
    """What the layers of a network file or of a `state_dict` have learned, first layer first."""
    return tuple(_parameter(plain(layer), i) for i, layer in enumerate(layers_of(data)))


def _parameter(layer: dict[str, Any], position: int) -> Parameters:
    bias: list[float | None] | None = layer.get("bias")
    return Parameters(
        prompt=Prompt.from_json(layer.get("prompt", ""), f"events: layer {position}"),
        bias=None if bias is None else tuple(finite(value) for value in bias),
        temperature=finite(layer.get("temperature")),
    )


def _layer(number: int, data: dict[str, Any], now: Parameters, then: Parameters) -> Layer:
    template = Template.from_json(data["template"], f"events: layer {number - 1}")
    return Layer(
        number=number,
        kind=str(data.get("kind", "")),
        model=str(data.get("model", "")),
        fingerprint=str(data.get("fingerprint", "")),
        template=f"{template.name}@{template.version}",
        residual=template.residual,
        labels=tuple(label.split("|")[0] for label in data.get("labels") or ()),
        parameters=now,
        initial=then.prompt,
    )


@dataclass(frozen=True, slots=True)
class Member:
    """One of the networks.

    Attributes:
        number: 1 for the best by validation.
        weight: its part of the answer.
        bar: its weight as a part of the largest.
        step: the step it is from.
        score: its validation score; None where it is not known.
        layers: what each layer has learned, first layer first.
    """

    number: int
    weight: float | None
    bar: float
    step: int
    score: float | None
    layers: tuple[Parameters, ...]


def members(events: Sequence[Event]) -> tuple[Member, ...]:
    """Those that answer together, the best first; none where one network answers, or the run has no result yet."""
    finished = of_kind(events, Finished)
    records = finished[-1].members if finished else []
    weights = [finite(record.weight) for record in records]
    largest = max((weight for weight in weights if weight is not None), default=0.0) or 1.0
    return tuple(
        Member(number, weight, (weight or 0.0) / largest, r.step, finite(r.score), parameters_of(r.parameters))
        for number, (r, weight) in enumerate(zip(records, weights, strict=True), 1)
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate of an M-step; `bar` is its score between the lowest (0) and the highest (1) of them.

    `stopped` says where it left the race; such a candidate has no rank.
    """

    rank: int | None
    prompt: Prompt
    source: str
    detail: str
    objective: float | None
    penalty: float | None
    score: float | None
    bar: float | None
    winner: bool
    incumbent: bool
    stopped: StoppedRecord | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One M-step of one layer, best candidate first.

    Attributes:
        layer: 1 for the layer that reads x.
        round: counts the M-steps of this layer in this step.
        rounds: how many there are.
        candidates: those that are shown.
        left_out: how many are not.
        why: one sentence.
        changed: whether the incumbent lost.
        examples: how many examples the scores are a mean of.
        dropped: screened-out proposals by reason, most frequent first.
        share: pairs that were scored, as a part of all pairs of all candidates.
    """

    layer: int
    round: int
    rounds: int
    candidates: tuple[Candidate, ...]
    left_out: int
    why: str
    changed: bool
    examples: int
    dropped: tuple[tuple[str, int], ...]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Particle:
    """One hidden text of an example, with its two log-probabilities and its weight."""

    text: str
    source: str
    alpha: float | None
    beta: float | None
    weight: float | None
    heaviest: bool


@dataclass(frozen=True, slots=True)
class Hidden:
    """The particles of one level."""

    level: int
    forward: str
    particles: tuple[Particle, ...]
    ess: float | None


@dataclass(frozen=True, slots=True)
class Explained:
    """One example of the batch with its hidden levels, first level first."""

    example: ExampleRecord
    levels: tuple[Hidden, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it is shown."""

    event: StepDone
    choices: tuple[Choice, ...]
    explained: tuple[Explained, ...]
    validation: Validated | None
    back_to: int | None

    @property
    def changed(self) -> tuple[int, ...]:
        """The layers whose prompt changed."""
        return tuple(sorted({choice.layer for choice in self.choices if choice.changed}))


def steps(events: Sequence[Event], limits: Limits) -> tuple[Step, ...]:
    """All steps that hold, in order."""
    validations = {event.step: event for event in of_kind(events, Validated)}
    backtracks = {event.step: event.to_step for event in of_kind(events, Backtracked)}
    return tuple(
        Step(
            event=event,
            choices=_choices(event.layers, limits),
            explained=_explained(event, limits),
            validation=validations.get(event.step),
            back_to=backtracks.get(event.step),
        )
        for event in of_kind(events, StepDone)
    )


def _choices(records: Sequence[LayerRecord], limits: Limits) -> tuple[Choice, ...]:
    rounds = Counter(record.layer for record in records)
    seen: Counter[int] = Counter()
    found: list[Choice] = []
    for record in records:
        seen[record.layer] += 1
        ranked = _ranked(record)
        shown = [c for i, c in enumerate(ranked) if i < limits.candidates or c.winner or c.incumbent]
        found.append(
            Choice(
                layer=record.layer + 1,
                round=seen[record.layer],
                rounds=rounds[record.layer],
                candidates=tuple(shown),
                left_out=len(ranked) - len(shown),
                why=why_chosen(record),
                changed=record.winner != 0,
                examples=record.examples,
                dropped=tuple(Counter(record.dropped).most_common()),
                share=record.share,
            )
        )
    return tuple(found)


def _ranked(record: LayerRecord) -> list[Candidate]:
    """Best first; equal scores in the order of proposing, those without a score at the end and without a rank."""
    scores = [finite(candidate.score) for candidate in record.candidates]
    known = [score for score in scores if score is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    order = sorted(range(len(scores)), key=lambda i: (scores[i] is None, -(scores[i] or 0.0), i))
    ranked: list[Candidate] = []
    for rank, i in enumerate(order, 1):
        candidate, score = record.candidates[i], scores[i]
        bar = None if score is None else 1.0 if high == low else (score - low) / (high - low)
        ranked.append(
            Candidate(
                rank=None if score is None else rank,
                prompt=Prompt.from_json(plain(candidate.prompt), f"events: candidate {i}"),
                source=candidate.source,
                detail=candidate.detail,
                objective=finite(candidate.objective),
                penalty=finite(candidate.penalty),
                score=score,
                bar=bar,
                winner=i == record.winner,
                incumbent=i == 0,
                stopped=candidate.stopped,
            )
        )
    return ranked


def _explained(event: StepDone, limits: Limits) -> tuple[Explained, ...]:
    """A few examples with hidden texts, wrong ones first: there one sees what the posterior wants changed."""
    by_example: dict[int, list[HiddenRecord]] = {}
    for record in event.hidden:
        by_example.setdefault(record.example, []).append(record)
    known = [i for i in by_example if 0 <= i < len(event.examples)]
    order = sorted(known, key=lambda i: (event.examples[i].correct, i))[: limits.explained]
    return tuple(
        Explained(event.examples[i], tuple(_hidden(r) for r in sorted(by_example[i], key=lambda r: r.level)))
        for i in order
    )


def _hidden(record: HiddenRecord) -> Hidden:
    weights = [finite(weight) for weight in record.weights]
    top = max((weight for weight in weights if weight is not None), default=None)
    rows = zip(record.texts, record.sources, record.alpha, record.beta, weights, strict=True)
    particles = [
        Particle(text, source, finite(alpha), finite(beta), weight, weight is not None and weight == top)
        for text, source, alpha, beta, weight in rows
    ]
    return Hidden(record.level, record.forward, tuple(particles), finite(record.ess))
