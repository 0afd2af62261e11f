"""An encoder without a model: tf-idf of words and pairs of words, as unit vectors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dln.numerics import Floats

__all__ = ["WordVectors"]

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
