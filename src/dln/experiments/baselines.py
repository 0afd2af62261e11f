"""Methods without training: majority class, the instruction alone, and examples in the context.

Automatic prompt engineering (Zhou et al., 2023): a pool of instructions induced from examples, the best one kept.

    π_n ~ p(π | a few input-output pairs),   π ← argmax_n (1/M) Σ_i log p(y_i | x_i, π_n)

over M train examples: 15 and 400 in the paper's APE-15 and APE-400.

Zero-shot chain of thought: think step by step, then answer. It is a network of two layers without training.

An encoder without a model: tf-idf of words and pairs of words, as unit vectors.

KATE: each input is shown with the k train examples that are most like it (Liu et al., 2022).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from dln.data import Dataset, Example
from dln.data.splits import subsample
from dln.errors import BudgetReached, InputError
from dln.experiments.method import PAPER, SAME_LINE, Learnt, Setup, demonstrations, fitted, labels_of, output_layer
from dln.infer.memory import Feedback
from dln.infer.prompts import RewriteProposal
from dln.lm.base import Sampling
from dln.nn import ChoiceLayer, LayerInput, Prediction, Prompt, Sequential
from dln.nn.sequential import label_prediction
from dln.numerics import Floats
from dln.random import Key
from dln.train.layout import standard_network

__all__ = [
    "ChainOfThought",
    "InContext",
    "Induction",
    "Majority",
    "Nearest",
    "WordVectors",
    "ZeroShot",
    "chain",
    "draw_examples",
    "induced",
    "log_likelihood",
    "sentence_encoder",
]


@dataclass(frozen=True)
class Majority:
    """The most frequent class of the train examples, whatever the input; its probabilities are the classes' shares."""

    name: str = "majority"
    about: str = "the most frequent class of the train examples"
    after: tuple[str, ...] = ()

    def __call__(self, setup: Setup) -> Learnt:
        """Count; every class once more than it occurs, so that none is impossible."""
        counts = Counter(setup.task.train.targets)
        ((label, _),) = counts.most_common(1)
        labels = setup.task.label_names or tuple(counts)
        total = sum(counts[name] + 1 for name in labels)
        shares = {name: (counts[name] + 1) / total for name in labels}
        return Learnt(_Always(label, shares), (f"always {label}",))


@dataclass(frozen=True)
class _Always:
    label: str
    shares: Mapping[str, float]

    def predict_many(self, x: Sequence[str]) -> list[Prediction]:
        return [Prediction(self.label, dict(self.shares)) for _ in x]


@dataclass(frozen=True)
class ZeroShot:
    """The task's instruction and nothing else.

    Args:
        name: in the table.
        template: the layout of the output layer.
        fit: whether bias and temperature are fitted on the dev set.
    """

    name: str = "0-shot"
    template: str = PAPER
    fit: bool = False
    after: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"the instruction alone, template {self.template}" + (", output layer fitted on dev" if self.fit else "")

    def __call__(self, setup: Setup) -> Learnt:
        """Nothing to learn but, with `fit`, C + 1 numbers."""
        return _learnt(setup, self.template, (), self.fit)


@dataclass(frozen=True)
class InContext:
    """k-shot in-context learning: the instruction and k random train examples, every class as often as can be.

    Args:
        k: how many.
        template: the layout.
        fit: whether bias and temperature are fitted on the dev set.
    """

    k: int
    template: str = SAME_LINE
    fit: bool = False
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in the table."""
        return f"icl-{self.k}" + ("-fitted" if self.fit else "")

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"{self.k} random train examples in the context" + (", output layer fitted on dev" if self.fit else "")

    def __call__(self, setup: Setup) -> Learnt:
        """Draw the examples; the same for the method with and without a fitted output layer."""
        return _learnt(setup, self.template, draw_examples(setup, self.k), self.fit)


def draw_examples(setup: Setup, k: int, draw: int = 0) -> tuple[Example, ...]:
    """k random train examples in random order, classes in equal parts as far as they go."""
    train = setup.task.train
    key = Key(setup.seed).child("icl", k, draw)
    by_label: dict[str, list[Example]] = {}
    for i in key.child("order").generator().permutation(len(train)):
        by_label.setdefault(train[int(i)].target, []).append(train[int(i)])
    chosen: list[Example] = []
    while len(chosen) < min(k, len(train)):
        for label in [name for name in by_label if by_label[name]]:
            if len(chosen) < k:
                chosen.append(by_label[label].pop())
    order = key.child("shown").generator().permutation(len(chosen))
    return tuple(chosen[int(i)] for i in order)


def _learnt(setup: Setup, template: str, examples: Sequence[Example], fit: bool) -> Learnt:
    layer = output_layer(setup, template, examples)
    if not fit:
        return Learnt(Sequential(layer), (str(layer.prompt),))
    network, score = fitted(layer, setup.task.dev)
    return Learnt(network, (str(layer.prompt),), score)


@dataclass(frozen=True)
class Induction:
    """APE: the best of a pool of induced instructions.

    Args:
        judged_on: M, train examples that judge.
        pool: instructions that are induced.
        shown: input-output pairs that each is induced from.
        template: the layout of the output layer.
    """

    judged_on: int
    pool: int = 20
    shown: int = 5
    template: str = PAPER
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in the table."""
        return f"ape-{self.judged_on}"

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"the best of {self.pool} instructions induced from examples, judged on {self.judged_on} train examples"

    def __call__(self, setup: Setup) -> Learnt:
        """Induce, judge, keep the best; within the budget where there is one."""
        layer = output_layer(setup, self.template)
        network, score, notes = best_of(setup, Sequential(layer), induced(setup, layer, self.pool, self.shown), self)
        return Learnt(network, (str(network.parameters()[-1]),), score, notes)


def best_of(
    setup: Setup, network: Sequential, instructions: list[str], induction: Induction
) -> tuple[Sequential, float | None, tuple[str, ...]]:
    """`network` with the best of `instructions` in its last layer, its score, and what to know of the search."""
    judges = subsample(setup.task.train, induction.judged_on, setup.seed)
    best, best_score = network, None
    for judged, instruction in enumerate(instructions):
        layers = network.layers
        candidate = network.with_layer(len(layers) - 1, layers[-1].with_prompt(Prompt(instruction)))
        try:
            score = log_likelihood(candidate, list(judges.inputs), list(judges.targets))
        except BudgetReached:
            return best, best_score, (f"the budget ended after {judged} of {len(instructions)} instructions",)
        if score is not None and (best_score is None or score > best_score):
            best, best_score = candidate, score
    return best, best_score, ()


def induced(setup: Setup, layer: ChoiceLayer, pool: int, shown: int) -> list[str]:
    """Distinct instructions, each induced from other pairs; fewer than `pool` where the model repeats itself."""
    # a few hundred pairs to choose from are as good as all of them, and each draw looks at `shown` only
    examples = draw_examples(setup, min(len(setup.task.train), shown * pool))
    inputs = tuple(LayerInput(e.input, e.input) for e in examples)
    targets = tuple(e.target for e in examples)
    feedback = Feedback(inputs, targets, targets, (True,) * len(examples))
    proposal = RewriteProposal(sampling=Sampling(temperature=0.7, max_tokens=64), template="induce", max_examples=shown)
    found = proposal(Key(setup.seed).child("induce"), layer, feedback, pool)
    return [text for text in dict.fromkeys(p.prompt.instruction for p in found) if text]


def log_likelihood(network: Sequential, x: list[str], y: list[str]) -> float | None:
    """Mean log p(y|x) over the examples that can be scored, in nats; None if there is none."""
    predictions = network.predict_many(x)
    p = [
        prediction.probabilities[target] for prediction, target in zip(predictions, y, strict=True) if prediction.scored
    ]
    return float(np.mean(np.log(np.maximum(p, 1e-300)))) if p else None


@dataclass(frozen=True)
class ChainOfThought:
    """First "Let's think step by step", then the answer given question and thoughts.

    Args:
        name: in the table.
        induction: how the answer's instruction is induced; None keeps the task's.
        thoughts: longest chain, in tokens; the released code's 256.
        templates: of the two layers.
    """

    name: str = "cot"
    induction: Induction | None = None
    thoughts: int = 256
    templates: tuple[str, str] = ("think_steps", "classify_residual_answer")
    after: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return "think step by step, then answer" + ("" if self.induction is None else "; the instruction is induced")

    def __call__(self, setup: Setup) -> Learnt:
        """Nothing to learn, or the instruction of the answer."""
        network = chain(setup, self.templates, self.thoughts)
        if self.induction is None:
            return Learnt(network, tuple(map(str, network.parameters())))
        pool = induced(setup, output_layer(setup, self.templates[1]), self.induction.pool, self.induction.shown)
        network, score, notes = best_of(setup, network, pool, self.induction)
        return Learnt(network, tuple(map(str, network.parameters())), score, notes)


def chain(setup: Setup, templates: tuple[str, str], thoughts: int) -> Sequential:
    """The untrained two-layer network.

    Raises:
        InputError: the task has no labels.
    """
    labels_of(setup.task)
    prompts = [Prompt(""), Prompt(setup.task.instruction)]
    return standard_network(setup.task, setup.lm, 2, templates=templates, prompts=prompts, hidden_tokens=thoughts)


_WORD = re.compile(r"[^\W_]+")


class WordVectors:
    """tf · log((1 + N) / (1 + df)) + tf, normalised; vocabulary and df are those of the first call's sentences."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._weights: Floats = np.zeros(0)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """[N, D] unit vectors (zero where a sentence has no known word)."""
        counts = [Counter(_terms(text)) for text in texts]
        if not self._index:
            self._index = {term: i for i, term in enumerate(dict.fromkeys(term for row in counts for term in row))}
            frequency = Counter(term for row in counts for term in row)
            self._weights = np.array([np.log((1 + len(counts)) / (1 + frequency[t])) + 1 for t in self._index])
        vectors = np.zeros((len(counts), len(self._index)))
        for row, vector in zip(counts, vectors, strict=True):
            for term, count in row.items():
                position = self._index.get(term)
                if position is not None:
                    vector[position] = count * self._weights[position]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]


Encoder = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class Nearest:
    """k nearest train examples by the encoder's cosine, the most similar one last, next to the input.

    Args:
        k: how many.
        template: the layout.
    """

    k: int
    template: str = SAME_LINE
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in the table."""
        return f"kate-{self.k}"

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"the {self.k} train examples nearest to each input, in the context"

    def __call__(self, setup: Setup) -> Learnt:
        """Encode the train examples.

        Raises:
            InputError: no encoder was named.
        """
        if setup.encoder is None:
            raise InputError(
                "KATE needs a sentence encoder",
                where=f"method {self.name}",
                fix="--encoder words (no download), or the name or folder of a sentence-transformers model",
            )
        vectors = np.asarray(setup.encoder(setup.task.train.inputs), dtype=np.float64)
        layer = output_layer(setup, self.template)
        predictor = _NearestPredictor(layer, setup.task.train, vectors, setup.encoder, self.k)
        return Learnt(predictor, (f"{layer.prompt.instruction} + the {self.k} nearest train examples",))


@dataclass(frozen=True, eq=False)
class _NearestPredictor:
    layer: ChoiceLayer
    train: Dataset
    vectors: Floats
    encoder: Encoder
    k: int

    def predict_many(self, x: Sequence[str]) -> list[Prediction]:
        similarity = np.asarray(self.encoder(x), dtype=np.float64) @ self.vectors.T
        # a stable sort, so that equals come in the order of the train set
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : self.k]
        contexts: list[str] = []
        for text, row in zip(x, nearest, strict=True):
            shown = demonstrations([self.train[int(i)] for i in reversed(row)])
            prompt = self.layer.prompt.with_demonstrations(shown)
            contexts.extend(self.layer.with_prompt(prompt).contexts([LayerInput(text, text)]))
        masses = self.layer.label_log_masses(contexts)
        return [label_prediction(self.layer, row[None], ((),)) for row in masses]


def sentence_encoder(spec: str) -> Encoder:
    """Sentences → [N, D] unit vectors.

    Args:
        spec: "words" for tf-idf of words and pairs of words (no download, fitted on the sentences of the first
            call), otherwise the name or folder of a sentence-transformers model.

    Raises:
        InputError: the package is missing, or the model cannot be had.
    """
    if spec == "words":
        return WordVectors()
    model = _sentence_transformer(spec)

    def encode(texts: Sequence[str]) -> Floats:
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float64)

    return encode


@cache
def _sentence_transformer(spec: str) -> Any:
    try:
        package: Any = import_module("sentence_transformers")
    except ImportError as error:
        raise InputError(
            "this encoder needs the package sentence-transformers",
            where="--encoder",
            got=spec,
            fix="pip install 'dln[kate]', or --encoder words",
        ) from error
    try:
        return package.SentenceTransformer(spec)
    except (OSError, ValueError) as error:
        raise InputError("the encoder cannot be loaded", where="--encoder", got=f"{spec}: {error}") from error
