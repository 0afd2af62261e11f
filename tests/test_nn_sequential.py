"""Networks: layout, parameters, joint log-probabilities, and predictions against enumeration."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import InputError
from dln.lm.meter import Metered
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Demonstration, LanguageLayer, LayerInput, Prompt, Sequential
from dln.random import Key

HIDDEN = (" a", " b", " a b")
LABELS = ("yes", "no")


def network(depth=2, seed=0, free_text=False):
    hidden = TableLM.random(HIDDEN, seed=seed)
    output = TableLM.random([" yes", " no", " perhaps"], seed=seed + 1)
    layers = [LanguageLayer(hidden, "think" if i == 0 else "think_residual", f"p{i}") for i in range(depth - 1)]
    name = "_residual" if depth > 1 else ""
    top = (
        LanguageLayer(output, f"answer{name}", "out")
        if free_text
        else ChoiceLayer(output, f"classify{name}", "out", LABELS)
    )
    return Sequential(*layers, top)


def exact(net, x):
    """p(y|x) = Σ_h p(h|x) p(y|h), every chain of hidden texts once."""
    chains = {x: 1.0}
    for layer in net.layers[:-1]:
        following = Counter()
        for h, p in chains.items():
            for c in layer.lm.support(layer.contexts([LayerInput(x, h)])[0]):
                following[c.text.strip()] += p * math.exp(sum(c.log_probs))
        chains = following
    last = net.layers[-1]
    return sum(p * np.exp(last.label_log_probs([LayerInput(x, h)])[0]) for h, p in chains.items())


def test_a_choice_layer_stands_on_top_only():
    lower, top = network().layers
    with pytest.raises(InputError, match="layer 0"):
        Sequential(top, lower)
    with pytest.raises(InputError, match="at least one layer"):
        Sequential()


@pytest.mark.parametrize("wrong", ["think", 3, None, [None], ["think"]])
def test_what_is_no_layer_is_refused(wrong):
    with pytest.raises(InputError, match="layer"):
        Sequential(wrong)


def test_layers_may_come_as_arguments_or_as_one_iterable():
    layers = network(3).layers
    assert Sequential(layers).layers == Sequential(iter(layers)).layers == Sequential(*layers).layers == layers
    assert len(Sequential(layers)) == 3


def test_parameters_are_prompts_and_can_be_exchanged_together():
    net = network(3)
    assert net.parameters() == (Prompt("p0"), Prompt("p1"), Prompt("out"))
    other = net.with_prompts(["a", Prompt("b"), "c"])
    assert other.parameters() == (Prompt("a"), Prompt("b"), Prompt("c"))
    assert net.parameters()[0] == Prompt("p0")
    with pytest.raises(InputError, match="one prompt per layer"):
        net.with_prompts(["a"])


def test_one_layer_can_be_exchanged_and_only_where_there_is_one():
    net = network(3)
    new = net.layers[1].with_prompt("new")
    assert net.with_layer(1, new).parameters() == (Prompt("p0"), Prompt("new"), Prompt("out"))
    for position in (-1, 3, 7):
        with pytest.raises(InputError, match="no layer"):
            net.with_layer(position, new)


def test_a_network_is_printed_layer_by_layer_without_weights_and_whole_prompts():
    shown = tuple(Demonstration(str(i), str(i), "yes") for i in range(24))
    lm = Metered(TableLM(lambda _: {"yes": 1.0}, name="oracle"))
    net = Sequential(
        LanguageLayer(lm, "think", "word " * 100),
        ChoiceLayer(lm, "classify", Prompt("Yes or no?", shown), ("yes", "no")),
    )
    first, second = repr(net).splitlines()[1:-1]
    assert first.startswith("  (0) LanguageLayer('oracle', 'think', 'word word")
    assert len(first) < 140
    assert second == "  (1) ChoiceLayer('oracle', 'classify', 'Yes or no? [24 demonstrations]', 2 labels)"


@pytest.mark.parametrize("instruction", ["word " * 100, "判断下列句子是主观还是客观" * 20])
def test_a_long_prompt_is_abridged_in_its_instruction_only(instruction):
    whole = Prompt(instruction, (Demonstration("x", "x", "yes"),) * 24, ("Review", "Sentiment"))
    shown, notes = whole.abridged(40).split("… ", 1)
    assert len(shown) == 39
    assert instruction.startswith(shown)
    assert notes == "[24 demonstrations, Review → Sentiment]"


def test_labels_are_known_where_the_output_is_closed():
    assert network().labels == LABELS
    assert network(free_text=True).labels is None


@given(st.integers(0, 500), st.integers(1, 4))
def test_the_log_prob_of_a_trace_is_the_sum_of_its_layers(seed, depth):
    net = network(depth, seed)
    trace = net.sample(Key(seed), ["one", "two"], temperature=1.0)
    total = np.zeros(2)
    for i, x in enumerate(trace.x):
        h = x
        for position, layer in enumerate(net.layers):
            drawn = trace.hidden[position][i]
            context = layer.contexts([LayerInput(x, h)])[0]
            mass = {c.text.strip(): sum(c.log_probs) for c in layer.lm.support(context)}
            total[i] += mass[drawn.text]
            if position == depth - 1:
                total[i] -= np.logaddexp(mass["yes"], mass["no"])
            h = drawn.text
    assert net.log_prob(trace) == pytest.approx(total)
    assert trace.predictions == tuple(c.text for c in trace.hidden[-1])
    assert trace.inputs(0) == [LayerInput(x, x) for x in trace.x]


def test_traces_of_a_small_network_sum_to_one():
    """Σ over all complete chains of exp(log_prob) is 1: the network is a distribution."""
    net = network(3, 5)
    x = "one"
    first, second, last = net.layers
    total = 0.0
    for a, b, y in product(HIDDEN, HIDDEN, LABELS):
        a, b = a.strip(), b.strip()  # noqa: PLW2901 - shown as the layers show them
        one = {c.text.strip(): c for c in first.lm.support(first.contexts([LayerInput(x, x)])[0])}[a]
        two = {c.text.strip(): c for c in second.lm.support(second.contexts([LayerInput(x, a)])[0])}[b]
        three = last.log_prob([LayerInput(x, b)], [y])[0].log_prob
        total += math.exp(sum(one.log_probs) + sum(two.log_probs) + three)
    assert total == pytest.approx(1)


def test_a_greedy_prediction_follows_the_greedy_trace():
    net = network(3, 8)
    xs = ["one", "two", "three"]
    trace = net.sample(Key(0), xs)
    predictions = net.predict_many(xs)
    assert tuple(p.label for p in predictions) == trace.predictions
    for i, prediction in enumerate(predictions):
        assert prediction.hidden == (tuple(level[i].text for level in trace.hidden[:-1]),)
        assert prediction.draws == 1
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert 0 < prediction.label_mass < 1


@pytest.mark.parametrize("depth", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_marginal_predictions_converge_to_the_exact_ones(depth):
    net = network(depth, 13)
    for x in ("one", "two"):
        prediction = net.predict(x, samples=4000)
        truth = exact(net, x)
        assert [prediction.probabilities[y] for y in LABELS] == pytest.approx(truth, abs=0.03)
        assert prediction.label == LABELS[int(np.argmax(truth))]
        assert len(prediction.hidden) == prediction.draws == 4000


def test_marginalising_is_not_following_the_greedy_text():
    """A network whose greedy hidden text says "no" while most of the mass says "yes"."""

    def think(context):
        return {" g": 0.4, " r": 0.3, " s": 0.3}

    def answer(context):
        return {" no": 0.9, " yes": 0.1} if "Thoughts: g" in context else {" no": 0.05, " yes": 0.95}

    net = Sequential(
        LanguageLayer(TableLM(think, name="t"), "think"),
        ChoiceLayer(TableLM(answer, name="a"), "classify_residual", "", LABELS),
    )
    assert net.predict("x").label == "no"
    marginal = net.predict("x", samples=2000)
    assert marginal.label == "yes"
    assert marginal.probabilities["yes"] == pytest.approx(0.4 * 0.1 + 0.6 * 0.95, abs=0.03)


def test_predictions_are_a_function_of_the_seed():
    net = network(2, 3)
    same = [net.predict("one", samples=7, seed=1) for _ in range(2)]
    assert same[0] == same[1]
    assert net.predict("one", samples=7, seed=2).hidden != same[0].hidden


def test_free_text_is_decided_by_majority():
    net = network(2, 3, free_text=True)
    prediction = net.predict("one", samples=501)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
    greedy = net.predict("one")
    assert greedy.probabilities == {greedy.label: 1.0}
    assert greedy.label_mass is None


def test_free_text_frequencies_converge_to_the_exact_ones():
    net = network(1, 4, free_text=True)
    layer = net.layers[0]
    truth = {
        c.text.strip(): math.exp(sum(c.log_probs)) for c in layer.lm.support(layer.contexts([LayerInput("q", "q")])[0])
    }
    prediction = net.predict("q", samples=4000)
    assert prediction.probabilities == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_draw_is_no_prediction(samples):
    with pytest.raises(InputError, match="samples"):
        network().predict("x", samples=samples)


def test_no_inputs_give_no_predictions():
    assert network().predict_many([]) == []
    assert network().predict_many([], samples=3) == []


def test_draws_for_an_input_do_not_depend_on_its_neighbours():
    net = network(2)
    alone = net.predict("three", samples=5, seed=4)
    assert net.predict_many(["one", "two", "three", "four"], samples=5, seed=4)[2] == alone
