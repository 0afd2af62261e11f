"""Networks that answer together: a mixture or a product of experts.

    mixture   p(y|x) = Σ_m w_m p_m(y|x),   the prediction under a posterior over prompts
    product   p(y|x) ∝ exp(Σ_m w_m log p_m(y|x) + b_y),   weights and bias fitted to held-out predictions

Each member is a whole network. One prompt that was best on a dev set was partly lucky there; the mean over
several good ones keeps what they agree on. Asking M members costs M times what one costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from dln.arguments import Count, Seed, checked
from dln.errors import InputError
from dln.nn.layers import Answers
from dln.nn.prompt import Prompt
from dln.nn.sequential import Prediction, Sequential, Vote
from dln.numerics import Floats, frozen, log_softmax
from dln.random import Key

__all__ = ["AnyNetwork", "Ensemble", "average", "best_of", "members_of", "product"]

TIE = 1e-12
"""Sums that differ by less than this part of them are equal: they differ by the order of adding."""


@checked
@dataclass(frozen=True, eq=False, init=False)
class Ensemble:
    """Weighted networks with the prediction interface of one network.

    Over a closed label set they are a mixture, or with a `bias` a product of experts. Free texts are voted for: a text
    has the weights of those who wrote it. A member that cannot score an input is left out for that input, and the
    others' weights are scaled to the same sum; if nobody can, the input is unscored as it is for one network.

    Args:
        members: the networks; all have the same labels in the same order, or all write free text.
        weights: [M] w_m ≥ 0, one per member, not all zero; default equal. Those of a mixture are scaled to a sum of
            one. A member of weight zero is never asked.
        bias: [C] b_y of a product, in nats; None is a mixture.

    Raises:
        InputError: no member, something that is no network, other labels than the first member's, or weights
            that are negative, not finite, all zero or of another number.
    """

    members: tuple[Sequential, ...]
    weights: Floats
    bias: Floats | None

    def __init__(
        self,
        members: Iterable[Sequential],
        weights: Sequence[float] | Floats | None = None,
        bias: Sequence[float] | Floats | None = None,
    ) -> None:
        if isinstance(members, Sequential):  # which iterates over its layers
            raise InputError(
                "the argument 'members' cannot be used",
                where="Ensemble",
                got="one Sequential",
                expected="a list of Sequential objects",
                fix="dln.Ensemble([network, …])",
            )
        chosen = tuple(members)
        _check_members(chosen)
        given = np.full(len(chosen), 1.0 / len(chosen)) if weights is None else np.array(weights, dtype=np.float64)
        scaled = _scaled(given, len(chosen))
        object.__setattr__(self, "members", chosen)
        object.__setattr__(self, "weights", scaled if bias is None else frozen(given))
        object.__setattr__(self, "bias", None if bias is None else frozen(bias))
        if self.bias is not None and (self.bias.shape != (len(self.labels or ()),) or not np.isfinite(self.bias).all()):
            raise InputError(
                "a product of experts needs labels and one finite bias per label",
                where="Ensemble, argument 'bias'",
                got=self.bias.tolist(),
                expected="a finite number per label",
                fix="leave it out for a mixture",
            )

    def __len__(self) -> int:
        """Layers of the heaviest member, as `len` of a network is its depth."""
        return len(self.heaviest)

    @property
    def heaviest(self) -> Sequential:
        """The member with the most weight; the first of equals."""
        return self.members[int(np.argmax(self.weights))]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Label names, the same for all members; None where they write free text."""
        return self.members[0].labels

    def parameters(self) -> tuple[Prompt, ...]:
        """π_1 … π_L of the heaviest member."""
        return self.heaviest.parameters()

    # a text is a sequence of texts to a type checker, and one input to us
    @overload
    def predict(self, x: str, *, samples: int | None = None, seed: int = 0) -> Prediction: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def predict(self, x: Sequence[str], *, samples: int | None = None, seed: int = 0) -> list[Prediction]: ...
    def predict(
        self, x: str | Sequence[str], *, samples: Count | None = None, seed: Seed = 0
    ) -> Prediction | list[Prediction]:
        """Label (or text), probabilities and hidden texts: of one input, or of each input of a list.

        Raises:
            InputError: `x` is neither a text nor a list of texts.
        """
        if isinstance(x, str):
            return self.predict_many([x], samples=samples, seed=seed)[0]
        return self.predict_many(x, samples=samples, seed=seed)

    def predict_many(self, x: Sequence[str], *, samples: Count | None = None, seed: Seed = 0) -> list[Prediction]:
        """Predictions for many inputs, every member asked as `Sequential.predict_many` asks (see `average`)."""
        asked = [(m, float(w)) for m, w in enumerate(self.weights) if w > 0]
        answers = [self.members[m].predict_many(x, samples=samples, seed=seed) for m, _ in asked]
        return [_with_votes(asked, self.bias, column) for column in zip(*answers, strict=True)]

    def pick(self, key: Key) -> Sequential:
        """One member, drawn with its weight: the first draw of an ancestral sample of Σ_m w_m p_m."""
        return self.members[int(key.generator().choice(len(self.members), p=self.weights / self.weights.sum()))]

    def each(self, change: Callable[[Sequential], Sequential]) -> Ensemble:
        """The same weights over changed members (other models, for example)."""
        return Ensemble(map(change, self.members), self.weights, self.bias)

    def with_answers(self, answers: Answers) -> Ensemble:
        """The same members with their labels predicted in another way (see `ChoiceLayer`)."""
        return self.each(lambda member: member.with_answers(answers))

    def state_dict(self) -> dict[str, object]:
        """Every member's weight and parameters as plain data."""
        pairs = zip(self.weights, self.members, strict=True)
        bias = {} if self.bias is None else {"bias": self.bias.tolist()}
        return {"members": [{"weight": float(w), **member.state_dict()} for w, member in pairs], **bias}


AnyNetwork = Sequential | Ensemble
"""Whatever predicts: one network, or several that answer together."""


def members_of(network: AnyNetwork) -> tuple[Sequential, ...]:
    """The networks that answer, one or several."""
    return network.members if isinstance(network, Ensemble) else (network,)


def best_of(network: AnyNetwork) -> Sequential:
    """The one network to go on with: the heaviest member, or the network itself."""
    return network.heaviest if isinstance(network, Ensemble) else network


def average(weights: Sequence[float], predictions: Sequence[Prediction]) -> Prediction:
    """p(y|x) = Σ_m w_m p_m(y|x) / Σ_m w_m, over the members m that scored the input.

    The answer is the most probable label or text; of equals, the one that the heaviest member gives. Hidden texts
    are those of the heaviest member that scored the input, and the label mass is the weighted mean.

    Args:
        weights: [M] w_m > 0.
        predictions: of one input, one per member.
    """
    by_weight = sorted(range(len(predictions)), key=lambda m: -weights[m])
    scored = [m for m in by_weight if predictions[m].scored]
    if not scored:
        return predictions[by_weight[0]]
    first, total = predictions[scored[0]], math.fsum(weights[m] for m in scored)
    shares = [(weights[m] / total, predictions[m]) for m in scored]
    names = dict.fromkeys(name for _, prediction in shares for name in prediction.probabilities)
    probabilities = {name: math.fsum(w * p.probabilities.get(name, 0.0) for w, p in shares) for name in names}
    most = max(probabilities.values())
    equal = [name for name, p in probabilities.items() if p >= most * (1 - TIE)]
    preferred = (p.label for _, p in shares if p.label in equal)
    masses = [(w, p.label_mass) for w, p in shares if p.label_mass is not None]
    return Prediction(
        label=next(preferred, equal[0]),
        probabilities=probabilities,
        hidden=first.hidden,
        label_mass=math.fsum(w * mass for w, mass in masses) if len(masses) == len(shares) else None,
        draws=first.draws,
    )


def product(weights: Sequence[float], bias: Floats, predictions: Sequence[Prediction]) -> Prediction:
    """p(y|x) ∝ exp(Σ_m w_m log p_m(y|x) + b_y), over the members m that scored the input.

    If some did not, the weights of the others are scaled to the same sum. Hidden texts and label mass are as in
    `average`.

    Args:
        weights: [M] w_m > 0.
        bias: [C] b_y, in nats.
        predictions: of one input, one per member, over the same labels.
    """
    mixture = average(weights, predictions)
    scored = [(w, p) for w, p in zip(weights, predictions, strict=True) if p.scored]
    if not scored:
        return mixture
    share = math.fsum(weights) / math.fsum(w for w, _ in scored)
    names = list(scored[0][1].probabilities)
    rows = np.array([[max(p.probabilities[name], 1e-300) for name in names] for _, p in scored])
    log_probs = log_softmax(share * np.array([w for w, _ in scored]) @ np.log(rows) + bias)
    probabilities = dict(zip(names, map(float, np.exp(log_probs)), strict=True))
    return replace(mixture, label=names[int(np.argmax(log_probs))], probabilities=probabilities)


def _with_votes(
    asked: Sequence[tuple[int, float]], bias: Floats | None, predictions: Sequence[Prediction]
) -> Prediction:
    votes = tuple(Vote(m, w, p.label, p.probabilities) for (m, w), p in zip(asked, predictions, strict=True))
    weights = [w for _, w in asked]
    together = average(weights, predictions) if bias is None else product(weights, bias, predictions)
    return replace(together, members=votes)


def _check_members(members: tuple[Sequential, ...]) -> None:
    if not members:
        raise InputError(
            "an ensemble needs at least one member",
            where="Ensemble, argument 'members'",
            got="none",
            expected="a list of networks",
            fix="dln.Ensemble([network, …])",
        )
    labels = members[0].labels
    for position, member in enumerate(members):
        if member.labels != labels:
            raise InputError(
                "networks with different labels cannot answer together",
                where=f"member {position}",
                got=_shown(member.labels),
                expected=f"as of member 0: {_shown(labels)}",
            )


def _shown(labels: tuple[str, ...] | None) -> str:
    return "free text" if labels is None else ", ".join(labels)


def _scaled(weights: Floats, count: int) -> Floats:
    """The weights with a sum of one, read-only."""
    if weights.shape != (count,):
        raise InputError(
            "an ensemble needs one weight per member",
            where="Ensemble, argument 'weights'",
            got=weights.tolist(),
            expected=f"{count} numbers ≥ 0",
            fix=f"weights={[1.0] * count}, or leave it out",
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
        raise InputError(
            "weights must be finite, none below 0 and not all 0",
            where="Ensemble, argument 'weights'",
            got=weights.tolist(),
            expected="numbers ≥ 0",
            fix=f"weights={[1.0] * count}, or leave it out",
        )
    # the largest first becomes one: a sum of huge weights would be infinite
    largest = float(weights.max())
    total = math.fsum((weights / largest).tolist())
    # weights that sum to one already stay what they are to the last bit, so that a file gives back what it was given
    result: Floats = np.array(weights if abs(total * largest - 1) <= TIE else weights / largest / total)
    result.setflags(write=False)
    return result
