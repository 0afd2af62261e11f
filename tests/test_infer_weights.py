"""Posterior weights against hand computation, their limits, and what must never count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import InputError
from dln.infer.estep import Evidence, Likelihood, MinusProposal, MutualInformation, Prior, Weighting
from dln.infer.hidden import HiddenRequest
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, LayerInput, Sequential
from dln.random import Key

HIDDEN = (" a", " b", " a b")
FINITE = st.floats(-40, 0)


def matrix(rows=2, width=3, values=FINITE):
    return st.lists(st.lists(values, min_size=width, max_size=width), min_size=rows, max_size=rows).map(np.array)


def evidence(alpha, beta=None, log_q=None, convention="log_prob", request=None, proposals=()):
    zero = np.zeros_like(alpha)
    return Evidence(
        request,
        proposals,
        np.array(alpha),
        zero if beta is None else np.array(beta),
        zero if log_q is None else np.array(log_q),
        convention,
    )


def by_hand(logits):
    return np.array(
        [[math.exp(v - max(row)) / sum(math.exp(u - max(row)) for u in row) for v in row] for row in logits]
    )


def real(seed=0):
    """Evidence of a real network, whose every number is known."""
    layer = LanguageLayer(TableLM.random(HIDDEN, seed=seed), "think", "p")
    top = ChoiceLayer(TableLM.random([" yes", " no"], seed=seed + 1), "classify_residual", "out", ("yes", "no"))
    x = ("one", "two", "three")
    y = ("yes", "no", "yes")
    trace = Sequential(layer, top).sample(Key(0), x)
    inputs = tuple(trace.inputs(0))
    proposals = tuple(tuple(layer.sample(Key(1).child(i), [item] * 4, 1.0)) for i, item in enumerate(inputs))
    alpha = np.array(
        [[s.log_prob for s in layer.log_prob([item] * 4, row)] for item, row in zip(inputs, proposals, strict=True)]
    )
    beta = np.array(
        [
            [top.log_prob([LayerInput(item.x, h.text)], [t])[0].log_prob for h in row]
            for item, row, t in zip(inputs, proposals, y, strict=True)
        ]
    )
    log_q = np.array([[sum(h.sampling_log_probs) for h in row] for row in proposals])
    request = HiddenRequest(layer, top, inputs, trace.outputs(0), y, y)
    information = np.empty_like(alpha)
    for i, row in enumerate(proposals):
        for k, h in enumerate(row):
            across = [layer.log_prob([item], [h])[0].log_prob for item in inputs]
            information[i, k] = across[i] - math.log(sum(math.exp(v) for v in across) / len(inputs))
    return evidence(alpha, beta, log_q, request=request, proposals=proposals), information


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_each_term_alone_and_all_together_agree_with_hand_computation(seed, temperature):
    given_evidence, information = real(seed)
    terms = {
        Likelihood(): given_evidence.beta,
        Prior(): given_evidence.alpha,
        MinusProposal(): -given_evidence.log_q,
        MutualInformation(0.7): 0.7 * information,
    }
    for term, value in terms.items():
        assert term(given_evidence) == pytest.approx(value)
        assert Weighting((term,), temperature)(given_evidence) == pytest.approx(by_hand(value / temperature))
    together = Weighting(tuple(terms), temperature)(given_evidence)
    assert together == pytest.approx(by_hand(sum(terms.values()) / temperature))


def test_drawn_from_the_prior_the_proposal_term_cancels_the_prior_term():
    given_evidence, _ = real()
    both = Weighting((Likelihood(), Prior(), MinusProposal()))(given_evidence)
    assert both == pytest.approx(Weighting((Likelihood(),))(given_evidence))


@given(matrix(), matrix())
def test_weights_are_a_distribution_and_order_as_the_terms_do(alpha, beta):
    weights = Weighting()(evidence(alpha, beta))
    assert weights.sum(axis=1) == pytest.approx(1)
    for row, logits in zip(weights, alpha + beta, strict=True):
        assert row[np.argmax(logits)] == row.max()


@given(matrix(), st.floats(-100, 100))
def test_a_shift_of_a_row_changes_nothing(alpha, shift):
    assert Weighting()(evidence(alpha + shift)) == pytest.approx(Weighting()(evidence(alpha)), abs=1e-9)


@given(matrix(), st.sampled_from([1e-12, 1e-300, 5e-324]))
def test_a_temperature_towards_zero_leaves_only_the_best(alpha, temperature):
    alpha = np.round(alpha)
    weights = Weighting((Prior(),), temperature)(evidence(alpha))
    best = alpha == alpha.max(axis=1, keepdims=True)
    assert weights == pytest.approx(best / best.sum(axis=1, keepdims=True))


@given(matrix())
def test_a_temperature_towards_infinity_makes_all_equal(alpha):
    assert Weighting((Prior(),), 1e9)(evidence(alpha)) == pytest.approx(1 / 3, abs=1e-6)


@given(matrix(values=st.integers(-4, 0).map(float)))
def test_argmax_only_gives_all_weight_to_the_first_of_the_best(alpha):
    weights = Weighting((Prior(),), argmax_only=True)(evidence(alpha))
    assert weights.tolist() == np.eye(3)[alpha.argmax(axis=1)].tolist()


BROKEN = st.sampled_from([math.nan, -math.inf, math.inf])


@given(matrix(values=st.one_of(FINITE, BROKEN)), st.booleans(), st.sampled_from([0.0, 0.1, 0.9]))
def test_an_unusable_particle_weighs_nothing_and_a_row_of_them_is_nan(alpha, argmax_only, prune):
    weights = Weighting((Prior(),), 1.0, argmax_only, prune)(evidence(alpha))
    for row, values in zip(weights, alpha, strict=True):
        usable = np.isfinite(values)
        if not usable.any():
            assert np.isnan(row).all()
        else:
            assert (row[~usable] == 0).all()
            assert row.sum() == pytest.approx(1)


def test_what_is_unusable_for_one_term_is_unusable():
    weights = Weighting()(evidence([[-1.0, math.nan, -1.0]], [[-1.0, -1.0, math.nan]]))
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


@given(matrix(), st.floats(0, 0.99))
def test_pruning_leaves_out_the_light_and_renormalises_the_rest(alpha, prune):
    full = Weighting((Prior(),))(evidence(alpha))
    pruned = Weighting((Prior(),), prune=prune)(evidence(alpha))
    assert pruned.sum(axis=1) == pytest.approx(1)
    for row, whole in zip(pruned, full, strict=True):
        kept = row > 0
        assert kept[whole.argmax()]
        assert row[kept] == pytest.approx(whole[kept] / whole[kept].sum())
        assert (whole[~kept] < prune).all()


def test_pruning_drops_what_is_lighter_than_it_says():
    pruned = Weighting((Prior(),), prune=0.1)(evidence(np.log([[0.85, 0.05, 0.1]])))
    assert pruned[0] == pytest.approx([0.85 / 0.95, 0, 0.1 / 0.95]) or pruned[0] == pytest.approx([1.0, 0, 0])
    assert pruned[0, 1] == 0


def test_means_per_token_and_sums_are_never_mixed():
    with pytest.raises(InputError, match="sum over tokens"):
        Weighting((Prior(), MinusProposal()))(evidence([[-1.0]], convention="mean_token_log_prob"))


@pytest.mark.parametrize(
    ("choices", "what"),
    [
        ({"terms": ()}, "one term or more"),
        ({"temperature": 0.0}, "posterior_temp"),
        ({"temperature": -1.0}, "posterior_temp"),
        ({"temperature": math.nan}, "posterior_temp"),
        ({"temperature": math.inf}, "posterior_temp"),
        ({"prune": 1.0}, "prune"),
        ({"prune": -0.1}, "prune"),
        ({"prune": math.nan}, "prune"),
    ],
)
def test_impossible_choices_are_refused(choices, what):
    with pytest.raises(InputError, match=what):
        Weighting(**choices)
