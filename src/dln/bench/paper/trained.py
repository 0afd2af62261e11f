"""The networks of the table: one, two and three layers, end to end or layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dln.bench.paper.method import Learnt, Setup
from dln.errors import InputError
from dln.keys import Key
from dln.nn import LayerInput, Prompt, Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble, best_of, members_of
from dln.train import fit, resolve_options
from dln.train.layout import standard_network, standard_templates
from dln.train.room import check_room

__all__ = ["LayerByLayer", "Trained"]


@dataclass(frozen=True)
class Trained:
    """A network trained end to end.

    Args:
        depth: L.
        name: in the table.
        preset: of the training options.
        changes: to the options of the preset.
        template: of the last layer; empty is the preset's.
        what: this in a sentence; empty says depth and preset.
    """

    depth: int
    name: str
    preset: str = "default"
    after: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    template: str = ""
    what: str = ""

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        layers = "one layer" if self.depth == 1 else f"{self.depth} layers, end to end"
        return self.what or f"{layers}, preset {self.preset}"

    def __call__(self, setup: Setup) -> Learnt:
        """Train on train, choose by dev."""
        templates = list(standard_templates(self.depth, setup.task, self.preset))
        if self.template:
            templates[-1] = self.template
        network = standard_network(setup.task, setup.lm, self.depth, preset=self.preset, templates=templates)
        return trained(setup, network, self.preset, dict(self.changes))


@dataclass(frozen=True)
class LayerByLayer:
    """Two layers whose second one begins as the trained single layer (paper, Table 9).

    Args:
        name: in the table.
        tune_last: whether the second layer is trained on, or stays as it is.
        start: the method whose layer it begins with.
        preset: of the training options.
    """

    name: str
    tune_last: bool
    start: str = "dln-1"
    preset: str = "default"

    @property
    def after(self) -> tuple[str, ...]:
        """The single layer must be there first."""
        return (self.start,)

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"two layers, the second one from {self.start}" + (" and trained on" if self.tune_last else " and fixed")

    def __call__(self, setup: Setup) -> Learnt:
        """Train the first layer, with the second one fixed or not."""
        single = setup.known[self.start].network
        if single is None:
            raise InputError("this method needs a trained layer to start from", where=self.name, got=self.start)
        network = standard_network(setup.task, setup.lm, 2, preset=self.preset)
        last = self._second(setup, network, best_of(single).layers[-1].prompt)
        network = network.with_prompts([network.layers[0].prompt, last])
        steps = {} if self.tune_last else {"inference": {"layer_steps": [1, 0]}}
        learnt = trained(setup, network, self.preset, steps)
        return replace(learnt, notes=(*learnt.notes, f"training tokens without those of {self.start}"))

    def _second(self, setup: Setup, network: Sequential, prompt: Prompt) -> Prompt:
        """The single layer's prompt, its examples with the thoughts that the first layer has about them."""
        shown = prompt.demonstrations
        if not shown:
            return prompt
        first = network.layers[0]
        thoughts = first.sample(
            Key(setup.seed).child("thoughts"), [LayerInput(d.x, d.x) for d in shown], temperature=0.0
        )
        return prompt.with_demonstrations(
            tuple(replace(d, h=thought.text) for d, thought in zip(shown, thoughts, strict=True))
        )


def trained(setup: Setup, network: Sequential, preset: str, changes: dict[str, Any]) -> Learnt:
    """`network` after `dln.fit`; with a token budget as many steps as it lasts for."""
    options = resolve_options(preset, dict(setup.options), changes, {"seed": setup.seed})
    if setup.budget is not None and options.steps:
        options = options.model_copy(update={"steps": 10_000, "patience": None})
    unseen = setup.readable if setup.readable is not None else setup.task.dev
    check_room(network, setup.task.train, setup.task.dev, unseen)
    result = fit(
        network,
        setup.task.train,
        setup.task.dev,
        options=options,
        run_dir=None if setup.workspace is None else setup.workspace / "run",
        metric=setup.task.metric,
        task=setup.task.name,
        readable=unseen.inputs,
    )
    return Learnt(
        result.predictor,
        tuple(str(prompt) for member in members_of(result.predictor) for prompt in member.parameters()),
        None if math.isnan(result.score) else result.score,
        (f"{result.steps} steps, best after {result.best_step}, ended by {result.reason}", *_weights(result.predictor)),
    )


def _weights(predictor: AnyNetwork) -> tuple[str, ...]:
    if not isinstance(predictor, Ensemble):
        return ()
    return (f"{len(predictor.members)} prompts, weights {', '.join(f'{weight:.3f}' for weight in predictor.weights)}",)
