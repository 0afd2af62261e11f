"""Predictions: labels or texts with their probabilities, for one input each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Hidden", "Prediction", "Vote", "text_prediction"]

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

    def __str__(self) -> str:
        probability = self.probabilities.get(self.label)
        return self.label if probability is None else f"{self.label} ({probability:.2f})"


def text_prediction(texts: Sequence[str], hidden: Hidden, names: Sequence[str] = ()) -> Prediction:
    """The most frequent text (the first of equals), with the frequency of each text, and of each label in `names`."""
    counts = Counter(texts)
    frequencies = {text: n / len(texts) for text, n in counts.items()}
    best = counts.most_common(1)[0][0]
    return Prediction(best, dict.fromkeys(names, 0.0) | frequencies, hidden, None, len(texts))
