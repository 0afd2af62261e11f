"""The output layer: p(y|x) ∝ exp(log p_LM(y|x) / T + b_y), checked by direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import InputError
from dln.lm.base import Wrapper
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LayerInput, Prediction
from dln.numerics import log_softmax
from dln.random import Key

X = [LayerInput(f"x{i}", f"x{i}") for i in range(6)]


class Masses(Wrapper):
    """Answers with given rows of label masses, one per context."""

    def __init__(self, rows):
        super().__init__(TableLM.random([" yes", " no"], seed=0))
        self.rows = np.array(rows, dtype=np.float64)

    def sample(self, contexts, sampling, seeds):
        raise NotImplementedError

    def log_prob(self, contexts, targets):
        raise NotImplementedError

    def choice_log_probs(self, contexts, labels):
        return self.rows[: len(contexts)]


class Blind(Wrapper):
    """A model that cannot score labels."""

    @property
    def capabilities(self):
        from dataclasses import replace

        return replace(self.inner.capabilities, scores_labels=False)


def layer(texts=(" yes", " Yes", " no", " maybe not"), labels=("yes", "no"), seed=0, **more):
    return ChoiceLayer(TableLM.random(list(texts), seed=seed), "classify", "p", labels, **more)


@given(st.integers(0, 500), st.lists(st.floats(-5, 5), min_size=2, max_size=2), st.floats(0.1, 10))
def test_bias_and_temperature_are_the_formula(seed, bias, temperature):
    plain = layer(seed=seed)
    fitted = plain.with_calibration(bias, temperature)
    rows = []
    for context in plain.contexts(X):
        mass = {c.text: sum(c.log_probs) for c in plain.lm.support(context)}
        score = [math.exp(mass[f" {y}"] / temperature + b) for y, b in zip(("yes", "no"), bias, strict=True)]
        rows.append([s / sum(score) for s in score])
    assert np.exp(fitted.label_log_probs(X)) == pytest.approx(np.array(rows), abs=1e-9)
    assert [s.log_prob for s in fitted.log_prob(X, ["no"] * 6)] == pytest.approx(np.log(rows)[:, 1].tolist())


@given(st.integers(0, 500), st.floats(-20, 20))
def test_the_same_bias_for_all_labels_changes_nothing(seed, shift):
    plain = layer(seed=seed)
    shifted = plain.with_calibration([shift, shift], 1.0)
    assert shifted.label_log_probs(X) == pytest.approx(plain.label_log_probs(X), abs=1e-9)


@given(st.integers(0, 500))
def test_verbalizers_add_their_masses(seed):
    one = layer(labels=("yes", "Yes", "no"), seed=seed).label_log_masses(["c"])
    both = layer(labels=("yes|Yes", "no"), seed=seed).label_log_masses(["c"])
    assert both[0] == pytest.approx([np.logaddexp(one[0, 0], one[0, 1]), one[0, 2]])


@given(st.integers(0, 500))
def test_a_label_that_is_the_beginning_of_another_competes_fairly(seed):
    """Of texts ' new' and ' new york' each label has its own mass; together with the rest they sum to one."""
    texts = (" new", " new york", " new york city", " paris")
    table = TableLM.random(texts, seed=seed)
    cities = ChoiceLayer(table, "classify", "p", [t.strip() for t in texts])
    context = cities.contexts(X[:1])[0]
    exact = {c.text.strip(): sum(c.log_probs) for c in table.support(context)}
    assert cities.label_log_masses([context])[0] == pytest.approx([exact[t.strip()] for t in texts])
    assert np.exp(cities.label_log_masses([context])).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ((), "two labels"),
        (("yes",), "two labels"),
        (("yes", "yes"), "distinct"),
        (("yes", "no|yes"), "distinct"),
        (("yes", ""), "not empty"),
        (("yes", "no|"), "not empty"),
        (("yes", "  "), "not empty"),
        (("yes", "yes "), "distinct"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels, what):
    with pytest.raises(InputError, match=what):
        layer(labels=labels)


def test_blanks_around_labels_and_verbalizers_do_not_count():
    written = layer(labels=(" yes | Yes ", "no\n"))
    assert written.names == ("yes", "no")
    assert written.index("yes ") == written.index("Yes") == 0
    assert written.label_log_masses(["c"]) == pytest.approx(layer(labels=("yes|Yes", "no")).label_log_masses(["c"]))


@pytest.mark.parametrize(
    "numbers",
    [
        {"bias": [0.0]},
        {"bias": [0.0, math.nan]},
        {"bias": [[0.0, 0.0]]},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
    ],
)
def test_impossible_output_numbers_are_refused(numbers):
    with pytest.raises(InputError, match=next(iter(numbers))):
        layer(**numbers)
    with pytest.raises(InputError, match=next(iter(numbers))):
        layer().with_calibration(numbers.get("bias", [0.0, 0.0]), numbers.get("temperature", 1.0))


def test_a_model_that_cannot_score_labels_is_refused():
    with pytest.raises(InputError, match="cannot score labels"):
        ChoiceLayer(Blind(TableLM.random(["a"], seed=0)), labels=("a", "b"))


def test_index_knows_names_wordings_and_nothing_else():
    chooser = layer(labels=("yes|Yes", "no"))
    assert [chooser.index(t) for t in ("yes", " Yes\n", "no", "yes|Yes")] == [0, 0, 1, 0]
    for unknown in ("maybe", "", "YES"):
        with pytest.raises(InputError, match="not a label"):
            chooser.index(unknown)


def test_the_bias_cannot_be_changed_from_outside():
    mine = np.zeros(2)
    chooser = layer(bias=mine)
    mine[0] = 9
    assert chooser.bias.tolist() == [0, 0]
    assert chooser.with_prompt("other").bias.tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        chooser.bias[0] = 1


BROKEN = [
    [math.nan, -1.0],
    [-math.inf, -math.inf],
    [0.5, -1.0],
    [-0.1, -0.1],
]


@pytest.mark.parametrize("row", BROKEN)
def test_a_row_that_is_no_distribution_is_excluded_and_never_a_label(row):
    """NaN, no mass at all, a positive log-probability, masses of more than one."""
    chooser = ChoiceLayer(Masses([row, [-2.0, -1.0]]), "classify", "", ("yes", "no"))
    log_probs = chooser.label_log_probs(X[:2])
    assert np.isnan(log_probs[0]).all()
    assert np.isfinite(log_probs[1]).all()
    for temperature in (0.0, 1.0):
        assert [c.text == "" for c in chooser.sample(Key(0), X[:2], temperature)] == [True, False]
    scores = chooser.log_prob(X[:2], ["yes", "yes"])
    assert [score.finite for score in scores] == [False, True]


@pytest.mark.parametrize("row", BROKEN[:2])
def test_a_broken_draw_is_left_out_of_the_mean(row):
    chooser = layer()
    good = np.log([[0.6, 0.2]])
    mixed = chooser.prediction(np.array([row, *good]), ((), ()))
    alone = chooser.prediction(good, ((),))
    assert mixed.probabilities == pytest.approx(alone.probabilities)
    assert mixed.draws == 1
    assert mixed.label_mass == pytest.approx(0.8)
    nothing = chooser.prediction(np.array([row]), ((),))
    assert nothing == Prediction("", {}, ((),), None, 0)
    assert not nothing.scored


def test_a_label_without_mass_is_impossible_but_the_others_count():
    chooser = ChoiceLayer(Masses([[-math.inf, -3.0]]), "classify", "", ("yes", "no"))
    assert np.exp(chooser.label_log_probs(X[:1])).tolist() == [[0.0, 1.0]]
    assert chooser.sample(Key(0), X[:1], 1.0)[0].text == "no"


def test_greedy_draws_are_the_most_probable_label():
    chooser = layer(seed=4)
    best = chooser.label_log_probs(X).argmax(axis=1)
    for temperature in (None, 0.0):
        assert [chooser.index(c) for c in chooser.sample(Key(1), X, temperature)] == best.tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_of_draws_are_the_probabilities(temperature):
    chooser = layer(seed=2)
    log_probs = chooser.label_log_probs(X[:1])
    draws = chooser.draw_labels(np.repeat(log_probs, 1000, axis=0), Key(7).seeds(1000 * len(log_probs)), temperature)
    expected = np.exp(log_softmax(log_probs[0] / temperature))
    frequency = np.bincount([chooser.index(d) for d in draws], minlength=2) / 1000
    assert frequency == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(1000))
    for draw in draws[:20]:
        i = chooser.index(draw)
        assert sum(draw.log_probs) == pytest.approx(log_probs[0, i])
        assert sum(draw.sampling_log_probs) == pytest.approx(np.log(expected[i]))


def test_a_draw_depends_on_its_place_alone():
    chooser = layer(seed=2)
    assert [c.text for c in chooser.sample(Key(5), X, 1.0)][:3] == [c.text for c in chooser.sample(Key(5), X[:3], 1.0)]


def test_both_scoring_conventions_agree_on_a_label():
    score = layer().log_prob(X[:1], ["yes"])[0]
    assert score.log_prob == score.mean_token_log_prob


def test_inputs_and_outputs_of_different_number_are_refused():
    with pytest.raises(InputError, match="differ in number"):
        layer().log_prob(X, ["yes"])
