"""A language layer is a conditional distribution over texts: p(h_l | F(h_{l-1}, x, π_l)).

The model is fixed, the prompt π is the parameter. Layers are frozen values: `with_prompt` returns
another layer.

The output layer over a closed label set: p(y|x,π) ∝ exp(log p_LM(y|x,π) / T + b_y).

Small models prefer a label whatever the input. The bias b removes that preference and the
temperature T sets how sure the layer is; both are fitted together with the prompt
(`dln.infer.calibrate`), so that a prompt is ranked by what it knows. With b = 0 and T = 1 this is
the model's own distribution, renormalised over the labels.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np

from dln.answers import labels_said
from dln.arguments import NonNegative, Positive, checked, did_you_mean
from dln.errors import InputError
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs, text_of
from dln.lm.load import as_lm
from dln.nn.prompt import Prompt, as_prompt
from dln.nn.template import Template, load_template, names_of
from dln.numerics import Floats, log_softmax, logsumexp
from dln.random import Key

__all__ = ["FREE_TOKENS", "Answers", "ChoiceLayer", "LanguageLayer", "Layer", "LayerInput", "render", "without_options"]

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


Answers = Literal["scored", "free"]
"""How labels are predicted: the most probable one, or the one that a freely written answer says."""

FREE_TOKENS = 20
"""Longest free answer (the original's limit): one that begins with a label says it at once."""

# log of the largest total mass that is still rounding; half-precision engines are this noisy, broken ones worse
MASS_TOLERANCE = 0.05


@checked
@dataclass(frozen=True, eq=False, init=False)
class ChoiceLayer:
    """A layer whose output is one of C labels.

    Args:
        lm: the language model, or its name (see `load_lm`); it must be able to score labels.
        template: name, path or `Template` of kind `forward`.
        prompt: the initial π.
        labels: each a name, or verbalizers `name|other wording|…` whose masses are added; the name
            is what `predict` returns and what targets are compared with. Blanks around a word are
            dropped: what stands before a label is the template's business.
        bias: b, one per label, in nats; default zeros.
        temperature: T > 0; the slope of the layer is a = 1 / T.
        answers: "scored" predicts the most probable label; "free" lets the model write and looks for a label at the
            beginning of what it wrote, as the original does. A text that says no label is the prediction itself, which
            is right for no example. Scores, and with them training, go by log p(y|x,π) in both cases.

    Raises:
        InputError: an argument of another kind, no such model or template, fewer than two labels, empty or repeated
            ones, or another number of biases.
    """

    lm: LanguageModel
    template: Template
    prompt: Prompt
    labels: tuple[str, ...]
    bias: Floats
    temperature: float
    answers: Answers

    def __init__(
        self,
        lm: LanguageModel | str,
        template: Template | str | Path = "classify",
        prompt: Prompt | str = "",
        labels: Sequence[str] = (),
        *,
        bias: Sequence[float] | Floats | None = None,
        temperature: Positive = 1.0,
        answers: Answers = "scored",
    ) -> None:
        lm = as_lm(lm)
        if not lm.capabilities.scores_labels:
            raise InputError(
                "this model cannot score labels, which a ChoiceLayer needs",
                where=f"model {lm.name}",
                fix="a model that returns log-probabilities, or a LanguageLayer with an accuracy objective",
            )
        values = np.zeros(len(labels)) if bias is None else np.array(bias, dtype=np.float64)
        values.setflags(write=False)
        for name, value in (
            ("lm", lm),
            ("template", load_template(template, "forward")),
            ("prompt", as_prompt(prompt)),
            ("labels", tuple("|".join(word.strip() for word in label.split("|")) for label in labels)),
            ("bias", values),
            ("temperature", float(temperature)),
            ("answers", answers),
        ):
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if len(self.labels) < 2:
            raise InputError(
                "a ChoiceLayer needs two labels or more",
                where="ChoiceLayer, argument 'labels'",
                got=list(self.labels),
                expected="a list of two texts or more",
                fix='labels=["negative", "positive"]',
            )
        words = [word for label in self.labels for word in label.split("|")]
        if any(not word for word in words) or len(set(words)) != len(words):
            raise InputError(
                "labels and verbalizers must be distinct and not empty",
                where="ChoiceLayer, argument 'labels'",
                got=words,
                expected="every text once, none of them empty",
                fix='labels=["negative|bad", "positive|good"]',
            )
        if self.bias.shape != (len(self.labels),) or not np.isfinite(self.bias).all():
            raise InputError(
                "bias needs one finite number per label",
                where="ChoiceLayer, argument 'bias'",
                got=self.bias.tolist(),
                expected=f"{len(self.labels)} finite numbers",
                fix=f"bias={[0.0] * len(self.labels)}, or leave it out",
            )

    def __deepcopy__(self, memo: dict[int, object]) -> ChoiceLayer:
        """A layer of its own with the same model: models are resources, and are shared."""
        return replace(self, prompt=copy.deepcopy(self.prompt, memo), template=copy.deepcopy(self.template, memo))

    def __repr__(self) -> str:
        what = f"{self.lm.name!r}, {self.template.name!r}, {self.prompt.abridged()!r}"
        return f"ChoiceLayer({what}, {len(self.labels)} labels)"

    @property
    def names(self) -> tuple[str, ...]:
        """The canonical label names, without their other wordings."""
        return tuple(label.split("|")[0] for label in self.labels)

    @property
    def target_prefix(self) -> str:
        """What stands between context and label: nothing for a chat model, which has its own turn."""
        return "" if self.lm.capabilities.chat else self.template.target_prefix

    def with_prompt(self, prompt: Prompt | str) -> ChoiceLayer:
        """The same layer under another prompt (bias and temperature are kept)."""
        return replace(self, prompt=as_prompt(prompt))

    def with_calibration(self, bias: Sequence[float] | Floats, temperature: Positive) -> ChoiceLayer:
        """The same layer with another bias b and temperature T."""
        return replace(self, bias=np.asarray(bias, dtype=np.float64), temperature=temperature)

    def contexts(self, inputs: Sequence[LayerInput]) -> list[str]:
        """F(h, x, π) for each input."""
        return [render(self.template, self.prompt, item) for item in inputs]

    def index(self, target: Target) -> int:
        """Position of a label given by its name or by one of its wordings.

        Raises:
            InputError: it is none of the layer's labels.
        """
        wanted = text_of(target).strip()
        for i, label in enumerate(self.labels):
            if wanted == label or wanted in label.split("|"):
                return i
        close = did_you_mean(wanted, self.names)
        raise InputError(
            "not a label of this layer",
            where="target",
            got=wanted,
            expected=list(self.names),
            fix=f"did you mean {close!r}?" if close else f"for example {self.names[0]!r}",
        )

    def label_log_masses(self, contexts: Sequence[str]) -> Floats:
        """[N, C] log p_LM(label | context), wordings added, not normalised over labels, in nats.

        A row that cannot be one (a NaN, or masses of more than one together) is all NaN.
        """
        words = [[self.target_prefix + word for word in label.split("|")] for label in self.labels]
        masses = self.lm.choice_log_probs(contexts, [word for group in words for word in group])
        impossible = ~(logsumexp(masses, axis=1) <= MASS_TOLERANCE)
        masses = np.where(impossible[:, None], np.nan, masses)
        ends = np.cumsum([len(group) for group in words])
        return np.stack(
            [logsumexp(masses[:, end - len(g) : end], axis=1) for g, end in zip(words, ends, strict=True)], 1
        )

    def normalise(self, log_masses: Floats) -> Floats:
        """Log p(y|x) = log softmax_y(log mass / T + b), over the last axis."""
        return log_softmax(log_masses / self.temperature + self.bias)

    def label_log_probs(self, inputs: Sequence[LayerInput]) -> Floats:
        """[N, C] log p(y | input, π), normalised over labels, in nats."""
        return self.normalise(self.label_log_masses(self.contexts(inputs)))

    def sample(
        self, key: Key, inputs: Sequence[LayerInput], temperature: NonNegative | None = None
    ) -> list[Completion]:
        """One label per input; `temperature` None or 0 takes the most probable one, else it divides log p.

        With free answers it is the temperature of the text.
        """
        if self.answers == "free":
            return self.write(self.contexts(inputs), key.seeds(len(inputs)), temperature or 0.0)
        return self.draw(key, self.label_log_probs(inputs), temperature or 0.0)

    def draw(self, key: Key, log_probs: Floats, temperature: float) -> list[Completion]:
        """Labels drawn from [N, C] normalised log-probabilities.

        A row that is not finite gives an empty completion, which equals no label: it is counted as
        wrong and as unscored, never as a label.
        """
        draws: list[Completion] = []
        for row, seed in zip(log_probs, key.seeds(len(log_probs)), strict=True):
            if np.isnan(row).any():
                draws.append(Completion("", model=self.lm.fingerprint()))
                continue
            if temperature > 0:
                proposal = log_softmax(row / temperature)
                choice = int(np.random.default_rng(seed).choice(len(row), p=np.exp(proposal)))
                log_q = float(proposal[choice])
            else:
                choice, log_q = int(np.argmax(row)), 0.0
            draws.append(
                Completion(
                    self.names[choice],
                    log_probs=(float(row[choice]),),
                    sampling_log_probs=(log_q,),
                    model=self.lm.fingerprint(),
                )
            )
        return draws

    def write(self, contexts: Sequence[str], seeds: Sequence[int], temperature: float = 0.0) -> list[Completion]:
        """Free answers, each with the label that it says as its text, or as it stands where it says none."""
        sampling = Sampling(temperature, max_tokens=FREE_TOKENS, stop=self.template.stop)
        return [draw.with_text(self.read(draw.text)) for draw in self.lm.sample(contexts, sampling, seeds)]

    def read(self, answer: str) -> str:
        """The label that a free answer says; the stripped answer where it says none, or several.

        >>> from dln.lm.table import TableLM
        >>> layer = ChoiceLayer(TableLM.random([" yes", " no"], 0), labels=["yes|Yes|true", "no"])
        >>> layer.read(" True, it is."), layer.read("Nobody knows")
        ('yes', 'Nobody knows')
        """
        names = {word: label.split("|")[0] for label in self.labels for word in label.split("|")}
        said = labels_said(answer, names)
        return next(iter(said)) if len(said) == 1 else answer.strip()

    def log_prob(self, inputs: Sequence[LayerInput], outputs: Sequence[Target]) -> list[TokenLogProbs]:
        """log p(label | input, π) as one "token": both scoring conventions agree on it."""
        if len(inputs) != len(outputs):
            raise InputError("inputs and outputs differ in number", got=(len(inputs), len(outputs)))
        rows = self.label_log_probs(inputs)
        return [TokenLogProbs(row[self.index(o)][None], 1) for row, o in zip(rows, outputs, strict=True)]
