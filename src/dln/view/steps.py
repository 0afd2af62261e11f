"""The steps of a run: parameters over time, and per step the candidates, the winner and the hidden texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dln.nn.prompt import Prompt
from dln.nn.readout import LabelEvidence, readout_from_state
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
    "choices",
    "final_network",
    "history",
    "members",
    "parameters_of",
    "particles",
    "steps",
]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a layer: its prompt, and bias (nats) and temperature of an output layer."""

    prompt: Prompt
    bias: tuple[float | None, ...] | None
    temperature: float | None


@dataclass(frozen=True, slots=True)
class Moment:
    """The parameters of all layers at a point of the run."""

    name: str
    layers: tuple[Parameters, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the final network.

    Attributes:
        number: 1 for the layer that reads x.
        kind: "language" or "choice".
        model: name of its model.
        fingerprint: of its model.
        template: name and version.
        residual: whether it reads x beside the text of the layer below.
        labels: canonical names of a choice layer's labels.
        parameters: the trained parameters.
        initial: the initial prompt.
        evidence: the words that speak for and against each label, where its readout reads words.
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
    evidence: tuple[LabelEvidence, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerChange:
    """The change of a layer's prompt and temperature."""

    number: int
    prompt: PromptDifference
    temperature: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Change:
    """The layers whose prompts changed between two moments."""

    name: str
    layers: tuple[LayerChange, ...]


def history(events: Sequence[Event]) -> tuple[Moment, ...]:
    """Return the initial network, the network after each step and each backtracking, and the result if there is one."""
    first = Moment("the initial network", parameters_of(started_of(events).network))
    at_step = {0: first.layers}
    moments = [first]
    for event in events:
        if isinstance(event, StepDone):
            at_step[event.step] = parameters_of(event.parameters)
            moments.append(Moment(f"step {event.step}", at_step[event.step]))
        elif isinstance(event, Backtracked) and event.to_step in at_step:
            name = f"backtracked to step {event.to_step} after step {event.step}"
            moments.append(Moment(name, at_step[event.to_step]))
        elif isinstance(event, Finished):
            moments.append(Moment(f"final prompts (selected at step {event.best_step})", parameters_of(event.network)))
    return tuple(moments)


def final_network(events: Sequence[Event]) -> tuple[str, tuple[Layer, ...]]:
    """Return the name of the last moment and its layers: the result, or the newest state of a run without one."""
    moments = history(events)
    finished = of_kind(events, Finished)
    # only a result carries its layout; steps carry parameters of the initial layout
    layout = plain(layers_of(finished[-1].network if finished else started_of(events).network))
    learned = zip(layout, moments[-1].layers, moments[0].layers, strict=True)
    return moments[-1].name, tuple(_layer(i, data, now, then) for i, (data, now, then) in enumerate(learned, 1))


def changes(moments: Sequence[Moment]) -> tuple[Change, ...]:
    """Return the differences between consecutive moments in which a prompt changed."""
    found: list[Change] = []
    for old, new in pairwise(moments):
        layers = tuple(
            LayerChange(i, prompt_difference(before.prompt, after.prompt), (before.temperature, after.temperature))
            for i, (before, after) in enumerate(zip(old.layers, new.layers, strict=True), 1)
            if before.prompt != after.prompt
        )
        found += [Change(new.name, layers)] if layers else []
    return tuple(found)


def parameters_of(data: dict[str, Any]) -> tuple[Parameters, ...]:
    """Return the parameters in a network file or a `state_dict`, first layer first."""
    found: list[Parameters] = []
    for i, layer in enumerate(layers_of(data)):
        own: dict[str, Any] = plain(layer)
        values: dict[str, Any] = {
            **own,
            **(own.get("readout") or {}),
        }  # version 0.1 wrote bias and temperature beside the prompt
        bias: list[float | None] | None = values.get("bias")
        found.append(
            Parameters(
                prompt=Prompt.from_json(values.get("prompt", ""), f"events: layer {i}"),
                bias=None if bias is None else tuple(finite(value) for value in bias),
                temperature=finite(values.get("temperature")),
            )
        )
    return tuple(found)


def _layer(number: int, data: dict[str, Any], now: Parameters, then: Parameters) -> Layer:
    known = data.get("template")
    template = None if known is None else Template.from_json(known, f"events: layer {number - 1}")
    labels = tuple(label.split("|")[0] for label in data.get("labels") or ())
    readout = None if not data.get("readout") else readout_from_state(data["readout"], f"events: layer {number - 1}")
    return Layer(
        number=number,
        kind=str(data.get("kind", "")),
        model=str(data.get("model", "")),
        fingerprint=str(data.get("fingerprint", "")),
        template="" if template is None else f"{template.name}@{template.version}",
        residual=template is not None and template.residual,
        labels=labels,
        parameters=now,
        initial=then.prompt,
        evidence=() if readout is None else readout.evidence(labels),
    )


@dataclass(frozen=True, slots=True)
class Member:
    """A network of an ensemble.

    Attributes:
        number: 1 for the best by validation.
        weight: its weight in the ensemble.
        bar: its weight relative to the largest.
        step: the step it was selected at.
        score: its validation score; None if unknown.
        layers: the parameters of its layers, first layer first.
    """

    number: int
    weight: float | None
    bar: float
    step: int
    score: float | None
    layers: tuple[Parameters, ...]


def members(events: Sequence[Event]) -> tuple[Member, ...]:
    """Return the networks of the final ensemble, the best first; empty for a single network or an unfinished run."""
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
    """A candidate of an M-step; `bar` is its score scaled to 0 … 1 over the candidates.

    A candidate that was stopped early has no rank.
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
    """An M-step of a layer.

    Attributes:
        layer: 1 for the layer that reads x.
        round: number of this M-step among those of the layer in this step.
        rounds: number of M-steps of the layer in this step.
        candidates: the candidates shown, best first.
        left_out: number of candidates not shown.
        why: the reason of the choice, in a sentence.
        changed: whether the incumbent was replaced.
        examples: number of examples that the scores average over.
        dropped: dropped proposals by reason, most frequent first.
        share: fraction of all (candidate, example) pairs that were scored.
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
    """A hidden text of an example with its log-probabilities and its posterior weight."""

    text: str
    source: str
    alpha: float | None
    beta: float | None
    weight: float | None
    heaviest: bool


@dataclass(frozen=True, slots=True)
class Hidden:
    """The particles of a level."""

    level: int
    forward: str
    particles: tuple[Particle, ...]
    ess: float | None


@dataclass(frozen=True, slots=True)
class Explained:
    """An example of the batch with its hidden levels, first level first."""

    example: ExampleRecord
    levels: tuple[Hidden, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A training step."""

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
    """Return all steps in order."""
    validations = {event.step: event for event in of_kind(events, Validated)}
    backtracks = {event.step: event.to_step for event in of_kind(events, Backtracked)}
    return tuple(
        Step(
            event=event,
            choices=choices(event.layers, limits),
            explained=_explained(event, limits),
            validation=validations.get(event.step),
            back_to=backtracks.get(event.step),
        )
        for event in of_kind(events, StepDone)
    )


def choices(records: Sequence[LayerRecord], limits: Limits) -> tuple[Choice, ...]:
    """Return the M-steps of a step in order, with their candidates ranked."""
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
    """Best first; ties in the order of proposing, candidates without a score last and without a rank."""
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
    """A few examples with hidden texts, wrong ones first: they show best what the posterior would change."""
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
    return Hidden(record.level, record.forward, particles(record), finite(record.ess))


def particles(record: HiddenRecord) -> tuple[Particle, ...]:
    """Return the hidden texts of an example at a level."""
    weights = [finite(weight) for weight in record.weights]
    top = max((weight for weight in weights if weight is not None), default=None)
    rows = zip(record.texts, record.sources, record.alpha, record.beta, weights, strict=True)
    return tuple(
        Particle(text, source, finite(alpha), finite(beta), weight, weight is not None and weight == top)
        for text, source, alpha, beta, weight in rows
    )
