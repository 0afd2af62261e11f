"""Output layers of ordered labels and of sets of labels: likelihood, gradient, fit and files against enumeration."""

import json
from itertools import chain, combinations
from types import SimpleNamespace

import numpy as np
import pytest

import dln
from dln.answers import marginals, parts_of, single_labels
from dln.data.metrics import load_metric
from dln.data.set_metrics import SetMetric
from dln.infer.calibrate import PenalisedLikelihood
from dln.infer.structured import PenalisedOrder, PenalisedSets
from dln.lm.base import Token
from dln.nn.readout import readout_from_state
from dln.nn.saving import load_network, save_network
from dln.nn.structured import OrdinalReadout, SetReadout

TEXTS = [" low", " mid", " high", " film"]
WORDS = [Token(text) for text in TEXTS]
SETS = [list(one) for one in chain.from_iterable(combinations(range(3), n) for n in range(4))]


def ordinal(**numbers) -> OrdinalReadout:
    return OrdinalReadout(WORDS, [[0], [1], [2]], **numbers)


def sets(members=SETS, **numbers) -> SetReadout:
    return SetReadout(WORDS, [[0], [1], [2]], members, **numbers)


def fitted(fit, readout, features, targets, weights=None):
    count = len(targets)
    layer = SimpleNamespace(readout=readout)
    layer.with_readout = lambda found: SimpleNamespace(readout=found)
    return fit(layer, features, targets, np.ones(count) if weights is None else weights, np.arange(count))


def features_of(targets, shift, seed=0):
    rng = np.random.default_rng(seed)
    return -4 + shift[targets] + rng.normal(size=(len(targets), 4))


def test_the_ordinal_likelihood_is_a_difference_of_sigmoids():
    rng = np.random.default_rng(0)
    readout = ordinal(weights=rng.normal(size=(1, 4)), intercept=[0.4], shape=[0.7])
    features = rng.normal(-3, 2, size=(20, 4))
    z = features @ readout.weights[0] + 0.4
    low, high = np.array([0, np.exp(0.7)]) - np.exp(0.7) / 2
    below = np.stack([np.zeros(20), 1 / (1 + np.exp(z - low)), 1 / (1 + np.exp(z - high)), np.ones(20)], axis=1)
    assert np.exp(readout.log_probs(features)) == pytest.approx(np.diff(below, axis=1))


def test_with_all_sets_the_single_labels_are_logistic_regressions():
    rng = np.random.default_rng(1)
    readout = sets(weights=rng.normal(size=(3, 4)), intercept=rng.normal(size=3))
    features = rng.normal(-2, 1, size=(10, 4))
    p = np.exp(readout.log_probs(features)) @ readout.membership
    assert p == pytest.approx(1 / (1 + np.exp(-(features @ readout.weights.T + readout.intercept))))


@pytest.mark.parametrize("readout", [ordinal(), sets(), sets([[0], [0, 1], [2]]), OrdinalReadout(WORDS, [[0], [2]])])
def test_the_gradient_is_that_of_the_likelihood(readout):
    rng = np.random.default_rng(2)
    k, b = len(readout.intercept), len(readout.shape)
    scores, shape = rng.normal(size=(12, k)), rng.normal(size=b)
    targets = rng.integers(readout.size, size=12)
    found = readout.gradient(scores, shape, targets)
    assert found.log_prob == pytest.approx(readout.rows(scores, shape)[np.arange(12), targets])
    assert np.exp(readout.rows(scores, shape)).sum(axis=1) == pytest.approx(1)
    step = 1e-6
    for i in range(k):
        moved = readout.gradient(scores + step * np.eye(k)[i], shape, targets).log_prob
        assert (moved - found.log_prob) / step == pytest.approx(found.scores[:, i], abs=1e-4)
    for j in range(b):
        moved = readout.gradient(scores, shape + step * np.eye(b)[j], targets).log_prob
        assert (moved - found.log_prob) / step == pytest.approx(found.shape[:, j], abs=1e-4)


def test_far_scores_have_finite_likelihoods_and_gradients():
    readout = ordinal()
    scores = np.array([[-900.0], [900.0]])
    found = readout.gradient(scores, np.zeros(1), np.array([2, 0]))
    assert found.log_prob == pytest.approx(-900, abs=1)
    assert found.scores[:, 0] == pytest.approx([1, -1])


@pytest.mark.parametrize("fit, readout", [(PenalisedOrder, ordinal()), (PenalisedSets, sets())])
def test_the_fit_is_a_minimum_of_the_penalised_likelihood(fit, readout):
    rng = np.random.default_rng(3)
    targets = rng.integers(readout.size, size=40)
    features = features_of(targets, rng.normal(size=(readout.size, 4)))
    found = fitted(fit(PenalisedLikelihood(3.0, 1.0), spreads=(1.0,)), readout, features, targets).layer.readout
    mean, scale = features.mean(axis=0), features.std(axis=0)

    def objective(slope, deviation, intercept, shape):
        z = (features - mean) @ (slope * readout.base() + deviation / scale).T + intercept
        misfit = -readout.rows(z, shape)[np.arange(40), targets].sum()
        numbers = np.square(intercept).sum() + np.square(shape).sum()
        return misfit + 4 * np.square(deviation).sum() / 2 + numbers / 18 + (slope - 1) ** 2 / 2

    def value(slope):
        deviation = (found.weights - slope * readout.base()) * scale
        return objective(slope, deviation, found.intercept + found.weights @ mean, found.shape)

    best = min(np.linspace(0.05, 4, 400), key=value)
    at = ((found.weights - best * readout.base()) * scale, found.intercept + found.weights @ mean, found.shape)
    for part in range(3):
        for _ in range(10):
            moved = [*at]
            moved[part] = at[part] + rng.normal(0, 0.05, size=at[part].shape)
            assert objective(best, *moved) >= value(best) - 1e-3


def test_no_example_is_judged_by_a_fit_that_saw_it():
    targets = np.arange(30) % 3
    features = features_of(targets, np.array([-1.0, 0, 1])[:, None])
    before = fitted(PenalisedOrder(spreads=(1.0,)), ordinal(), features, targets).label_log_probs
    turned = targets.copy()
    turned[6] = 2 - turned[6]
    after = fitted(PenalisedOrder(spreads=(1.0,)), ordinal(), features, turned).label_log_probs
    assert after[6] == pytest.approx(before[6], abs=1e-5)
    assert not np.allclose(after, before, atol=1e-3)


def test_labels_in_the_opposite_order_give_the_same_probabilities():
    targets = np.arange(30) % 3
    features = features_of(targets, np.array([-1.0, 0, 1])[:, None])
    forward = fitted(PenalisedOrder(), ordinal(), features, targets).label_log_probs
    turned = OrdinalReadout(WORDS, [[2], [1], [0]])
    backward = fitted(PenalisedOrder(), turned, features, 2 - targets).label_log_probs
    assert backward[:, ::-1] == pytest.approx(forward, abs=2e-3)


def test_permuting_sets_permutes_the_result():
    targets = np.arange(40) % 8
    features = features_of(targets, np.random.default_rng(5).normal(size=(8, 4)))
    order = np.random.default_rng(6).permutation(8)
    plain = fitted(PenalisedSets(), sets(), features, targets).label_log_probs
    turned = fitted(PenalisedSets(), sets([SETS[i] for i in order]), features, np.argsort(order)[targets])
    assert turned.label_log_probs == pytest.approx(plain[:, order], abs=2e-3)


def test_an_order_is_found_with_fewer_examples_than_a_regression_per_label():
    """Examples of the proportional-odds model: its own fit predicts better."""
    rng = np.random.default_rng(7)
    features = rng.normal(-4, 1, size=(430, 12))
    z = 2 * (features[:, :1] + 4) + rng.logistic(size=(430, 1))
    targets = (z > np.array([-3, -1, 1, 3.0])).sum(axis=1)
    words = [Token(f" w{i}") for i in range(12)]
    labels = [[i] for i in range(5)]
    few = np.arange(30)
    scores = []
    for fit, readout in (
        (PenalisedOrder(), OrdinalReadout(words, labels)),
        (dln.infer.calibrate.PenalisedWords(), dln.nn.WordReadout(words, labels)),
    ):
        found = fitted(fit, readout, features[few], targets[few]).layer.readout
        scores.append(found.log_probs(features[30:])[np.arange(400), targets[30:]].mean())
    assert scores[0] > scores[1] + 0.1


@pytest.mark.parametrize(("option", "labels"), [("ordinal", ("1", "2", "3")), ("sets", ("a", "a, b", "b", "none"))])
def test_a_run_with_a_structured_output_layer_can_be_saved(tmp_path, option, labels):
    texts = [" 1", " 2", " 3", " a", " b", " film"]
    lm = dln.TableLM.random(texts, seed=0)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", "Which?", labels))
    data = dln.Dataset.from_pairs([(f"x{i}", labels[i % len(labels)]) for i in range(24)], labels=labels)
    result = dln.fit(network, data, data.select(range(8)), steps=1, output_layer=option, num_prompts=2, seed=0, words=6)
    kind = {"ordinal": OrdinalReadout, "sets": SetReadout}[option]
    readout = result.network.layers[-1].classifier.readout
    assert isinstance(readout, kind)
    save_network(result.network, tmp_path / "network.json")
    again = load_network(tmp_path / "network.json", lm)
    assert again.predict(["x1", "x9"]) == result.network.predict(["x1", "x9"])
    assert readout.evidence(labels)


def test_files_keep_the_numbers():
    readout = sets(weights=np.random.default_rng(8).normal(size=(3, 4)), intercept=[1, 2, 3])
    again = readout_from_state(readout.state(), "file")
    assert again.state() == readout.state()
    with pytest.raises(dln.InputError, match="weights"):
        readout_from_state(readout.state() | {"weights": [[1.0]]}, "file")


def test_sets_are_named_by_their_labels():
    assert single_labels(["b, a", "none", "c"]) == ["a", "b", "c"]
    assert marginals({"a, b": 0.5, "b": 0.25, "none": 0.25}) == {"a": 0.5, "b": 0.75}


def test_f1_of_single_labels_against_a_count_of_each():
    said = ["a, b", "b", "none", "?", "a"]
    wanted = ["a", "b", "a, b", "a", "none"]
    labels = ["a", "a, b", "b", "none"]
    pairs = [(set(parts_of(p)) if p in labels else set(), set(parts_of(t))) for p, t in zip(said, wanted, strict=True)]
    each = []
    for one in ("a", "b"):
        tp = sum(one in p and one in t for p, t in pairs)
        each.append((2 * tp, sum(one in p for p, _ in pairs) + sum(one in t for _, t in pairs)))
    micro = sum(hits for hits, _ in each) / sum(both for _, both in each)
    macro = sum(hits / both for hits, both in each) / 2
    assert SetMetric("label_micro_f1", tuple(labels)).over(said, wanted)[0] == pytest.approx(micro)
    assert SetMetric("label_macro_f1", tuple(labels)).over(said, wanted)[0] == pytest.approx(macro)
    assert SetMetric("label_micro_f1", tuple(labels))("a, b", "a") == pytest.approx(2 / 3)


def test_json_fields_are_graded_one_by_one_and_the_wrong_ones_named():
    target = '{"count": 3, "item": "tea"}'
    metric = load_metric("json_fields")
    assert metric('```json\n{"item": "tea", "count": 3.0}\n```', target) == 1.0
    found = metric.score('{"count": 4, "item": "tea"}', target)
    assert (found.value, found.feedback) == (0.5, "wrong or missing: count")
    assert metric.score('{"count": 3, "item": "tea", "day": 1}', target).value == pytest.approx(2 / 3)
    assert metric("no", target) == metric("[1]", target) == 0.0
    with pytest.raises(dln.InputError, match="JSON"):
        metric("{}", "tea")


@pytest.mark.parametrize("name", ["topics", "stars", "orders", "fields"])
def test_the_bundled_tasks_of_other_outputs(name):
    task = dln.load_task(name)
    expected = {"topics": "sets", "stars": "ordinal"}.get(name, "words")
    assert task.output_layer == expected
    assert task.metric.name == {"topics": "label_micro_f1", "stars": "qwk", "orders": "token_f1"}.get(
        name, "json_fields"
    )
    seen = [set(part.inputs) for part in (task.train, task.dev, task.test)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_data_with_several_labels_in_a_cell_is_read_as_sets(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [{"text": f"text {i}", "label": [["a"], ["a", "b"], ["b"]][i % 3]} for i in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = dln.load_task(file)
    assert task.output_layer == "sets"
    assert task.label_names == ("a", "a, b", "b")
    assert task.instruction == "Read the following input, then name all that apply of a, b."


def test_token_f1_says_which_words_and_numbers_are_wrong():
    found = load_metric("token_f1").score("4 x tea", "3 x tea -> Oslo")
    assert found.value == pytest.approx(4 / 8)
    assert "missing: 3" in found.feedback and "too much: 4" in found.feedback
