"""What flows backward: for each layer, what it saw, what it wrote, and what it should have written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dln.infer.memory import Reservoir
from dln.infer.posterior import Posterior
from dln.keys import Key
from dln.lm.base import text_of
from dln.nn.layer import LayerInput
from dln.nn.prompt import Demonstration, Prompt
from dln.nn.sequential import AnyLayer, Sequential, Trace

__all__ = ["Feedback", "labelled_examples", "layer_feedback", "worked_examples"]


@dataclass(frozen=True)
class Feedback:
    """What a layer saw, wrote and should have written, per example of the batch.

    Attributes:
        inputs: [B] what the layer saw.
        outputs: [B] its own texts.
        wanted: [B] the target, or the heaviest hidden text for a hidden layer.
        correct: [B] whether the network's prediction was right.
        pool: worked examples of this layer that are not scored in this step.
        memory: the prompts in memory of this layer, which rewrites may start from.
    """

    inputs: tuple[LayerInput, ...]
    outputs: tuple[str, ...]
    wanted: tuple[str, ...]
    correct: tuple[bool, ...]
    pool: tuple[Demonstration, ...] = ()
    memory: tuple[Prompt, ...] = ()


def layer_feedback(
    key: Key,
    position: int,
    trace: Trace,
    posterior: Posterior,
    correct: Sequence[bool],
    labelled: Sequence[Demonstration],
    reservoir: Reservoir,
) -> Feedback:
    """The triples {h below, ĥ, h*} of one layer, with worked examples that are not scored in this step.

    Args:
        key: randomness of the step.
        position: the layer, 0-based.
        trace: the forward pass.
        posterior: the inferred hidden texts.
        correct: [B] whether each prediction was right.
        labelled: examples outside the batch as the last layer sees them (see `labelled_examples`).
        reservoir: worked examples of earlier batches, for all but a last layer that has labelled ones.
    """
    items = trace.inputs(position)
    wanted = [text_of(target) for target in posterior.mode(position + 1)]
    last = position == len(trace.hidden) - 1
    examples = (tuple(labelled) if last else ()) or reservoir.outside(position, trace.x)
    if not examples:
        # nothing from elsewhere yet: half of the batch is shown and not scored, the other half judges
        order = key.child("pool", position).generator().permutation(len(trace))
        half = [int(i) for i in order[: len(trace) // 2]]
        examples = tuple(Demonstration(items[i].x, items[i].h, wanted[i]) for i in half if wanted[i])
    outputs = tuple(completion.text for completion in trace.outputs(position))
    return Feedback(tuple(items), outputs, tuple(wanted), tuple(correct), examples)


def labelled_examples(
    key: Key, below: Sequence[AnyLayer], pool: Sequence[tuple[str, str]], size: int
) -> tuple[Demonstration, ...]:
    """Labelled pairs as the layer above `below` sees them: (x, what `below` writes about x, y).

    With nothing below that text is x itself, and all of the pool is given. Otherwise `below` reads and writes,
    greedily as in a prediction, and so it does for `size` of the pool, drawn at random.
    """
    if not below:
        return tuple(Demonstration(x, x, y) for x, y in pool)
    order = key.child("labelled").generator().permutation(len(pool))[:size]
    chosen = [pool[int(i)] for i in order]
    if not chosen:
        return ()
    written = Sequential(below).sample(key.child("labelled"), [x for x, _ in chosen], temperature=0.0).predictions
    return tuple(Demonstration(x, h, y) for (x, y), h in zip(chosen, written, strict=True))


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
