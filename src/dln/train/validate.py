"""Validation on the dev set: the number that training selects by, and the output layer's final fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dln.data import Dataset, Metric
from dln.infer.calibrate import Calibrator
from dln.keys import Key
from dln.nn import ChoiceLayer, LayerInput, Sequential
from dln.nn.predict import free_prediction, label_prediction
from dln.train.evaluate import Evaluation, evaluate, graded

__all__ = ["Validation", "validate"]


@dataclass(frozen=True)
class Validation:
    """A network measured on the dev set.

    Attributes:
        network: with the output layer fitted on the dev set, where it is fitted at all.
        evaluation: its predictions there, each by numbers fitted without that example.
        log_likelihood: mean log p(y|x), each example judged by numbers fitted without it, in nats; one that could
            not be scored counts as a guess, −log C. None for free text.
    """

    network: Sequential
    evaluation: Evaluation
    log_likelihood: float | None

    def score(self, select_by: str) -> tuple[float, str]:
        """The number that selection looks at, and its name; free text goes by accuracy."""
        if select_by == "log_likelihood" and self.log_likelihood is not None:
            return self.log_likelihood, select_by
        return self.evaluation.accuracy.mean, "accuracy"


def validate(network: Sequential, dev: Dataset, metric: Metric | str, calibrator: Calibrator) -> Validation:
    """Measure `network` on `dev`, with one forward pass."""
    last = network.layers[-1]
    if not isinstance(last, ChoiceLayer):
        return Validation(network, evaluate(network, dev, metric=metric), None)
    items = [LayerInput(x, x) for x in dev.inputs]
    hidden: list[tuple[str, ...]] = [()] * len(items)
    if len(network) > 1:
        trace = Sequential(network.layers[:-1]).sample(Key(0).child("validate"), dev.inputs, temperature=0.0)
        items = [LayerInput(x, h.text) for x, h in zip(dev.inputs, trace.hidden[-1], strict=True)]
        hidden = [tuple(level[i].text for level in trace.hidden) for i in range(len(items))]
    masses = last.label_log_masses(last.contexts(items))
    targets = np.array([last.index(target) for target in dev.targets], dtype=np.int64)
    usable = np.isfinite(masses[np.arange(len(targets)), targets])
    calibration = calibrator(
        last, masses[usable], targets[usable], np.ones(int(usable.sum())), np.flatnonzero(usable).astype(np.int64)
    )
    fitted = calibration.layer
    # left out, an example that cannot be scored would make the network look better than one that scores it badly
    judged = np.full(len(targets), -np.log(len(last.labels)))
    judged[usable] = calibration.log_prob
    if fitted.answers == "free":
        texts = [answer.text for answer in fitted.write(fitted.contexts(items), [0] * len(items))]
        predictions = tuple(free_prediction(fitted, [text], (h,)) for text, h in zip(texts, hidden, strict=True))
    else:
        rows = fitted.normalise(masses)
        rows[usable] = calibration.label_log_probs
        predictions = tuple(
            label_prediction(fitted, m[None], (h,), row[None]) for m, h, row in zip(masses, hidden, rows, strict=True)
        )
    right = graded(metric, network.labels)
    scores = tuple(right(p.label, e.target) for p, e in zip(predictions, dev, strict=True))
    return Validation(
        network=network.with_layer(len(network) - 1, fitted),
        evaluation=Evaluation(
            tuple(dev),
            predictions,
            tuple(score.value for score in scores),
            network.labels,
            tuple(score.feedback for score in scores),
        ),
        log_likelihood=float(judged.mean()),
    )
