"""Laws of the leaves: keys, numerics, particles, typed errors, plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from dln import errors
from dln.errors import DlnError, InputError
from dln.io import dump, parse
from dln.numerics import effective_sample_size, entropy, kl_divergence, log_softmax, logsumexp, softmax
from dln.particles import Particles
from dln.random import Key

NAMES = st.lists(st.one_of(st.integers(), st.text(max_size=8)), max_size=4)
LOG_WEIGHTS = st.lists(st.one_of(st.floats(-50, 5), st.just(-math.inf)), min_size=1, max_size=8).filter(
    lambda weights: max(weights) > -math.inf
)


def rows(low=-30.0, high=0.0, width=4):
    return st.lists(st.floats(low, high), min_size=width, max_size=width)


# ---------------------------------------------------------------- keys


@given(st.integers(), NAMES, NAMES)
def test_a_key_is_its_address(seed, first, second):
    key = Key(seed)
    assert key.child(*first).child(*second) == key.child(*first, *second)
    assert key.child(*first).integer(*second) == key.integer(*first, *second)


@given(st.integers(), NAMES, NAMES)
def test_different_addresses_have_different_seeds(seed, first, second):
    same = first == second and [type(n) for n in first] == [type(n) for n in second]
    assert (Key(seed).integer(*first) == Key(seed).integer(*second)) == same


@given(st.integers(), st.integers(0, 20), st.integers(0, 20))
def test_the_seed_of_a_draw_does_not_depend_on_the_number_of_draws(seed, fewer, more):
    fewer, more = sorted((fewer, more))
    assert Key(seed).seeds(fewer) == Key(seed).seeds(more)[:fewer]
    assert all(0 <= s < 2**63 for s in Key(seed).seeds(more))
    assert len(set(Key(seed).seeds(more))) == more


def test_children_are_independent():
    draws = np.array([Key(0).child("child", i).generator().random(200) for i in range(50)])
    correlations = np.corrcoef(draws)[np.triu_indices(50, 1)]
    assert np.abs(correlations).mean() < 2 / np.sqrt(200)
    assert draws.mean() == pytest.approx(0.5, abs=0.02)


def test_a_generator_starts_anew_at_each_call():
    key = Key(4).child("x")
    assert key.generator().random() == key.generator().random()


# ---------------------------------------------------------------- numerics


@given(rows(), st.floats(-100, 100))
def test_log_softmax_sums_to_one_and_ignores_a_shift(row, shift):
    result = log_softmax(row)
    assert np.exp(result).sum() == pytest.approx(1)
    assert log_softmax(np.array(row) + shift) == pytest.approx(result, abs=1e-9)
    assert softmax(row) == pytest.approx(np.exp(result))


@pytest.mark.parametrize("row", [[math.nan, 0.0], [-math.inf, -math.inf], [0.0, math.inf], [math.nan, -math.inf]])
def test_log_softmax_of_a_row_without_a_meaning_is_nan_throughout(row):
    both = log_softmax([row, [-1.0, -1.0]])
    assert np.isnan(both[0]).all()
    assert both[1] == pytest.approx([-math.log(2)] * 2)


def test_log_softmax_keeps_excluded_entries_excluded():
    assert log_softmax([-math.inf, -3.0]).tolist() == [-math.inf, 0.0]


@given(rows(), st.sampled_from([0, 1, -1]))
def test_log_softmax_normalises_along_any_axis(row, axis):
    values = np.array([row, row[::-1]])
    assert logsumexp(log_softmax(values, axis=axis), axis=axis) == pytest.approx(0, abs=1e-9)


def test_logsumexp_of_nothing_is_no_mass():
    assert logsumexp([-math.inf, -math.inf]) == -math.inf
    assert logsumexp(np.zeros((2, 0))).tolist() == [-math.inf, -math.inf]


@given(
    st.lists(
        st.one_of(st.floats(-1e3, 1e3), st.sampled_from([-math.inf, math.inf, math.nan, 0.0])), min_size=6, max_size=6
    ),
    st.sampled_from([0, 1, -1]),
)
def test_logsumexp_is_that_of_scipy(row, axis):
    values = np.array(row).reshape(2, 3)
    expected = special.logsumexp(values, axis=axis)
    assert logsumexp(values, axis=axis) == pytest.approx(expected, rel=1e-14, abs=1e-14, nan_ok=True)


@given(rows(), rows())
def test_kl_divergence_is_never_negative_and_zero_with_itself(p, q):
    log_p, log_q = log_softmax(p), log_softmax(q)
    assert kl_divergence(log_p, log_q) >= -1e-12
    assert kl_divergence(log_p, log_p) == 0
    assert kl_divergence([log_p, log_q], log_q)[1] == 0


def test_kl_divergence_counts_impossible_terms_as_zero_and_forbidden_ones_as_infinite():
    assert kl_divergence([-math.inf, 0.0], [-1.0, -0.5]) == pytest.approx(0.5)
    assert kl_divergence([-math.inf, 0.0], [-math.inf, 0.0]) == 0
    assert kl_divergence(np.log([0.5, 0.5]), [-math.inf, 0.0]) == math.inf


@given(LOG_WEIGHTS)
def test_entropy_and_effective_size_are_bounded(log_weights):
    weights = softmax(log_weights)
    size = len(log_weights)
    assert -1e-12 <= entropy(weights) <= math.log(size) + 1e-9
    assert 1 - 1e-9 <= effective_sample_size(weights) <= size + 1e-9


# ---------------------------------------------------------------- particles


@pytest.mark.parametrize(
    ("values", "log_weights"),
    [
        ((), []),
        (("a",), []),
        (("a",), [0.0, 0.0]),
        (("a", "b"), [[0.0, 0.0]]),
        (("a",), [math.nan]),
        (("a", "b"), [0.0, math.inf]),
        (("a", "b"), [-math.inf, -math.inf]),
    ],
)
def test_particles_that_are_no_distribution_are_refused(values, log_weights):
    with pytest.raises(InputError):
        Particles(values, np.array(log_weights))


@given(LOG_WEIGHTS)
def test_particles_are_a_distribution(log_weights):
    particles = Particles(tuple(range(len(log_weights))), np.array(log_weights))
    assert particles.weights.sum() == pytest.approx(1)
    assert 1 - 1e-9 <= particles.ess <= len(particles) + 1e-9
    assert particles.weights[particles.mode] == particles.weights.max()
    assert particles.expectation(lambda _: 3.0) == pytest.approx(3.0)
    assert particles.expectation(float) == pytest.approx(particles.weights @ np.arange(len(log_weights)))


@given(LOG_WEIGHTS, st.integers(1, 3))
def test_merging_keeps_the_weight_of_every_value(log_weights, kinds):
    particles = Particles(tuple(i % kinds for i in range(len(log_weights))), np.array(log_weights))
    merged = particles.merged()
    assert len(set(merged.values)) == len(merged.values)
    for value, weight in zip(merged.values, merged.weights, strict=True):
        whole = sum(w for v, w in zip(particles.values, particles.weights, strict=True) if v == value)
        assert weight == pytest.approx(whole)
    assert merged.expectation(float) == pytest.approx(particles.expectation(float))
    assert merged.entropy <= particles.entropy + 1e-9


def test_merging_by_a_key_keeps_the_first_of_equals():
    merged = Particles(("Yes", "no", "yes"), np.log([0.2, 0.5, 0.3])).merged(str.lower)
    assert merged.values == ("Yes", "no")
    assert merged.weights == pytest.approx([0.5, 0.5])


def test_the_expectation_never_asks_for_an_impossible_value():
    particles = Particles(("possible", "impossible"), np.array([0.0, -np.inf]))
    assert particles.expectation(lambda v: {"possible": 2.0}[v]) == 2.0


def test_log_weights_cannot_be_changed_from_outside():
    given_weights = np.zeros(2)
    particles = Particles(("a", "b"), given_weights)
    given_weights[0] = 5
    assert particles.weights == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="read-only"):
        particles.log_weights[0] = 1


def test_the_mode_is_the_first_of_equals():
    assert Particles.uniform(("a", "b", "c")).mode == "a"
    assert Particles.point("z").entropy == 0


# ---------------------------------------------------------------- errors and plain data


def test_an_error_says_where_what_and_what_to_try():
    text = str(InputError("cannot be read", where="line 3", got=0, expected="1", fix="dln doctor"))
    assert text.splitlines() == ["line 3: cannot be read", "  got: 0", "  expected: 1", "  try: dln doctor"]
    assert str(DlnError("plain")) == "plain"


def test_every_error_has_its_exit_code():
    classes = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(c, DlnError) for c in classes)
    codes = {c.__name__: c.exit_code for c in classes}
    assert codes == {
        "DlnError": 1,
        "RunFailed": 1,
        "InputError": 2,
        "ContextLengthError": 2,
        "ProviderError": 3,
        "RequestFailed": 3,
        "BudgetReached": 4,
        "CorruptDataError": 5,
    }


@dataclass(frozen=True)
class Inner:
    name: str
    size: int = 1


@dataclass(frozen=True)
class Outer:
    items: tuple[Inner, ...]


@given(st.lists(st.builds(Inner, st.text(), st.integers(-5, 5)), max_size=4))
def test_parse_is_the_inverse_of_dump(items):
    value = Outer(tuple(items))
    assert parse(Outer, dump(value), "file") == value


def test_a_wrong_field_is_named_with_its_place():
    with pytest.raises(InputError) as caught:
        parse(Outer, {"items": [{"name": "a"}, {"name": "b", "size": "many"}]}, "net.json")
    assert "net.json" in str(caught.value)
    assert "items.1.size" in str(caught.value)
    assert "many" in str(caught.value)
