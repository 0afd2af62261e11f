"""A small deterministic language model for servers of tests, and the same model in process to compare with.

Tokens are whole words of a short list, single bytes for all other text, and the terminator (id 0). What may
follow a prefix is one of a few hundred fixed distributions, chosen by a rolling hash of the prefix. So every
probability is known exactly, any text has one, and scoring a prompt costs one look-up per token.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from dln.lm.base import Capabilities, Completion, Sampling, Target, TokenLogProbs
from dln.lm.local.decoding import drawing_probabilities
from dln.numerics import Floats

__all__ = ["EOS", "Drawn", "Language", "LanguageLM"]

EOS = 0
ROWS = 509
WORDS = (
    *(space + word for word in ("yes", "no", "order", "return", "box", "tiles", "number") for space in (" ", "")),
    *(" yes sir", " broke", " send", " me", " please", " the", " of", " deep", " quick", " thought", "\n", "\n\n"),
)


@dataclass(frozen=True)
class Drawn:
    """A completion: ids as drawn, text cut at a stop string, and why it ended."""

    ids: list[int]
    text: str
    reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Language:
    """The model: `rows(ids)[t]` is the distribution of the token after `ids[:t]`, as log-probabilities.

    Args:
        seed: another seed is another model over the same tokens.
        terminator: probability of the terminator, everywhere.
    """

    seed: int = 0
    terminator: float = 0.25
    words: tuple[str, ...] = field(default=WORDS)

    @cached_property
    def table(self) -> Floats:
        """[ROWS, V] log-probabilities; bytes are improbable but possible."""
        generator = np.random.default_rng(self.seed)
        words = generator.gamma(0.7, size=(ROWS, len(self.words))) + 1e-4
        letters = generator.gamma(1.0, size=(ROWS, 256)) + 1e-3
        parts = [
            np.full((ROWS, 1), self.terminator),
            0.02 * letters / letters.sum(1, keepdims=True),
            (0.98 - self.terminator) * words / words.sum(1, keepdims=True),
        ]
        return np.log(np.concatenate(parts, axis=1))

    @property
    def size(self) -> int:
        """Of the vocabulary."""
        return 257 + len(self.words)

    def encode(self, text: str) -> list[int]:
        """Longest words first, else bytes."""
        return [i for piece in self._pattern.findall(text) for i in self._ids(piece)]

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for; nothing for the terminator."""
        if token == EOS:
            return b""
        return bytes([token - 1]) if token <= 256 else self.words[token - 257].encode()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; broken characters are replaced."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def rows(self, ids: Sequence[int]) -> Floats:
        """[len(ids) + 1, V]: after the empty prefix, after the first token, …"""
        return self.table[list(self._states(ids))]

    def score(self, ids: Sequence[int]) -> list[float]:
        """log p of each token given those before it."""
        return [float(self.table[state, i]) for state, i in zip(self._states(ids), ids, strict=False)]

    def draw(self, prompt: Sequence[int], sampling: Sampling, seed: int, allowed: Sequence[int] | None = None) -> Drawn:
        """Token by token; the seed is of no effect at temperature 0."""
        generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
        ids: list[int] = []
        states = [*self._states(prompt)][-1:]
        text, reason = "", "length"
        while len(ids) < sampling.max_tokens:
            p = np.exp(self.table[states[-1]])
            if allowed is not None:
                p = np.where(np.isin(np.arange(self.size), list(allowed)), p, 0.0)
                p = p / p.sum()
            q = drawing_probabilities(p, sampling)
            at = int(np.searchsorted(np.cumsum(q), generator.random(), side="right"))
            ids.append(min(at, int(np.flatnonzero(q)[-1])))
            states = [*self._states([*prompt, *ids])][-1:]
            text = self.decode(ids)
            cuts = [cut for cut in map(text.find, sampling.stop) if cut >= 0]
            if cuts or ids[-1] == EOS:
                text, reason = text[: min(cuts)] if cuts else text, "stop"
                break
        return Drawn(ids, text, "stop" if reason == "stop" else "length")

    def _states(self, ids: Sequence[int]) -> Iterator[int]:
        value = 0x9E3779B9 + self.seed
        yield value % ROWS
        for i in ids:
            value = (value * 1_000_003 + i + 7) % (2**61 - 1)
            yield value % ROWS

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest = sorted(self.words, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest)) + "|.", re.DOTALL)

    def _ids(self, piece: str) -> list[int]:
        known = self._index.get(piece)
        return [known] if known is not None else [1 + byte for byte in piece.encode()]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: 257 + i for i, word in enumerate(self.words)}


class LanguageLM:
    """The same model in process: the truth that a remote engine's numbers are compared with."""

    def __init__(self, language: Language, name: str = "language") -> None:
        self.language = language
        self.name = name

    @property
    def capabilities(self) -> Capabilities:
        """Everything."""
        return Capabilities(scores_targets=True, scores_labels=True, token_ids=True, chat=False, context_length=None)

    def fingerprint(self) -> str:
        """Of the table."""
        return f"language:{hashlib.sha256(self.language.table.tobytes()).hexdigest()[:16]}"

    def count_tokens(self, text: str) -> int:
        """Exactly."""
        return len(self.language.encode(text))

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context."""
        return [self._draw(context, sampling, seed) for context, seed in zip(contexts, seeds, strict=True)]

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """Context and target are encoded alone and joined; a draw of this model is scored on its ids."""
        return [self._score(context, target) for context, target in zip(contexts, targets, strict=True)]

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """Log-mass of each label; one that begins another is followed by anything but that other's next token."""
        ids = [self.language.encode(label) for label in labels]
        masses = [[self._mass(self.language.encode(c), row, ids) for row in ids] for c in contexts]
        return np.array(masses).reshape(len(contexts), len(labels))

    def _mass(self, context: list[int], label: list[int], labels: list[list[int]]) -> float:
        rows = self.language.rows([*context, *label])[len(context) :]
        after = {row[len(label)] for row in labels if len(row) > len(label) and row[: len(label)] == label}
        rest = np.log1p(-np.exp(rows[-1][sorted(after)]).sum()) if after else 0.0
        return float(sum(row[i] for row, i in zip(rows, label, strict=False)) + rest)

    def _score(self, context: str, target: Target) -> TokenLogProbs:
        text_tokens = None
        if isinstance(target, Completion) and target.token_ids is not None and target.model == self.fingerprint():
            ids, text_tokens = list(target.token_ids), target.text_tokens
        else:
            ids = self.language.encode(str(target))
        before = self.language.encode(context)
        values = np.array(self.language.score([*before, *ids])[len(before) :])
        return TokenLogProbs(values, len(ids) if text_tokens is None else text_tokens)

    def _draw(self, context: str, sampling: Sampling, seed: int) -> Completion:
        prompt = self.language.encode(context)
        drawn = self.language.draw(prompt, sampling, seed)
        rows = self.language.rows([*prompt, *drawn.ids])[len(prompt) :]
        log_probs = [float(row[i]) for row, i in zip(rows, drawn.ids, strict=False)]
        q = [
            float(np.log(min(1.0, drawing_probabilities(np.exp(row), sampling)[i])))
            for row, i in zip(rows, drawn.ids, strict=False)
        ]
        starts = np.cumsum([0, *(len(self.language.decode([i])) for i in drawn.ids)])[:-1]
        return Completion(
            text=drawn.text,
            token_ids=tuple(drawn.ids),
            log_probs=tuple(log_probs),
            sampling_log_probs=tuple(q),
            text_tokens=int((starts < len(drawn.text)).sum()),
            finish_reason=drawn.reason,
            model=self.fingerprint(),
        )
