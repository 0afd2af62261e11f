"""`Pooled`: one language model computed by several workers of any `concurrent.futures.Executor`.

The requests of a call are sorted by their contexts, so that those with a common prefix meet, and cut into items of
like cost. An item is a pure function of the model and its requests; a worker loads the model once and answers items.
Where the cuts are depends on the requests alone, never on the number of workers or their speed, and the answers are
put together by position: the result is bit for bit that of one worker with the same number of threads.

What happens to items of lost and slow workers is in `dln.lm.workers`.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from dln.arguments import Count
from dln.errors import ContextLengthError, ProviderError
from dln.lm.base import (
    Capabilities,
    Completion,
    LanguageModel,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    check_counts,
    text_of,
)
from dln.lm.local.engine import TokenScores
from dln.lm.local.plan import common_prefix
from dln.lm.local.query import Ids
from dln.lm.local.tokenizer import Codec
from dln.lm.workers import process_number, run_items, workers_of
from dln.numerics import Floats

__all__ = ["ITEM_TOKENS", "Loading", "Pooled", "PooledTokens", "TokenCounter", "cut"]

ITEM_TOKENS = 2048
"""Tokens of an item, about: several forwards on a CPU, and little beside the prefixes that two items compute twice."""

CHARACTERS = 4
"""Of a token, about: items are cut before any text is tokenised."""


def cut(contexts: Sequence[Any], own: Sequence[int], size: int) -> list[list[int]]:
    """Cut requests into items: runs of the sorted contexts of about `size` characters, shared prefixes counted once.

    An item that is full ends, within its second half, where the fewest characters are shared with what follows.

    Args:
        contexts: of the requests, as texts or token ids, of which one then counts as a character.
        own: characters of each request behind its context.
        size: characters of an item.

    Returns:
        Request numbers per item; every number occurs once. A function of the arguments alone.

    >>> cut(["ax", "b", "ay", "az"], [1, 1, 1, 1], 6)
    [[0, 2, 3], [1]]
    """
    order = sorted(range(len(contexts)), key=lambda i: (contexts[i], i))
    shared = [0, *(common_prefix(contexts[i], contexts[j]) for i, j in itertools.pairwise(order))]
    items: list[list[int]] = []
    start, at, cost = 0, 0, 0
    costs: list[int] = []  # of the open item up to and with each request
    while at < len(order):
        new = len(contexts[order[at]]) - (shared[at] if at > start else 0)
        cost += new + own[order[at]]
        if at > start and cost > size:
            possible = [k for k in range(start + 1, at + 1) if 2 * costs[k - start - 1] >= size] or [at]
            end = min(possible, key=lambda k: (shared[k], -k))
            items.append(order[start:end])
            start = at = end
            cost, costs = 0, []
            continue
        costs.append(cost)
        at += 1
    if start < len(order):
        items.append(order[start:])
    return items


@dataclass(frozen=True)
class Loading:
    """How a worker gets the model: `load(spec, **options)`, once per process.

    Args:
        load: a function that workers can import.
        spec: its argument.
        options: its keyword arguments; they are sent to the workers.
        alone: whether the model answers one item at a time in a process, whatever the number of threads.
    """

    load: Callable[..., LanguageModel]
    spec: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    alone: bool = False

    def model(self) -> LanguageModel:
        """The model of this process, loaded at the first call."""
        key = repr((self.load.__module__, self.load.__qualname__, self.spec, sorted(self.options.items())))
        with _loading:
            if key not in _models:
                _models[key] = self.load(self.spec, **_placed(self.options) if self.alone else self.options)
            return _models[key]


_models: dict[str, LanguageModel] = {}
_loading, _alone = threading.Lock(), threading.Lock()


def _placed(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options with a GPU of its own for each process of a machine with several."""
    number = process_number()
    if number is None or options.get("device", "auto") not in ("auto", "cuda"):
        return options
    import torch

    count = torch.cuda.device_count()
    return {**options, "device": f"cuda:{number % count}"} if count else options


@dataclass(frozen=True)
class Facts:
    """What a worker says of its model before the first request."""

    name: str
    capabilities: Capabilities
    fingerprint: str


def describe(loading: Loading) -> Facts:
    """Load the model and describe it; runs in a worker."""
    lm = loading.model()
    return Facts(lm.name, lm.capabilities, lm.fingerprint())


def answer(
    loading: Loading, verb: str, numbers: Sequence[int], contexts: Sequence[Any], arguments: Mapping[str, Any]
) -> tuple[str, list[Any]]:
    """(fingerprint, one answer per request); runs in a worker. `numbers` are the requests', for messages."""
    lm = loading.model()
    try:
        with _alone if loading.alone else nullcontext():
            found = getattr(lm, verb)(contexts, **arguments)
    except ContextLengthError as error:
        raise _renumbered(error, numbers) from error
    return lm.fingerprint(), found.rows if isinstance(found, NextTokens) else list(found)


def _renumbered(error: ContextLengthError, numbers: Sequence[int]) -> ContextLengthError:
    """The error with the number of the request in the whole call."""
    where = re.sub(r"(?<=request )\d+", lambda found: str(numbers[int(found[0])]), str(error.where))
    return ContextLengthError(error.message, where=where, got=error.got, expected=error.expected, fix=error.fix)


@runtime_checkable
class TokenCounter(Protocol):
    """What counts a model's tokens without the model."""

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a target."""
        ...

    def first_token(self, text: str) -> Token | None:
        """The first token of `text` as a target."""
        ...


class Pooled:
    """A language model whose requests are answered by the workers of an executor.

    Args:
        loading: how a worker gets the model.
        executor: runs the items; closed with the model if `own`.
        item_tokens: size of an item, about. It changes answers in their last bits.
        counter: counts tokens in this process; None loads the model here too.
        own: whether the executor belongs to this model.

    Raises:
        DlnError: a worker cannot load the model.
        RunFailed: no worker is left.
    """

    def __init__(
        self,
        loading: Loading,
        executor: Executor,
        *,
        item_tokens: Count = ITEM_TOKENS,
        counter: LanguageModel | TokenCounter | None = None,
        own: bool = False,
    ) -> None:
        self._loading = loading
        self._executor = executor
        self._size = CHARACTERS * item_tokens
        self._counter = counter
        self._own = own
        self._facts = run_items(executor, describe, [(loading,)])[0]

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """The model itself: its workers are shared by whatever uses it."""
        return self

    def __repr__(self) -> str:
        return f"Pooled({self.name!r}, {self.workers} workers)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, if they belong to this model."""
        if self._own:
            self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def name(self) -> str:
        """As the workers' model."""
        return self._facts.name

    @property
    def capabilities(self) -> Capabilities:
        """As the workers' model."""
        return self._facts.capabilities

    def fingerprint(self) -> str:
        """As the workers' model: distribution changes no more than the last bits, as any other batch does."""
        return self._facts.fingerprint

    @property
    def workers(self) -> int:
        """The number of workers now."""
        return workers_of(self._executor)

    def count_tokens(self, text: str) -> int:
        """As the workers' model counts, in this process."""
        return self._here().count_tokens(text)

    def first_token(self, text: str) -> Token | None:
        """As the workers' model."""
        here: object = self._here()
        return here.first_token(text) if isinstance(here, TokenCounter) else None

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context; a draw depends on (context, sampling, seed) alone."""
        check_counts("seeds", contexts, seeds)
        own = [CHARACTERS * sampling.max_tokens] * len(contexts)
        return self._answers("sample", contexts, own, {"sampling": sampling}, {"seeds": seeds})

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """log p of each target's tokens given its context, pair by pair."""
        check_counts("targets", contexts, targets)
        own = [len(text_of(target)) for target in targets]
        return self._answers("log_prob", contexts, own, {}, {"targets": targets})

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label."""
        own = [sum(map(len, labels))] * len(contexts)
        rows = self._answers("choice_log_probs", contexts, own, {"labels": labels}, {})
        return np.stack(rows) if rows else np.zeros((0, len(labels)))

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """log p of the given tokens after each context, and the `top` most probable tokens."""
        common = {"tokens": tokens, "top": top}
        rows = self._answers("next_token_log_probs", contexts, [0] * len(contexts), common, {})
        return NextTokens.of(rows, len(tokens))

    def _here(self) -> LanguageModel | TokenCounter:
        if self._counter is None:
            self._counter = self._loading.model()
        return self._counter

    def _answers(
        self,
        verb: str,
        contexts: Sequence[Any],
        own: Sequence[int],
        common: Mapping[str, Any],
        columns: Mapping[str, Sequence[Any]],
        size: int | None = None,
    ) -> list[Any]:
        """One answer per request, in their order; contexts are texts, or ids with `size` in tokens."""
        items = cut(contexts, own, size or self._size)
        work: list[tuple[Any, ...]] = []
        for item in items:
            arguments = {**common, **{name: [column[i] for i in item] for name, column in columns.items()}}
            work.append((self._loading, verb, item, [contexts[i] for i in item], arguments))
        answers: list[Any] = [None] * len(contexts)
        for item, (fingerprint, rows) in zip(items, run_items(self._executor, answer, work), strict=True):
            if fingerprint != self._facts.fingerprint:
                raise ProviderError(
                    "the workers have different models",
                    where=self.name,
                    got=fingerprint,
                    expected=self._facts.fingerprint,
                    fix="install the same versions and model files on every machine",
                )
            for i, row in zip(item, rows, strict=True):
                answers[i] = row
        return answers


class PooledTokens(Pooled):
    """The same, below the level of texts too; see `dln.lm.local.engine.TokenLevel`.

    Args:
        loading: how a worker gets the model.
        executor: runs the items.
        codec: the model's tokenizer.
        item_tokens: as for `Pooled`.
        own: as for `Pooled`.
    """

    def __init__(
        self,
        loading: Loading,
        executor: Executor,
        codec: Codec,
        *,
        item_tokens: Count = ITEM_TOKENS,
        own: bool = False,
    ) -> None:
        super().__init__(loading, executor, item_tokens=item_tokens, counter=codec, own=own)
        self._codec = codec
        self._tokens = item_tokens

    def encode(self, text: str) -> Ids:
        """Ids of `text` as a target."""
        return self._codec.target_ids(text)

    def context_ids(self, context: str) -> Ids:
        """Ids of `context`, as one user turn for a chat model."""
        return self._codec.context_ids(context, self.capabilities.chat)

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` add."""
        return self._codec.text(ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token."""
        return self._codec.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """The bytes of one token as text."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def sample_ids(self, prompts: Sequence[Ids], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per prompt of ids."""
        check_counts("seeds", prompts, seeds)
        own = [sampling.max_tokens] * len(prompts)
        return self._answers("sample_ids", prompts, own, {"sampling": sampling}, {"seeds": seeds}, self._tokens)

    def score_ids(self, sequences: Sequence[Ids], start: Sequence[int], top: int = 0) -> list[TokenScores]:
        """log p of the tokens from `start` on, with the `top` most probable."""
        check_counts("start", sequences, start)
        own = [0] * len(sequences)
        return self._answers("score_ids", sequences, own, {"top": top}, {"start": start}, self._tokens)

    def next_log_probs(self, prompts: Sequence[Ids], tokens: Sequence[int] = (), top: int = 0) -> list[TokenScores]:
        """log p of `tokens` and the `top` most probable after each prompt."""
        common = {"tokens": tuple(tokens), "top": top}
        return self._answers("next_log_probs", prompts, [0] * len(prompts), common, {}, self._tokens)
