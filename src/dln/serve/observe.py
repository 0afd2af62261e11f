"""What a server has done, as Prometheus reads it, and whether it takes requests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from dln.serve.batching import Batcher

__all__ = ["BOUNDS", "Observed", "Observer"]

BOUNDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
"""Upper bounds of the histogram of latencies, in seconds."""

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/detokenize")
"""Paths with a label of their own; clients choose the others, so they share one."""


class Observer:
    """Counts requests; one per server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._within: Counter[float] = Counter()
        self._seconds = 0.0
        self._open = 0

    def begun(self) -> None:
        """A request has come."""
        with self._lock:
            self._open += 1

    def ended(self, path: str, status: int, seconds: float) -> None:
        """It is answered."""
        with self._lock:
            self._open -= 1
            self._requests[path if path in PATHS else "other", status] += 1
            self._seconds += seconds
            self._within.update(bound for bound in BOUNDS if seconds <= bound)

    def text(self, batcher: Batcher, workers: int) -> str:
        """The metrics in Prometheus's text format."""
        with self._lock:
            requests, within = sorted(self._requests.items()), dict(self._within)
            seconds, in_flight = self._seconds, self._open
        total = sum(count for _, count in requests)
        lines = [
            *_metric(
                "dln_requests_total",
                "counter",
                "Answered requests.",
                ((f'{{path="{path}",status="{status}"}}', count) for (path, status), count in requests),
            ),
            *_metric("dln_requests_in_flight", "gauge", "Requests that are not answered yet.", [("", in_flight)]),
            "# HELP dln_request_seconds Seconds from a request to the end of its answer.",
            "# TYPE dln_request_seconds histogram",
            *(f'dln_request_seconds_bucket{{le="{bound}"}} {within.get(bound, 0)}' for bound in BOUNDS),
            f'dln_request_seconds_bucket{{le="+Inf"}} {total}',
            f"dln_request_seconds_sum {seconds:.6f}",
            f"dln_request_seconds_count {total}",
            *_metric("dln_model_calls_total", "counter", "Batches given to the model.", [("", batcher.calls)]),
            *_metric("dln_model_items_total", "counter", "Items in these batches.", [("", batcher.items)]),
            *_metric("dln_queue_length", "gauge", "Items that wait for the model.", [("", batcher.waiting)]),
            *_metric("dln_workers", "gauge", "Workers of the model; 0 is this process.", [("", workers)]),
        ]
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, about: str, values: Iterable[tuple[str, int]]) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *(f"{name}{labels} {n}" for labels, n in values)]


class Observed:
    """ASGI middleware that tells an observer of every request."""

    def __init__(self, app: ASGIApp, *, observer: Observer) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._observer.begun()
        try:
            await self._app(scope, receive, watched)
        finally:
            self._observer.ended(scope["path"], status, time.perf_counter() - began)
