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

from dln.arguments import Count, Size, checked
from dln.errors import InputError
from dln.lm.base import Sampling
from dln.nn import Demonstration, LanguageLayer, Prompt, Sequential

__all__ = ["COPY", "copyable", "deepened"]

COPY = "Copy the input."
"""First instruction of a layer that copies."""

_TEMPLATE = "reread"
_LOOKED_AT = 100
"""Inputs among which the shown ones are sought."""
_MOSTLY = 0.9
"""Part of the inputs that a layer must be able to copy to begin as a copy."""
_LONGEST = 300
"""Characters. A copy is drawn token by token, K times per example; a longer one costs more than a thought."""
_WORD = re.compile(r"\w+")
_ROOM = 1.25
"""Longest answer over longest input: what a layer learns to write may be longer than what it reads."""


@checked
def deepened(
    network: Sequential, inputs: Sequence[str], shown: Size = 6, max_tokens: Count | None = None
) -> Sequential:
    """`network` on top of a layer that copies its input, with the model of its first layer.

    Args:
        network: one layer or more; their prompts and fitted output layer stay as they are.
        inputs: of the train set; `shown` of the first hundred, with few words in common, are shown as copied.
        shown: worked examples of copying.
        max_tokens: longest text that the new layer writes; default a quarter more than the longest of `inputs`.

    Returns:
        A network of L + 1 layers, which says what `network` says wherever its first layer copies exactly.

    Raises:
        InputError: there are no inputs, or one has several lines: the copy would end after the first.
    """
    first = network.layers[0]
    texts = [text for text in dict.fromkeys(map(str.strip, inputs)) if text]
    several = [text for text in texts if "\n" in text]
    if several or not texts:
        raise InputError(
            "a layer that copies needs inputs of one line",
            where="deepened, argument 'inputs'",
            expected="texts of one line",
            got=f"an input of several lines: {several[0][:80]!r}" if several else "no inputs",
            fix="begin with a network whose layers think: dln.Sequential, or `dln train --layers 2 --hidden think`",
        )
    examples = tuple(Demonstration(text, text, text) for text in _unlike(texts[:_LOOKED_AT], shown))
    room = max_tokens or max(16, round(_ROOM * max(map(first.lm.count_tokens, texts))))
    copying = LanguageLayer(first.lm, _TEMPLATE, Prompt(COPY, examples), Sampling(max_tokens=room))
    return Sequential((copying, *network.layers))


def copyable(inputs: Sequence[str]) -> list[str]:
    """The inputs that a layer can copy: of one line, with which its answer ends, and short; none if these are too few.

    Too few are less than nine of ten. Of an input of several lines a layer that copies passes on one.
    """
    found = [text for text in inputs if "\n" not in text.strip() and len(text) <= _LONGEST]
    return found if len(found) >= _MOSTLY * len(inputs) else []


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
