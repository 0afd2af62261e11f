"""How long the requests of a network's layers are, measured on a few examples: what estimates are made from."""

from __future__ import annotations

from dln.data import Dataset
from dln.nn import AnyLayer, ChoiceLayer, Demonstration, LanguageLayer, LayerInput, Prompt, Sequential
from dln.train.estimate import LayerSize

__all__ = ["layer_sizes"]

SHOWN = 20
"""Examples whose lengths are measured."""


def layer_sizes(network: Sequential, dataset: Dataset, written: float | None = None) -> list[LayerSize]:
    """Mean sizes of each layer's requests, on examples spread over the data set.

    Args:
        network: with its initial prompts.
        dataset: whose lengths are measured.
        written: mean tokens of a hidden text or free answer; default half of the longest.
    """
    if written is None:
        writers = [layer for layer in network.layers if isinstance(layer, LanguageLayer)]
        written = max((layer.sampling.max_tokens for layer in writers), default=0) / 2
    stride = max(1, len(dataset) // SHOWN)
    shown = [dataset[i] for i in range(0, len(dataset), stride)][:SHOWN]
    text = " ".join(["word"] * max(1, round(written)))
    sizes: list[LayerSize] = []
    for position, layer in enumerate(network.layers):
        rows = [LayerInput(e.input, text if position else e.input) for e in shown]
        last = position == len(network) - 1
        outputs = [e.target if last else text for e in shown]
        worked = tuple(Demonstration(r.x, r.h, o) for r, o in zip(rows, outputs, strict=True))
        plain = _mean(layer, layer.contexts(rows))
        with_one = _mean(
            layer,
            [
                layer.with_prompt(Prompt(layer.prompt.instruction, (d,))).contexts([row])[0]
                for d, row in zip(worked, rows, strict=True)
            ],
        )
        bare = _mean(layer, layer.with_prompt(Prompt(layer.prompt.instruction)).contexts(rows))
        choice = isinstance(layer, ChoiceLayer)
        words = [w for label in layer.labels for w in label.split("|")] if isinstance(layer, ChoiceLayer) else []
        sizes.append(
            LayerSize(
                context=plain,
                demonstration=with_one - bare,
                written=written if not choice else _mean(layer, outputs),
                labels=sum(layer.lm.count_tokens(layer.target_prefix + word) for word in words) if choice else None,
                prompt=layer.lm.count_tokens(layer.prompt.instruction),
            )
        )
    return sizes


def _mean(layer: AnyLayer, texts: list[str]) -> float:
    return sum(map(layer.lm.count_tokens, texts)) / len(texts)
