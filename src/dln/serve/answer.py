"""What a served model gives back, before it is dressed as one answer or the other."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from dln.serve.batcher import Batcher, Run
from dln.serve.fields import MAX_CHOICES, ChatRequest, CompletionRequest
from dln.serve.refusal import Refusal

__all__ = ["Answer", "Served", "all_of", "check_choices", "finite"]

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
