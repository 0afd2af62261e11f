"""KATE: each input is shown with the k train examples that are most like it (Liu et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from dln.bench.paper.layers import SAME_LINE, demonstrations, output_layer
from dln.bench.paper.method import Learnt, Setup
from dln.data import Dataset
from dln.errors import InputError
from dln.nn import ChoiceLayer, LayerInput, Prediction
from dln.nn.predict import label_prediction
from dln.numerics import Floats

__all__ = ["Nearest", "sentence_encoder"]

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
        from dln.bench.paper.words import WordVectors

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
