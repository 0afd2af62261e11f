"""Training data for fine-tuning, from the events of a run: what each layer should write, and which of two texts.

A run keeps the hidden texts that it drew for the examples of its batches, with their posterior weights, and the answers
of the network. Contexts are those of the network before the step that drew them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dln.errors import InputError
from dln.lm.base import LanguageModel
from dln.nn import LayerInput, Sequential
from dln.nn.ensemble import best_of
from dln.nn.saving import load_state_dict, network_from_json
from dln.train.events import Event, ExampleRecord, HiddenRecord, Started, StepDone
from dln.train.run import current, of_kind

__all__ = ["preference_records", "sft_records"]

Load = Callable[[str], LanguageModel]


def sft_records(events: Sequence[Event], load: Load) -> Iterator[dict[str, Any]]:
    """One record per example of a step: `x`, `hidden`, `y`, and a conversation per layer.

    `hidden` has, level by level, the texts with their posterior weights. `layers` has, per layer, `messages` whose
    last turn is the text of largest weight (of the last layer: y), in the form that fine-tuning tools read.

    Args:
        events: of the run.
        load: from the name of a model to a model; it is not asked.

    Raises:
        InputError: the events have no step.
    """
    for step, example, levels, wanted, contexts in _examples(events, load):
        yield {
            "step": step.step,
            "x": example.x,
            "hidden": [[{"text": t, "weight": w} for t, w in texts] for texts in levels],
            "y": example.y,
            "layers": [
                {"messages": [_turn("user", context), _turn("assistant", text)]}
                for context, text in zip(contexts, wanted, strict=True)
            ],
        }


def preference_records(events: Sequence[Event], load: Load) -> Iterator[dict[str, Any]]:
    """Pairs of texts for one context: `prompt`, `chosen`, `rejected`, with `layer`, `step` and the weights.

    Of a hidden layer the text of largest against that of smallest posterior weight, where they differ in both; of the
    last layer y against the network's answer, where that was wrong.

    Args:
        events: of the run.
        load: from the name of a model to a model; it is not asked.

    Raises:
        InputError: the events have no step.
    """
    for step, example, levels, _, contexts in _examples(events, load):
        for number, (texts, context) in enumerate(zip(levels, contexts, strict=False), 1):
            (best, high), (worst, low) = texts[0], texts[-1]
            if best != worst and high > low:
                pair = {"prompt": context, "chosen": best, "rejected": worst}
                yield {**pair, "layer": number, "step": step.step, "weights": [high, low]}
        if not example.correct and example.prediction.strip() != example.y.strip():
            pair = {"prompt": contexts[-1], "chosen": example.y, "rejected": example.prediction}
            yield {**pair, "layer": len(contexts), "step": step.step, "weights": None}


def _examples(
    events: Sequence[Event], load: Load
) -> Iterator[tuple[StepDone, ExampleRecord, list[list[tuple[str, float]]], list[str], list[str]]]:
    """Each example of each step, its hidden texts by weight, what each layer is to write, and what it reads."""
    for step, network in _steps(events, load):
        for i, example in enumerate(step.examples):
            levels = [_by_weight(record) for record in step.hidden if record.example == i]
            wanted = [*(texts[0][0] for texts in levels), example.y]
            yield step, example, levels, wanted, _contexts(network, example.x, wanted)


def _steps(events: Sequence[Event], load: Load) -> Iterator[tuple[StepDone, Sequential]]:
    """The steps, each with the network before it."""
    told = current(list(events))
    started, steps = of_kind(told, Started), of_kind(told, StepDone)
    if not started or not steps:
        raise InputError(
            "this run has no step, and no training data comes of it",
            where="events",
            fix="train at least one step: dln train … --steps 1",
        )
    network = best_of(network_from_json(started[0].network, load, "events"))
    for step in steps:
        yield step, network
        network = load_state_dict(network, step.parameters)


def _by_weight(record: HiddenRecord) -> list[tuple[str, float]]:
    """Distinct texts with the sum of their weights, heaviest first."""
    weights: dict[str, float] = {}
    for text, weight in zip(record.texts, record.weights, strict=True):
        weights[text] = weights.get(text, 0.0) + (weight or 0.0)
    return sorted(weights.items(), key=lambda item: -item[1])


def _contexts(network: Sequential, x: str, texts: Sequence[str]) -> list[str]:
    """What each layer reads, if the layers below wrote `texts`."""
    read = [x, *texts[:-1]]
    layers = network.prompted
    if len(layers) != len(read):
        raise InputError(
            "training data comes of networks whose layers all have a prompt",
            where="network",
            got=f"{len(layers)} prompts in {len(network)} layers",
        )
    return [layer.contexts([LayerInput(x, h)])[0] for layer, h in zip(layers, read, strict=True)]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
