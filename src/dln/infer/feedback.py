"""What flows backward: for each layer, what it saw, what it wrote, and what it should have written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dln.infer.memory import Reservoir
from dln.infer.posterior import Posterior
from dln.keys import Key
from dln.lm.base import text_of
from dln.nn.layer import LayerInput
from dln.nn.prompt import Demonstration
from dln.nn.sequential import Trace

__all__ = ["Feedback", "layer_feedback", "worked_examples"]


@dataclass(frozen=True)
class Feedback:
    """What a layer saw, wrote and should have written, per example of the batch.

    Attributes:
        inputs: [B] what the layer saw.
        outputs: [B] its own texts.
        wanted: [B] the target, or the heaviest hidden text for a hidden layer.
        correct: [B] whether the network's prediction was right.
        pool: worked examples of this layer that are not scored in this step.
    """

    inputs: tuple[LayerInput, ...]
    outputs: tuple[str, ...]
    wanted: tuple[str, ...]
    correct: tuple[bool, ...]
    pool: tuple[Demonstration, ...] = ()


def layer_feedback(
    key: Key,
    position: int,
    trace: Trace,
    posterior: Posterior,
    correct: Sequence[bool],
    pool: Sequence[tuple[str, str]],
    reservoir: Reservoir,
) -> Feedback:
    """The triples {h below, ĥ, h*} of one layer, with worked examples that are not scored in this step.

    Args:
        key: randomness of the step.
        position: the layer, 0-based.
        trace: the forward pass.
        posterior: the inferred hidden texts.
        correct: [B] whether each prediction was right.
        pool: labelled (input, output) pairs outside the batch, for a network of one layer.
        reservoir: worked examples of earlier batches, for a deep network.
    """
    items = trace.inputs(position)
    wanted = [text_of(target) for target in posterior.mode(position + 1)]
    if len(trace.hidden) == 1:
        examples = tuple(Demonstration(x, x, y) for x, y in pool)
    else:
        examples = reservoir.outside(position, trace.x)
    if not examples:
        # nothing from elsewhere yet: half of the batch is shown and not scored, the other half judges
        order = key.child("pool", position).generator().permutation(len(trace))
        half = [int(i) for i in order[: len(trace) // 2]]
        examples = tuple(Demonstration(items[i].x, items[i].h, wanted[i]) for i in half if wanted[i])
    outputs = tuple(completion.text for completion in trace.outputs(position))
    return Feedback(tuple(items), outputs, tuple(wanted), tuple(correct), examples)


def worked_examples(trace: Trace, posterior: Posterior) -> list[tuple[Demonstration, ...]]:
    """Per layer of a deep network, the batch as examples of what the layer should write."""
    return [
        tuple(
            Demonstration(item.x, item.h, text_of(target))
            for item, target, scored in zip(
                trace.inputs(position), posterior.mode(position + 1), posterior.scored, strict=True
            )
            if scored and text_of(target)
        )
        for position in range(len(trace.hidden))
    ]
