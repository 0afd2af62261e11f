"""Which of several like servers gets a call, and which are left alone for a while. Pure values and functions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Health", "assign", "rendezvous"]


def rendezvous(route: str, replicas: Sequence[str]) -> tuple[int, ...]:
    """The replicas' indices in the order in which this route prefers them.

    Each replica is scored by a hash of (replica, route): adding or losing one moves only the routes that it wins
    or held, and all processes agree.
    """
    if len(replicas) == 1:
        return (0,)

    def score(index: int) -> bytes:
        text = f"{replicas[index]}\x00{route}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16).digest()

    return tuple(sorted(range(len(replicas)), key=score, reverse=True))


def assign(routes: Sequence[str], replicas: Sequence[str], *, slack: float = 0.1) -> dict[str, tuple[int, ...]]:
    """For each distinct route its order of replicas, such that no replica gets far more calls than its part.

    A route goes to its first choice unless that would then hold more than (1 + slack) times the mean; so a route
    is always in one place, and few heavy routes do not leave a replica idle.
    """
    counts = Counter(routes)
    most = (1 + slack) * len(routes) / max(1, len(replicas))
    load = [0] * len(replicas)
    orders: dict[str, tuple[int, ...]] = {}
    for route, count in sorted(counts.items(), key=lambda item: -item[1]):
        order = rendezvous(route, replicas)
        chosen = next((r for r in order if load[r] + count <= most), min(order, key=lambda r: load[r]))
        load[chosen] += count
        orders[route] = (chosen, *(r for r in order if r != chosen))
    return orders


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a replica is asked: a circuit breaker.

    Args:
        failures: in a row.
        closed_until: time before which it is left alone, in seconds; then one call tries it.
        probing: whether that call is under way.
        limit: failures in a row after which it is left.
    """

    failures: int = 0
    closed_until: float = 0.0
    probing: bool = False
    limit: int = 3

    def usable(self, now: float) -> bool:
        """Whether a call may go there now."""
        return self.failures < self.limit or (now >= self.closed_until and not self.probing)

    def taken(self) -> Health:
        """After a call was sent there."""
        return replace(self, probing=self.failures >= self.limit)

    def after_success(self) -> Health:
        """After any reply that shows it alive."""
        return self if self.failures == 0 else Health(limit=self.limit)

    def after_failure(self, now: float, *, refused: bool) -> Health:
        """After no reply; one that takes no connection at all is left at once, and longer each time it is tried.

        Failures of calls that were under way when it was left say nothing new.
        """
        if self.failures >= self.limit and not self.probing:
            return self
        failures = max(self.failures + 1, self.limit if refused else 0)
        rest = min(30.0, 1.0 * 2.0 ** min(10, failures - self.limit))
        return replace(self, failures=failures, closed_until=now + rest, probing=False)

    def released(self) -> Health:
        """After a call there that was cancelled and told nothing."""
        return replace(self, probing=False)
