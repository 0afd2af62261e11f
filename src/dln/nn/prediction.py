"""Predictions: labels or texts with their probabilities, for one input each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dln.errors import InputError

__all__ = ["Hidden", "Prediction", "Vote", "abstention_threshold", "text_prediction"]

Hidden = tuple[tuple[str, ...], ...]
"""The hidden texts of one input: per draw, (h_1 … h_{L-1})."""


@dataclass(frozen=True)
class Vote:
    """The answer of one member of an ensemble to an input.

    Attributes:
        member: its position in the ensemble, from 0.
        weight: w_m, its weight in the ensemble.
        label: as of a prediction; empty if it could not score the input, and then it does not count.
        probabilities: as of a prediction.
    """

    member: int
    weight: float
    label: str
    probabilities: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """Plain data for records and answers."""
        return {"weight": self.weight, "label": self.label, "probabilities": self.probabilities}


@dataclass(frozen=True)
class Prediction:
    """The answer of a network to one input.

    Attributes:
        label: the most probable label, or the text of a free-text output layer; empty if unscored.
        probabilities: per label; for free text and free answers the frequency of each answer.
        hidden: the hidden texts, one tuple (h_1 … h_{L-1}) per draw.
        label_mass: mean mass the model put on all labels together, before normalising (a diagnostic:
            near zero means that the model does not see the question as one about these labels).
        draws: how many hidden draws were averaged.
        members: of an ensemble, the answer of each member; empty for one network. Ignored by `==`: two
            predictions are equal if they say the same, whoever said it.
    """

    label: str
    probabilities: dict[str, float]
    hidden: Hidden = ()
    label_mass: float | None = None
    draws: int = 1
    members: tuple[Vote, ...] = field(default=(), compare=False)

    @property
    def scored(self) -> bool:
        """False if the model returned no finite score for this input."""
        return bool(self.label)

    def above(self, threshold: float) -> str | None:
        """The label if its probability reaches `threshold`; None ("none of these") where it does not."""
        return self.label if self.probabilities.get(self.label, 0.0) >= threshold else None

    def __str__(self) -> str:
        probability = self.probabilities.get(self.label)
        return self.label if probability is None else f"{self.label} ({probability:.2f})"


def abstention_threshold(predictions: Sequence[Prediction], targets: Sequence[str], precision: float) -> float:
    """The smallest threshold for `Prediction.above` under which the given answers are right often enough.

    The smallest t with |{n: p_n ≥ t, right}| / |{n: p_n ≥ t}| ≥ precision, p_n the probability of the predicted label.
    Choose it on a dev set: the precision on the same examples is optimistic, the less so the more there are.

    Args:
        predictions: [N].
        targets: [N] the wanted labels.
        precision: above 0 and at most 1.

    Raises:
        InputError: no predictions, another number of targets, or no threshold gives this precision.
    """
    if not predictions or len(predictions) != len(targets) or not 0 < precision <= 1:
        raise InputError(
            "a threshold is chosen by predictions, their targets, and a precision from 0 to 1",
            where="abstention_threshold",
            got=f"{len(predictions)} predictions, {len(targets)} targets, precision {precision}",
        )
    pairs = zip(predictions, targets, strict=True)
    ranked = sorted(((p.probabilities.get(p.label, 0.0), p.label == y) for p, y in pairs), reverse=True)
    chosen, right = None, 0
    for n, (probability, hit) in enumerate(ranked, 1):
        right += hit
        last_of_equals = n == len(ranked) or ranked[n][0] < probability
        if last_of_equals and right >= precision * n:
            chosen = probability
    if chosen is None:
        raise InputError(
            "no threshold gives this precision",
            where="abstention_threshold, argument 'precision'",
            got=precision,
            expected="a precision that the most probable predictions reach",
            fix="a lower precision, or a better network",
        )
    return chosen


def text_prediction(texts: Sequence[str], hidden: Hidden, names: Sequence[str] = ()) -> Prediction:
    """The most frequent text (the first of equals), with the frequency of each text, and of each label in `names`."""
    counts = Counter(texts)
    frequencies = {text: n / len(texts) for text, n in counts.items()}
    best = counts.most_common(1)[0][0]
    return Prediction(best, dict.fromkeys(names, 0.0) | frequencies, hidden, None, len(texts))
