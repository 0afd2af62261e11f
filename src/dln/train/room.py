"""Whether an input, the prompt and the output together fit a model's context: asked before any model works."""

from __future__ import annotations

from collections.abc import Iterable

from dln.data import Example
from dln.errors import ContextLengthError
from dln.nn import AnyLayer, ChoiceLayer, LayerInput, Sequential

__all__ = ["check_room"]

_FRAME = 64
"""Tokens left for the chat frame around a text, which `count_tokens` does not count."""


def check_room(network: Sequential, *datasets: Iterable[Example]) -> None:
    """Refuse data that some layer could not even read under its present prompt.

    Raises:
        ContextLengthError: naming the first example whose input or label does not fit, and how many more.
    """
    examples = [example for dataset in datasets for example in dataset]
    for position, layer in enumerate(network.layers):
        limit = layer.lm.capabilities.context_length
        if limit is None:
            continue
        if isinstance(layer, ChoiceLayer):
            _check_labels(layer, examples, limit)
        below = network.layers[position - 1] if position else None
        reserve = _output_tokens(layer) + _FRAME + (0 if below is None else _output_tokens(below))
        long = [(example, n) for example in examples if (n := _tokens(layer, example, position, limit - reserve))]
        if long:
            example, tokens = long[0]
            raise ContextLengthError(
                "this input is too long for the model's context"
                + (f", as are {len(long) - 1} more" if len(long) > 1 else ""),
                where=example.id or example.input[:40],
                got=f"{tokens} tokens with the prompt of layer {position + 1}, and {reserve} kept for what is written",
                expected=f"at most {limit} tokens altogether",
                fix="shorten or remove the row, or use a model with a longer context",
            )


def _output_tokens(layer: AnyLayer) -> int:
    """The most tokens that the layer's output may have."""
    if isinstance(layer, ChoiceLayer):
        return max(layer.lm.count_tokens(word) for label in layer.labels for word in label.split("|"))
    return layer.sampling.max_tokens


def _tokens(layer: AnyLayer, example: Example, position: int, room: int) -> int:
    """Tokens of the layer's context if they are more than `room`, else 0."""
    (context,) = layer.contexts([LayerInput(example.input, "" if position else example.input)])
    if len(context.encode("utf-8", errors="replace")) <= room:  # a token has at least one byte
        return 0
    tokens = layer.lm.count_tokens(context)
    return tokens if tokens > room else 0


def _check_labels(layer: ChoiceLayer, examples: list[Example], limit: int) -> None:
    """A label of half a context is a text in the wrong column."""
    for name in layer.names:
        if len(name.encode("utf-8", errors="replace")) > limit // 2 and layer.lm.count_tokens(name) > limit // 2:
            place = next((example.id for example in examples if example.target == name), None)
            raise ContextLengthError(
                "this label is too long for the model's context",
                where=place or "labels",
                got=f"{layer.lm.count_tokens(name)} tokens: {name[:40]!r}…",
                expected=f"labels of a few words; the context has {limit} tokens",
                fix="check that the right column is the target, or remove the row",
            )
