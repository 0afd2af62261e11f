"""Pruning of light particles: what it may change, that it changes no more, and how often a choice differs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.infer import vi
from dln.infer.calibrate import FixedOutput
from dln.infer.estep import EStep, Evidence, Likelihood, Prior, Weighting
from dln.infer.hidden import LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.objective import Candidates, ExpectedLogProb, Pairs
from dln.infer.prompts import Proposal
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Prompt, Sequential
from dln.nn.layers import score_pairs
from dln.random import Key

HIDDEN = (" a", " b", " a b", " c d", " e")
LABELS = ("yes", "no")
X = ("one", "two", "three", "four", "five", "six")
Y = ("yes", "no", "yes", "yes", "no", "no")
K = 6


def weights(logits, prune):
    zero = np.zeros_like(logits)
    return Weighting((Likelihood(),), prune=prune)(Evidence(None, (), zero, logits, zero, "log_prob"))


def network(depth, seed):
    hidden = TableLM.random(HIDDEN, seed=seed, concentration=0.3)
    output = TableLM.random([" yes", " no"], seed=seed + 1, concentration=0.5)
    layers = [LanguageLayer(hidden, "think" if i == 0 else "think_residual", f"p{i}") for i in range(depth - 1)]
    return Sequential(*layers, ChoiceLayer(output, "classify_residual" if depth > 1 else "classify", "out", LABELS))


def posterior(net, seed, prune):
    trace = net.sample(Key(seed), X)
    proposal = MixtureProposal((PriorProposal(1.5), LabelledPriorProposal(1.5)))
    e_step = EStep(proposal, Weighting((Likelihood(), Prior()), prune=prune), K, "log_prob", include_forward=False)
    return trace, e_step(Key(seed), net, trace, Y)


@given(
    st.lists(st.floats(-12, 0), min_size=2, max_size=8),
    st.lists(st.floats(-100, 0), min_size=8, max_size=8),
    st.sampled_from([0.001, 0.01, 0.1, 0.3, 0.9]),
)
def test_an_expectation_changes_by_the_dropped_weight_times_a_difference_of_means(logits, values, prune):
    count = len(logits)
    f = np.array(values[:count])
    (w,), (v,) = (weights(np.array([logits]), p) for p in (0.0, prune))
    dropped = (v == 0) & (w > 0)
    epsilon = w[dropped].sum()
    threshold = min(prune, 0.5 / count)
    assert (w[dropped] < threshold).all()
    assert (w[~dropped] >= threshold).all()
    assert epsilon <= (count - 1) * prune
    change = v @ f - w @ f
    if dropped.any():
        means = [np.average(f[part], weights=w[part]) for part in (~dropped, dropped)]
        assert change == pytest.approx(epsilon * (means[0] - means[1]), abs=1e-9)
    assert abs(change) <= (count - 1) * prune * (f.max() - f.min()) + 1e-9


@given(st.integers(0, 5000), st.integers(1, 3), st.sampled_from([0.01, 0.05, 0.2]), st.data())
def test_the_objective_changes_by_no_more_than_the_bound(seed, depth, prune, data):
    """Of every layer, hidden or not, with one or two pruned levels about it."""
    net = network(depth, seed)
    position = data.draw(st.integers(0, depth - 1))
    layers = (net.layers[position], *(net.layers[position].with_prompt(f"q{i}") for i in range(3)))
    terms = []
    for p in (0.0, prune):
        trace, q = posterior(net, seed, p)
        right = np.ones(len(X), dtype=bool)
        at = Candidates(Key(seed), layers, position, depth, trace, q, right, q.scored, 0)
        terms.append(ExpectedLogProb("log_prob", FixedOutput())(at).per_example)
        if p == 0:
            pairs = Pairs.of(position, trace, q, q.scored)
            scores = score_pairs(layers, pairs.inputs, pairs.outputs).log_prob
    pruned_levels = (position > 0) + (position < depth - 1)
    weight = pruned_levels * (K - 1) * prune
    for i in range(len(X)):
        inside = scores[:, pairs.examples == i]
        width = inside.max(axis=1) - inside.min(axis=1)
        assert (np.abs(terms[1][:, i] - terms[0][:, i]) <= weight * width + 1e-9).all()
        # and the lead of a candidate over the incumbent by no more than that of its differences
        leads = inside - inside[0]
        change = (terms[1][:, i] - terms[1][0, i]) - (terms[0][:, i] - terms[0][0, i])
        assert (np.abs(change) <= weight * (leads.max(axis=1) - leads.min(axis=1)) + 1e-9).all()


@pytest.mark.parametrize("runs", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_the_default_pruning_chooses_as_full_scoring_does_in_95_of_100_steps(runs):
    def prompts(key, layer, feedback, num):
        return [Proposal(Prompt(f"q{key.integer() % 997} {i}"), "random") for i in range(num)]

    same, pairs = 0, [0, 0]
    for seed in range(runs):
        net = network(2 + seed % 2, seed)
        winners = []
        for place, prune in enumerate((0.0, 0.01)):
            choices = vi.build(
                q_prompt=prompts,
                num_prompts=4,
                num_hidden=K,
                q_hidden=MixtureProposal((PriorProposal(1.5), LabelledPriorProposal(1.5))),
                weighting=Weighting((Likelihood(), Prior()), prune=prune),
            )
            _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), choices)
            winners.append([layer.winner for layer in info.layers])
            for position in range(len(net)):
                pairs[place] += len(Pairs.of(position, info.trace, info.posterior, info.posterior.scored).inputs)
        same += winners[0] == winners[1]
    assert same >= 0.95 * runs
    assert pairs[1] < pairs[0]
