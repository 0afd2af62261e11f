"""`python -m benchmarks.scale`: how well a training step fills 8, 64 and 512 workers, with stubs of 5 ms per item.

A whole step of a two-layer network runs once on a table of probabilities, behind the cache that commands use, and what
is asked of the model is written down. Each call is then cut into items as `dln.lm.pool` cuts it, and handed out to
stubs in real time. Calls follow one another as in the step, so a call waits for its last item.

    efficiency = items · 5 ms / (workers · seconds)

What a call loses is explained by two terms: the last round, in which some workers have nothing to do, and the time in
which the planner hands out one item after the other.

    seconds ≈ Σ_calls max(⌈items / workers⌉ · 5 ms, items · seconds of handing out one)
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.workload import choose_subject, find_data, two_layer_network
from dln.infer import vi
from dln.lm.base import Completion, LanguageModel, NextTokens, Sampling, Target, Token, TokenLogProbs, Wrapper, text_of
from dln.lm.cache import Cached, Store
from dln.lm.pool import CHARACTERS, cut
from dln.lm.table import TableLM
from dln.lm.workers import run_items
from dln.numerics import Floats
from dln.random import Key
from dln.train import resolve_options
from dln.train.build import algorithm

__all__ = [
    "Call",
    "Instant",
    "Recording",
    "Scale",
    "Stubs",
    "handing_out",
    "main",
    "measure_scale",
    "predicted",
    "step_calls",
]

T = TypeVar("T")
P = ParamSpec("P")

ITEM_SECONDS = 0.005
WORDS = (
    "a",
    "the",
    "text",
    "says",
    "who",
    "where",
    "number",
    "asks",
    "thing",
    "place",
    "person",
    "not",
    "very",
    "last",
)


@dataclass(frozen=True)
class Call:
    """Requests of one call of the model: contexts, and the characters of each behind its context."""

    contexts: tuple[str, ...]
    own: tuple[int, ...]

    def items(self, item_tokens: int) -> int:
        """The number of work items."""
        return len(cut(self.contexts, self.own, CHARACTERS * item_tokens))


class Recording(Wrapper):
    """Writes down what is asked."""

    def __init__(self, inner: LanguageModel) -> None:
        super().__init__(inner)
        self.calls: list[Call] = []

    def _add(self, contexts: Sequence[str], own: Sequence[int]) -> None:
        self.calls.append(Call(tuple(contexts), tuple(own)))

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """As the model draws."""
        self._add(contexts, [CHARACTERS * sampling.max_tokens] * len(contexts))
        return self._inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """As the model scores."""
        self._add(contexts, [len(text_of(target)) for target in targets])
        return self._inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """As the model scores."""
        self._add(contexts, [sum(map(len, labels))] * len(contexts))
        return self._inner.choice_log_probs(contexts, labels)

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """As the model gives them."""
        self._add(contexts, [0] * len(contexts))
        return self._inner.next_token_log_probs(contexts, tokens, top)


@dataclass(frozen=True)
class Scale:
    """One row: `items` in `calls` on `workers`, measured in real time and predicted."""

    item_tokens: int
    calls: int
    items: int
    workers: int
    measured: float
    predicted: float


def step_calls(preset: str = "default", batch: int | None = None, hidden_words: int = 40) -> list[Call]:
    """The calls of a step of a two-layer network with the options of a preset."""
    subject = choose_subject(2, find_data(None))
    draw = Key(0).child("thoughts").generator()
    thoughts = [" " + " ".join(draw.choice(WORDS, hidden_words)) for _ in range(48)]
    table = TableLM.random([*thoughts, *(f" {label}" for label in subject.labels), *subject.labels], 0)
    recording = Recording(table)
    lm = Cached(recording, Store(":memory:"), chunk=2048)
    network = two_layer_network(lm, subject, hidden_words)
    options = resolve_options(preset, {} if batch is None else {"batch_size": batch})
    algo = algorithm(options, lambda prediction, y: prediction.strip() == y.strip(), network=network)
    examples = subject.batch(options.batch_size)
    data = vi.Batch(tuple(e.input for e in examples), tuple(e.target for e in examples))
    vi.update(vi.init(network), data, Key(options.seed), algo)
    return recording.calls


class Instant(Executor):
    """Has computed an item when it is handed out."""

    workers = 4

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future with the result."""
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Stubs(Executor):
    """So many workers that take `ITEM_SECONDS` for every item and return None; one thread keeps their time.

    Args:
        workers: their number.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._changed = threading.Condition()
        self._busy: deque[tuple[float, Future[Any]]] = deque()  # by the time of their end
        self._waiting: deque[Future[Any]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin an item, or queue it."""
        future: Future[Any] = Future()
        with self._changed:
            if len(self._busy) == self.workers:
                self._waiting.append(future)
            else:
                self._busy.append((time.perf_counter() + ITEM_SECONDS, future))
                if len(self._busy) == 1:
                    self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy or self._closed)
                if self._closed:
                    return
                end, future = self._busy[0]
            time.sleep(max(0.0, end - time.perf_counter()))
            with self._changed:
                self._busy.popleft()
                if self._waiting:  # a worker begins its next item when it ends one
                    self._busy.append((end + ITEM_SECONDS, self._waiting.popleft()))
            future.set_result(None)


def handing_out(items: int = 3000) -> float:
    """Seconds in which `run_items` hands out one item and takes its result."""
    began = time.perf_counter()
    run_items(Instant(), int, [()] * items)
    return (time.perf_counter() - began) / items


def predicted(items: Sequence[int], workers: int, handing: float) -> float:
    """Efficiency from the formula of the module."""
    seconds = sum(max(math.ceil(n / workers) * ITEM_SECONDS, n * handing) for n in items)
    return sum(items) * ITEM_SECONDS / (workers * seconds)


def measure_scale(calls: Sequence[Call], item_tokens: int, workers: int, handing: float) -> Scale:
    """Replay the calls on stubs."""
    items = [call.items(item_tokens) for call in calls]
    with Stubs(workers) as stubs:
        began = time.perf_counter()
        for count in items:
            run_items(stubs, int, [()] * count)
        measured = sum(items) * ITEM_SECONDS / (workers * (time.perf_counter() - began))
    return Scale(item_tokens, len(items), sum(items), workers, measured, predicted(items, workers, handing))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--batch", type=int, help="examples of the step (default: the preset's)")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--item-tokens", type=int, nargs="+", default=[2048, 512, 128, 32])
    parser.add_argument("--preset", nargs="+", default=["default", "paper"])
    chosen = parser.parse_args(arguments)
    handing, console = handing_out(), Console()
    for preset in chosen.preset:
        calls = step_calls(preset, chosen.batch)
        requests = sum(len(call.contexts) for call in calls)
        table = Table("tokens per item", "items", "workers", "measured", "predicted")
        for item_tokens in chosen.item_tokens:
            for workers in chosen.workers:
                row = measure_scale(calls, item_tokens, workers, handing)
                shown = (f"{row.measured:.0%}", f"{row.predicted:.0%}")
                table.add_row(str(item_tokens), str(row.items), str(workers), *shown)
        console.print(
            f"{preset}: {requests} requests in {len(calls)} calls; {handing * 1e6:.0f} µs to hand out an item"
        )
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
