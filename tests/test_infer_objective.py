"""Objectives and penalties of the M-step against hand computation on exact models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import InputError
from dln.infer.calibrate import FixedOutput, PenalisedLikelihood
from dln.infer.estep import EStep, Weighting
from dln.infer.hidden import PriorProposal
from dln.infer.mstep import BestByMargin, Exploration, TrustRegion
from dln.infer.objective import Accuracy, Candidates, ExpectedLogProb, NoiseContrastive, comparable
from dln.lm.base import TokenLogProbs, Wrapper
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, LayerInput, Sequential
from dln.random import Key

HIDDEN = (" a", " b", " a b", " c d")
LABELS = ("yes", "no")
X = ("one", "two", "three", "four")
Y = ("yes", "no", "yes", "yes")
EXPECTED = ExpectedLogProb("log_prob", FixedOutput())


class Holes(Wrapper):
    """A model whose scores are NaN wherever the context holds one of the given words."""

    def __init__(self, inner, *words):
        super().__init__(inner)
        self.words = words

    def sample(self, contexts, sampling, seeds):
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts, targets):
        rows = self.inner.log_prob(contexts, targets)
        return [
            TokenLogProbs(r.values * math.nan, r.text_tokens) if self.hit(c) else r
            for c, r in zip(contexts, rows, strict=True)
        ]

    def choice_log_probs(self, contexts, labels):
        rows = self.inner.choice_log_probs(contexts, labels)
        rows[[self.hit(c) for c in contexts]] = math.nan
        return rows

    def hit(self, context):
        return any(word in context for word in self.words)


def network(depth=2, seed=0, holes=()):
    hidden = Holes(TableLM.random(HIDDEN, seed=seed), *holes)
    output = Holes(TableLM.random([" yes", " no"], seed=seed + 1), *holes)
    layers = [LanguageLayer(hidden, "think" if i == 0 else "think_residual", f"p{i}") for i in range(depth - 1)]
    return Sequential(*layers, ChoiceLayer(output, "classify_residual" if depth > 1 else "classify", "out", LABELS))


def candidates(net, position, prompts=("q1", "q2"), counted=None, step=0, y=Y, x=X):
    trace = net.sample(Key(0), x)
    e_step = EStep(PriorProposal(1.0), Weighting(), 3, "log_prob")
    posterior = e_step(Key(1), net, trace, y)
    layer = net.layers[position]
    return Candidates(
        key=Key(2),
        layers=(layer, *(layer.with_prompt(p) for p in prompts)),
        position=position,
        depth=len(net),
        trace=trace,
        posterior=posterior,
        correct=np.array([p == t for p, t in zip(trace.predictions, y, strict=True)]),
        counted=posterior.scored if counted is None else np.array(counted),
        step=step,
    )


def pair_score(layer, x, h, target):
    return layer.log_prob([LayerInput(x, h)], [target])[0].log_prob


# ---------------------------------------------------------------- pairs and the expected log-probability


@given(st.integers(0, 200), st.integers(1, 3), st.data())
def test_weights_of_pairs_sum_to_one_per_counted_example(seed, depth, data):
    net = network(depth, seed)
    position = data.draw(st.integers(0, depth - 1))
    counted = data.draw(st.lists(st.booleans(), min_size=4, max_size=4))
    pairs = candidates(net, position, counted=counted).pairs
    totals = np.bincount(pairs.examples, pairs.weights, minlength=4)
    assert totals == pytest.approx(np.array(counted, dtype=float))
    assert (pairs.weights > 0).all()
    assert len(pairs.inputs) == len(pairs.outputs) == len(pairs.weights)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_expected_log_prob_is_the_double_sum_of_the_algorithm(position):
    situation = candidates(network(3, 4), position)
    scored = EXPECTED(situation)
    levels = situation.posterior.levels
    for n, layer in enumerate(situation.layers):
        for i, x in enumerate(X):
            below, above = levels[position][i], levels[position + 1][i]
            total = sum(
                w * v * pair_score(layer, x, str(h), target)
                for h, w in zip(below.values, below.weights, strict=True)
                for target, v in zip(above.values, above.weights, strict=True)
            )
            assert scored.per_example[n, i] == pytest.approx(total)
    assert scored.scores == pytest.approx(scored.per_example.mean(axis=1))
    assert scored.used.all()


@pytest.mark.parametrize("objective", [EXPECTED, Accuracy(str.__eq__, FixedOutput())])
def test_what_one_candidate_cannot_score_counts_for_none(objective):
    """Candidate 2 of 3 has a NaN on the second example only; all are compared on the other three."""
    net = network(1, holes=("holed\n\nInput: two",))
    scored = objective(candidates(net, 0, ("fine", "holed")))
    assert np.isnan(scored.per_example[:, 1]).all()
    assert scored.used.tolist() == [True, False, True, True]
    assert scored.scores == pytest.approx(scored.per_example[:, [0, 2, 3]].mean(axis=1))


def test_noise_contrastive_leaves_out_what_one_candidate_cannot_score():
    net = network(2, holes=("holed\n\nInput: two",))
    scored = NoiseContrastive("log_prob")(candidates(net, 0, ("fine", "holed")))
    assert np.isnan(scored.per_example[:, 1]).all()
    assert np.isfinite(np.delete(scored.per_example, 1, axis=1)).all()


def test_without_any_counted_example_there_is_no_score_and_no_error():
    for depth, position in ((1, 0), (2, 0), (2, 1)):
        for calibrator in (FixedOutput(), PenalisedLikelihood()):
            situation = candidates(network(depth), position, counted=[False] * 4)
            scored = ExpectedLogProb("log_prob", calibrator)(situation)
            assert np.isnan(scored.scores).all()


def test_calibrated_candidates_carry_their_own_numbers():
    net = Sequential(network(1, 3).layers[0])
    situation = candidates(net, 0)
    scored = ExpectedLogProb("log_prob", PenalisedLikelihood())(situation)
    biases = [tuple(layer.bias) for layer in scored.layers]
    assert len(set(biases)) == 3
    assert [layer.prompt for layer in scored.layers] == [layer.prompt for layer in situation.layers]


# ---------------------------------------------------------------- noise contrast and accuracy


@given(st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_noise_contrastive_agrees_with_hand_computation(seed):
    situation = candidates(network(2, seed), 0)
    scored = NoiseContrastive("log_prob")(situation)
    for n, layer in enumerate(situation.layers):
        for i, x in enumerate(X):
            particles = situation.posterior.levels[1][i]
            values = [pair_score(layer, x, x, h) for h in particles.values]
            noise = math.log(sum(math.exp(v) for v in values))
            by_hand = sum(w * (v - noise) for w, v in zip(particles.weights, values, strict=True))
            assert scored.per_example[n, i] == pytest.approx(by_hand)
    assert (scored.per_example <= 1e-12).all()


def test_accuracy_is_the_part_of_right_answers():
    situation = candidates(network(1, 2), 0, ("q1", "q2", "q3"))
    scored = Accuracy(str.__eq__, FixedOutput())(situation)
    for n, layer in enumerate(situation.layers):
        answers = [c.text for c in layer.sample(Key(0), [LayerInput(x, x) for x in X])]
        assert scored.per_example[n].tolist() == [float(a == y) for a, y in zip(answers, Y, strict=True)]


def test_accuracy_of_free_text():
    layer = LanguageLayer(TableLM.random([" yes", " no"], seed=3), "answer", "p")
    situation = candidates(Sequential(layer), 0)
    scored = Accuracy(str.__eq__, FixedOutput())(situation)
    for n, candidate in enumerate(situation.layers):
        answers = [c.text for c in candidate.sample(Key(0), [LayerInput(x, x) for x in X])]
        assert scored.per_example[n].tolist() == [float(a == y) for a, y in zip(answers, Y, strict=True)]


def test_objectives_know_their_place():
    net = network(2)
    with pytest.raises(InputError, match="hidden layers"):
        NoiseContrastive("log_prob")(candidates(net, 1))
    with pytest.raises(InputError, match="output layer"):
        Accuracy(str.__eq__, FixedOutput())(candidates(net, 0))


# ---------------------------------------------------------------- penalties


@given(st.integers(0, 200), st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_the_trust_region_is_the_mean_kl_from_the_incumbent_to_the_candidate(seed, factor):
    situation = candidates(network(2, seed), 1)
    penalties = TrustRegion(factor)(situation, situation.layers)
    inputs = situation.trace.inputs(1)
    old = situation.layers[0].label_log_probs(inputs)
    for n, layer in enumerate(situation.layers):
        new = layer.label_log_probs(inputs)
        kl = (np.exp(old) * (old - new)).sum(axis=1).mean()
        assert penalties[n] == pytest.approx(factor * kl)
    assert penalties[0] == 0
    assert (penalties >= 0).all()


def test_the_trust_region_weighs_by_the_incumbent_and_not_by_the_candidate():
    """A bias b moves the log-odds by 2b: the new distribution and both divergences are known in closed form."""
    situation = candidates(network(1), 0, ())
    incumbent = situation.layers[0]
    old = incumbent.label_log_probs(situation.trace.inputs(0))
    shift = old[:, 1] - old[:, 0]
    penalties = [
        TrustRegion(1.0)(replace(situation, layers=(incumbent,)), (incumbent.with_calibration([b, -b], 1.0),))[0]
        for b in (3.0, -3.0)
    ]
    for b, penalty in zip((3.0, -3.0), penalties, strict=True):
        new = -np.logaddexp(0, np.stack([shift - 2 * b, 2 * b - shift], axis=1))
        assert penalty == pytest.approx((np.exp(old) * (old - new)).sum(axis=1).mean())
        assert penalty != pytest.approx((np.exp(new) * (new - old)).sum(axis=1).mean(), rel=0.01)


@pytest.mark.parametrize(("depth", "fewest", "penalised"), [(1, 1, True), (1, 2, False), (2, 2, True), (3, 2, True)])
def test_the_trust_region_is_for_networks_of_the_depth_it_is_told(depth, fewest, penalised):
    situation = candidates(network(depth), depth - 1)
    assert bool(TrustRegion(1.0, min_depth=fewest)(situation, situation.layers).any()) == penalised


def test_the_trust_region_grows_with_the_distance_and_with_its_factor():
    situation = candidates(network(1), 0, ())
    incumbent = situation.layers[0]
    biases = (0.0, 0.5, 1.0, 2.0, 4.0)
    moved = tuple(incumbent.with_calibration([b, -b], 1.0) for b in biases)
    same = replace(situation, layers=(incumbent,) * len(biases))
    penalties = TrustRegion(1.0)(same, moved)
    assert penalties[0] == 0
    assert (np.diff(penalties) > 0).all()
    assert TrustRegion(3.0)(same, moved) == pytest.approx(3 * penalties)


def test_the_trust_region_leaves_hidden_layers_and_unusable_examples_alone():
    situation = candidates(network(2), 0)
    assert TrustRegion(1.0)(situation, situation.layers).tolist() == [0, 0, 0]
    holed = candidates(network(1, holes=("holed",)), 0, ("holed",))
    assert TrustRegion(1.0)(holed, holed.layers).tolist() == [0, 0]


def test_the_trust_region_needs_labels():
    free = Sequential(LanguageLayer(TableLM.random([" yes", " no"], seed=0), "answer", "p"))
    situation = candidates(free, 0)
    with pytest.raises(InputError, match="trust_factor"):
        TrustRegion(1.0)(situation, situation.layers)
    assert TrustRegion(0.0)(situation, situation.layers).tolist() == [0, 0, 0]


def explored(net, y, counted=None):
    """The situation, which examples are wrong, and [N, B] log p(ĥ|x, π^n) of the forward texts."""
    situation = candidates(net, 0, y=y, counted=counted)
    scores = [
        [pair_score(layer, x, x, h) for x, h in zip(X, situation.trace.hidden[0], strict=True)]
        for layer in situation.layers
    ]
    return situation, ~situation.correct, np.array(scores)


@given(st.integers(0, 100), st.lists(st.sampled_from(LABELS), min_size=4, max_size=4), st.data())
@settings(max_examples=20, deadline=None)
def test_exploration_sums_over_wrong_examples_and_divides_by_all(seed, y, data):
    counted = data.draw(st.lists(st.booleans(), min_size=4, max_size=4).filter(any))
    situation, wrong, scores = explored(network(2, seed), y, counted)
    penalties = Exploration(2.0, 10, "log_prob")(situation, situation.layers)
    assert penalties == pytest.approx(2.0 * scores[:, wrong & counted].sum(axis=1) / sum(counted))
    assert (penalties <= 0).all()  # a reward: it is subtracted


def test_an_example_that_becomes_right_takes_its_own_term_only():
    """The reward is additive over examples: fewer wrong ones, a smaller reward. A mean over the wrong ones is not."""
    everything, _, scores = explored(network(2, 5), Y)
    all_wrong = replace(everything, correct=np.zeros(4, dtype=bool))
    one_right = replace(everything, correct=np.array([True, False, False, False]))
    exploration = Exploration(1.0, 10, "log_prob")
    gap = exploration(all_wrong, all_wrong.layers) - exploration(one_right, one_right.layers)
    assert gap == pytest.approx(scores[:, 0] / 4)


def test_exploration_leaves_out_what_cannot_be_scored():
    situation = candidates(network(2, 5, holes=("holed\n\nInput: two",)), 0, ("fine", "holed"))
    wrong = replace(situation, correct=np.zeros(4, dtype=bool))
    penalties = Exploration(1.0, 10, "log_prob")(wrong, wrong.layers)
    for n, layer in enumerate(situation.layers):
        scores = [pair_score(layer, X[i], X[i], situation.trace.hidden[0][i]) for i in (0, 2, 3)]
        assert penalties[n] == pytest.approx(np.mean(scores))


def test_exploration_is_annealed_to_nothing():
    exploration = Exploration(2.0, 4, "log_prob")
    assert [exploration.at(t) for t in range(6)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    situation = candidates(network(2, 5), 0, step=4)
    assert exploration(situation, situation.layers).tolist() == [0, 0, 0]


def test_exploration_is_for_wrong_examples_of_hidden_layers():
    net = network(2, 5)
    exploration = Exploration(2.0, 4, "log_prob")
    right = replace(candidates(net, 0), correct=np.ones(4, dtype=bool))
    assert exploration(right, right.layers).tolist() == [0, 0, 0]
    top = replace(candidates(net, 1), correct=np.zeros(4, dtype=bool))
    assert exploration(top, top.layers).tolist() == [0, 0, 0]


def test_exploration_over_no_steps_is_refused():
    with pytest.raises(InputError, match="total_steps"):
        Exploration(1.0, 0, "log_prob")


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_comparable_is_what_all_have_who_have_anything(rows):
    usable = np.array(rows)
    alive = [row for row in rows if any(row)]
    assert comparable(usable).tolist() == [bool(alive) and all(row[m] for row in alive) for m in range(5)]


@pytest.mark.parametrize("objective", [EXPECTED, Accuracy(str.__eq__, FixedOutput())])
@pytest.mark.parametrize("calibrator", [FixedOutput(), PenalisedLikelihood()])
def test_a_candidate_without_any_score_is_out_and_changes_nothing_for_the_others(objective, calibrator):
    judge = replace(objective, calibrator=calibrator)
    with_it = judge(candidates(network(1, holes=("holed",)), 0, ("fine", "holed")))
    without = judge(candidates(network(1, holes=("holed",)), 0, ("fine",)))
    assert np.isnan(with_it.per_example[2]).all()
    assert with_it.per_example[:2] == pytest.approx(without.per_example)
    assert with_it.scores[:2] == pytest.approx(without.scores)
    assert math.isnan(with_it.scores[2])
    assert with_it.used.all()
    assert BestByMargin(0.0)(with_it.scores, with_it.per_example) == int(np.argmax(without.scores))


def test_accuracy_under_a_fitted_output_layer_ranks_random_prompts_near_chance():
    """Labels that have nothing to do with the inputs: a layer fitted to the judged examples would find 0.3."""
    labels = tuple(f"l{i}" for i in range(6))
    judge, cross_fitted, in_sample = Accuracy(str.__eq__, PenalisedLikelihood()), [], []
    for seed in range(10):
        x = tuple(f"item {i}" for i in range(20))
        y = tuple(labels[i] for i in Key(seed).generator().integers(0, 6, 20))
        layer = ChoiceLayer(TableLM.random([f" {name}" for name in labels], seed), "classify", "p", labels)
        situation = candidates(Sequential(layer), 0, ("q1", "q2"), x=x, y=y)
        scored = judge(situation)
        cross_fitted.extend(scored.scores)
        for fitted in scored.layers:
            answers = [c.text for c in fitted.sample(Key(0), situation.trace.inputs(0))]
            in_sample.append(np.mean([a == t for a, t in zip(answers, y, strict=True)]))
    assert np.mean(in_sample) > 0.25
    assert np.mean(cross_fitted) == pytest.approx(1 / 6, abs=0.05)


def test_accuracy_answers_each_example_by_numbers_fitted_without_it():
    situation = candidates(network(1, 2), 0)
    pairs = situation.pairs
    targets = np.array([LABELS.index(str(y)) for y in pairs.outputs])
    calibrator = PenalisedLikelihood(folds=4)
    scored = Accuracy(str.__eq__, calibrator)(situation)
    for n, layer in enumerate(situation.layers):
        masses = layer.label_log_masses(layer.contexts(pairs.inputs))
        rows = calibrator.cross_fitted(masses, targets, pairs.weights, pairs.examples)
        assert scored.per_example[n].tolist() == (rows.argmax(axis=1) == targets).tolist()
