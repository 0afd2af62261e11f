"""Intervals, paired tests and evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dln.data import Dataset, exact_match, number_presence
from dln.errors import InputError
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.numerics import normal_quantile, sign_test, student_quantile
from dln.train import compare, conclude, evaluate, fitted_initial, resolve_options
from dln.train.evaluate import interval, paired

outcomes = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=80)


@given(outcomes)
def test_interval_holds_the_mean_and_stays_in_range(scores):
    result = interval(scores)
    assert 0 <= result.low <= result.mean <= result.high <= 1
    assert result.mean == pytest.approx(np.mean(scores))


def test_wilson_by_its_formula():
    k, n, z = 37, 50, stats.norm.ppf(0.975)
    p = k / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    result = interval([1.0] * k + [0.0] * (n - k))
    assert result.low == pytest.approx((centre - half) / (1 + z**2 / n), abs=1e-9)
    assert result.high == pytest.approx((centre + half) / (1 + z**2 / n), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 200), st.floats(0.001, 0.999))
def test_quantiles_and_the_sign_test_are_those_of_scipy_stats(better, worse, degrees, p):
    assert normal_quantile(p) == pytest.approx(stats.norm.ppf(p), rel=1e-12, abs=1e-12)
    assert student_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-12, abs=1e-12)
    wanted = stats.binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert sign_test(better, worse) == pytest.approx(wanted, rel=1e-12)
    if better + worse:
        wilson = stats.binomtest(better, better + worse).proportion_ci(0.95, method="wilson")
        found = interval([1.0] * better + [0.0] * worse)
        assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for p in (0.1, 0.5, 0.9):
        draws = (rng.random((300, 100)) < p).astype(float)
        hits = [interval(row).low <= p <= interval(row).high for row in draws]
        assert np.mean(hits) > 0.91


@given(outcomes, st.randoms())
def test_paired_is_antisymmetric(before, random):
    after = list(before)
    random.shuffle(after)
    forward, backward = paired(before, after), paired(after, before)
    assert forward.p_value == pytest.approx(backward.p_value)
    assert forward.difference.mean == pytest.approx(-backward.difference.mean)
    assert (forward.better, forward.worse) == (backward.worse, backward.better)
    assert forward.difference.low <= forward.difference.mean <= forward.difference.high
    assert 0 <= forward.p_value <= 1


@pytest.mark.parametrize("seeds", [3, 5, 7])
def test_averages_over_seeds_are_ranked_with_their_ties(seeds):
    """Fifty examples gain one seed and fifty lose one: no float noise may decide between them."""
    right = np.arange(100) % (seeds - 1)  # seeds that are right before; one more or one fewer after
    before = [float(np.mean([1.0] * (k + 1) + [0.0] * (seeds - k - 1))) for k in right]
    steps = [1 if i < 50 else -1 for i in range(100)]
    after = [b + s / seeds for b, s in zip(before, steps, strict=True)]
    result = paired(before, after)
    assert (result.better, result.worse) == (50, 50)
    assert result.p_value == pytest.approx(1.0)


def test_noise_alone_is_no_difference():
    before = [0.1 + 0.2, 0.7, 1 / 3]
    after = [0.3, 0.1 * 7, 1 - 2 / 3]
    result = paired(before, after)
    assert (result.better, result.worse, result.p_value) == (0, 0, 1.0)


def test_mcnemar_is_exact():
    before = [0.0] * 10 + [1.0] * 2 + [1.0] * 30
    after = [1.0] * 10 + [0.0] * 2 + [1.0] * 30
    expected = 2 * sum(stats.binom.pmf(k, 12, 0.5) for k in range(3))
    assert paired(before, after).p_value == pytest.approx(expected)


def test_equal_networks_differ_by_nothing():
    result = paired([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (result.p_value, result.difference.mean) == (1.0, 0.0)


def test_graded_scores_use_signed_ranks():
    rng = np.random.default_rng(1)
    before = rng.random(40)
    assert paired(before, np.clip(before + 0.2, 0, 1.1) - 0.05).test == "Wilcoxon signed rank"


def test_nothing_to_compare_is_an_error():
    for call in (lambda: interval([]), lambda: paired([], []), lambda: paired([1.0], [1.0, 0.0])):
        with pytest.raises(InputError):
            call()


DATA = Dataset.from_pairs([(f"q{i}", ("yes", "no")[i % 2]) for i in range(20)], labels=("yes", "no"))


def network(seed: int) -> Sequential:
    lm = TableLM.random([" yes", " no"], seed=seed)
    return Sequential(ChoiceLayer(lm, prompt="p", labels=("yes", "no")))


def test_evaluation_counts_add_up():
    result = evaluate(network(1), DATA)
    record = result.to_record()
    assert record.n == 20
    assert sum(row["correct"] for row in record.per_class.values()) == round(record.accuracy * 20)
    assert sum(sum(row.values()) for row in record.confusion.values()) == 20
    assert record.log_likelihood < 0
    assert "95% CI" in str(result)


def test_unscored_examples_count_as_wrong_and_are_counted():
    lm = TableLM.from_table({}, default={" something else": 1.0}, name="unscored")
    unscored = Sequential(ChoiceLayer(lm, prompt="p", labels=("yes", "no")))
    result = evaluate(unscored, DATA)
    assert result.unscored == 20
    assert result.accuracy.mean == 0.0
    assert result.log_likelihood is None


def test_conclude_pairs_the_same_examples():
    event = conclude(network(1), network(2), DATA)
    fixed = sum(e.after_correct and not e.before_correct for e in event.examples)
    broken = sum(e.before_correct and not e.after_correct for e in event.examples)
    assert (event.fixed, event.broken) == (fixed, broken)
    assert event.difference[0] == pytest.approx(event.after.accuracy - event.before.accuracy)
    test, _ = compare(evaluate(network(1), DATA), evaluate(network(2), DATA))
    assert event.p_value == test.p_value


def test_the_fitted_initial_network_keeps_its_prompts_and_is_compared():
    initial, dev = network(1), DATA
    fitted = fitted_initial(initial, dev, exact_match, resolve_options())
    assert fitted.parameters() == initial.parameters()
    assert fitted.layers[-1].bias.any()
    event = conclude(initial, network(2), DATA, fitted=fitted)
    assert event.fitted.accuracy == evaluate(fitted, DATA).accuracy.mean
    assert 0 <= event.fitted_p_value <= 1
    assert fitted_initial(initial, dev, exact_match, resolve_options("paper")) is None
    assert fitted_initial(initial, None, exact_match, resolve_options()) is None


def test_free_text_is_scored_by_the_metric():
    lm = TableLM.from_table({}, default={" the answer is 7": 1.0}, name="seven")
    net = Sequential(LanguageLayer(lm, "answer"))
    data = Dataset.from_pairs([("3 + 4?", "7"), ("2 + 2?", "4")])
    result = evaluate(net, data, metric=number_presence)
    assert result.scores == (1.0, 0.0)
    assert result.balanced_accuracy is None


def test_unknown_targets_and_empty_data_are_errors():
    with pytest.raises(InputError, match="does not know"):
        evaluate(network(1), Dataset.from_pairs([("x", "maybe")]))
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(network(1), DATA[:0])
