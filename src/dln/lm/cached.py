"""Cached: a language model that never computes the same answer twice, in this run or in any later one.

`Cached(Metered(lm), store)` counts only what is computed (a hit is free, for the budget too);
`Metered(Cached(lm, store))` counts everything that is asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict, TypeVar, cast

import numpy as np

from dln.arguments import Count, checked
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs, text_of
from dln.lm.checks import check_counts
from dln.lm.partial_results import keeping_partial_results
from dln.lm.store import Store
from dln.lm.wrapper import Wrapper
from dln.numerics import Floats

__all__ = ["Cached"]

A = TypeVar("A")

_SCHEMA = 1  # part of every key: a change of what is stored makes old answers misses, not errors


@checked
class Cached(Wrapper):
    """The answers of `inner`, kept in `store`.

    A key covers the model's fingerprint, the operation, context, target (the ids of a draw of this
    model, else the text), parameters and the draw's seed; at temperature 0 the seed has no effect and
    is left out. Answers that cannot be right (NaN or positive log-probabilities) are passed on and
    never stored. Numbers come back bit by bit as they were computed. What a call that failed had already
    answered is stored too, where the model hands it over (see `dln.lm.partial_results`).

    Args:
        inner: the model that computes what is missing.
        store: where answers are kept; several models may share one.
        chunk: requests per call of the model and per transaction.

    Attributes:
        hits: requests answered without the model (repetitions within one call are hits too).
        misses: requests that the model computed.
    """

    def __init__(self, inner: LanguageModel, store: Store, *, chunk: Count = 256) -> None:
        super().__init__(inner)
        self._store = store
        self._chunk = chunk
        self._counting = threading.Lock()
        self.hits = 0
        self.misses = 0

    @property
    def store(self) -> Store:
        """Where the answers are."""
        return self._store

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context, stored by seed: a repeated draw is the same, a new seed a new draw."""
        check_counts("seeds", contexts, seeds)
        parameters = [float(sampling.temperature), float(sampling.top_p), sampling.max_tokens, list(sampling.stop)]
        counted = [None if sampling.temperature == 0 else seed for seed in seeds]
        return self._answers(
            [self._key("sample", context, parameters, seed) for context, seed in zip(contexts, counted, strict=True)],
            contexts,
            lambda batch, rows: self._inner.sample(batch, sampling, [seeds[i] for i in rows]),
            _pack_completion,
            _unpack_completion,
        )

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """log p of each target's tokens given its context, pair by pair."""
        check_counts("targets", contexts, targets)
        identities = map(self._identity, targets)
        return self._answers(
            [self._key("log_prob", context, target) for context, target in zip(contexts, identities, strict=True)],
            contexts,
            lambda batch, rows: self._inner.log_prob(batch, [targets[i] for i in rows]),
            _pack_scores,
            _unpack_scores,
        )

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label; stored per context with the list of labels."""
        rows = self._answers(
            [self._key("choice", context, list(labels)) for context in contexts],
            contexts,
            lambda batch, _: list(self._inner.choice_log_probs(batch, labels)),
            _pack_row,
            _unpack_row,
        )
        return np.stack(rows) if rows else np.zeros((0, len(labels)))

    def _key(self, operation: str, *parts: object) -> bytes:
        content = [_SCHEMA, self._inner.fingerprint(), operation, *parts]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).digest()

    def _identity(self, target: Target) -> object:
        if isinstance(target, Completion) and target.token_ids is not None and target.model == self.fingerprint():
            return [list(target.token_ids), target.text_tokens]
        return text_of(target)

    def _answers(
        self,
        keys: list[bytes],
        contexts: Sequence[str],
        compute: Callable[[list[str], list[int]], list[A]],
        pack: Callable[[A], bytes | None],
        unpack: Callable[[bytes], A],
    ) -> list[A]:
        first_row = {key: row for row, key in reversed(list(enumerate(keys)))}
        answers = {key: unpack(value) for key, value in self._store.get_many(keys).items()}
        missing = [key for key in dict.fromkeys(keys) if key not in answers]
        with self._counting:
            self.hits += len(keys) - len(missing)
            self.misses += len(missing)
        # The last bits of a float may depend on the batch it was computed in. So the missing requests are
        # computed in consecutive chunks of fixed size, in their given order, and each chunk is stored whole
        # before the next begins: a process that was killed finds, when it asks again, exactly the chunks
        # missing that it had not finished, and computes each in the same company as without the interruption.
        # Only engines whose answers do not depend on company hand over a part of a chunk that failed.
        for start in range(0, len(missing), self._chunk):
            part = missing[start : start + self._chunk]
            rows = [first_row[key] for key in part]
            batch = [contexts[row] for row in rows]
            came: dict[int, object] = {}
            try:
                with keeping_partial_results(batch, came.__setitem__):
                    computed = dict(zip(part, compute(batch, rows), strict=True))
            except BaseException:
                self._store.put_many(_packed({part[i]: cast("A", answer) for i, answer in came.items()}, pack))
                raise
            answers |= computed
            answers |= {key: unpack(value) for key, value in self._store.put_many(_packed(computed, pack)).items()}
        return [answers[key] for key in keys]


def _packed(answers: dict[bytes, A], pack: Callable[[A], bytes | None]) -> dict[bytes, bytes]:
    """What may be stored of it."""
    return {key: value for key, value in ((key, pack(answer)) for key, answer in answers.items()) if value is not None}


class _Draw(TypedDict):
    text: str
    token_ids: list[int] | None
    log_probs: list[float] | None
    sampling_log_probs: list[float] | None
    text_tokens: int | None
    finish_reason: Literal["stop", "length"]
    model: str


def _pack_completion(draw: Completion) -> bytes | None:
    if not (_possible(draw.log_probs or ()) and _possible(draw.sampling_log_probs or ())):
        return None
    record: _Draw = {
        "text": draw.text,
        "token_ids": None if draw.token_ids is None else [int(i) for i in draw.token_ids],
        "log_probs": None if draw.log_probs is None else [float(v) for v in draw.log_probs],
        "sampling_log_probs": None if draw.sampling_log_probs is None else [float(v) for v in draw.sampling_log_probs],
        "text_tokens": draw.text_tokens,
        "finish_reason": draw.finish_reason,
        "model": draw.model,
    }
    return json.dumps(record).encode("ascii")  # Python writes floats so that they are read back exactly


def _unpack_completion(value: bytes) -> Completion:
    record = cast(_Draw, json.loads(value))
    return Completion(
        text=record["text"],
        token_ids=None if record["token_ids"] is None else tuple(record["token_ids"]),
        log_probs=None if record["log_probs"] is None else tuple(record["log_probs"]),
        sampling_log_probs=None if record["sampling_log_probs"] is None else tuple(record["sampling_log_probs"]),
        text_tokens=record["text_tokens"],
        finish_reason=record["finish_reason"],
        model=record["model"],
    )


def _pack_scores(scores: TokenLogProbs) -> bytes | None:
    row = _pack_row(scores.values)
    return None if row is None else int(scores.text_tokens).to_bytes(8, "little") + row


def _unpack_scores(value: bytes) -> TokenLogProbs:
    return TokenLogProbs(_unpack_row(value[8:]), int.from_bytes(value[:8], "little"))


def _pack_row(row: Floats) -> bytes | None:
    return np.asarray(row, dtype="<f8").tobytes() if _possible(row) else None


def _unpack_row(value: bytes) -> Floats:
    return np.frombuffer(value, dtype="<f8").astype(np.float64)


def _possible(values: Sequence[float] | Floats) -> bool:
    return bool((np.asarray(values, dtype=np.float64) <= 1e-6).all())  # NaN compares false
