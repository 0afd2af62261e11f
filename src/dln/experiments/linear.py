"""Linear baselines: logistic regression on TF-IDF features or on sentence vectors, without a language model.

    p(y|x) ∝ exp(a_y · φ(x) + b_y),     penalty Σ_y ‖a_y‖² / 2C

C is the value of a logarithmic grid with the highest mean log p(y|x) on the dev examples under a fit to the train
examples. Features and regression are then fitted to train and dev examples together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from dln.data import Dataset, Task
from dln.experiments.encoders import PACKAGE, Encoder, sentence_encoder
from dln.experiments.method import Learnt, Setup, labels_of
from dln.infer.calibrate import PenalisedLikelihood
from dln.nn import Prediction, Sequential
from dln.numerics import Floats
from dln.train.evaluate import Evaluation, evaluate, evaluation_of, validate

__all__ = [
    "GRID",
    "EncoderRegression",
    "LinearPredictor",
    "TfidfRegression",
    "cheap_evaluations",
    "encoded",
    "fit_linear",
    "tfidf",
]

GRID = tuple(float(c) for c in np.logspace(-2, 4, 13))
"""Values of C to choose from."""

Features = Callable[[Sequence[str]], Any]
"""φ: from texts to [N, D] features, dense or sparse."""

Fit = Callable[[Sequence[str]], Features]
"""From training texts to φ."""


@dataclass(frozen=True, eq=False)
class LinearPredictor:
    """A fitted regression.

    Attributes:
        labels: [C] names of all labels.
        counts: [C] number of training examples per label.
        features: φ.
        model: regression over the labels that have examples; None for their frequencies alone.
    """

    labels: tuple[str, ...]
    counts: Floats
    features: Features
    model: Any

    def probabilities(self, x: Sequence[str]) -> Floats:
        """[N, C] p(y|x); a label without examples gets 1 / (n + C), as under add-one smoothing."""
        known = self.counts > 0
        unseen = 1.0 / (self.counts.sum() + len(self.labels))
        found = np.full((len(x), len(self.labels)), unseen)
        shares = self.counts[known] / self.counts.sum()
        p = shares[None] if self.model is None else self.model.predict_proba(self.features(x))
        found[:, known] = (1.0 - unseen * (~known).sum()) * np.asarray(p, dtype=np.float64)
        found = np.maximum(found, 1e-12)
        return found / found.sum(axis=1, keepdims=True)

    def log_likelihood(self, dataset: Dataset) -> float:
        """Mean log p(y|x), in nats."""
        targets = [self.labels.index(target) for target in dataset.targets]
        return float(np.log(self.probabilities(dataset.inputs)[np.arange(len(targets)), targets]).mean())

    def predict_many(self, x: Sequence[str]) -> list[Prediction]:
        """One prediction per input."""
        rows = self.probabilities(x)
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, row.tolist(), strict=True)))
            for row in rows
        ]


def fit_linear(fit: Fit, train: Dataset, dev: Dataset, labels: Sequence[str]) -> tuple[LinearPredictor, float, float]:
    """Choose C on `dev`, and fit to `train` and `dev`.

    Args:
        fit: fits the features.
        train: examples to learn from.
        dev: examples to choose C by.
        labels: names of all labels.

    Returns:
        The predictor; the mean log p(y|x) on dev of the chosen C, in nats, before the last fit; and C.
    """
    # the stronger penalty if several are as good
    score, negative = max((one.log_likelihood(dev), -c) for c, one in _path(fit, train, labels, GRID))
    both = train.with_examples([*train, *dev])
    ((c, predictor),) = _path(fit, both, labels, (-negative,))
    return predictor, score, c


def _path(
    fit: Fit, data: Dataset, labels: Sequence[str], grid: Sequence[float]
) -> Iterator[tuple[float, LinearPredictor]]:
    """The regressions for the values of C in a grid, each started from the one before."""
    targets = np.array([labels.index(target) for target in data.targets])
    counts = np.bincount(targets, minlength=len(labels)).astype(np.float64)
    features = fit(data.inputs)
    linear: Any = import_module("sklearn.linear_model")
    model: Any = linear.LogisticRegression(max_iter=3000, warm_start=True)
    x = features(data.inputs)
    for c in grid:
        known = None if (counts > 0).sum() < 2 else copy.deepcopy(model.set_params(C=c).fit(x, targets))
        yield c, LinearPredictor(tuple(labels), counts, features, known)


def tfidf(texts: Sequence[str]) -> Features:
    """Fit TF-IDF features of words and word pairs, and of 2 to 5 characters within words."""
    text: Any = import_module("sklearn.feature_extraction.text")
    pipeline: Any = import_module("sklearn.pipeline")
    words = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")  # noqa: S106 - a pattern
    characters = text.TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    # texts of signs alone have no words, and a vectorizer without a vocabulary is an error
    parts = [words, characters] if any(map(words.build_analyzer(), texts)) else [characters]
    union = pipeline.make_union(*parts).fit(list(texts))
    # every value of C asks for the features of the same dev texts
    known: Any = lru_cache(maxsize=1)(union.transform)
    return lambda some: known(tuple(some))


def encoded(encoder: Encoder) -> Fit:
    """Return features that are a sentence encoder's vectors; each text is encoded once."""
    known: dict[str, Floats] = {}

    def features(texts: Sequence[str]) -> Floats:
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            known.update(zip(missing, np.asarray(encoder(missing), dtype=np.float64), strict=True))
        return np.stack([known[text] for text in texts])

    return lambda _: features


def cheap_evaluations(task: Task, initial: Sequential | None = None) -> dict[str, Evaluation]:
    """Evaluate the baselines that take seconds on the test examples, by name; none for free-form targets.

    Args:
        task: its train and dev examples are fitted to.
        initial: a network whose label words are fitted on dev, as one more baseline; one forward pass per example.
    """
    labels = task.label_names
    if labels is None:
        return {}
    counts = np.array([float(n) for n in task.train.counts().values()]) + 1.0
    shares = dict(zip(labels, (counts / counts.sum()).tolist(), strict=True))
    majority = [Prediction(labels[int(counts.argmax())], shares)] * len(task.test)
    linear, _, _ = fit_linear(tfidf, task.train, task.dev, labels)
    found = {"majority class": majority, "TF-IDF + logistic regression": linear.predict_many(task.test.inputs)}
    rows = {name: evaluation_of(one, task.test, labels, task.metric) for name, one in found.items()}
    if initial is not None:
        network = validate(initial, task.dev, task.metric, PenalisedLikelihood()).network
        rows["initial prompt, label words fitted"] = evaluate(network, task.test, metric=task.metric)
    return rows


_REFITTED = "C chosen on dev, then refitted on train and dev"


@dataclass(frozen=True)
class TfidfRegression:
    """Logistic regression on TF-IDF features of words and characters."""

    name: str = "tfidf-lr"
    about: str = f"TF-IDF of words 1-2 and characters 2-5, logistic regression; {_REFITTED}"
    after: tuple[str, ...] = ()

    def __call__(self, setup: Setup) -> Learnt:
        """Fit features and regression."""
        return _learnt(setup, tfidf)


@dataclass(frozen=True)
class EncoderRegression:
    """Logistic regression on the vectors of a sentence encoder, by default the package's."""

    name: str = "encoder-lr"
    about: str = f"sentence encoder, logistic regression; {_REFITTED}"
    after: tuple[str, ...] = ()

    def __call__(self, setup: Setup) -> Learnt:
        """Encode the texts and fit the regression.

        Raises:
            InputError: no encoder is given, and the package is not installed.
        """
        return _learnt(setup, encoded(setup.encoder or sentence_encoder(PACKAGE)))


def _learnt(setup: Setup, fit: Fit) -> Learnt:
    labels_of(setup.task)
    predictor, score, c = fit_linear(fit, setup.task.train, setup.task.dev, setup.task.label_names or ())
    return Learnt(predictor, (f"logistic regression, C = {c:.3g}",), score)
