"""What the transport did: counted while it runs, shown as a frozen value."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Counters", "Traffic"]

_RECENT = 4096  # latencies kept for the percentiles


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one sender has done so far.

    Args:
        calls: HTTP requests sent, repeated ones included.
        replies: calls that were answered.
        merged: calls answered by the reply to an equal one in flight.
        retries: requests sent again, by what was wrong before.
        time_outs: requests that ran into the connect, read or total time-out.
        bytes_sent: of request bodies.
        bytes_received: of reply bodies.
        latency_p50: seconds from sending to reply, median over the latest calls; None before the first.
        latency_p95: the same, 95th percentile.
        concurrency: calls that may be in flight now, by base URL.
        left_alone: base URLs that do not answer and are not asked at present.
    """

    calls: int = 0
    replies: int = 0
    merged: int = 0
    retries: Mapping[str, int] = field(default_factory=dict[str, int])
    time_outs: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    latency_p50: float | None = None
    latency_p95: float | None = None
    concurrency: Mapping[str, int] = field(default_factory=dict[str, int])
    left_alone: tuple[str, ...] = ()


@dataclass(slots=True)
class Counters:
    """The running counts; written on the loop only."""

    calls: int = 0
    replies: int = 0
    merged: int = 0
    retries: Counter[str] = field(default_factory=Counter[str])
    time_outs: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque[float](maxlen=_RECENT))

    def traffic(self, concurrency: Mapping[str, int], left_alone: tuple[str, ...]) -> Traffic:
        """The counts as they are now."""
        seen = list(self.latencies)
        p50, p95 = np.percentile(seen, [50, 95]) if seen else (None, None)
        return Traffic(
            calls=self.calls,
            replies=self.replies,
            merged=self.merged,
            retries=dict(self.retries),
            time_outs=self.time_outs,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            latency_p50=None if p50 is None else float(p50),
            latency_p95=None if p95 is None else float(p95),
            concurrency=dict(concurrency),
            left_alone=left_alone,
        )
