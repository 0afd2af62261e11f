"""Readouts: from what a model says at the answer position to log p(y|x).

A `ChoiceLayer` asks its model for features at the position after each context, and its readout turns them into a
distribution over labels. Readouts are frozen values; `dln.infer.calibrate` fits them.

`LabelReadout` reads the label words alone:

    p(y|x) ∝ exp(log p_LM(y|x,π) / T + b_y)

`WordReadout` reads W words, of which the labels' words are some:

    p(y|x) ∝ exp(Σ_w A_yw log p_LM(w|x,π) + b_y)

A language model has a probability for every word, and other words than the labels tell them apart too. With
A_yw = 1/T where w is a word of label y, and 0 elsewhere, both are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from dln.arguments import NonNegative, Positive, checked
from dln.errors import InputError
from dln.extensions import imported
from dln.io import parse
from dln.lm.base import LanguageModel, Token, first_token, next_tokens_verb
from dln.numerics import Floats, frozen, log_softmax, logsumexp

__all__ = [
    "LabelEvidence",
    "LabelReadout",
    "Readout",
    "WordFeatures",
    "WordReadout",
    "WordWeight",
    "choose_words",
    "readout_from_state",
    "short",
    "strongest",
]

MASS_TOLERANCE = 0.05
"""log of the largest total mass that is still rounding; half-precision engines are this noisy, broken ones worse."""

FLOOR = -30.0
"""Least log-probability of a word that a `WordReadout` uses, in nats: a word that the model excludes has this."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WordWeight:
    """A word that speaks for or against a label.

    Attributes:
        word: its text.
        weight: A_yw − mean over labels, per standard deviation of log p(w|x) where it is known, else per nat.
    """

    word: str
    weight: float


@dataclass(frozen=True)
class LabelEvidence:
    """The words that speak for a label and against it, strongest first."""

    label: str
    speaking: tuple[WordWeight, ...]
    against: tuple[WordWeight, ...]

    def __str__(self) -> str:
        def row(words: Sequence[WordWeight]) -> str:
            return ", ".join(f"{one.word.strip() or repr(one.word)} {one.weight:+.2f}" for one in words) or "none"

        return f"{self.label}: for {row(self.speaking)}; against {row(self.against)}"


def strongest(label: str, words: Sequence[Token], strengths: Floats, most: int) -> LabelEvidence:
    """The `most` words of the largest strength for a label and of the largest against it, strongest first."""
    pairs = [WordWeight(word.text, float(value)) for word, value in zip(words, strengths, strict=True)]
    ordered = sorted(pairs, key=lambda pair: -pair.weight)
    speaking = [pair for pair in ordered if pair.weight > 0]
    against = [pair for pair in reversed(ordered) if pair.weight < 0]
    return LabelEvidence(label, tuple(speaking[:most]), tuple(against[:most]))


class Readout(ABC):
    """p(y | features): the contract of the last step of a `ChoiceLayer`.

    A subclass is a frozen value with `features`, `log_probs`, `label_mass` and `state`. Its `kind` is in the files of
    networks, which can be read where the class can be imported.
    """

    kind: ClassVar[str]
    """The name in files: that of the class, as `module:name`, but for the readouts of this module."""
    wide: ClassVar[bool] = False
    """Whether it has many numbers, which are fitted to the train set as well as to the dev set."""
    bias: Floats
    """[C] in nats."""

    @property
    @abstractmethod
    def size(self) -> int:
        """C, the number of labels."""

    @abstractmethod
    def features(self, lm: LanguageModel, contexts: Sequence[str], words: Sequence[Sequence[str]]) -> Floats:
        """[N, F] what the readout needs to know of each context, in nats; a row that is unusable is all NaN.

        Args:
            lm: the language model.
            contexts: [N].
            words: [C] the words of each label, as they follow the context.
        """

    @abstractmethod
    def log_probs(self, features: Floats) -> Floats:
        """[…, C] log p(y|x) of [… , F] features, normalised over labels, in nats."""

    @abstractmethod
    def label_mass(self, features: Floats) -> Floats:
        """[…] log of the probability that the model gives to all labels together, in nats."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """`kind` and what training changes, as plain data; `from_state` is the inverse."""

    def evidence(self, labels: Sequence[str], most: int = 8) -> tuple[LabelEvidence, ...]:
        """The words behind the labels, for reports; nothing where the readout reads none."""
        del labels, most
        return ()

    @classmethod
    def from_state(cls, state: Mapping[str, Any], where: str) -> Readout:
        """The inverse of `state`; by default the class called with all of it but `kind`.

        Raises:
            InputError: naming `where` and the field that does not fit.
        """
        given = {name: value for name, value in state.items() if name != "kind"}
        try:
            return cls(**given)
        except TypeError as error:
            raise InputError(
                "the output layer in this file does not fit its class", where=where, got=str(error), expected=cls.kind
            ) from error

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" not in cls.__dict__:
            cls.kind = f"{cls.__module__}:{cls.__qualname__}"

    def usable(self, features: Floats) -> Flags:
        """[…] whether log p(y|x) is known for a row."""
        mass = self.label_mass(features)
        return np.asarray(np.isfinite(mass) & ~np.isnan(features).any(axis=-1), dtype=np.bool_)


@checked
@dataclass(frozen=True, eq=False, init=False)
class LabelReadout(Readout):
    """The probabilities of the label words, with a bias per label and a temperature.

    Features are [N, C] log-masses of the labels, the masses of a label's words added.

    Args:
        bias: b, one per label, in nats.
        temperature: T > 0; the slope of the readout is a = 1 / T.

    Raises:
        InputError: a bias that is not finite, or a temperature that is not above 0.
    """

    kind = "labels"
    bias: Floats
    temperature: float

    def __init__(self, bias: Sequence[float] | Floats, temperature: Positive = 1.0) -> None:
        object.__setattr__(self, "bias", frozen(bias))
        object.__setattr__(self, "temperature", float(temperature))
        if self.bias.ndim != 1 or not np.isfinite(self.bias).all():
            raise InputError(
                "bias needs one finite number per label",
                where="LabelReadout, argument 'bias'",
                got=self.bias.tolist(),
                expected="finite numbers",
                fix="bias=[0.0, 0.0] for two labels",
            )

    @property
    def size(self) -> int:
        """C, the number of labels."""
        return len(self.bias)

    def features(self, lm: LanguageModel, contexts: Sequence[str], words: Sequence[Sequence[str]]) -> Floats:
        """[N, C] log p_LM(label | context), the masses of its words added, not normalised over labels.

        A row that cannot be one (a NaN, or masses of more than one together) is all NaN.
        """
        masses = lm.choice_log_probs(contexts, [word for group in words for word in group])
        impossible = ~(logsumexp(masses, axis=1) <= MASS_TOLERANCE)
        masses = np.where(impossible[:, None], np.nan, masses)
        ends = np.cumsum([len(group) for group in words])
        return np.stack(
            [logsumexp(masses[:, end - len(g) : end], axis=1) for g, end in zip(words, ends, strict=True)], 1
        )

    def log_probs(self, features: Floats) -> Floats:
        """log softmax_y(log mass / T + b), over the last axis."""
        return log_softmax(features / self.temperature + self.bias)

    def label_mass(self, features: Floats) -> Floats:
        """The log of the sum of the masses."""
        return logsumexp(features, axis=-1)

    def state(self) -> dict[str, Any]:
        """Bias and temperature."""
        return {"kind": self.kind, "bias": self.bias.tolist(), "temperature": self.temperature}


class WordFeatures(Readout):
    """A readout whose features are the log-probabilities of W words at the answer position, [N, W].

    A word that a server did not tell has the upper bound that the server's answer gives; one that the model excludes
    has the log-probability −30.

    Attributes:
        words: [W] the words that are read, each once.
        label_words: for each label the positions of its words in `words` (the first token of a longer one).
    """

    wide = True
    words: tuple[Token, ...]
    label_words: tuple[tuple[int, ...], ...]

    def set_words(self, words: Sequence[Token], label_words: Sequence[Sequence[int]]) -> None:
        """Set both, for constructors.

        Raises:
            InputError: fewer than two labels, no word or the same word twice, or a position that does not exist.
        """
        object.__setattr__(self, "words", tuple(Token(*word) for word in words))
        object.__setattr__(self, "label_words", tuple(tuple(positions) for positions in label_words))
        classes, size = len(self.label_words), len(self.words)
        if classes < 2 or not size or len(set(self.words)) != size:
            raise InputError(
                "a word readout needs two labels or more, and different words",
                where=type(self).__name__,
                got=f"{classes} labels, {size} words, {len(set(self.words))} of them different",
            )
        if any(not 0 <= at < size for positions in self.label_words for at in positions):
            where = f"{type(self).__name__}, argument 'label_words'"
            raise InputError("no such word", where=where, got=self.label_words)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.words)} words, {self.size} labels)"

    def features(self, lm: LanguageModel, contexts: Sequence[str], words: Sequence[Sequence[str]]) -> Floats:
        """[N, W] log p_LM(w | context) at one position per context; a row with a positive or unknown value is all NaN.

        A row of which the server told no word of this readout is all NaN too.
        """
        told = lm.next_token_log_probs(contexts, self.words)
        values = np.asarray(told.log_probs, dtype=np.float64)
        unknown = np.isnan(values)
        values = np.where(unknown, np.asarray(told.bounds)[:, None], values)
        nothing: Flags = np.asarray(unknown.all(axis=1) | (values > MASS_TOLERANCE).any(axis=1), dtype=np.bool_)
        return np.where(nothing[:, None], np.nan, np.maximum(values, FLOOR))

    def label_mass(self, features: Floats) -> Floats:
        """The log of the summed probabilities of the label words; of all words where no label word is read."""
        positions = sorted({at for positions in self.label_words for at in positions})
        return logsumexp(features[..., positions] if positions else features, axis=-1)


@checked
@dataclass(frozen=True, eq=False, init=False)
class WordReadout(WordFeatures):
    """Multinomial logistic regression on the log-probabilities of W words at the answer position.

    Args:
        words: [W] the words that are read, each once.
        label_words: [C] for each label the positions of its words in `words` (the first token of a longer one).
        weights: A, [C, W]; default the label words alone (`label_weights`).
        bias: b, [C] in nats; default zeros.
        scale: [W] standard deviations of log p(w|x) in training, in nats, for `explain`; default ones.

    Raises:
        InputError: fewer than two labels, no word or the same word twice, a position that does not exist, or arrays of
            other shapes or with numbers that are not finite.
    """

    kind = "words"
    weights: Floats
    bias: Floats
    scale: Floats

    def __init__(
        self,
        words: Sequence[Token],
        label_words: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]] | Floats | None = None,
        bias: Sequence[float] | Floats | None = None,
        scale: Sequence[float] | Floats | None = None,
    ) -> None:
        self.set_words(words, label_words)
        prior = label_weights(self.label_words, len(self.words)) if weights is None else weights
        object.__setattr__(self, "weights", frozen(prior))
        object.__setattr__(self, "bias", frozen(np.zeros(len(self.label_words)) if bias is None else bias))
        object.__setattr__(self, "scale", frozen(np.ones(len(self.words)) if scale is None else scale))
        self._check()

    def _check(self) -> None:
        classes, size = len(self.label_words), len(self.words)
        shapes = (self.weights.shape, self.bias.shape, self.scale.shape)
        if shapes != ((classes, size), (classes,), (size,)):
            raise InputError(
                "the arrays of a word readout do not fit its labels and words",
                where="WordReadout",
                got=f"weights {shapes[0]}, bias {shapes[1]}, scale {shapes[2]}",
                expected=f"weights ({classes}, {size}), bias ({classes},), scale ({size},)",
            )
        if not all(np.isfinite(values).all() for values in (self.weights, self.bias, self.scale)):
            raise InputError("a word readout needs finite numbers", where="WordReadout, arguments 'weights' and 'bias'")

    @property
    def size(self) -> int:
        """C, the number of labels."""
        return len(self.label_words)

    def log_probs(self, features: Floats) -> Floats:
        """log softmax_y(Σ_w A_yw log p(w) + b_y), over the last axis."""
        return log_softmax(features @ self.weights.T + self.bias)

    def with_fit(self, weights: Floats, bias: Floats, scale: Floats) -> WordReadout:
        """The same words under other weights, all numbers with six significant digits, as a file has them."""
        return WordReadout(self.words, self.label_words, short(weights), short(bias), short(scale))

    def evidence(self, labels: Sequence[str], most: int = 8) -> tuple[LabelEvidence, ...]:
        """For each label the words with the largest weights for it, and against it.

        A weight is (A_yw − mean_y A_yw) · s_w: the change of the logit, against the other labels, when log p(w|x)
        rises by its standard deviation s_w.
        """
        strengths = (self.weights - self.weights.mean(axis=0)) * self.scale
        return tuple(strongest(label, self.words, row, most) for label, row in zip(labels, strengths, strict=True))

    def state(self) -> dict[str, Any]:
        """Words, weights and bias."""
        return {
            "kind": self.kind,
            "words": [list(word) for word in self.words],
            "label_words": [list(positions) for positions in self.label_words],
            "weights": self.weights.tolist(),
            "bias": self.bias.tolist(),
            "scale": self.scale.tolist(),
        }


def short(values: Floats) -> Floats:
    """The same with six significant digits, as a file has them."""
    return np.array([float(f"{value:.6g}") for value in values.ravel()]).reshape(values.shape)


def label_weights(label_words: Sequence[Sequence[int]], size: int) -> Floats:
    """[C, W] A_0: 1/n where a word is one of the n words of a label, else 0."""
    weights = np.zeros((len(label_words), size))
    for label, positions in enumerate(label_words):
        weights[label, list(positions)] = 1.0 / max(1, len(positions))
    return weights


def choose_words(
    lm: LanguageModel, contexts: Sequence[str], words: Sequence[Sequence[str]], size: int, top: int = 1000
) -> WordReadout:
    """A readout of the labels' words and of the most probable words besides, not fitted yet.

    The words are those of the largest mean probability (1/N) Σ_n p(w | context_n); no target is looked at.

    Args:
        lm: the language model.
        contexts: [N] contexts of training inputs.
        words: [C] the words of each label, as they follow the context.
        size: W, with the labels' words.
        top: how many words of each context are asked for.
    """
    told = next_tokens_verb(lm)(contexts, (), min(top, lm.capabilities.top_log_probs or top))
    mass: dict[Token, float] = {}
    for row in told.top:
        for token, log_prob in row:
            mass[token] = mass.get(token, 0.0) + float(np.exp(log_prob))
    chosen: dict[Token, None] = {}
    label_tokens: list[list[Token]] = []
    for group in words:
        first = [first_token(lm, word) or _beginning(word, mass) for word in group]
        label_tokens.append([token for token in dict.fromkeys(first) if token is not None])
        chosen |= dict.fromkeys(label_tokens[-1])
    by_mass = sorted(mass, key=lambda token: (-mass[token], token.text))
    for token in by_mass:
        if len(chosen) >= size:
            break
        chosen[token] = None
    if not chosen:
        raise InputError(
            "the model told the probability of no word",
            where=f"model {lm.name}",
            fix='inference={"output_layer": "fitted"} reads the label words alone',
        )
    place = {token: i for i, token in enumerate(chosen)}
    return WordReadout(list(chosen), [[place[token] for token in tokens] for tokens in label_tokens])


def _beginning(word: str, known: Mapping[Token, float]) -> Token | None:
    """The longest known token that `word` begins with."""
    found = [token for token in known if token.text.strip() and word.startswith(token.text)]
    return max(found, key=lambda token: len(token.text), default=None)


@dataclass(frozen=True)
class LabelState:
    """A `LabelReadout` in a file."""

    bias: list[float]
    temperature: Positive = 1.0
    kind: Literal["labels"] = "labels"


@dataclass(frozen=True)
class WordState:
    """A `WordReadout` in a file."""

    words: list[tuple[str, int | None]]
    label_words: list[list[int]]
    weights: list[list[float]]
    bias: list[float]
    scale: list[NonNegative]
    kind: Literal["words"] = "words"


def readout_from_state(state: Mapping[str, Any], where: str) -> Readout:
    """The inverse of `Readout.state`.

    Raises:
        InputError: naming `where` and the field that does not fit.
    """
    kind = state.get("kind")
    if isinstance(kind, str) and ":" in kind:
        found = imported(kind, "output layer")
        if not (isinstance(found, type) and issubclass(found, Readout)):
            raise InputError("this is no output layer", where=where, got=kind, expected="a subclass of dln.nn.Readout")
        return found.from_state(state, where)
    if kind == "words":
        r = parse(WordState, dict(state), where)
        return WordReadout([Token(*word) for word in r.words], r.label_words, r.weights, r.bias, r.scale)
    label = parse(LabelState, dict(state), where)
    return LabelReadout(label.bias, label.temperature)
