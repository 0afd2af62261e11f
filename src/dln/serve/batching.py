"""Dynamic batching: what arrives within a moment and is alike goes to the model together.

One worker thread owns the model. It waits for the first piece of work, then a short window for company, takes
the oldest kind of work that waits (same operation, same options) and answers it with one call of the engine.
An engine's answers do not depend on the company, so neither do the clients'.

What a served model gives back, before it is dressed as one answer or the other.
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
    """Gathers work for one model.

    Args:
        window: seconds to wait for company after the first piece of work.
        largest: most items in one call of the model.
        most_waiting: more than so many waiting items are refused with 503.

    Attributes:
        calls: calls of the model so far.
        items: items that they answered.
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
        # a daemon: a forward that is under way cannot be interrupted, and must not hold the process
        self._thread = threading.Thread(target=self._work, name="dln-serve-model", daemon=True)
        self._thread.start()

    def submit(self, key: Hashable, run: Run, items: Sequence[Any]) -> list[Future[Any]]:
        """Queue items; those under one key are answered together by the `run` of the first of them.

        A future that is cancelled before its turn is dropped.

        Raises:
            Refusal: 503, when too much is waiting or the server is stopping.
        """
        work = [_Work(key, run, item) for item in items]
        with self._changed:
            if self._closed:
                raise Refusal(503, "the server is stopping", None, "stopping")
            if len(self._waiting) + len(work) > self._most_waiting:
                raise Refusal(503, "too many requests are waiting; ask again later", None, "overloaded", retry_after=1)
            self._waiting.extend(work)
            self._changed.notify()
        return [one.done for one in work]

    def close(self) -> None:
        """Drop what waits and end the thread once the call under way is over."""
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
            if len(batch) > 1:  # one bad item must not spoil its neighbours' answers
                for one in batch:
                    self._answer([one])
                return
            batch[0].done.set_exception(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the requests and not to this thread
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
        choices: each as the answer's JSON has it, its index included.
        prompt_tokens: tokens of all prompts, each prompt counted once.
        completion_tokens: tokens of all choices.
        extra: fields of the answer beside the usual ones.
    """

    choices: list[dict[str, Any]]
    prompt_tokens: int
    completion_tokens: int
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def usage(self) -> dict[str, int]:
        """The tokens as clients expect them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Served(Protocol):
    """Something that answers requests."""

    @property
    def name(self) -> str:
        """How clients call it."""
        ...

    @property
    def root(self) -> str:
        """What it is."""
        ...

    @property
    def max_model_len(self) -> int | None:
        """Tokens that prompt and completion may have together; None if there is no limit."""
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
    """Refuse more choices than one request may ask for."""
    if prompts * n > MAX_CHOICES:
        raise Refusal(400, f"{prompts} prompts × n = {n} are more than {MAX_CHOICES} choices", "n", "invalid_value")


def finite(value: float) -> float:
    """A log-probability as JSON can say it: −9999 stands for −inf.

    Raises:
        Refusal: 500, the model gave no number.
    """
    if math.isnan(value):
        raise Refusal(500, "the model gave no finite log-probability for this request", None, "not_finite")
    return max(float(value), MINUS_INFINITY)
