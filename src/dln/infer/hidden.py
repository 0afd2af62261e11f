"""Proposals for hidden texts: q(h | input and output of the layer, wanted output of the layer above).

An own proposal is a class with `__call__(key, request, num) -> [B][num]`. It returns texts, or requests for texts
(`HiddenAsk`: a context and a seed). `draw_together` draws the requests of all proposals and examples of a batch with
one request per model; a draw depends on its context and seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import numpy as np

from dln.errors import InputError
from dln.lm.base import Completion, LanguageModel, Sampling, Target, text_of
from dln.nn.context import LayerInput, join, parts_of
from dln.nn.layers import LanguageLayer, Layer
from dln.nn.template import Template, load_template
from dln.random import Key

__all__ = [
    "EditProposal",
    "HiddenAsk",
    "HiddenDraw",
    "HiddenProposal",
    "HiddenRequest",
    "LabelledPriorProposal",
    "MixtureProposal",
    "PriorProposal",
    "Rows",
    "draw_together",
]


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

    @classmethod
    def joined(cls, parts: Sequence[HiddenDraw]) -> HiddenDraw:
        """One draw of each of several parallel layers as one; log q is the sum over them."""
        sources = dict.fromkeys(part.source for part in parts)
        completion = join([part.completion for part in parts])
        return cls(completion, " | ".join(sources), sum(part.log_q for part in parts))


@dataclass(frozen=True)
class HiddenAsk:
    """A text to draw.

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
        completions = group[0].writer.draw_contexts([ask.context for ask in group], [ask.seed for ask in group])
        for ask, completion in zip(group, completions, strict=True):
            drawn[id(ask)] = HiddenDraw.of(completion, ask.source)
    return [[drawn[id(one)] if isinstance(one, HiddenAsk) else one for one in row] for row in rows]


@dataclass(frozen=True)
class HiddenRequest:
    """One hidden level of one batch (all sequences have length B).

    Attributes:
        layer: the layer whose outputs are sought.
        above: the layer that reads them.
        inputs: of `layer`.
        outputs: ĥ, its outputs in the forward pass.
        wanted: h* of the level above (y under the output layer).
        y: the network's wanted output.
        beyond: the layers over `above`, the output layer last; empty where `above` is the output layer.
        below: the forward texts of the layers below `layer`, h_1 …, for a metric that reads them.
    """

    layer: Layer
    above: Layer
    inputs: tuple[LayerInput, ...]
    outputs: tuple[Completion, ...]
    wanted: tuple[Target, ...]
    y: tuple[str, ...]
    beyond: tuple[Layer, ...] = ()
    below: tuple[tuple[str, ...], ...] = ()

    def subset(self, members: Sequence[int]) -> HiddenRequest:
        """The same request for some of the examples."""
        return replace(
            self,
            inputs=tuple(self.inputs[i] for i in members),
            outputs=tuple(self.outputs[i] for i in members),
            wanted=tuple(self.wanted[i] for i in members),
            y=tuple(self.y[i] for i in members),
            below=tuple(self.below[i] for i in members if self.below),
        )

    @property
    def language_layer(self) -> LanguageLayer:
        """The layer as one that writes text with a language model.

        Raises:
            InputError: it is another kind of layer.
        """
        if self.layer.writer is None:
            raise InputError("hidden texts come from a LanguageLayer", got=type(self.layer).__name__)
        return self.layer.writer

    def branch(self, index: int) -> HiddenRequest:
        """The same request for one of the layers side by side."""
        branches = self.layer.branches
        parts = [cast("Completion", parts_of(output, len(branches))[index]) for output in self.outputs]
        return replace(self, layer=branches[index], outputs=tuple(parts))


class HiddenProposal(Protocol):
    """q(h | …)."""

    def __call__(self, key: Key, request: HiddenRequest, num: int) -> Rows:
        """`num` texts for each of the B examples, drawn or to be drawn."""
        ...


@dataclass(frozen=True)
class PriorProposal:
    """h ~ p(h | input, π), at a temperature above the forward pass's.

    Args:
        temperature: of the draws.
        lm: the model that draws; default the layer's own. log q is of the model that draws, α of the layer's.
    """

    temperature: float = 0.7
    lm: LanguageModel | None = None

    def __call__(self, key: Key, request: HiddenRequest, num: int) -> Rows:
        """Texts of the layer itself."""
        layer = request.layer.writer
        if layer is None:
            return _own_draws(key, request, num, self.temperature)
        contexts = [context for context in layer.contexts(request.inputs) for _ in range(num)]
        return _ask(key, _writer(layer, self.temperature, self.lm), contexts, num, "prior")


@dataclass(frozen=True)
class LabelledPriorProposal:
    """h ~ p(h | input, π with the answer in front): the layer is told what must come out.

    Args:
        temperature: of the draws.
        template: of kind `hidden`: how the answer is told.
        lm: as in `PriorProposal`.
    """

    temperature: float = 0.7
    template: Template | str = "hidden_given_answer"
    lm: LanguageModel | None = None

    def __call__(self, key: Key, request: HiddenRequest, num: int) -> Rows:
        """Texts of the layer under a prompt that names the label; of the prior, for a layer that takes no prompt."""
        layer = request.layer.writer
        if layer is None:
            return _own_draws(key, request, num, self.temperature)
        template = load_template(self.template, "hidden")
        contexts: list[str] = []
        for item, y in zip(request.inputs, request.y, strict=True):
            told = template.render(y=y, prompt=layer.prompt.instruction)
            # the worked examples stay, though without their answers: without them a small model copies far worse
            (context,) = layer.with_prompt(layer.prompt.with_instruction(told)).contexts([item])
            contexts.extend([context] * num)
        return _ask(key, _writer(layer, self.temperature, self.lm), contexts, num, "labelled prior")


@dataclass(frozen=True)
class EditProposal:
    """B_h: a model reads the draft, the next step's instruction and the wanted result, and rewrites the draft.

    Args:
        lm: the model that edits; default the layer's own.
        sampling: how it writes; the template's stop strings are used. A text may also be as long as the layer's own.
        template: of kind `hidden`.
    """

    lm: LanguageModel | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_tokens=128))
    template: Template | str = "hidden_edit"

    def __call__(self, key: Key, request: HiddenRequest, num: int) -> Rows:
        """Edited texts, each under another hint; of the prior, for a layer that takes no prompt."""
        layer = request.layer.writer
        if layer is None:
            return _own_draws(key, request, num, self.sampling.temperature)
        template = load_template(self.template, "hidden")
        messages = template.messages or ("",)
        lm = self.lm or layer.lm
        above = request.above.prompted
        contexts = [
            template.render(
                x=item.x,
                h=item.text,
                prompt=layer.prompt.instruction,
                output=output.text,
                target=text_of(wanted),
                y=y,
                next_prompt="" if above is None else above.prompt.instruction,
                message=messages[k % len(messages)],
            )
            for item, output, wanted, y in zip(
                map(layer.reads, request.inputs),
                request.outputs,
                request.wanted,
                request.y,
                strict=True,
            )
            for k in range(num)
        ]
        longest = max(self.sampling.max_tokens, layer.sampling.max_tokens)
        stop = self.sampling.stop or template.stop
        editor = LanguageLayer(lm, sampling=replace(self.sampling, max_tokens=longest, stop=stop))
        return _ask(key, editor, contexts, num, "edit")


@dataclass(frozen=True)
class MixtureProposal:
    """Each draw comes from one of several proposals, picked at random with the given weights.

    A mixture of the prior and the prior that sees the label worked best in the paper.
    """

    proposals: tuple[HiddenProposal, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.proposals or (self.weights is not None and len(self.weights) != len(self.proposals)):
            raise InputError("a mixture needs proposals, and one weight for each", got=self.weights)
        if self.weights is not None and not (min(self.weights) >= 0 and 0 < sum(self.weights) < float("inf")):
            raise InputError("the weights of a mixture must be ≥ 0 and not all 0", got=self.weights)

    def __call__(self, key: Key, request: HiddenRequest, num: int) -> Rows:
        """Draws in random proportion, example by example."""
        size = len(request.inputs)
        weights = np.ones(len(self.proposals)) if self.weights is None else np.array(self.weights)
        picks = key.child("pick").generator().choice(len(self.proposals), size=(size, num), p=weights / weights.sum())
        rows: list[list[HiddenAsk | HiddenDraw]] = [[] for _ in range(size)]
        for index, proposal in enumerate(self.proposals):
            for count in sorted({int((row == index).sum()) for row in picks} - {0}):
                # examples that want equally many texts of this component
                members = [i for i in range(size) if int((picks[i] == index).sum()) == count]
                asked = proposal(key.child("component", index, count), request.subset(members), count)
                for i, row in zip(members, asked, strict=True):
                    rows[i].extend(row)
        return rows


def _ask(key: Key, writer: LanguageLayer, contexts: Sequence[str], num: int, source: str) -> Rows:
    asks = [HiddenAsk(writer, c, seed, source) for c, seed in zip(contexts, key.seeds(len(contexts)), strict=True)]
    return [asks[i : i + num] for i in range(0, len(asks), num)]


def _own_draws(key: Key, request: HiddenRequest, num: int, temperature: float) -> Rows:
    """Draws of a layer that no model can be told to write for."""
    inputs = [item for item in request.inputs for _ in range(num)]
    draws = request.layer.draw(inputs, key.seeds(len(inputs)), temperature)
    return [[HiddenDraw.of(h, "prior") for h in draws[i : i + num]] for i in range(0, len(draws), num)]


def _writer(layer: LanguageLayer, temperature: float, lm: LanguageModel | None) -> LanguageLayer:
    return replace(layer, lm=lm or layer.lm, sampling=replace(layer.sampling, temperature=temperature))
