"""The fitted output layer: it finds what was planted, is convex, and cannot flatter a prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.infer.calibrate import FixedOutput, PenalisedLikelihood
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer
from dln.numerics import log_softmax

FIT = PenalisedLikelihood()


def chooser(classes=3, **numbers):
    labels = [f"l{i}" for i in range(classes)]
    return ChoiceLayer(TableLM.random([f" {y}" for y in labels], seed=0), "classify", "", labels, **numbers)


def planted(count, bias, slope, seed=0):
    """Masses at random, labels drawn from p ∝ exp(a · mass + b)."""
    rng = np.random.default_rng(seed)
    masses = log_softmax(rng.normal(0, 2, (count, len(bias))))
    p = np.exp(log_softmax(slope * masses + np.array(bias)))
    targets = np.array([rng.choice(len(bias), p=row) for row in p], dtype=np.int64)
    return masses, targets, np.ones(count), np.arange(count, dtype=np.int64)


def likelihood(masses, targets, bias, slope):
    return log_softmax(slope * masses + bias)[np.arange(len(targets)), targets]


@pytest.mark.parametrize(("bias", "slope"), [((1.5, -0.5, -1.0), 1.0), ((0.0, 0.0, 0.0), 0.4), ((-1.0, 0.0, 1.0), 2.0)])
def test_a_planted_bias_and_slope_are_found(bias, slope):
    masses, targets, weights, _ = planted(4000, bias, slope)
    found, a = PenalisedLikelihood(bias_scale=100, slope_scale=100).fit(masses, targets, weights)
    assert found == pytest.approx(bias, abs=0.25)
    assert a == pytest.approx(slope, rel=0.1)
    assert found.sum() == pytest.approx(0, abs=1e-9)


def test_the_layer_is_given_what_was_fitted():
    data = planted(200, (1.0, 0.0, -1.0), 2.0)
    fitted = FIT(chooser(), *data).layer
    bias, slope = FIT.fit(*data[:3])
    assert fitted.bias == pytest.approx(bias)
    assert fitted.readout.temperature == pytest.approx(1 / slope)


@given(st.integers(0, 200), st.permutations([0, 1, 2]))
def test_the_fit_does_not_depend_on_the_order_of_labels_or_examples(seed, order):
    """A convex problem has one solution, whichever way it is written down."""
    masses, targets, weights, _ = planted(60, (1.0, 0.0, -1.0), 0.7, seed)
    bias, slope = FIT.fit(masses, targets, weights)
    turned, same = FIT.fit(masses[:, order], np.argsort(order)[targets], weights)
    assert turned == pytest.approx(bias[order], abs=2e-3)
    assert same == pytest.approx(slope, abs=2e-3)
    shuffle = np.random.default_rng(seed).permutation(60)
    again, _ = FIT.fit(masses[shuffle], targets[shuffle], weights)
    assert again == pytest.approx(bias, abs=2e-3)


@given(st.integers(0, 200), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(-0.3, 0.3))
def test_no_other_numbers_have_a_better_penalised_likelihood(seed, one, two, more):
    masses, targets, weights, _ = planted(40, (1.0, 0.0, -1.0), 0.7, seed)

    def objective(b, a):
        return likelihood(masses, targets, b, a).sum() - np.square(b).sum() / 18 - (a - 1) ** 2 / 2

    bias, slope = FIT.fit(masses, targets, weights)
    assert objective(bias, slope) >= objective(bias + np.array([one, two, -one - two]), max(0.05, slope + more)) - 1e-3


@given(st.integers(0, 200), st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_a_weight_counts_as_so_many_copies(seed, times):
    masses, targets, weights, _ = planted(30, (1.0, 0.0, -1.0), 0.7, seed)
    heavy = weights.copy()
    heavy[:5] = times
    copied = np.r_[np.repeat(np.arange(5), times), np.arange(5, 30)]
    bias, slope = FIT.fit(masses, targets, heavy)
    other, same = FIT.fit(masses[copied], targets[copied], np.ones(len(copied)))
    assert bias == pytest.approx(other, abs=2e-3)
    assert slope == pytest.approx(same, abs=2e-3)


def test_a_weight_of_zero_counts_as_nothing():
    masses, targets, weights, _ = planted(30, (1.0, 0.0, -1.0), 0.7)
    weights[10:] = 0
    assert FIT.fit(masses, targets, weights)[0] == pytest.approx(
        FIT.fit(masses[:10], targets[:10], weights[:10])[0], abs=2e-3
    )


def test_a_prompt_that_knows_nothing_is_not_flattered():
    """With labels at random the cross-fitted likelihood stays below the in-sample one, and near chance."""
    gains = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        masses = log_softmax(rng.normal(0, 2, (20, 3)))
        targets = rng.integers(0, 3, 20)
        result = FIT(chooser(), masses, targets, np.ones(20), np.arange(20, dtype=np.int64))
        inside = likelihood(masses, targets, result.layer.bias, 1 / result.layer.readout.temperature)
        gains.append(inside.mean() - result.log_prob.mean())
        assert result.log_prob.shape == (20,)
    assert min(gains) > -1e-6
    assert np.mean(gains) > 0.02


def test_no_example_is_judged_by_numbers_that_saw_it():
    """Changing one example's label changes its own judgement only through the label, never through the fit."""
    masses, targets, weights, groups = planted(20, (1.0, 0.0, -1.0), 1.0)
    turned = targets.copy()
    turned[3] = (targets[3] + 1) % 3
    calibrator = PenalisedLikelihood(folds=20)
    left = calibrator(chooser(), masses, targets, weights, groups).log_prob[3]
    others = np.arange(20) != 3
    bias, slope = calibrator.fit(masses[others], targets[others], weights[others])
    assert left == pytest.approx(likelihood(masses[3:4], targets[3:4], bias, slope)[0])
    right = calibrator(chooser(), masses, turned, weights, groups).log_prob[3]
    assert right == pytest.approx(likelihood(masses[3:4], turned[3:4], bias, slope)[0])


def test_pairs_of_one_example_are_judged_together():
    """Particles of one example must not be in both halves of a fold."""
    masses, targets, weights, _ = planted(8, (0.0, 0.0, 0.0), 1.0)
    groups = np.repeat(np.arange(4), 2)
    judged = PenalisedLikelihood(folds=4)(chooser(), masses, targets, weights, groups).log_prob
    inside = groups == 2
    bias, slope = FIT.fit(masses[~inside], targets[~inside], weights[~inside])
    assert judged[inside] == pytest.approx(likelihood(masses[inside], targets[inside], bias, slope))


def test_cross_fitted_rows_are_distributions_and_the_call_reads_the_targets_from_them():
    masses, targets, weights, _ = planted(23, (1.0, 0.0, -1.0), 0.7)
    groups = np.arange(23, dtype=np.int64) // 2
    rows = FIT.cross_fitted(masses, targets, weights, groups)
    assert rows.shape == masses.shape
    assert np.exp(rows).sum(axis=1) == pytest.approx(1)
    assert FIT(chooser(), masses, targets, weights, groups).log_prob == pytest.approx(rows[np.arange(23), targets])
    assert FIT.cross_fitted(masses[:0], targets[:0], weights[:0], groups[:0]).shape == (0, 3)


@given(st.integers(0, 22), st.integers(1, 2))
@settings(max_examples=10, deadline=None)
def test_the_rows_of_an_example_do_not_know_its_label_and_the_others_do(pair, turn):
    masses, targets, weights, _ = planted(23, (1.0, 0.0, -1.0), 0.7)
    groups = np.arange(23, dtype=np.int64) // 2
    calibrator = PenalisedLikelihood(folds=12)
    turned = targets.copy()
    turned[pair] = (targets[pair] + turn) % 3
    before = calibrator.cross_fitted(masses, targets, weights, groups)
    after = calibrator.cross_fitted(masses, turned, weights, groups)
    own = groups == groups[pair]
    assert np.array_equal(before[own], after[own])
    assert not np.isclose(before[~own], after[~own], atol=1e-6).all(axis=1).any()


def test_a_class_that_a_fold_does_not_know_is_unlikely_and_not_impossible():
    masses, _, weights, groups = planted(10, (0.0, 0.0, 0.0), 1.0)
    targets = np.array([0] * 9 + [2])
    result = FIT(chooser(), masses, targets, weights, groups)
    assert np.isfinite(result.log_prob).all()
    assert np.isfinite(result.layer.bias).all()
    assert result.layer.bias[1] < result.layer.bias[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_examples_are_enough_for_an_answer(count):
    data = planted(count, (0.0, 0.0, 0.0), 1.0)
    result = FIT(chooser(), *data)
    assert np.isfinite(result.log_prob).all()


def test_without_any_pair_the_layer_stays_as_it_is():
    empty = np.zeros((0, 3)), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.int64)
    layer = chooser(bias=[1.0, -1.0, 0.0], temperature=3.0)
    for calibrator in (FIT, FixedOutput()):
        result = calibrator(layer, *empty)
        assert result.layer.bias.tolist() == [1.0, -1.0, 0.0]
        assert result.layer.readout.temperature == 3.0
        assert result.log_prob.shape == (0,)


def test_a_label_that_the_model_excludes_does_not_break_the_fit():
    masses, targets, weights, groups = planted(20, (0.0, 0.0, 0.0), 1.0)
    masses[:5, 1] = -np.inf
    targets[targets == 1] = 0
    result = FIT(chooser(), masses, targets, weights, groups)
    assert np.isfinite(result.log_prob).all()
    assert np.isfinite(result.layer.readout.temperature)


def test_a_fixed_output_judges_by_the_layer_as_it_is():
    masses, targets, weights, groups = planted(20, (0.0, 0.0, 0.0), 1.0)
    layer = chooser(bias=[1.0, -1.0, 0.0], temperature=3.0)
    result = FixedOutput()(layer, masses, targets, weights, groups)
    assert result.layer is layer
    assert result.log_prob == pytest.approx(likelihood(masses, targets, layer.bias, 1 / 3))
