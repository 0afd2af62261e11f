"""Partial results of a call that failed: an engine hands over the answers it had, so that nothing paid for is lost.

Whoever can keep answers opens `keeping_partial_results` around its call; an engine that fails in the middle offers, to
`keeper_of` the batch it was given, each answer that was complete. Engines that cannot do so do nothing, and wrappers in
between need not know. The batch is recognised by identity: a wrapper that makes another batch of it breaks the link,
and no answer lands on the wrong request.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Keep", "keeper_of", "keeping_partial_results"]

Keep = Callable[[int, object], object]
"""Takes (position in the batch, what the verb would have returned for it)."""

_open: ContextVar[tuple[Sequence[str], Keep] | None] = ContextVar("keeping_partial_results", default=None)


@contextmanager
def keeping_partial_results(contexts: Sequence[str], keep: Keep) -> Generator[None]:
    """Until the end of the block, give `keep` what a failed call with this very batch had already answered."""
    token = _open.set((contexts, keep))
    try:
        yield
    finally:
        _open.reset(token)


def keeper_of(contexts: Sequence[str]) -> Keep | None:
    """Who keeps answers to this very batch; None where nobody does."""
    found = _open.get()
    return found[1] if found is not None and found[0] is contexts else None
