"""The weights of prompts that answer together: limits and symmetries of q(π) ∝ exp(n ℓ / T)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import InputError
from dln.infer.memory import Snapshot, answering, posterior_weights
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Sequential
from dln.nn.ensemble import Ensemble

LM = TableLM.random([" yes", " no"], seed=0)
LIKELIHOODS = st.lists(st.floats(-20, 0), min_size=1, max_size=6)
COUNTS, TEMPERATURES = st.integers(0, 10_000), st.floats(1e-3, 1e6)


def snapshots(*scores):
    return [
        Snapshot(Sequential(ChoiceLayer(LM, "classify", f"p{i}", ("yes", "no"))), score, i)
        for i, score in enumerate(scores)
    ]


@given(LIKELIHOODS, COUNTS, TEMPERATURES)
def test_they_are_a_distribution_in_the_order_of_the_evidence(values, count, temperature):
    weights = posterior_weights(values, count, temperature)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    for i, j in zip(np.argsort(values)[:-1], np.argsort(values)[1:], strict=True):
        assert weights[i] <= weights[j]


@given(LIKELIHOODS, st.integers(1, 1000), st.floats(0.5, 100))
def test_log_ratios_are_the_evidence_over_the_temperature(values, count, temperature):
    weights = posterior_weights(values, count, temperature)
    heaviest = int(np.argmax(weights))
    for weight, value in zip(weights, values, strict=True):
        if weight > 1e-250:
            expected = count * (value - values[heaviest]) / temperature
            assert math.log(weight / weights[heaviest]) == pytest.approx(expected, abs=1e-6)


@given(LIKELIHOODS, COUNTS, TEMPERATURES, st.floats(-5, 5))
def test_only_differences_count(values, count, temperature, shift):
    shifted = [value + shift for value in values]
    assert posterior_weights(shifted, count, temperature) == pytest.approx(
        posterior_weights(values, count, temperature), abs=1e-6 + 1e-14 * count / temperature
    )


@given(LIKELIHOODS, st.integers(1, 1000), st.integers(2, 9), TEMPERATURES)
def test_more_examples_are_as_a_lower_temperature(values, count, factor, temperature):
    assert posterior_weights(values, count * factor, temperature * factor) == pytest.approx(
        posterior_weights(values, count, temperature)
    )


@given(LIKELIHOODS, COUNTS)
def test_without_end_of_the_temperature_all_weigh_the_same(values, count):
    equal = np.full(len(values), 1 / len(values))
    assert posterior_weights(values, count, math.inf) == pytest.approx(equal)
    assert posterior_weights(values, 0, 1.0) == pytest.approx(equal)
    assert posterior_weights(values, count, 1e12) == pytest.approx(equal, rel=1e-5)


@given(st.lists(st.integers(-20, 0).map(float), min_size=1, max_size=6, unique=True), st.integers(1, 1000))
def test_at_no_temperature_the_best_one_is_all(values, count):
    weights = posterior_weights(values, count, 1e-300)
    assert weights[int(np.argmax(values))] == 1.0


@pytest.mark.parametrize("nothing", [math.nan, -math.inf])
def test_what_has_no_likelihood_has_no_weight(nothing):
    assert posterior_weights([-0.5, nothing, -0.5], 10, 2.0) == pytest.approx([0.5, 0.0, 0.5])
    assert posterior_weights([-0.5, nothing], 10, math.inf) == pytest.approx([1.0, 0.0])
    assert posterior_weights([nothing, nothing], 10, 2.0) == pytest.approx([0.5, 0.5])


def test_among_prompts_within_noise_the_default_temperature_weighs_almost_equally():
    # 128 examples with a standard deviation of 0.6 nats each: the mean is known to ± 0.05
    weights = posterior_weights([-0.40, -0.42, -0.45], 128, 32.0)
    assert weights.max() / weights.min() < 1.3
    # and a prompt that is far behind hardly counts
    assert posterior_weights([-0.40, -1.40], 128, 32.0)[1] < 0.02


@pytest.mark.parametrize(
    ("values", "count", "temperature"),
    [
        ([], 1, 1.0),
        ([math.inf], 1, 1.0),
        ([[-1.0]], 1, 1.0),
        ([-1.0], -1, 1.0),
        ([-1.0], 1, 0.0),
        ([-1.0], 1, math.nan),
    ],
)
def test_what_is_not_possible_is_refused(values, count, temperature):
    with pytest.raises(InputError):
        posterior_weights(values, count, temperature)


def test_the_best_of_the_memory_answer_with_their_weights():
    found = snapshots(-0.4, -0.5, -0.9)
    together = answering(found, 2, examples=100, temperature=32.0)
    assert isinstance(together, Ensemble)
    assert together.members == (found[0].network, found[1].network)
    assert together.weights == pytest.approx(posterior_weights([-0.4, -0.5], 100, 32.0))
    assert together.heaviest is found[0].network
    three = answering(found, 9, examples=100, temperature=32.0)
    assert isinstance(three, Ensemble)
    assert len(three.members) == 3


def test_one_network_is_itself():
    found = snapshots(-0.4, -0.5)
    assert answering(found, 1, examples=100, temperature=32.0) is found[0].network
    assert answering(found[:1], 5, examples=None, temperature=32.0) is found[0].network
    # a network without any evidence does not answer beside one that has some
    assert answering(snapshots(-0.4, math.nan), 5, examples=100, temperature=32.0).state_dict() == (
        found[0].network.state_dict()
    )


def test_accuracies_are_no_evidence():
    together = answering(snapshots(0.9, 0.5, 0.1), 3, examples=None, temperature=1.0)
    assert isinstance(together, Ensemble)
    assert together.weights == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("scores", "size"), [((), 1), ((0.5,), 0)])
def test_somebody_must_answer(scores, size):
    with pytest.raises(InputError, match="must answer"):
        answering(snapshots(*scores), size, examples=None, temperature=1.0)
