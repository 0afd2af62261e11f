"""A language layer is a conditional distribution over texts: p(h_l | F(h_{l-1}, x, π_l)).

The model is fixed, the prompt π is the parameter. Layers are frozen values: `with_prompt` returns
another layer.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from dln.arguments import NonNegative, checked
from dln.errors import InputError
from dln.keys import Key
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs, text_of
from dln.lm.load import as_lm
from dln.nn.prompt import Prompt, as_prompt
from dln.nn.template import Template, load_template, names_of

__all__ = ["LanguageLayer", "Layer", "LayerInput", "render", "without_options"]

LayerT = TypeVar("LayerT", bound="Layer")


@checked
@dataclass(frozen=True, slots=True)
class LayerInput:
    """What a layer sees: the network's input x and the previous layer's output h (h_0 = x)."""

    x: str
    h: str


class Layer(Protocol):
    """What inference needs of a layer, whatever its output space."""

    @property
    def lm(self) -> LanguageModel:
        """The model that draws and scores."""
        ...

    @property
    def template(self) -> Template:
        """F: how input and prompt become a context."""
        ...

    @property
    def prompt(self) -> Prompt:
        """π, the learnable parameter."""
        ...

    def with_prompt(self: LayerT, prompt: Prompt | str) -> LayerT:
        """The same layer under another prompt."""
        ...

    def contexts(self, inputs: Sequence[LayerInput]) -> list[str]:
        """F(h, x, π) for each input."""
        ...

    def sample(
        self, key: Key, inputs: Sequence[LayerInput], temperature: NonNegative | None = None
    ) -> list[Completion]:
        """One draw h ~ p(·|input, π) per input; `temperature` overrides the layer's own."""
        ...

    def log_prob(self, inputs: Sequence[LayerInput], outputs: Sequence[Target]) -> list[TokenLogProbs]:
        """log p(output | input, π), pair by pair, in nats."""
        ...


def render(template: Template, prompt: Prompt, item: LayerInput) -> str:
    """One context: the instruction, the demonstrations in the template's own form, then the input.

    A demonstration is the same template without prompt, followed by its output: what the model reads
    before the question has the very form that the question has. A chat model reads them within its
    user's turn, so the template's own separator stands before the output there too.

    Raises:
        InputError: the prompt names input and output, and the template has no place for the names.
    """
    names = _names(template, prompt)
    shown = [
        template.render(prompt="", x=d.x, h=d.h, **names).lstrip("\n") + template.target_prefix + d.y
        for d in prompt.demonstrations
    ]
    text = "\n\n".join(part for part in (prompt.instruction, *shown) if part)
    return template.render(prompt=text, x=item.x, h=item.h, **names)


def without_options(text: str) -> str:
    r"""The question of a multiple-choice text: what stands before the first line that begins with "Options:".

    A text without such a line, or with nothing before it, stays as it is.

    >>> without_options("Is it late?\nOptions:\n- yes\n- no")
    'Is it late?'
    """
    found = _OPTIONS.search(text)
    question = text[: found.start()].strip() if found else ""
    return question or text


_OPTIONS = re.compile(r"^[ \t]*Options:", re.MULTILINE)


def _names(template: Template, prompt: Prompt) -> dict[str, str]:
    if template.wording is None and prompt.wording is not None:
        raise InputError(
            "this template has no place for a prompt's names of input and output",
            where=f"template {template.name}",
            got=" → ".join(prompt.wording),
            fix="a template with a wording (classify), or a prompt without one",
        )
    return names_of(prompt.wording)


@checked
@dataclass(frozen=True, eq=False, init=False)
class LanguageLayer:
    """A layer whose outputs are free texts.

    Args:
        lm: the language model, or its name (see `load_lm`).
        template: name, path or `Template` of kind `forward`.
        prompt: the initial π.
        sampling: how outputs are drawn; without stop strings of its own, the template's are used.
        strip_options: read a multiple-choice question without its options (see `without_options`), so that a hidden
            text works towards the answer and does not name one of them.

    Raises:
        InputError: an argument of another kind, or no such model or template.
    """

    lm: LanguageModel
    template: Template
    prompt: Prompt
    sampling: Sampling
    strip_options: bool

    def __init__(
        self,
        lm: LanguageModel | str,
        template: Template | str | Path = "think",
        prompt: Prompt | str = "",
        sampling: Sampling | None = None,
        strip_options: bool = False,
    ) -> None:
        loaded = load_template(template, "forward")
        chosen = Sampling() if sampling is None else sampling
        for name, value in (
            ("lm", as_lm(lm)),
            ("template", loaded),
            ("prompt", as_prompt(prompt)),
            ("sampling", chosen if chosen.stop else replace(chosen, stop=loaded.stop)),
            ("strip_options", strip_options),
        ):
            object.__setattr__(self, name, value)

    def __deepcopy__(self, memo: dict[int, object]) -> LanguageLayer:
        """A layer of its own with the same model: models are resources, and are shared."""
        return replace(self, prompt=copy.deepcopy(self.prompt, memo), template=copy.deepcopy(self.template, memo))

    def __repr__(self) -> str:
        return f"LanguageLayer({self.lm.name!r}, {self.template.name!r}, {self.prompt.abridged()!r})"

    @property
    def target_prefix(self) -> str:
        """What stands between context and output: nothing for a chat model, which has its own turn."""
        return "" if self.lm.capabilities.chat else self.template.target_prefix

    def with_prompt(self, prompt: Prompt | str) -> LanguageLayer:
        """The same layer under another prompt."""
        return replace(self, prompt=as_prompt(prompt))

    def contexts(self, inputs: Sequence[LayerInput]) -> list[str]:
        """F(h, x, π) for each input."""
        prompt = self.prompt
        if self.strip_options:
            shown = [replace(d, x=without_options(d.x), h=without_options(d.h)) for d in prompt.demonstrations]
            prompt = replace(prompt, demonstrations=tuple(shown))
        return [render(self.template, prompt, self.reads(item)) for item in inputs]

    def reads(self, item: LayerInput) -> LayerInput:
        """What the layer reads of an input: all of it, or all but the options of a question."""
        return LayerInput(without_options(item.x), without_options(item.h)) if self.strip_options else item

    def sample(
        self, key: Key, inputs: Sequence[LayerInput], temperature: NonNegative | None = None
    ) -> list[Completion]:
        """One draw per input. The shown text is stripped; the ids stay as drawn."""
        return self.sample_contexts(key, self.contexts(inputs), temperature)

    def sample_contexts(
        self, key: Key, contexts: Sequence[str], temperature: NonNegative | None = None
    ) -> list[Completion]:
        """The same for contexts that are rendered already (a proposal's, for example)."""
        return self.draw(contexts, key.seeds(len(contexts)), temperature)

    def draw(
        self, contexts: Sequence[str], seeds: Sequence[int], temperature: NonNegative | None = None
    ) -> list[Completion]:
        """The same with a seed per context."""
        sampling = self.sampling if temperature is None else replace(self.sampling, temperature=temperature)
        draws = self.lm.sample(contexts, sampling, seeds)
        return [draw.with_text(draw.text.strip()) for draw in draws]

    def log_prob(self, inputs: Sequence[LayerInput], outputs: Sequence[Target]) -> list[TokenLogProbs]:
        """log p(output | input, π): sampled outputs on their ids, plain texts tokenised alone."""
        if len(inputs) != len(outputs):
            raise InputError("inputs and outputs differ in number", got=(len(inputs), len(outputs)))
        return self.log_prob_contexts(self.contexts(inputs), outputs)

    def log_prob_contexts(self, contexts: Sequence[str], outputs: Sequence[Target]) -> list[TokenLogProbs]:
        """The same for contexts that are rendered already."""
        model = self.lm.fingerprint()

        def target(output: Target) -> Target:
            if isinstance(output, Completion) and output.token_ids is not None and output.model == model:
                return output
            # ids of another model mean nothing here: its draw is a plain text, and its blank was stripped
            return self.target_prefix + text_of(output)

        return self.lm.log_prob(contexts, [target(output) for output in outputs])
