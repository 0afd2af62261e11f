"""What happened in each step: candidates by rank, why the winner won, and the hidden texts behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dln.nn.prompt import Prompt
from dln.train.event_log import of_kind
from dln.train.events import Backtracked, Event, StepDone, Validated
from dln.train.records import ExampleRecord, HiddenRecord, LayerRecord, StoppedRecord
from dln.view.explanations import why_chosen
from dln.view.limits import Limits
from dln.view.numbers import finite
from dln.view.text import plain

__all__ = ["Candidate", "Choice", "Explained", "Hidden", "Particle", "Step", "steps"]


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
