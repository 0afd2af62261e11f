"""Readouts of labels with a structure: an order, or sets of labels.

Both read W words, as a `WordReadout` does, and compute K scores

    z_k = Σ_w A_kw log p_LM(w|x,π) + b_k

`OrdinalReadout`, K = 1, is the proportional-odds model of C labels in their order (McCullagh, 1980):

    p(y ≤ c | x) = σ(θ_c − z),     θ_1 < … < θ_{C−1} with mean 0

`SetReadout` has a score per single label and a label of the layer for each set S of them. The single labels are
independent given x, and only the sets that are labels of the layer are possible:

    p(S|x) ∝ exp(Σ_{k∈S} z_k)

If all 2^K sets are labels, this is a logistic regression per single label, p(k ∈ S | x) = σ(z_k).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from dln.answers import single_labels
from dln.errors import InputError
from dln.lm.base import Token
from dln.nn.readout import LabelEvidence, WordFeatures, label_weights, short, strongest
from dln.numerics import Floats, frozen, log_softmax

__all__ = ["Gradient", "OrdinalReadout", "SetReadout", "StructuredReadout"]

Integers = npt.NDArray[np.int64]


class Gradient(NamedTuple):
    """log p(y|x) of the wanted labels and its derivatives.

    Attributes:
        log_prob: [P].
        scores: [P, K] by z.
        shape: [P, B] by the further parameters of the readout.
    """

    log_prob: Floats
    scores: Floats
    shape: Floats


class StructuredReadout(WordFeatures):
    """K scores, linear in the log-probabilities of W words, and a distribution over C labels that depends on them.

    Attributes:
        words: [W] the words that are read, each once.
        label_words: for each label (for sets: for each single label) the positions of its words in `words`.
        weights: A, [K, W].
        intercept: b, [K] in nats.
        shape: [B] further parameters.
        scale: [W] standard deviations of log p(w|x) in training, in nats, for `evidence`.
        bias: [C] log p(y) where the words say nothing: z = b.
    """

    wide: ClassVar[bool] = True
    weights: Floats
    intercept: Floats
    shape: Floats
    scale: Floats

    @abstractmethod
    def rows(self, scores: Floats, shape: Floats) -> Floats:
        """[…, C] log p(y|x) of […, K] scores."""

    @abstractmethod
    def gradient(self, scores: Floats, shape: Floats, targets: Integers) -> Gradient:
        """log p of [P] targets for [P, K] scores, and its derivatives."""

    @abstractmethod
    def base(self) -> Floats:
        """[K, W] A_0, the weights before training, made of the labels' words."""

    def log_probs(self, features: Floats) -> Floats:
        """[…, C] log p(y|x)."""
        return self.rows(features @ self.weights.T + self.intercept, self.shape)

    def with_fit(self, weights: Floats, intercept: Floats, shape: Floats, scale: Floats) -> StructuredReadout:
        """The same words under other numbers, all with six significant digits, as a file has them."""
        numbers = {"weights": weights, "intercept": intercept, "shape": shape, "scale": scale}
        return type(self)(**(self.fields() | {name: short(value) for name, value in numbers.items()}))

    def state(self) -> dict[str, Any]:
        """`kind` and the fields, as plain data."""
        return {"kind": self.kind, **self.fields()}

    def fields(self) -> dict[str, Any]:
        """The arguments of the constructor, as plain data."""
        return {
            "words": [list(word) for word in self.words],
            "label_words": [list(positions) for positions in self.label_words],
            "weights": self.weights.tolist(),
            "intercept": self.intercept.tolist(),
            "shape": self.shape.tolist(),
            "scale": self.scale.tolist(),
        }

    def _set(self, words: Sequence[Token], label_words: Sequence[Sequence[int]], **arrays: Any) -> None:
        self.set_words(words, label_words)
        size, (scores, shape) = len(self.words), self._sizes()
        given: dict[str, tuple[Callable[[], Floats], tuple[int, ...]]] = {
            "weights": (self.base, (scores, size)),
            "intercept": (lambda: np.zeros(scores), (scores,)),
            "shape": (lambda: np.zeros(shape), (shape,)),
            "scale": (lambda: np.ones(size), (size,)),
        }
        for name, (default, wanted) in given.items():
            value = frozen(default() if arrays[name] is None else arrays[name])
            if value.shape != wanted or not np.isfinite(value).all():
                raise InputError(
                    "the numbers of an output layer do not fit its labels and words",
                    where=f"{type(self).__name__}, argument {name!r}",
                    got=f"shape {value.shape}",
                    expected=f"finite numbers of shape {wanted}",
                )
            object.__setattr__(self, name, value)
        object.__setattr__(self, "bias", frozen(self.rows(self.intercept, self.shape)))

    @abstractmethod
    def _sizes(self) -> tuple[int, int]:
        """K and B."""


@dataclass(frozen=True, eq=False, init=False, repr=False)
class OrdinalReadout(StructuredReadout):
    """The proportional-odds model of C labels in their order, lowest first.

    θ_c = Σ_{j<c} exp(γ_j) less the mean of these, so that every γ ∈ R^{C−2} (`shape`) gives rising thresholds.
    A_0 measures how much more probable the words of high labels are: with r_y the rank of label y less the mean rank,
    A_0w = Σ_y r_y / Σ r² · 1/n_y where w is one of the n_y words of label y.
    """

    def __init__(
        self,
        words: Sequence[Token],
        label_words: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]] | Floats | None = None,
        intercept: Sequence[float] | Floats | None = None,
        shape: Sequence[float] | Floats | None = None,
        scale: Sequence[float] | Floats | None = None,
    ) -> None:
        self._set(words, label_words, weights=weights, intercept=intercept, shape=shape, scale=scale)

    @property
    def size(self) -> int:
        """C."""
        return len(self.label_words)

    def thresholds(self, shape: Floats) -> Floats:
        """[C − 1] θ."""
        found = np.concatenate([[0.0], np.cumsum(np.exp(shape))])
        return found - found.mean()

    def rows(self, scores: Floats, shape: Floats) -> Floats:
        """log p(y|x) = log(σ(θ_c − z) − σ(θ_{c−1} − z)), by σ(u) − σ(l) = σ(u) σ(−l) (1 − e^{l−u})."""
        above = self.thresholds(shape) - scores
        ends = np.zeros((*above.shape[:-1], 1))
        upper = np.concatenate([_log_sigmoid(above), ends], axis=-1)
        lower = np.concatenate([ends, _log_sigmoid(-above)], axis=-1)
        gaps = np.concatenate([[0.0], np.log(-np.expm1(-np.exp(shape))), [0.0]])
        return upper + lower + gaps

    def gradient(self, scores: Floats, shape: Floats, targets: Integers) -> Gradient:
        """With u the threshold above the target and l the one below, ∂ log p / ∂z = σ(l − z) − σ(z − u)."""
        rows = self.rows(scores, shape)
        at = np.arange(len(targets))
        above = self.thresholds(shape) - scores
        low = np.concatenate([np.zeros((len(at), 1)), np.exp(_log_sigmoid(above))], axis=1)[at, targets]  # σ(l − z)
        high = np.concatenate([np.exp(_log_sigmoid(-above)), np.zeros((len(at), 1))], axis=1)[at, targets]  # σ(z − u)
        # ∂ log p / ∂θ_c: σ(z − u) for the threshold above, −σ(l − z) for the one below, and the gap between them
        by_threshold = np.zeros((len(at), self.size + 1))
        by_threshold[at, targets + 1] += high
        by_threshold[at, targets] -= low
        by_threshold = by_threshold[:, 1:-1]
        steps = np.exp(shape)
        after = np.cumsum(by_threshold[:, ::-1], axis=1)[:, ::-1][:, 1:]  # Σ_{c>j}, as γ_j moves every later θ
        centre = (len(steps) - np.arange(len(steps))) / (len(steps) + 1.0)
        by_shape = (after - by_threshold.sum(axis=1, keepdims=True) * centre) * steps
        inner = (targets[:, None] - 1) == np.arange(len(steps))
        by_shape += np.where(inner, steps / np.expm1(steps), 0.0)
        return Gradient(rows[at, targets], (low - high)[:, None], by_shape)

    def base(self) -> Floats:
        """[1, W] A_0."""
        ranks = np.arange(self.size) - (self.size - 1) / 2
        return (ranks / np.square(ranks).sum()) @ label_weights(self.label_words, len(self.words))[None]

    def evidence(self, labels: Sequence[str], most: int = 8) -> tuple[LabelEvidence, ...]:
        """The words that speak for a higher label, and for a lower one."""
        name = f"higher, towards {labels[-1]}"
        return (strongest(name, self.words, self.weights[0] * self.scale, most),)

    def _sizes(self) -> tuple[int, int]:
        return 1, len(self.label_words) - 2


@dataclass(frozen=True, eq=False, init=False, repr=False)
class SetReadout(StructuredReadout):
    """Independent single labels, of which each label of the layer is a set.

    Args:
        members: [C] the positions in `label_words` of the single labels of each set.
    """

    members: tuple[tuple[int, ...], ...]

    def __init__(
        self,
        words: Sequence[Token],
        label_words: Sequence[Sequence[int]],
        members: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]] | Floats | None = None,
        intercept: Sequence[float] | Floats | None = None,
        shape: Sequence[float] | Floats | None = None,
        scale: Sequence[float] | Floats | None = None,
    ) -> None:
        object.__setattr__(self, "members", tuple(tuple(one) for one in members))
        self._set(words, label_words, weights=weights, intercept=intercept, shape=shape, scale=scale)
        if any(not 0 <= at < len(self.label_words) for one in self.members for at in one):
            raise InputError("no such single label", where="SetReadout, argument 'members'", got=self.members)

    @property
    def size(self) -> int:
        """C, the number of sets."""
        return len(self.members)

    @property
    def membership(self) -> Floats:
        """[C, K] 1 where a single label is in a set."""
        found = np.zeros((len(self.members), len(self.label_words)))
        for row, positions in zip(found, self.members, strict=True):
            row[list(positions)] = 1.0
        return found

    def rows(self, scores: Floats, shape: Floats) -> Floats:
        """log softmax_S(Σ_{k∈S} z_k)."""
        del shape
        return log_softmax(scores @ self.membership.T)

    def gradient(self, scores: Floats, shape: Floats, targets: Integers) -> Gradient:
        """∂ log p / ∂z_k = 1[k ∈ S] − p(k ∈ S|x)."""
        rows, members = self.rows(scores, shape), self.membership
        chosen = rows[np.arange(len(targets)), targets]
        return Gradient(chosen, members[targets] - np.exp(rows) @ members, np.zeros((len(targets), 0)))

    def base(self) -> Floats:
        """[K, W] 1/n where a word is one of the n words of a single label."""
        return label_weights(self.label_words, len(self.words))

    def evidence(self, labels: Sequence[str], most: int = 8) -> tuple[LabelEvidence, ...]:
        """The words that speak for and against each single label."""
        singles = single_labels(labels)
        return tuple(
            strongest(name, self.words, row, most) for name, row in zip(singles, self.weights * self.scale, strict=True)
        )

    def fields(self) -> dict[str, Any]:
        """The arguments of the constructor, as plain data."""
        return super().fields() | {"members": [list(one) for one in self.members]}

    def _sizes(self) -> tuple[int, int]:
        return len(self.label_words), 0


def _log_sigmoid(values: Floats) -> Floats:
    return -np.logaddexp(0.0, -values)
