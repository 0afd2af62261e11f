"""Validation: what could not be scored is no better than a guess, and never better than what could."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dln.data import Dataset, exact_match
from dln.infer.calibrate import FixedOutput, PenalisedLikelihood
from dln.lm.base import Wrapper
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Sequential
from dln.train.evaluate import validate

LABELS = ("yes", "no", "maybe")
DEV = Dataset.from_pairs([(f"item {i}", LABELS[i % 3]) for i in range(12)], LABELS)


class Failing(Wrapper):
    """Returns no number for some contexts."""

    def __init__(self, inner, fails):
        super().__init__(inner)
        self.fails = fails

    def sample(self, contexts, sampling, seeds):
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts, targets):
        return self.inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts, labels):
        masses = self.inner.choice_log_probs(contexts, labels).copy()
        masses[[self.fails(context) for context in contexts]] = np.nan
        return masses


def network(fails=lambda _: False):
    lm = Failing(TableLM.random([f" {label}" for label in LABELS], seed=1), fails)
    return Sequential(ChoiceLayer(lm, "classify", "sort", LABELS))


@pytest.mark.parametrize("calibrator", [FixedOutput(), PenalisedLikelihood()])
def test_a_network_without_any_score_is_a_guess(calibrator):
    found = validate(network(lambda _: True), DEV, exact_match, calibrator)
    assert found.score("log_likelihood") == (pytest.approx(-math.log(3)), "log_likelihood")
    assert found.evaluation.unscored == len(DEV)


def test_what_is_missing_counts_as_a_guess_and_is_not_left_out():
    whole = validate(network(), DEV, exact_match, FixedOutput())
    part = validate(network(lambda context: "item 1" in context), DEV, exact_match, FixedOutput())
    missing = [i for i, x in enumerate(DEV.inputs) if "item 1" in x]
    known = [
        float(np.log(p.probabilities[e.target]))
        for i, (p, e) in enumerate(zip(whole.evaluation.predictions, DEV, strict=True))
        if i not in missing
    ]
    assert part.log_likelihood == pytest.approx((sum(known) - len(missing) * math.log(3)) / len(DEV))


def test_dev_accuracy_is_that_of_numbers_fitted_without_the_example():
    """Random prompts on labels that nothing tells apart: an accuracy in sample would be well above chance."""
    found = []
    for seed in range(12):
        targets = np.random.default_rng(seed).integers(0, 3, 12)
        dev = Dataset.from_pairs([(f"item {i}", LABELS[t]) for i, t in enumerate(targets)], LABELS)
        lm = TableLM.random([f" {label}" for label in LABELS], seed=seed)
        found.append(
            validate(
                Sequential(ChoiceLayer(lm, "classify", "sort", LABELS)), dev, exact_match, PenalisedLikelihood()
            ).score("accuracy")[0]
        )
    assert np.mean(found) == pytest.approx(1 / 3, abs=0.1)
