"""The network's parameters through a run: one moment after the start, each step and each way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dln.nn.prompt import Prompt
from dln.nn.template import Template
from dln.train.event_log import of_kind
from dln.train.events import Backtracked, Event, Finished, StepDone
from dln.view.differences import PromptDifference, prompt_difference
from dln.view.numbers import finite
from dln.view.summary import layers_of, started_of
from dln.view.text import plain

__all__ = [
    "Change",
    "Layer",
    "LayerChange",
    "Moment",
    "Parameters",
    "changes",
    "final_network",
    "history",
    "parameters_of",
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
