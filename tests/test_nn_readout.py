"""Readouts: features against enumeration, the word regression's optimum, its cross-fit and its invariances."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

import dln
from dln.infer.calibrate import PenalisedLikelihood, PenalisedWords, fit_pool
from dln.lm.base import NextTokens, Token, Wrapper
from dln.nn.readout import LabelReadout, WordReadout, choose_words, label_weights, readout_from_state
from dln.numerics import log_softmax

TEXTS = [" yes", " no", " good", " bad", " film"]
LABELS = ["yes", "no"]


def layer(readout=None, seed: int = 0, labels=LABELS) -> dln.ChoiceLayer:
    return dln.ChoiceLayer(dln.TableLM.random(TEXTS, seed=seed), "classify", "Is it?", labels, readout=readout)


def readout(classes: int = 2, words: int = 5) -> WordReadout:
    return WordReadout([Token(f" w{i}", i) for i in range(words)], [[c] for c in range(classes)])


def problem(seed: int, pairs: int = 40, classes: int = 2, words: int = 5):
    """Features that depend on the target, targets, weights and groups."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=pairs)
    means = rng.normal(size=(classes, words))
    features = -4 + means[targets] + rng.normal(size=(pairs, words))
    return features, targets, rng.uniform(0.5, 2, size=pairs), np.arange(pairs)


def test_features_are_the_exact_log_probabilities_of_the_first_word():
    words = [Token(text, None) for text in TEXTS]
    chooser = layer(WordReadout(words, [[0], [1]]))
    contexts = chooser.contexts([dln.nn.LayerInput(x, x) for x in ("a film", "another")])
    exact = [[chooser.lm.log_prob([c], [t])[0].values[0] for t in TEXTS] for c in contexts]
    assert chooser.features(contexts) == pytest.approx(np.array(exact))


def test_the_likelihood_is_the_formula():
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(2, 5)), rng.normal(size=2)
    chooser = layer(WordReadout([Token(text) for text in TEXTS], [[0], [1]], weights, bias))
    row = chooser.features(chooser.contexts([dln.nn.LayerInput("x", "x")]))[0]
    scores = [sum(a * p for a, p in zip(weights[y], row, strict=True)) + bias[y] for y in (0, 1)]
    expected = scores[0] - math.log(sum(map(math.exp, scores)))
    assert chooser.log_prob([dln.nn.LayerInput("x", "x")], ["yes"])[0].log_prob == pytest.approx(expected)


@pytest.mark.parametrize(("classes", "spread"), [(2, 1.0), (3, 0.5), (4, 4.0)])
def test_the_fit_is_the_optimum_of_the_penalised_likelihood(classes, spread):
    features, targets, weights, groups = problem(3, classes=classes)
    prior = PenalisedLikelihood()
    fit = PenalisedWords(prior, spreads=(spread,))(_Layer(readout(classes)), features, targets, weights, groups)
    scale = np.sqrt(weights @ np.square(features - weights @ features / weights.sum()) / weights.sum())
    mean = weights @ features / weights.sum()
    words_of = label_weights([[c] for c in range(classes)], 5)
    _, slope = prior.fit(features @ words_of.T, targets, weights)

    def objective(theta):
        d, b = theta[: classes * 5].reshape(classes, 5), theta[classes * 5 :]
        logits = slope * features @ words_of.T + ((features - mean) / scale) @ d.T + b
        misfit = -(weights * log_softmax(logits)[np.arange(len(targets)), targets]).sum()
        return misfit + 5 * np.square(d).sum() / (2 * spread**2) + np.square(b).sum() / (2 * 3.0**2)

    exact = optimize.minimize(objective, np.zeros(classes * 6), method="BFGS", options={"gtol": 1e-6}).x
    found = fit.layer.readout
    deviation = (found.weights - slope * words_of) * scale
    bias = found.bias + (found.weights - slope * words_of) @ mean
    assert deviation - deviation.mean(0) == pytest.approx(
        exact[: classes * 5].reshape(classes, 5) - exact[: classes * 5].reshape(classes, 5).mean(0), abs=5e-3
    )
    assert objective(np.concatenate([deviation.ravel(), bias])) <= objective(exact) + 1e-4


@given(seed=st.integers(0, 50))
def test_no_example_judges_a_fit_that_saw_it(seed):
    features, targets, weights, groups = problem(seed, pairs=20)
    fit = PenalisedWords(spreads=(1.0,))
    before = fit(_Layer(readout()), features, targets, weights, groups).label_log_probs
    turned = targets.copy()
    turned[7] = 1 - turned[7]
    after = fit(_Layer(readout()), features, turned, weights, groups).label_log_probs
    assert after[7] == pytest.approx(before[7], abs=1e-6)
    assert not np.allclose(after, before)


def test_permuting_labels_permutes_the_result():
    features, targets, weights, groups = problem(5, classes=3)
    order = np.array([2, 0, 1])
    plain = PenalisedWords()(_Layer(readout(3)), features, targets, weights, groups)
    turned_readout = WordReadout(readout().words, [[int(c)] for c in order])
    turned = PenalisedWords()(_Layer(turned_readout), features, np.argsort(order)[targets], weights, groups)
    assert turned.label_log_probs == pytest.approx(plain.label_log_probs[:, order], abs=2e-3)
    assert turned.log_prob == pytest.approx(plain.log_prob, abs=2e-3)


def test_duplicating_every_example_changes_nothing_but_the_weight_of_the_penalty():
    features, targets, weights, groups = problem(6)
    twice = [np.concatenate([part, part]) for part in (features, targets, weights, groups)]
    half = math.sqrt(0.5)
    plain = PenalisedWords(PenalisedLikelihood(3.0, 1.0), spreads=(1.0,))
    doubled = PenalisedWords(PenalisedLikelihood(3.0 * half, 1.0 * half), spreads=(half,))
    one = plain(_Layer(readout()), features, targets, weights, groups)
    two = doubled(_Layer(readout()), *twice)
    assert two.layer.readout.weights == pytest.approx(one.layer.readout.weights, abs=1e-3)
    assert two.label_log_probs[:40] == pytest.approx(one.label_log_probs, abs=1e-3)


def test_a_readout_of_the_label_words_alone_is_the_label_readout():
    inputs = [dln.nn.LayerInput(f"film {i}", f"film {i}") for i in range(12)]
    targets = np.arange(12) % 2
    words = layer(WordReadout([Token(" yes"), Token(" no")], [[0], [1]]))
    masses, features = words.label_log_masses(words.contexts(inputs)), words.features(words.contexts(inputs))
    assert features == pytest.approx(masses)
    ones, groups = np.ones(12), np.arange(12)
    label = PenalisedLikelihood()(layer(), masses, targets, ones, groups)
    word = PenalisedWords(spreads=(0.0,))(words, features, targets, ones, groups)
    assert word.label_log_probs == pytest.approx(label.label_log_probs)
    fitted = word.layer.readout
    assert fitted.weights == pytest.approx(np.eye(2) / label.layer.readout.temperature, rel=1e-5)
    assert word.layer.label_log_probs(inputs) == pytest.approx(label.layer.label_log_probs(inputs), abs=1e-4)


def test_other_words_tell_apart_what_the_label_words_do_not():
    features, targets, weights, groups = problem(1, pairs=120)
    features[:, :2] = -3.0  # the label words say nothing
    fit = PenalisedWords()(_Layer(readout()), features, targets, weights, groups)
    assert (fit.label_log_probs.argmax(1) == targets).mean() > 0.7
    alone = PenalisedWords(spreads=(0.0,))(_Layer(readout()), features, targets, weights, groups)
    assert fit.log_prob.mean() > alone.log_prob.mean() + 0.1


@pytest.mark.parametrize("classes", [2, 77])
def test_few_examples_many_classes_and_a_missing_class(classes):
    features, targets, _, _ = problem(2, pairs=3 * classes, classes=classes, words=100)
    targets[targets == 1] = 0  # a class without an example
    features[:, 3] = -7.0  # a word whose probability never changes
    fit = PenalisedWords()(
        _Layer(readout(classes, 100)), features, targets, np.ones(len(targets)), np.arange(len(targets))
    )
    assert np.isfinite(fit.label_log_probs).all()
    assert np.exp(fit.label_log_probs).sum(axis=1) == pytest.approx(1)
    assert np.isfinite(fit.layer.readout.weights).all()
    assert not np.any(fit.layer.readout.weights[:, 3] - fit.layer.readout.weights[:, 3].mean()) or classes > 3


def test_nothing_to_fit_changes_nothing():
    empty = np.zeros((0, 5)), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.int64)
    chooser = _Layer(readout())
    fit = PenalisedWords()(chooser, *empty)
    assert fit.layer is chooser
    assert fit.label_log_probs.shape == (0, 2)


class Told(Wrapper):
    """A model that tells some words: NaN for what a server's top list leaves out."""

    def __init__(self, rows, bounds):
        super().__init__(dln.TableLM.random(TEXTS, seed=0))
        self._rows, self._bounds = np.array(rows), np.array(bounds)

    def sample(self, contexts, sampling, seeds):
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts, targets):
        return self.inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts, labels):
        return self.inner.choice_log_probs(contexts, labels)

    def next_token_log_probs(self, contexts, tokens=(), top=0):
        return NextTokens(self._rows, self._bounds, ((),) * len(contexts))


def test_words_that_were_not_told_have_the_bound_and_excluded_ones_the_floor():
    model = Told([[-1.0, math.nan, -math.inf], [math.nan] * 3, [0.4, -1.0, -2.0]], [-5.0, -5.0, -math.inf])
    words = WordReadout([Token("a"), Token("b"), Token("c")], [[0], [1]])
    features = words.features(model, ["1", "2", "3"], [["a"], ["b"]])
    assert features[0] == pytest.approx([-1.0, -5.0, -30.0])
    assert np.isnan(features[1:]).all()  # nothing was told, and a probability above one
    assert words.usable(features).tolist() == [True, False, False]


def test_words_are_chosen_by_their_mean_probability_after_those_of_the_labels():
    chooser = layer()
    contexts = chooser.contexts([dln.nn.LayerInput(f"film {i}", f"film {i}") for i in range(8)])
    chosen = choose_words(chooser.lm, contexts, chooser.words, 4)
    assert [token.text for token in chosen.words[:2]] == [" yes", " no"]
    told = chooser.lm.next_token_log_probs(
        contexts,
        chooser.lm.next_token_log_probs(contexts[:1], top=9).rows[0].top
        and [token for token, _ in chooser.lm.next_token_log_probs(contexts[:1], top=9).rows[0].top],
    )
    tokens = [token for token, _ in chooser.lm.next_token_log_probs(contexts[:1], top=9).rows[0].top]
    mean = dict(zip((token.text for token in tokens), np.exp(told.log_probs).mean(axis=0), strict=True))
    others = sorted((text for text in mean if text not in (" yes", " no")), key=lambda text: -mean[text])
    assert [token.text for token in chosen.words[2:]] == others[:2]


@given(seed=st.integers(0, 20))
def test_a_state_gives_the_same_readout_back(seed):
    features, targets, weights, groups = problem(seed)
    fitted = PenalisedWords()(_Layer(readout()), features, targets, weights, groups).layer.readout
    for one in (fitted, LabelReadout([0.25, -0.5], 2.0)):
        again = readout_from_state(one.state(), "file")
        rows = features if one is fitted else features[:, :2]
        assert again.log_probs(rows).tolist() == one.log_probs(rows).tolist()


def test_a_network_keeps_its_readout_in_a_file(tmp_path):
    features, targets, weights, groups = problem(0)
    words = WordReadout([Token(text) for text in TEXTS], [[0], [1]])
    fitted = PenalisedWords()(_Layer(words), features, targets, weights, groups).layer.readout
    network = dln.Sequential(layer(fitted))
    dln.save_network(network, tmp_path / "network.json")
    again = dln.load_network(tmp_path / "network.json", network.layers[0].lm)
    assert again.predict("a film").probabilities == network.predict("a film").probabilities
    assert copy.deepcopy(network).predict("a film").probabilities == network.predict("a film").probabilities


class Smoothed(LabelReadout):
    """An output layer of a user: every label keeps a part of the probability."""

    def __init__(self, bias, part=0.1):
        super().__init__(bias, 1.0)
        object.__setattr__(self, "part", part)

    def log_probs(self, features):
        p = np.exp(super().log_probs(features))
        return np.log((1 - self.part) * p + self.part / self.size)

    def state(self):
        return {"kind": self.kind, "bias": self.bias.tolist(), "part": self.part}


def test_an_own_readout_is_in_the_file_of_its_network(tmp_path):
    network = dln.Sequential(layer(Smoothed([0.5, 0.0], part=0.4)))
    assert min(network.predict("a film").probabilities.values()) >= 0.2
    dln.save_network(network, tmp_path / "network.json")
    again = dln.load_network(tmp_path / "network.json", network.layers[0].lm)
    assert type(again.layers[0].readout) is Smoothed
    assert again.predict("a film").probabilities == network.predict("a film").probabilities


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"kind": "no_such_module:Thing"}, "cannot be imported"),
        ({"kind": "collections:Counter"}, "this is no output layer"),
        ({"kind": f"{__name__}:Smoothed", "bias": [0, 0], "parts": 1}, "does not fit its class"),
    ],
)
def test_an_own_readout_that_cannot_be_read_says_why(state, said):
    with pytest.raises(dln.InputError, match=said):
        readout_from_state(state, "network.json")


def test_the_evidence_of_a_label_is_its_largest_weights_per_standard_deviation():
    weights, scale = [[0.5, -1.0, 0.2], [-0.5, 1.0, 0.2]], [1.0, 3.0, 9.0]
    words = WordReadout([Token(" fine"), Token(" dull"), Token(" the")], [[0], [1]], weights, None, scale)
    good, bad = words.evidence(["good", "bad"])
    assert [(w.word, w.weight) for w in good.speaking] == [(" fine", 0.5)]
    assert [(w.word, w.weight) for w in good.against] == [(" dull", -3.0)]
    assert [w.word for w in bad.speaking] == [" dull"]
    assert LabelReadout([0.0, 0.0]).evidence(["good", "bad"]) == ()


def test_a_product_of_experts_weighs_them_by_what_they_know():
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=300)
    good = log_softmax(2.0 * np.eye(3)[targets] + rng.normal(size=(300, 3)))
    noise = log_softmax(rng.normal(size=(300, 3)))
    weights, bias = fit_pool(np.stack([good, noise]), targets)
    assert weights[0] > 0.8
    assert 0 <= weights[1] < 0.3
    assert bias.sum() == pytest.approx(0)
    together = log_softmax(np.einsum("m,mpc->pc", weights, np.stack([good, noise])) + bias)
    wanted = np.arange(300), targets
    assert together[wanted].mean() >= max(good[wanted].mean(), noise[wanted].mean()) - 1e-3


def test_training_chooses_fits_and_pools_word_readouts():
    data = [(f"film {i} {'good' if i % 3 else 'bad'}", "yes" if i % 3 else "no") for i in range(48)]
    train, dev = dln.Dataset.from_pairs(data[:32], labels=LABELS), dln.Dataset.from_pairs(data[32:], labels=LABELS)
    options = {"steps": 2, "batch_size": 8, "num_prompts": 3, "words": 4, "ensemble": 3, "race": False}
    result = dln.fit(dln.Sequential(layer()), train, dev, **options)
    members = result.ensemble.members
    assert all(isinstance(member.layers[-1].readout, WordReadout) for member in members)
    assert result.ensemble.bias is not None
    for x in ("film 1", "film 2"):
        rows = np.array([list(member.predict(x).probabilities.values()) for member in members])
        expected = log_softmax(result.ensemble.weights @ np.log(rows) + result.ensemble.bias)
        assert list(result.predictor.predict(x).probabilities.values()) == pytest.approx(np.exp(expected))
    labels_only = dln.fit(dln.Sequential(layer()), train, dev, output_layer="fitted", **options)
    assert isinstance(labels_only.network.layers[-1].readout, LabelReadout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [[0], [1]]), "different words"),
        (([Token("a"), Token("a")], [[0], [1]]), "different words"),
        (([Token("a"), Token("b")], [[0]]), "two labels"),
        (([Token("a"), Token("b")], [[0], [2]]), "no such word"),
        (([Token("a"), Token("b")], [[0], [1]], [[1.0]]), "do not fit"),
        (([Token("a"), Token("b")], [[0], [1]], [[1.0, 0.0], [0.0, math.nan]]), "finite numbers"),
    ],
)
def test_impossible_readouts_are_refused(arguments, message):
    with pytest.raises(dln.InputError, match=message):
        WordReadout(*arguments)


class _Layer:
    """As much of a `ChoiceLayer` as a calibrator needs."""

    def __init__(self, readout) -> None:
        self.readout = readout

    def with_readout(self, readout) -> "_Layer":
        return _Layer(readout)
