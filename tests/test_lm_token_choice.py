"""Choosing one token: the right distribution, and no choice that noise could have changed unnoticed."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dln.lm.base import Sampling
from dln.lm.local.decoding import choose, drawing_probabilities, exponentials
from dln.numerics import log_softmax, softmax

LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=12).map(np.array)
SAMPLINGS = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]), top_p=st.sampled_from([0.3, 0.9, 0.99, 1.0])
)
SEEDS = st.integers(-(2**70), 2**70)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7), Sampling(0.7, 0.8), Sampling(1.5, 0.95)])
def test_tokens_come_with_the_probabilities_asked_for(sampling: Sampling) -> None:
    logits = np.array([1.0, 0.2, -0.5, 0.9, -2.0, -4.0])
    wanted = drawing_probabilities(softmax(logits), sampling)
    draws = 3000
    tokens = [choose(logits, sampling, seed, seed % 7, 0.0).token for seed in range(draws)]
    counts = np.bincount(tokens, minlength=len(logits))
    assert counts[wanted == 0].sum() == 0
    kept = wanted > 0
    assert stats.chisquare(counts[kept], wanted[kept] * draws).pvalue > 1e-4


@given(LOGITS, SAMPLINGS, SEEDS, st.integers(0, 500))
def test_scores_are_those_of_the_model_and_of_what_was_drawn_from(
    logits: np.ndarray, sampling: Sampling, seed: int, position: int
) -> None:
    choice = choose(logits, sampling, seed, position, 0.0)
    assert choice.log_prob == pytest.approx(log_softmax(logits)[choice.token], abs=1e-9)
    assert not choice.close
    if sampling.temperature == 0:
        assert choice.token == int(np.argmax(logits))
        assert choice.sampling_log_prob == 0.0
    else:
        # top_p cuts between equal tokens by their order; the mass kept is then that of either side.
        drawn = log_softmax(logits / sampling.temperature)[choice.token]
        assert drawn - 1e-9 <= choice.sampling_log_prob <= min(0.0, drawn - np.log(sampling.top_p) + 1e-9)


@given(LOGITS, SAMPLINGS, SEEDS, st.integers(0, 500), st.floats(1e-6, 0.1), st.randoms(use_true_random=False))
def test_noise_below_the_tolerance_changes_no_choice_that_is_not_close(
    logits: np.ndarray, sampling: Sampling, seed: int, position: int, tolerance: float, random: Random
) -> None:
    choice = choose(logits, sampling, seed, position, tolerance)
    noise = np.array([random.uniform(-tolerance, tolerance) for _ in logits])
    noisy = choose(logits + 0.999 * noise, sampling, seed, position, tolerance)
    settled = choose(logits, sampling, seed, position, 0.0)
    if not choice.close:
        assert choose(logits + 0.999 * noise, sampling, seed, position, 0.0).token == choice.token
    # What the engine does: a close choice is settled on the logits without noise.
    assert (settled if noisy.close else noisy).token == settled.token


@given(SEEDS, st.integers(0, 1000))
def test_random_numbers_depend_on_seed_position_and_index_alone(seed: int, position: int) -> None:
    long = exponentials(seed, position, 100)
    np.testing.assert_array_equal(exponentials(seed, position, 10), long[:10])
    assert (long > 0).all()
    assert np.isfinite(long).all()
    assert not np.array_equal(long, exponentials(seed, position + 1, 100))
    assert not np.array_equal(long, exponentials(seed + 1, position, 100))


def test_random_numbers_are_exponential_across_seeds_and_positions() -> None:
    values = np.array([exponentials(seed, position, 3)[2] for seed in range(60) for position in range(60)])
    assert stats.kstest(values, "expon").pvalue > 1e-4


def test_what_is_no_distribution_is_handed_on_as_it_is() -> None:
    for logits in (np.array([0.0, np.nan]), np.array([np.inf, 0.0]), np.array([-np.inf, -np.inf])):
        assert np.isnan(choose(logits, Sampling(1.0), 0, 0, 1e-4).log_prob)
