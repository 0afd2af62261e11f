"""Deeper without a change: a first layer that copies its input goes below a network that is trained already.

A deeper network that starts as the function the shallower one is cannot begin worse than it, and what its new layer
learns is gain (Net2DeeperNet: Chen, Goodfellow and Shlens, ICLR 2016). Language layers copy by example: the first
prompt of the new layer shows inputs that come out as they went in. A small model is led astray where a shown input
begins like the one it is to copy, and writes that one instead. So it reads its input twice, and what it is shown is
as unlike as can be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dln.errors import InputError
from dln.lm.base import Sampling
from dln.nn import Demonstration, LanguageLayer, Prompt, Sequential

__all__ = ["COPY", "copyable", "deepened"]

COPY = "Copy the input."
"""First instruction of a layer that copies."""

_TEMPLATE = "reread"
_LOOKED_AT = 100
"""Inputs among which the shown ones are sought."""
_WORD = re.compile(r"\w+")
_ROOM = 1.25
"""Longest answer over longest input: what a layer learns to write may be longer than what it reads."""


def deepened(network: Sequential, inputs: Sequence[str], shown: int = 6) -> Sequential:
    """`network` on top of a layer that copies its input, with the model of its first layer.

    Args:
        network: one layer or more; their prompts and fitted output layer stay as they are.
        inputs: of the train set; `shown` of the first hundred, with few words in common, are shown as copied, and
            the longest of all says how many tokens a copy may have.
        shown: worked examples of copying.

    Returns:
        A network of L + 1 layers, which says what `network` says wherever its first layer copies exactly.

    Raises:
        InputError: there are no inputs, or one has several lines: the copy would end after the first.
    """
    first = network.layers[0]
    texts = [text for text in dict.fromkeys(map(str.strip, inputs)) if text]
    several = [text for text in texts if not copyable(text)]
    if several or not texts:
        raise InputError(
            "a layer that copies needs inputs of one line",
            where="deepened",
            got=f"an input of several lines: {several[0][:80]!r}" if several else "no inputs",
            fix="begin with a network whose layers think: dln.Sequential, or `dln train --layers 2`",
        )
    examples = tuple(Demonstration(text, text, text) for text in _unlike(texts[:_LOOKED_AT], shown))
    longest = max(map(first.lm.count_tokens, texts))
    sampling = Sampling(max_tokens=max(16, round(_ROOM * longest)))
    copying = LanguageLayer(first.lm, _TEMPLATE, Prompt(COPY, examples), sampling)
    return Sequential((copying, *network.layers))


def copyable(text: str) -> bool:
    """Whether a layer can copy it: its answer ends with the line."""
    return "\n" not in text.strip()


def _unlike(texts: Sequence[str], size: int) -> list[str]:
    """The first text, then each time the one with the smallest part of its words in those chosen already."""
    words = {text: frozenset(_WORD.findall(text.lower())) for text in texts}
    chosen: list[str] = []
    known: frozenset[str] = frozenset()
    left = list(texts)
    while left and len(chosen) < size:
        best = min(left, key=lambda text: len(words[text] & known) / max(1, len(words[text])))
        left.remove(best)
        chosen.append(best)
        known |= words[best]
    return chosen
