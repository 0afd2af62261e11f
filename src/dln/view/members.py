"""The networks that answer together, as a report shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dln.train.event_log import of_kind
from dln.train.events import Event, Finished
from dln.view.history import Parameters, parameters_of
from dln.view.numbers import finite

__all__ = ["Member", "members"]


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
