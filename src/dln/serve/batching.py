"""Dynamic batching, and the interface of a served model.

One worker thread owns the model. It waits for the first item, then a short window for more, takes all items of the same
kind as the oldest one (same operation, same options) and answers them with one call of the engine. The answers of an
engine do not depend on the batch, so neither do those of the server.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from dln.errors import DlnError
from dln.serve.fields import MAX_CHOICES, ChatRequest, CompletionRequest, Refusal

__all__ = ["Answer", "Batcher", "Served", "all_of", "check_choices", "finite"]

Run = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class _Work:
    key: Hashable
    run: Run
    item: Any
    done: Future[Any] = field(default_factory=Future[Any])


class Batcher:
    """Batches the work for a model.

    Args:
        window: seconds to wait for more items after the first one.
        largest: maximum batch size.
        most_waiting: maximum queue length; further items are refused with 503.

    Attributes:
        calls: number of calls of the model.
        items: number of items in these calls.
    """

    def __init__(self, *, window: float = 0.005, largest: int = 64, most_waiting: int = 8192) -> None:
        self._window = window
        self._largest = largest
        self._most_waiting = most_waiting
        self._waiting: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.calls = 0
        self.items = 0
        # a daemon: a running forward pass cannot be interrupted and must not keep the process alive
        self._thread = threading.Thread(target=self._work, name="dln-serve-model", daemon=True)
        self._thread.start()

    def submit(self, key: Hashable, run: Run, items: Sequence[Any]) -> list[Future[Any]]:
        """Queue items; items with equal keys are answered together by `run`.

        A future that is cancelled before its turn is dropped.

        Raises:
            Refusal: 503, the queue is full or the server is stopping.
        """
        work = [_Work(key, run, item) for item in items]
        with self._changed:
            self.check_room(len(work))
            self._waiting.extend(work)
            self._changed.notify()
        return [one.done for one in work]

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._waiting)

    def check_room(self, more: int = 1) -> None:
        """Check that `more` items would be taken.

        Raises:
            Refusal: 503, the queue is full or the server is stopping.
        """
        if self._closed:
            raise Refusal(503, "the server is stopping", None, "stopping")
        if len(self._waiting) + more > self._most_waiting:
            raise Refusal(503, "too many requests are waiting; try again later", None, "overloaded", retry_after=1)

    def close(self) -> None:
        """Drop the queue and end the thread after the running call."""
        with self._changed:
            self._closed = True
            for one in self._waiting:
                one.done.cancel()
            self._waiting.clear()
            self._changed.notify()

    def _work(self) -> None:
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[_Work]:
        """The next batch; empty once the batcher is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return []
                self._gather()
                batch = self._oldest_kind()
                if batch:
                    return batch

    def _gather(self) -> None:
        deadline = time.monotonic() + self._window
        while not self._closed and len(self._waiting) < self._largest:
            rest = deadline - time.monotonic()
            if rest <= 0 or not self._changed.wait(rest):
                return

    def _oldest_kind(self) -> list[_Work]:
        while self._waiting:
            key = self._waiting[0].key
            alike = [one for one in self._waiting if one.key == key][: self._largest]
            taken = set(map(id, alike))
            self._waiting = deque(one for one in self._waiting if id(one) not in taken)
            batch = [one for one in alike if one.done.set_running_or_notify_cancel()]
            if batch:
                return batch
        return []

    def _answer(self, batch: list[_Work]) -> None:
        self.calls += 1
        self.items += len(batch)
        try:
            answers = batch[0].run([one.item for one in batch])
        except DlnError as error:
            if len(batch) > 1:  # one bad item must not fail the others
                for one in batch:
                    self._answer([one])
                return
            batch[0].done.set_exception(error)
        except Exception as error:  # noqa: BLE001 - reported to the clients; the thread goes on
            for one in batch:
                one.done.set_exception(error)
        else:
            for one, answer in zip(batch, answers, strict=True):
                one.done.set_result(answer)


MINUS_INFINITY = -9999.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The choices of one request.

    Attributes:
        choices: JSON objects with their index.
        prompt_tokens: tokens of all prompts, each prompt counted once.
        completion_tokens: tokens of all choices.
        extra: additional fields of the response.
    """

    choices: list[dict[str, Any]]
    prompt_tokens: int
    completion_tokens: int
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def usage(self) -> dict[str, int]:
        """Token counts in the OpenAI format."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Served(Protocol):
    """A model that answers requests."""

    @property
    def name(self) -> str:
        """Model name shown to clients."""
        ...

    @property
    def root(self) -> str:
        """Name of the underlying model."""
        ...

    @property
    def max_model_len(self) -> int | None:
        """Maximum number of tokens of prompt and completion; None without a limit."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal answers."""
        ...

    @property
    def batcher(self) -> Batcher:
        """Where its work queues."""
        ...

    async def complete(self, request: CompletionRequest) -> Answer:
        """Continue texts."""
        ...

    async def chat(self, request: ChatRequest) -> Answer:
        """Answer a conversation."""
        ...

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Text or messages to ids."""
        ...

    def detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ids to text."""
        ...


async def all_of(batcher: Batcher, key: Hashable, run: Run, items: Sequence[Any]) -> list[Any]:
    """The answers to `items`; if the caller is cancelled, or one fails, those not yet begun are dropped."""
    futures: list[Future[Any]] = batcher.submit(key, run, items)
    try:
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():  # the work was dropped, not the one who waits for it
            raise Refusal(503, "the server is stopping", None, "stopping") from None
        raise
    finally:
        for one in futures:
            one.cancel()


def check_choices(prompts: int, n: int) -> None:
    """Refuse more than `MAX_CHOICES` choices."""
    if prompts * n > MAX_CHOICES:
        raise Refusal(400, f"{prompts} prompts × n = {n} are more than {MAX_CHOICES} choices", "n", "invalid_value")


def finite(value: float) -> float:
    """Return a log-probability for JSON: −9999 for −inf.

    Raises:
        Refusal: 500, it is NaN.
    """
    if math.isnan(value):
        raise Refusal(500, "the model gave no finite log-probability for this request", None, "not_finite")
    return max(float(value), MINUS_INFINITY)
