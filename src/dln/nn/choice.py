"""The output layer over a closed label set: p(y|x,π) ∝ exp(log p_LM(y|x,π) / T + b_y).

Small models prefer a label whatever the input. The bias b removes that preference and the
temperature T sets how sure the layer is; both are fitted together with the prompt
(`dln.infer.calibrate`), so that a prompt is ranked by what it knows. With b = 0 and T = 1 this is
the model's own distribution, renormalised over the labels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dln.answers import labels_said
from dln.arguments import NonNegative, Positive, checked, did_you_mean
from dln.errors import InputError
from dln.keys import Key
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs, text_of
from dln.lm.load import as_lm
from dln.nn.layer import LayerInput, render
from dln.nn.prompt import Prompt, as_prompt
from dln.nn.template import Template, load_template
from dln.numerics import Floats, log_softmax, logsumexp

__all__ = ["FREE_TOKENS", "Answers", "ChoiceLayer"]

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
