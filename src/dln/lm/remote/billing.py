"""What the server says that it has counted: every reply once, and in the account of the thread that asked.

Threads that share an engine settle their own calls, so each must find its own tokens. A reply that also answers
equal calls of others is billed to the one that sent it; for the others it cost nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from dln.lm.budget import Usage

__all__ = ["Bill"]

_COUNTED = {"prompt_tokens": 0, "completion_tokens": 0}
"""Stands in a reply whose tokens are in somebody's account."""


@dataclass(slots=True)
class _Account:
    usage: Usage = field(default_factory=Usage)
    silent: int = 0  # replies that did not say what they cost


class Bill:
    """The accounts of one engine's threads; safe to use from all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[int, _Account] = {}
        self._common = Usage()
        self._tells = False

    def add(self, reply: Any, thread: int) -> None:
        """Put what `reply` says of its cost into the account of `thread`, unless it is in one already."""
        if not isinstance(reply, dict):
            return
        fields = cast("dict[str, Any]", reply)
        if not {"choices", "meta_info"} & fields.keys():
            return  # lists of models and of token ids cost nothing
        with self._lock:
            account = self._accounts.setdefault(thread, _Account())
            used = _usage_of(fields)
            if used is None:
                account.silent += 1
                return
            self._tells = True
            account.usage += used
            fields["usage"] = _COUNTED

    def take(self) -> Usage | None:
        """What the calling thread's account and the common one hold, which are empty then.

        None if no server has ever said what it counts, or if not every reply of this thread did.
        """
        with self._lock:
            account = self._accounts.pop(threading.get_ident(), _Account())
            if account.silent or not self._tells:
                return None
            common, self._common = self._common, Usage()
            return common + account.usage

    @contextmanager
    def shared(self) -> Generator[None]:
        """What the block costs belongs to no thread's verb: whoever asks next takes it."""
        try:
            yield
        finally:
            with self._lock:
                self._common += self._accounts.pop(threading.get_ident(), _Account()).usage


def _usage_of(reply: dict[str, Any]) -> Usage | None:
    """The tokens of one reply: `usage` in the OpenAI form, or SGLang's `meta_info`."""
    said = _mapping(reply.get("usage")) or _mapping(reply.get("meta_info"))
    prompt, completion = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens", 0))
    if prompt is None or completion is None:
        return None
    details = _mapping(said.get("prompt_tokens_details"))
    cached = _count(details.get("cached_tokens", said.get("cached_tokens", 0))) or 0
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=min(cached, prompt))


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
