"""Layers: conditional distributions over texts, p(output | x, h), and the contract that all of them keep.

`Layer` is what networks, inference and training use. One method is required, `draw`; everything else has a default
that is right for a layer without a prompt and without a model. A `PromptedLayer` is a language model with a template
and a prompt π, the learnable parameter: p(h_l | F(h_{l-1}, x, π_l)). `LanguageLayer` writes free text; `ChoiceLayer`
chooses one of C labels by a readout of what the model says at the answer position (`dln.nn.readout`).

Layers are frozen values: `with_prompt` returns another layer.
"""

from __future__ import annotations

import copy
import html
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from dln.answers import labels_said
from dln.arguments import NonNegative, Positive, checked, did_you_mean
from dln.errors import InputError
from dln.io import dump, parse
from dln.lm.base import Completion, LanguageModel, Sampling, ScoringMode, Target, TokenLogProbs, text_of
from dln.lm.load import as_lm
from dln.nn.context import LayerInput, render, without_options
from dln.nn.prediction import Hidden, Prediction, text_prediction
from dln.nn.prompt import Prompt, as_prompt
from dln.nn.readout import LabelReadout, Readout, readout_from_state
from dln.nn.template import Template, load_template
from dln.numerics import Floats, log_softmax, logsumexp
from dln.random import Key

__all__ = [
    "FREE_TOKENS",
    "Answers",
    "ChoiceLayer",
    "Convention",
    "LanguageLayer",
    "Layer",
    "LayerInput",
    "PairScores",
    "PromptedLayer",
    "score_pairs",
]

Convention = Literal["log_prob", "mean_token_log_prob"]
"""How outputs are scored: the sum over tokens (a log-likelihood), or the mean per token (the paper's ranking score)."""

Load = Callable[[str], LanguageModel]
"""From the name of a model in a file to the model."""


@dataclass(frozen=True, eq=False)
class PairScores:
    """Scores of P (input, output) pairs under N variants of a layer.

    Attributes:
        log_prob: [N, P] Σ over the output's tokens, in nats.
        mean_token_log_prob: [N, P] mean over the output's text tokens behind the burn-in, in nats per token.
        features: [N, P, F] of an output layer over labels, which its readout reads; else None.
        targets: [P] label index of each output, where there are labels.
    """

    log_prob: Floats
    mean_token_log_prob: Floats
    features: Floats | None = None
    targets: npt.NDArray[np.int64] | None = None

    def by(self, convention: Convention) -> Floats:
        """[N, P] under the named convention."""
        return self.log_prob if convention == "log_prob" else self.mean_token_log_prob

    def known(self, convention: Convention) -> Floats:
        """[N, P] under the named convention, NaN where a score is unusable."""
        return np.where(self.usable, self.by(convention), np.nan)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """[N, P] whether a score is a possible log-probability: finite and not positive."""
        return np.isfinite(self.log_prob) & (self.log_prob <= 1e-6)

    @classmethod
    def of(cls, rows: Sequence[Sequence[TokenLogProbs]], burn_in: float) -> PairScores:
        """From [N][P] token scores."""
        sums = [[s.log_prob if s.finite else np.nan for s in row] for row in rows]
        means = [[s.mean_after(burn_in) if s.finite else np.nan for s in row] for row in rows]
        return cls(np.array(sums, dtype=np.float64), np.array(means, dtype=np.float64))


def score_pairs(
    layers: Sequence[Layer], inputs: Sequence[LayerInput], outputs: Sequence[Target], burn_in: float = 0.0
) -> PairScores:
    """log p(output_p | input_p, π_n) for all variants n of one layer and pairs p, in one request to the model.

    Args:
        layers: [N] variants of one layer: same model, template and labels, other prompts.
        inputs: [P].
        outputs: [P].
        burn_in: leading fraction of a text's tokens that its mean leaves out; sums and labels are not changed by it.
    """
    return layers[0].score(layers, inputs, outputs, burn_in)


class Layer(ABC):
    """A conditional distribution over texts: the contract between layers, networks and training.

    A subclass is a frozen value. It implements `draw`. It also implements `log_prob` if it can score given texts, or
    sets `deterministic` if its output is a function of its input; a layer that does neither is trained around: the
    layers below it are judged by the answers that they lead to. A dataclass whose fields are plain data is saved and
    loaded by its qualified name and its fields.
    """

    deterministic: ClassVar[bool] = False
    """Whether the output is a function of the input; nothing is inferred about such an output."""

    @abstractmethod
    def draw(
        self, inputs: Sequence[LayerInput], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Completion]:
        """One output per input and seed; `temperature` overrides the layer's own, and 0 is greedy."""

    def log_prob(self, inputs: Sequence[LayerInput], outputs: Sequence[Target]) -> list[TokenLogProbs]:
        """log p(output | input), pair by pair, in nats: 0 or −∞ for a deterministic layer.

        Raises:
            InputError: the layer cannot score given texts.
        """
        if not self.deterministic:
            raise InputError("this layer cannot score given texts", where=type(self).__name__)
        own = self.draw(inputs, [0] * len(inputs), 0.0)
        values = [0.0 if o.text == text_of(given) else -np.inf for o, given in zip(own, outputs, strict=True)]
        return [TokenLogProbs(np.array([value]), 1) for value in values]

    @property
    def scoring_mode(self) -> ScoringMode:
        """How given outputs are scored; "accuracy" where they cannot be, or need not be (a deterministic layer)."""
        return "accuracy" if type(self).log_prob is Layer.log_prob else "target scoring"

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """The language models of the layer."""
        return ()

    def map_models(self, change: Callable[[LanguageModel], LanguageModel]) -> Self:
        """The same layer with `change` applied to each of its models."""
        return self

    @property
    def branches(self) -> tuple[Layer, ...]:
        """The layers side by side that make up this one: itself, unless it is a `Parallel`."""
        return (self,)

    def with_branch(self, index: int, branch: Layer) -> Layer:
        """The same layer with one of its `branches` exchanged."""
        return branch

    @property
    def prompted(self) -> PromptedLayer | None:
        """The layer itself if it has a prompt to train."""
        return None

    @property
    def writer(self) -> LanguageLayer | None:
        """The layer itself if it writes free text with a language model that can be told what to write."""
        return None

    @property
    def classifier(self) -> ChoiceLayer | None:
        """The layer itself if its outputs are labels."""
        return None

    @property
    def max_output_tokens(self) -> int:
        """The longest output, in tokens of its model; 0 where that is not known."""
        return 0

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The learnable parameters."""
        return tuple(branch.prompt for branch in map(_prompted, self.branches) if branch is not None)

    def with_prompts(self, prompts: Sequence[Prompt | str]) -> Layer:
        """The same layer under other prompts, one for each of `prompts`."""
        layer: Layer = self
        remaining = iter(prompts)
        for index, branch in enumerate(map(_prompted, self.branches)):
            if branch is not None:
                layer = layer.with_branch(index, branch.with_prompt(next(remaining)))
        return layer

    def sample(
        self, key: Key, inputs: Sequence[LayerInput], temperature: NonNegative | None = None
    ) -> list[Completion]:
        """One output h ~ p(·|input) per input."""
        return self.draw(inputs, key.seeds(len(inputs)), temperature)

    def draw_each(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[LayerInput],
        seeds: Sequence[int],
        temperature: float | None = None,
    ) -> list[list[Completion]]:
        """[N][P] one output per variant of this layer and input, with the same seeds for all variants."""
        return [layer.draw(inputs, seeds, temperature) for layer in layers]

    def score(
        self, layers: Sequence[Layer], inputs: Sequence[LayerInput], outputs: Sequence[Target], burn_in: float = 0.0
    ) -> PairScores:
        """Scores of pairs under variants of this layer (see `score_pairs`)."""
        return PairScores.of([layer.log_prob(inputs, outputs) for layer in layers], burn_in)

    def answer(
        self, inputs: Sequence[LayerInput], hidden: Sequence[Hidden], seeds: Sequence[int], temperature: float
    ) -> list[Prediction]:
        """Predictions of the layer as the last one.

        Args:
            inputs: [N · S] S draws of the layers below for each of N network inputs.
            hidden: [N] the hidden texts of these draws.
            seeds: [N · S].
            temperature: of the answers.
        """
        texts = [answer.text for answer in self.draw(inputs, seeds, temperature)]
        size = len(texts) // max(1, len(hidden))
        return [text_prediction(texts[i * size : (i + 1) * size], group) for i, group in enumerate(hidden)]

    def state(self) -> dict[str, Any]:
        """What training changes, as plain data."""
        return {}

    def with_state(self, state: Mapping[str, Any], where: str) -> Layer:
        """The same layer with what `state` holds.

        Raises:
            InputError: naming `where` and the field that does not fit.
        """
        if state:
            raise InputError("the state has parameters for a layer that has none", where=where, got=", ".join(state))
        return self

    def to_json(self) -> dict[str, Any]:
        """The layer as plain data with a `kind`, which is its qualified name."""
        if not is_dataclass(self):
            raise InputError(
                "this layer cannot be saved",
                where=type(self).__name__,
                got="a class that is no dataclass",
                expected="a dataclass with fields of plain data, or methods `to_json` and `from_json`",
            )
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": f"{type(self).__module__}:{type(self).__qualname__}", "parameters": dump(values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], load: Load, where: str) -> Layer:
        """The inverse of `to_json`; `load` gives a model by its name."""
        return parse(cls, data.get("parameters", {}), where)

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


def _prompted(layer: Layer) -> PromptedLayer | None:
    return layer.prompted


def by_name(name: str, where: str) -> object:
    """The object with the qualified name `module:name`.

    Raises:
        InputError: there is no such module or no such object in it.
    """
    module, _, path = name.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            "the code of this layer cannot be imported",
            where=where,
            got=name,
            expected="module:name of a layer that can be imported here",
            fix="install its package, or start in the directory of its module",
        ) from error
    return found


@checked
@dataclass(frozen=True, eq=False, init=False)
class PromptedLayer(Layer):
    """A language model with a template and a prompt, the learnable parameter.

    Attributes:
        lm: the language model.
        template: F: how input and prompt become a context.
        prompt: π.
    """

    lm: LanguageModel
    template: Template
    prompt: Prompt

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """A layer of its own with the same model: models are resources, and are shared."""
        return replace(self, prompt=copy.deepcopy(self.prompt, memo), template=copy.deepcopy(self.template, memo))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.lm.name!r}, {self.template.name!r}, {self.prompt.abridged()!r})"

    @property
    def prompted(self) -> PromptedLayer:
        """The layer itself."""
        return self

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """The language model."""
        return (self.lm,)

    def map_models(self, change: Callable[[LanguageModel], LanguageModel]) -> Self:
        """The same layer with another model."""
        changed = change(self.lm)
        return self if changed is self.lm else replace(self, lm=changed)

    @property
    def target_prefix(self) -> str:
        """What stands between context and output: nothing for a chat model, which has its own turn."""
        return "" if self.lm.capabilities.chat else self.template.target_prefix

    def with_prompt(self, prompt: Prompt | str) -> Self:
        """The same layer under another prompt."""
        return replace(self, prompt=as_prompt(prompt))

    def reads(self, item: LayerInput) -> LayerInput:
        """The part of an input that the layer reads: all of it."""
        return item

    def contexts(self, inputs: Sequence[LayerInput]) -> list[str]:
        """F(h, x, π) for each input."""
        return [render(self.template, self.prompt, item) for item in inputs]

    def state(self) -> dict[str, Any]:
        """The prompt."""
        return {"prompt": self.prompt.to_json()}

    def with_state(self, state: Mapping[str, Any], where: str) -> Self:
        """The same layer under the prompt of `state`."""
        if "readout" in state or "bias" in state:
            raise InputError(
                "the state has a readout for a layer that has none",
                where=where,
                expected="the state of a network with the same layers",
            )
        return self.with_prompt(parse(PromptState, dict(state), where).prompt)

    def _check_pairs(self, inputs: Sequence[LayerInput], outputs: Sequence[Target]) -> None:
        if len(inputs) != len(outputs):
            raise InputError("inputs and outputs differ in number", got=(len(inputs), len(outputs)))


@dataclass(frozen=True)
class PromptState:
    """The parameters of a layer in a state."""

    prompt: Prompt


@dataclass(frozen=True)
class ChoiceState(PromptState):
    """The parameters of a `ChoiceLayer` in a state; version 0.1 wrote bias and temperature."""

    readout: dict[str, Any] | None = None
    bias: list[float] | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class LanguageRecord:
    """A `LanguageLayer` in a file."""

    model: str
    fingerprint: str
    template: Template
    prompt: Prompt
    sampling: Sampling
    strip_options: bool = False
    kind: Literal["language"] = "language"


Answers = Literal["scored", "free"]
"""How labels are predicted: the most probable one, or the one that a freely written answer says."""


@dataclass(frozen=True)
class ChoiceRecord:
    """A `ChoiceLayer` in a file; version 0.1 wrote bias and temperature in the place of the readout."""

    model: str
    fingerprint: str
    template: Template
    prompt: Prompt
    labels: list[str]
    readout: dict[str, Any] | None = None
    bias: list[float] | None = None
    temperature: float = 1.0
    answers: Answers = "scored"
    kind: Literal["choice"] = "choice"


@checked
@dataclass(frozen=True, eq=False, init=False, repr=False)
class LanguageLayer(PromptedLayer):
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

    @property
    def writer(self) -> LanguageLayer:
        """The layer itself."""
        return self

    @property
    def scoring_mode(self) -> ScoringMode:
        """How the model scores given texts."""
        can = self.lm.capabilities
        return can.text_scoring if can.scores_targets else "accuracy"

    @property
    def max_output_tokens(self) -> int:
        """The longest output, in tokens."""
        return self.sampling.max_tokens

    def contexts(self, inputs: Sequence[LayerInput]) -> list[str]:
        """F(h, x, π) for each input."""
        prompt = self.prompt
        if self.strip_options:
            stripped = [replace(d, x=without_options(d.x), h=without_options(d.h)) for d in prompt.demonstrations]
            prompt = prompt.with_demonstrations(stripped)
        return [render(self.template, prompt, self.reads(item)) for item in inputs]

    def reads(self, item: LayerInput) -> LayerInput:
        """The part of an input that the layer reads: all of it, or all but the options of a question."""
        return LayerInput(without_options(item.x), without_options(item.h)) if self.strip_options else item

    def draw(
        self, inputs: Sequence[LayerInput], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Completion]:
        """One text per input and seed, stripped; the ids stay as drawn."""
        return self.draw_contexts(self.contexts(inputs), seeds, temperature)

    def draw_contexts(
        self, contexts: Sequence[str], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Completion]:
        """The same for contexts that are rendered already (a proposal's, for example)."""
        sampling = self.sampling if temperature is None else replace(self.sampling, temperature=temperature)
        draws = self.lm.sample(contexts, sampling, seeds)
        return [draw.with_text(draw.text.strip()) for draw in draws]

    def draw_each(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[LayerInput],
        seeds: Sequence[int],
        temperature: float | None = None,
    ) -> list[list[Completion]]:
        """One request for all variants."""
        contexts = [context for layer in layers for context in cast(LanguageLayer, layer).contexts(inputs)]
        draws = self.draw_contexts(contexts, list(seeds) * len(layers), temperature)
        return [draws[i : i + len(inputs)] for i in range(0, len(inputs) * len(layers), max(1, len(inputs)))]

    def log_prob(self, inputs: Sequence[LayerInput], outputs: Sequence[Target]) -> list[TokenLogProbs]:
        """log p(output | input, π): sampled outputs on their ids, plain texts tokenised alone."""
        self._check_pairs(inputs, outputs)
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

    def score(
        self, layers: Sequence[Layer], inputs: Sequence[LayerInput], outputs: Sequence[Target], burn_in: float = 0.0
    ) -> PairScores:
        """One request for all variants; equal pairs are asked once."""
        requests: dict[tuple[str, Target], int] = {}
        rows = [
            [requests.setdefault(pair, len(requests)) for pair in zip(contexts, outputs, strict=True)]
            for contexts in (cast(LanguageLayer, layer).contexts(inputs) for layer in layers)
        ]
        scores = self.log_prob_contexts([context for context, _ in requests], [output for _, output in requests])
        if len(scores) != len(requests):
            raise InputError("the model scored another number of requests", got=len(scores), expected=len(requests))
        return PairScores.of([[scores[i] for i in row] for row in rows], burn_in)

    def to_json(self) -> dict[str, Any]:
        """Plain data; the model is named."""
        model, fingerprint = self.lm.name, self.lm.fingerprint()
        return dump(LanguageRecord(model, fingerprint, self.template, self.prompt, self.sampling, self.strip_options))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], load: Load, where: str) -> LanguageLayer:
        """The inverse of `to_json`."""
        r = parse(LanguageRecord, dict(data), where)
        return cls(load(r.model), r.template, r.prompt, r.sampling, r.strip_options)


FREE_TOKENS = 20
"""Longest free answer (the original's limit): one that begins with a label says it at once."""


@checked
@dataclass(frozen=True, eq=False, init=False)
class ChoiceLayer(PromptedLayer):
    """A layer whose output is one of C labels.

    Args:
        lm: the language model, or its name (see `load_lm`); it must be able to score labels.
        template: name, path or `Template` of kind `forward`.
        prompt: the initial π.
        labels: each a name, or verbalizers `name|other wording|…` whose masses are added; the name
            is what `predict` returns and what targets are compared with. Blanks around a word are
            dropped: what stands before a label is the template's business.
        readout: how log p(y|x) is read off the model; default a `LabelReadout` of `bias` and `temperature`.
        bias: b of a `LabelReadout`, one per label, in nats; default zeros.
        temperature: T > 0 of a `LabelReadout`.
        answers: "scored" predicts the most probable label; "free" lets the model write and looks for a label at the
            beginning of what it wrote, as the original does. A text that says no label is the prediction itself, which
            is right for no example. Scores, and with them training, go by log p(y|x,π) in both cases.

    Raises:
        InputError: an argument of another kind, no such model or template, fewer than two labels, empty or repeated
            ones, or another number of biases.
    """

    labels: tuple[str, ...]
    readout: Readout
    answers: Answers

    def __init__(
        self,
        lm: LanguageModel | str,
        template: Template | str | Path = "classify",
        prompt: Prompt | str = "",
        labels: Sequence[str] = (),
        *,
        readout: Readout | None = None,
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
        if readout is None:
            readout = LabelReadout(np.zeros(len(labels)) if bias is None else bias, temperature)
        elif bias is not None or temperature != 1.0:
            raise InputError(
                "the readout is described twice",
                where="ChoiceLayer",
                got="readout, and bias or temperature",
                expected="one of the two",
                fix="readout=LabelReadout(bias, temperature)",
            )
        for name, value in (
            ("lm", lm),
            ("template", load_template(template, "forward")),
            ("prompt", as_prompt(prompt)),
            ("labels", tuple("|".join(word.strip() for word in label.split("|")) for label in labels)),
            ("readout", readout),
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
        shown = [d.y for d in self.prompt.demonstrations if d.y not in self.names and d.y not in words]
        if shown:
            raise InputError(
                "a demonstration shows another label than those of the layer",
                where="ChoiceLayer, argument 'prompt'",
                got=", ".join(map(repr, dict.fromkeys(shown))),
                expected=f"one of {', '.join(self.names)}",
                fix="use prompts that were trained with these labels, or leave the demonstrations out",
            )
        if self.readout.size != len(self.labels):
            raise InputError(
                "the readout has another number of labels than the layer",
                where="ChoiceLayer, argument 'readout' or 'bias'",
                got=f"{self.readout.size} labels",
                expected=f"{len(self.labels)} labels",
                fix=f"bias={[0.0] * len(self.labels)}, or leave it out",
            )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {len(self.labels)} labels)"

    @property
    def classifier(self) -> ChoiceLayer:
        """The layer itself."""
        return self

    @property
    def scoring_mode(self) -> ScoringMode:
        """How the model scores labels."""
        return self.lm.capabilities.label_scoring

    @property
    def max_output_tokens(self) -> int:
        """The longest label, in tokens."""
        return max(self.lm.count_tokens(word) for label in self.labels for word in label.split("|"))

    @property
    def names(self) -> tuple[str, ...]:
        """The label names, without their other verbalizers."""
        return tuple(label.split("|")[0] for label in self.labels)

    @property
    def bias(self) -> Floats:
        """[C] the bias of the readout, in nats."""
        return self.readout.bias

    @property
    def words(self) -> list[list[str]]:
        """[C] the words of each label as they follow a context."""
        return [[self.target_prefix + word for word in label.split("|")] for label in self.labels]

    def with_readout(self, readout: Readout) -> ChoiceLayer:
        """The same layer with another readout."""
        return replace(self, readout=readout)

    def with_calibration(self, bias: Sequence[float] | Floats, temperature: Positive) -> ChoiceLayer:
        """The same layer with a `LabelReadout` of bias b and temperature T."""
        return self.with_readout(LabelReadout(bias, temperature))

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
        """[N, C] log p_LM(label | context), a label's words added, not normalised over labels, in nats."""
        return LabelReadout(np.zeros(len(self.labels))).features(self.lm, contexts, self.words)

    def features(self, contexts: Sequence[str]) -> Floats:
        """[N, F] what the readout needs to know of each context, in nats; a row that is unusable is all NaN."""
        return self.readout.features(self.lm, contexts, self.words)

    def label_log_probs(self, inputs: Sequence[LayerInput]) -> Floats:
        """[N, C] log p(y | input, π), normalised over labels, in nats."""
        return self.readout.log_probs(self.features(self.contexts(inputs)))

    def draw(
        self, inputs: Sequence[LayerInput], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Completion]:
        """One label per input; `temperature` None or 0 takes the most probable one, else it divides log p.

        With free answers it is the temperature of the text.
        """
        if self.answers == "free":
            return self.write(self.contexts(inputs), seeds, temperature or 0.0)
        return self.draw_labels(self.label_log_probs(inputs), seeds, temperature or 0.0)

    def draw_labels(self, log_probs: Floats, seeds: Sequence[int], temperature: float) -> list[Completion]:
        """Labels drawn from [N, C] normalised log-probabilities.

        A row that is not finite gives an empty completion, which equals no label: it is counted as
        wrong and as unscored, never as a label.
        """
        draws: list[Completion] = []
        for row, seed in zip(log_probs, seeds, strict=True):
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
        self._check_pairs(inputs, outputs)
        rows = self.label_log_probs(inputs)
        return [TokenLogProbs(row[self.index(o)][None], 1) for row, o in zip(rows, outputs, strict=True)]

    def score(
        self, layers: Sequence[Layer], inputs: Sequence[LayerInput], outputs: Sequence[Target], burn_in: float = 0.0
    ) -> PairScores:
        """One request for all variants; equal contexts are asked once."""
        variants = [cast(ChoiceLayer, layer) for layer in layers]
        requests: dict[str, int] = {}
        positions = np.array(
            [[requests.setdefault(c, len(requests)) for c in layer.contexts(inputs)] for layer in variants],
            dtype=np.int64,
        ).reshape(len(layers), len(inputs))
        features = self.features(list(requests))[positions]
        targets = np.array([self.index(output) for output in outputs], dtype=np.int64)
        rows = np.stack([layer.readout.log_probs(part) for layer, part in zip(variants, features, strict=True)])
        chosen = np.take_along_axis(rows, targets[None, :, None], axis=2)[:, :, 0]
        return PairScores(chosen, chosen, features, targets)

    def answer(
        self, inputs: Sequence[LayerInput], hidden: Sequence[Hidden], seeds: Sequence[int], temperature: float
    ) -> list[Prediction]:
        """The most probable labels, or with free answers the label that most greedy answers say."""
        contexts, count = self.contexts(inputs), len(hidden)
        if self.answers == "free":
            texts = [answer.text for answer in self.write(contexts, [0] * len(contexts))]
            size = len(texts) // max(1, count)
            groups = [texts[i * size : (i + 1) * size] for i in range(count)]
            return [text_prediction(group, h, self.names) for group, h in zip(groups, hidden, strict=True)]
        features = self.features(contexts)
        groups = features.reshape(count, len(inputs) // max(1, count), features.shape[1])
        return [self.prediction(rows, h) for rows, h in zip(groups, hidden, strict=True)]

    def prediction(self, features: Floats, hidden: Hidden, label_log_probs: Floats | None = None) -> Prediction:
        """p(y|x) = mean over S draws of p(y|h^s), from [S, F] features of the readout.

        `label_log_probs`, [S, C] normalised over labels, replace those of the layer (cross-fitted ones, for example).
        """
        # a draw without a finite score says nothing about the label: it is left out of the mean
        usable = self.readout.usable(features)
        if not usable.any():
            return Prediction("", {}, hidden, None, 0)
        rows = self.readout.log_probs(features[usable]) if label_log_probs is None else label_log_probs[usable]
        log_probs = logsumexp(rows, axis=0) - np.log(usable.sum())
        probabilities = np.exp(log_softmax(log_probs))
        return Prediction(
            label=self.names[int(np.argmax(log_probs))],
            probabilities={name: float(p) for name, p in zip(self.names, probabilities, strict=True)},
            hidden=hidden,
            label_mass=float(np.exp(self.readout.label_mass(features[usable])).mean()),
            draws=int(usable.sum()),
        )

    def state(self) -> dict[str, Any]:
        """The prompt and the readout."""
        return super().state() | {"readout": self.readout.state()}

    def with_state(self, state: Mapping[str, Any], where: str) -> ChoiceLayer:
        """The same layer with the prompt and, where `state` has one, the readout."""
        values = parse(ChoiceState, dict(state), where)
        changed = self.with_prompt(values.prompt)
        readout = _readout(values.readout, values.bias, values.temperature, where)
        return changed if readout is None else changed.with_readout(readout)

    def to_json(self) -> dict[str, Any]:
        """Plain data; the model is named."""
        record = ChoiceRecord(
            self.lm.name,
            self.lm.fingerprint(),
            self.template,
            self.prompt,
            list(self.labels),
            self.readout.state(),
            answers=self.answers,
        )
        return {name: value for name, value in dump(record).items() if name not in ("bias", "temperature")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], load: Load, where: str) -> ChoiceLayer:
        """The inverse of `to_json`."""
        r = parse(ChoiceRecord, dict(data), where)
        readout = _readout(r.readout, r.bias, r.temperature, where)
        if readout is None:
            raise InputError("the readout is missing", where=where, got="no readout", expected="a field 'readout'")
        return cls(load(r.model), r.template, r.prompt, r.labels, readout=readout, answers=r.answers)


def _readout(state: dict[str, Any] | None, bias: list[float] | None, temperature: float, where: str) -> Readout | None:
    if state is not None:
        return readout_from_state(state, f"{where}.readout")
    return None if bias is None else LabelReadout(bias, temperature)
