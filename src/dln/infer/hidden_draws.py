"""Draws of hidden texts: what a proposal asks for, and drawing all of it at once.

A proposal says what is to be drawn, under which seed, and does not draw. So whatever several proposals want for all
examples of a batch is one request to a model: as many rows side by side as there are texts, and not a handful at a
time. A draw depends on its context and seed alone, and not on what it is drawn with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dln.lm.base import Completion
from dln.nn.layer import LanguageLayer

__all__ = ["HiddenAsk", "HiddenDraw", "Rows", "draw_together"]


@dataclass(frozen=True)
class HiddenDraw:
    """A proposed text, where it comes from, and log q of it, in nats (NaN where it is not known)."""

    completion: Completion
    source: str
    log_q: float

    @classmethod
    def of(cls, completion: Completion, source: str) -> HiddenDraw:
        """A draw with the density that the model drew it with."""
        known = completion.sampling_log_probs
        return cls(completion, source, float("nan") if known is None else float(sum(known)))


@dataclass(frozen=True)
class HiddenAsk:
    """A text that is to be drawn.

    Attributes:
        writer: the layer that draws it, with its sampling options.
        context: what it is drawn from, rendered.
        seed: of the draw.
        source: the proposal's name.
    """

    writer: LanguageLayer
    context: str
    seed: int
    source: str


Rows = Sequence[Sequence[HiddenAsk | HiddenDraw]]
"""[B][K] what is proposed for each example: to be drawn, or known already."""


def draw_together(rows: Rows) -> list[list[HiddenDraw]]:
    """[B][K] the draws that `rows` ask for, one request per model and sampling options; draws stay as they are."""
    asks = [ask for row in rows for ask in row if isinstance(ask, HiddenAsk)]
    together: dict[object, list[HiddenAsk]] = {}
    for ask in asks:
        together.setdefault((id(ask.writer.lm), ask.writer.sampling), []).append(ask)
    drawn: dict[int, HiddenDraw] = {}
    for group in together.values():
        completions = group[0].writer.draw([ask.context for ask in group], [ask.seed for ask in group])
        for ask, completion in zip(group, completions, strict=True):
            drawn[id(ask)] = HiddenDraw.of(completion, ask.source)
    return [[drawn[id(one)] if isinstance(one, HiddenAsk) else one for one in row] for row in rows]
