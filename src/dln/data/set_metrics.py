"""Metrics of all predictions together: they select networks and are reported, with bootstrap intervals.

All are functions of the confusion counts n_ij, how often label i was answered by label j; the last column counts
answers that are no label. With n_i· and n_·j the sums of rows and columns and n the sum of all:

    balanced_accuracy    mean_i n_ii / n_i·                                     over the labels that occur as targets
    macro_f1             mean_i 2 n_ii / (n_i· + n_·i)                          over the labels that occur at all
    mcc                  (n Σ n_ii − Σ n_i· n_·i) / √((n² − Σ n_·j²)(n² − Σ n_i·²))
    label_micro_f1       2 TP / (2 TP + FP + FN), summed over the single labels    labels are sets, as "billing, refund"
    label_macro_f1       mean_k 2 TP_k / (2 TP_k + FP_k + FN_k)                    over the single labels that occur
    qwk                  1 − Σ_ij (i − j)² n_ij / Σ_ij (i − j)² n_i· n_·j / n    labels in their order

(Matthews' correlation after Gorodkin, 2004; quadratic weighted kappa after Cohen, 1968.) An answer that is no label is
as far away for qwk as the label farthest from the target. Resampling n predictions with replacement makes multinomial
counts, so the bootstrap draws counts and not predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dln.answers import parts_of, single_labels
from dln.arguments import checked
from dln.data.labels import spelling_map
from dln.errors import InputError
from dln.numerics import Floats
from dln.random import Key

__all__ = ["LABEL_METRICS", "SET_METRICS", "SetMetric"]

_RESAMPLES = 2000


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _hits(counts: Floats) -> Floats:
    """[..., C] the diagonal."""
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _balanced_accuracy(counts: Floats) -> Floats:
    rows = counts.sum(axis=-1)
    return _ratio(_ratio(_hits(counts), rows).sum(axis=-1), (rows > 0).sum(axis=-1).astype(np.float64))


def _macro_f1(counts: Floats) -> Floats:
    both = counts.sum(axis=-1) + counts[..., :-1].sum(axis=-2)
    return _ratio(_ratio(2 * _hits(counts), both).sum(axis=-1), (both > 0).sum(axis=-1).astype(np.float64))


def _mcc(counts: Floats) -> Floats:
    rows, columns = counts.sum(axis=-1), counts.sum(axis=-2)
    n = rows.sum(axis=-1)
    together = n * _hits(counts).sum(axis=-1) - (rows * columns[..., :-1]).sum(axis=-1)
    apart = (n**2 - (columns**2).sum(axis=-1)) * (n**2 - (rows**2).sum(axis=-1))
    return _ratio(together, np.sqrt(np.maximum(apart, 0.0)))


def _qwk(counts: Floats) -> Floats:
    places = np.arange(counts.shape[-2], dtype=np.float64)
    square = (places[:, None] - places) ** 2
    weights = np.concatenate([square, square.max(axis=1, keepdims=True)], axis=1)
    rows, columns = counts.sum(axis=-1), counts.sum(axis=-2)
    expected = _ratio((weights * rows[..., :, None] * columns[..., None, :]).sum(axis=(-2, -1)), rows.sum(axis=-1))
    seen = (weights * counts).sum(axis=(-2, -1))
    return np.where(expected > 0, 1 - _ratio(seen, expected), 0.0)


def _label_f1(counts: Floats, members: Floats) -> tuple[Floats, Floats]:
    """[..., K] 2 TP and 2 TP + FP + FN of the single labels, with [C, K] which of them a set has."""
    answered = np.vstack([members, np.zeros_like(members[:1])])  # an answer that is no label says none of them
    hits = np.einsum("...ij,ik,jk->...k", counts, members, answered)
    wanted, said = counts.sum(axis=-1) @ members, counts.sum(axis=-2) @ answered
    return 2 * hits, wanted + said


def _label_micro_f1(counts: Floats, members: Floats) -> Floats:
    hits, both = _label_f1(counts, members)
    return _ratio(hits.sum(axis=-1), both.sum(axis=-1))


def _label_macro_f1(counts: Floats, members: Floats) -> Floats:
    hits, both = _label_f1(counts, members)
    return _ratio(_ratio(hits, both).sum(axis=-1), (both > 0).sum(axis=-1).astype(np.float64))


SET_METRICS: dict[str, Callable[[Floats], Floats]] = {
    "macro_f1": _macro_f1,
    "mcc": _mcc,
    "balanced_accuracy": _balanced_accuracy,
    "qwk": _qwk,
}
"""By name, from [..., C, C + 1] counts to [...] values."""

LABEL_METRICS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "label_micro_f1": _label_micro_f1,
    "label_macro_f1": _label_macro_f1,
}
"""Those of sets of labels: by name, from counts and [C, K] the single labels of each set."""


@checked
@dataclass(frozen=True, slots=True)
class SetMetric:
    """A metric of all predictions together.

    Called with one prediction and its target it gives 1 for the right label and 0 for another; of qwk, it gives
    1 − (i − j)² / (C − 1)², and of the metrics of sets of labels, F1 of the single labels that both have.

    Args:
        name: one of `SET_METRICS` or `LABEL_METRICS`.
        labels: label specifications ("yes|Yes"), for qwk in their order; empty for the targets of the data, sorted (as
            numbers, if all of them are).
    """

    name: str
    labels: tuple[str, ...] = ()

    def __call__(self, prediction: str, target: str) -> float:
        """From 0 to 1."""
        names = spelling_map(self.labels) if self.labels else {}
        said, wanted = names.get(prediction.strip(), prediction.strip()), names.get(target, target)
        order = tuple(dict.fromkeys(names.values()))
        if self.name in LABEL_METRICS:
            one, other = set(parts_of(said)), set(parts_of(wanted))
            return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0
        if self.name != "qwk" or said not in order or wanted not in order:
            return float(said == wanted)
        return 1.0 - (order.index(said) - order.index(wanted)) ** 2 / max(1, len(order) - 1) ** 2

    def over(
        self, predictions: Sequence[str], targets: Sequence[str], resamples: int = _RESAMPLES, seed: int = 0
    ) -> tuple[float, float, float]:
        """The value, and the ends of its 95 % interval by the percentile bootstrap.

        Raises:
            InputError: the lengths differ, or there is nothing to measure.
        """
        names, counts = self._counts(predictions, targets)
        function = self._function(names)
        n = int(counts.sum())
        drawn = Key(seed).child("bootstrap").generator().multinomial(n, counts.ravel() / n, size=resamples)
        values = function(drawn.reshape(resamples, *counts.shape).astype(np.float64))
        low, high = np.quantile(values, [0.025, 0.975])
        return float(function(counts)), float(low), float(high)

    def _function(self, names: Sequence[str]) -> Callable[[Floats], Floats]:
        if self.name in SET_METRICS:
            return SET_METRICS[self.name]
        singles = single_labels(names)
        members = np.array([[part in parts_of(name) for part in singles] for name in names], dtype=np.float64)
        return lambda counts: LABEL_METRICS[self.name](counts, members)

    def _counts(self, predictions: Sequence[str], targets: Sequence[str]) -> tuple[tuple[str, ...], Floats]:
        """The labels, and how often each was answered by each."""
        if len(predictions) != len(targets) or not targets:
            raise InputError(
                "there must be one prediction per target, and at least one",
                where="predictions",
                got=f"{len(predictions)} predictions, {len(targets)} targets",
            )
        names = spelling_map(self.labels or tuple(_sorted(set(targets))))
        place = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
        counts: npt.NDArray[np.float64] = np.zeros((len(place), len(place) + 1))
        for prediction, target in zip(predictions, targets, strict=True):
            wanted, said = names.get(target, target), names.get(prediction.strip())
            if wanted not in place:
                raise InputError("a target is not one of the labels", got=repr(target), expected=", ".join(place))
            counts[place[wanted], len(place) if said is None else place[said]] += 1
        return tuple(place), counts


def _sorted(labels: set[str]) -> list[str]:
    try:
        return sorted(labels, key=float)
    except ValueError:
        return sorted(labels)
