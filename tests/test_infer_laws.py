"""Laws of inference, checked against exact enumeration on `TableLM`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.infer import vi
from dln.infer.estep import Likelihood, MinusProposal, MutualInformation, Prior, Weighting
from dln.infer.hidden import HiddenDraw, HiddenRequest, LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.prompts import DemonstrationProposal, Proposal
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Demonstration, LanguageLayer, Prompt, Sequential
from dln.nn.layers import LayerInput
from dln.numerics import logsumexp
from dln.particles import Particles
from dln.random import Key

HIDDEN = (" a", " b", " a b", " c d")
LABELS = ("yes", "no")
X = ("one", "two", "three", "four")
Y = ("yes", "no", "yes", "yes")


class Enumerate:
    """Every possible text once: with prior × likelihood weights this is the exact posterior."""

    def __call__(self, key: Key, request: HiddenRequest, num: int) -> list[list[HiddenDraw]]:
        layer = request.language_layer
        rows = [layer.lm.support(context) for context in layer.contexts(request.inputs)]
        return [[HiddenDraw(c.with_text(c.text.strip()), "all", 0.0) for c in row] for row in rows]


class Instructions:
    """Fixed candidate instructions, to have candidates without asking a model."""

    def __init__(self, *instructions: str) -> None:
        self.instructions = instructions

    def __call__(self, key, layer, feedback, num):
        offset = key.integer() % 1000
        return [Proposal(Prompt(f"{text} {offset + i}"), "fixed") for i, text in enumerate(self.instructions[:num])]


def network(depth: int, seed: int) -> Sequential:
    hidden = TableLM.random(HIDDEN, seed=seed)
    output = TableLM.random([" yes", " no"], seed=seed + 1)
    layers = [LanguageLayer(hidden, "think" if i == 0 else "think_residual", f"p{i}") for i in range(depth - 1)]
    return Sequential(*layers, ChoiceLayer(output, "classify_residual" if depth > 1 else "classify", "out", LABELS))


def exact_log_likelihood(net: Sequential, x: str, y: str) -> float:
    """log Σ_h p(h|x) p(y|h) by enumeration, for two layers."""
    first, last = net.layers
    terms = []
    for completion in first.lm.support(first.contexts([LayerInput(x, x)])[0]):
        below = sum(completion.log_probs)
        above = last.label_log_probs([LayerInput(x, completion.text.strip())])[0]
        terms.append(below + above[last.index(y)])
    return float(logsumexp(terms))


def algorithm(**choices):
    return vi.build(**({"q_prompt": Instructions("try", "again", "more"), "num_prompts": 3} | choices))


@given(st.integers(0, 10_000))
def test_exact_posterior_makes_the_elbo_the_log_likelihood(seed):
    net = network(2, seed)
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), algorithm(q_hidden=Enumerate(), include_forward=False))
    exact = np.mean([exact_log_likelihood(net, x, y) for x, y in zip(X, Y, strict=True)])
    assert info.elbo == pytest.approx(exact, abs=1e-9)


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.2, 1.0, 5.0]),
    st.booleans(),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.05, 0.3, 0.9]),
)
def test_any_other_posterior_is_below(seed, temperature, argmax_only, num_hidden, prune):
    net = network(2, seed)
    choices = algorithm(
        weighting=Weighting((Likelihood(),), temperature, argmax_only, prune),
        num_hidden=num_hidden,
        q_hidden=MixtureProposal((PriorProposal(1.5), LabelledPriorProposal(1.0))),
    )
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), choices)
    exact = np.mean([exact_log_likelihood(net, x, y) for x, y in zip(X, Y, strict=True)])
    assert info.elbo <= exact + 1e-9


@pytest.mark.parametrize("score", ["log_prob", "mean_token_log_prob"])
@pytest.mark.parametrize("depth", [1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_a_step_never_lowers_the_batch_objective(depth, score):
    state = vi.init(network(depth, 7))
    for step in range(4):
        state, info = vi.update(state, vi.Batch(X, Y), Key(step), algorithm(score=score))
        assert {layer.position for layer in info.layers} == set(range(depth))
        for layer in info.layers:
            assert layer.scores[layer.winner] >= layer.scores[0]
            assert layer.layers[layer.winner].prompt == state.network.layers[layer.position].prompt


def test_training_raises_the_exact_log_likelihood_of_deep_networks():
    """Enough exact steps must find better prompts than the first ones, at two and at three layers."""
    for depth in (2, 3):
        net = network(depth, 3)
        state = vi.init(net)
        choices = algorithm(q_hidden=Enumerate(), include_forward=False)
        elbos = []
        for step in range(8):
            state, info = vi.update(state, vi.Batch(X, Y), Key(step), choices)
            elbos.append(info.elbo)
        assert elbos[-1] > elbos[0] + 0.1


def test_importance_weights_converge_to_the_exact_posterior():
    net = network(2, 11)
    weighting = Weighting((Likelihood(), Prior(), MinusProposal()))
    choices = algorithm(weighting=weighting, q_hidden=PriorProposal(1.7), num_hidden=4000, include_forward=False)
    _, info = vi.update(vi.init(net), vi.Batch(X[:1], Y[:1]), Key(0), choices)
    particles = info.posterior.levels[1][0]
    first, last = net.layers
    joint = {}
    for completion in first.lm.support(first.contexts([LayerInput(X[0], X[0])])[0]):
        text = completion.text.strip()
        above = last.label_log_probs([LayerInput(X[0], text)])[0][last.index(Y[0])]
        joint[text] = np.exp(sum(completion.log_probs) + above)
    for completion, weight in zip(particles.values, particles.weights, strict=True):
        assert weight == pytest.approx(joint[completion.text] / sum(joint.values()), abs=0.03)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6), st.floats(-1e3, 1e3))
def test_weights_are_shift_invariant(log_weights, shift):
    values = tuple(range(len(log_weights)))
    plain = Particles(values, np.array(log_weights))
    shifted = Particles(values, np.array(log_weights) + shift)
    assert shifted.weights == pytest.approx(plain.weights, abs=1e-9)
    assert shifted.mode == plain.mode or plain.weights[shifted.mode] == pytest.approx(plain.weights[plain.mode])


def test_mutual_information_is_zero_when_the_text_says_nothing_of_the_input():
    """Under a model that ignores its context the term vanishes."""
    hidden = TableLM.from_table({}, default={" a": 0.25, " b": 0.75}, name="constant")
    output = TableLM.random([" yes", " no"], seed=1)
    net = Sequential(LanguageLayer(hidden), ChoiceLayer(output, "classify_residual", "out", LABELS))
    plain = algorithm(weighting=Weighting((Likelihood(), Prior())), num_hidden=3)
    more = algorithm(weighting=Weighting((Likelihood(), Prior(), MutualInformation(2.0))), num_hidden=3)
    batch = vi.Batch(X, Y)
    (_, first), (_, second) = (vi.update(vi.init(net), batch, Key(5), a) for a in (plain, more))
    assert second.posterior.hidden[0].weights == pytest.approx(first.posterior.hidden[0].weights)


def unshown(net: Sequential) -> list[tuple[str, str]]:
    """The examples that no prompt of the network shows."""
    shown = {d.x for layer in net.layers for d in layer.prompt.demonstrations}
    return [(x, y) for x, y in zip(X, Y, strict=True) if x not in shown]


@pytest.mark.parametrize("seed", range(12))
def test_an_example_that_a_prompt_of_the_network_shows_has_no_part_in_the_elbo(seed):
    """With the exact posterior the bound is log p(y|x), averaged over the examples that no layer shows."""
    start = Prompt("out", (Demonstration(X[0], "a", Y[0]),))
    state = vi.init(network(2, seed).with_prompts(["p0", start]))
    choices = vi.build(q_prompt=DemonstrationProposal((1, 2)), q_hidden=Enumerate(), include_forward=False)
    for step in range(4):
        net = state.network
        state, info = vi.update(state, vi.Batch(X, Y), Key(step), choices)
        rest = unshown(net)
        assert len(rest) < len(X)
        exact = [exact_log_likelihood(net, x, y) for x, y in rest]
        assert info.elbo == pytest.approx(np.mean(exact) if rest else np.nan, abs=1e-9, nan_ok=True)


@given(st.integers(0, 10_000), st.integers(0, 4), st.sampled_from([0, 1]), st.integers(1, 4))
def test_any_posterior_bounds_the_log_likelihood_of_the_examples_that_no_prompt_shows(seed, shown, position, num):
    """Whichever layer shows them, and whatever q is; shown answers never raise the bound."""
    plain = network(2, seed)
    told = Prompt("told", tuple(Demonstration(x, x, y) for x, y in zip(X[:shown], Y[:shown], strict=True)))
    net = plain.with_layer(position, plain.layers[position].with_prompt(told))
    choices = algorithm(q_hidden=MixtureProposal((PriorProposal(1.5), LabelledPriorProposal(1.0))), num_hidden=num)
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), choices)
    rest = unshown(net)
    assert len(rest) == len(X) - shown
    if rest:
        assert info.elbo <= np.mean([exact_log_likelihood(net, x, y) for x, y in rest]) + 1e-9
    else:
        assert np.isnan(info.elbo)


def test_a_prompt_that_shows_the_batch_is_dropped():
    """Somebody must be left to judge."""
    net = Sequential(ChoiceLayer(TableLM.random([" yes", " no"], seed=1), "classify", "p", LABELS))
    choices = vi.build(q_prompt=DemonstrationProposal((2,)), num_prompts=6)
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(0), choices)
    (layer,) = info.layers
    assert layer.used.any()
    assert len(layer.proposals) > 1


def test_a_step_is_a_function_of_its_arguments():
    net = network(3, 5)
    runs = [vi.update(vi.init(net), vi.Batch(X, Y), Key(9), algorithm())[0] for _ in range(2)]
    assert runs[0].network.state_dict() == runs[1].network.state_dict()


def test_frozen_layers_keep_their_prompts():
    net = network(2, 3)
    state = vi.init(net)
    choices = algorithm(layer_steps=(0, 1), q_hidden=Enumerate(), include_forward=False)
    for step in range(12):
        state, info = vi.update(state, vi.Batch(X, Y), Key(step), choices)
        assert [layer.position for layer in info.layers] == [1]
        assert np.isfinite(info.elbo)
    assert state.network.layers[0].prompt == net.layers[0].prompt
    assert state.network.layers[1].prompt != net.layers[1].prompt
