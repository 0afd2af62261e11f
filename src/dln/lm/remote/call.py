"""One HTTP request as a value, and who sends it: what dialects and transport know of one another.

A dialect turns what is asked of a model into `Call`s and reads the replies; it does no I/O. A `Sender` brings
calls to a server and replies back; it knows nothing of models. What cannot be read is said by `MalformedReply`,
which the sender treats as one more fault of the server: it asks again, a few times, and then gives up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from dln.errors import ProviderError

__all__ = ["Call", "MalformedReply", "Reply", "Sender", "Silence"]

T = TypeVar("T")


class MalformedReply(ProviderError):
    """The server's answer, though well delivered, is not one: raised by readers, asked again by senders."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to one path of a server.

    Args:
        path: below the base URL, with its leading slash; one that begins with "//" (as in "//tokenize") is
            relative to the server's root instead, which is the base URL without its trailing "/v1".
        body: the JSON that is posted; None makes it a GET.
        route: text whose hash chooses among replicas: what calls that can share a prefix cache have in common.
        weight: how much work it is, in tokens; heavier calls are sent first.
        draws: whether the answer is random without a seed, so that equal calls must not be merged.
    """

    path: str
    body: Mapping[str, Any] | None = field(default=None, hash=False)
    route: str = ""
    weight: int = 0
    draws: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)  # may quote a key


@dataclass(frozen=True, slots=True)
class Silence:
    """Why no complete reply came: kind is "connect", "no trust" (TLS), "read time-out" or "broken off"."""

    kind: str
    reason: str
    timed_out: bool = False


class Sender(Protocol):
    """What brings calls to a server."""

    def send(
        self, calls: Sequence[Call], read: Callable[[Call, Any], T], *, on_reply: Callable[[int, T], None] | None = None
    ) -> list[T]:
        """`read(call, JSON of the reply)` for every call, in the order of `calls`.

        Equal calls in flight are merged unless they draw. A reply on which `read` raises `MalformedReply` is
        asked for again as a fault of the server. `on_reply` gets (index, value) of every answered call, in the
        calling thread, before this returns or raises.

        Raises:
            ProviderError: a fault that asking again cannot mend, or has not mended; it names the endpoint, what
                came back and what to try. Calls not yet sent are not sent then.
        """
        ...
