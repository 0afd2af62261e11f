"""Evaluations of a program: rollouts and rewards, concurrent, within a budget, and each paid for once.

Everything paid for is written to a journal under a hash of its content when it is finished: a rollout under example,
parameters, given texts and seed; a reward under example and output; a proposed text under its context and seed. A run
that was killed begins again with the same seed, finds in the journal what it had paid for, and goes on where it
stopped. Equal outputs of different candidates cost one call of the metric.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import json
import math
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from dln.data import FunctionMetric, load_metric
from dln.data.metrics import as_score
from dln.errors import BudgetReached, CorruptDataError, InputError
from dln.lm.base import (
    Completion,
    LanguageModel,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    Wrapper,
)
from dln.lm.meter import Budget, Usage
from dln.numerics import Floats
from dln.programs.trace import Program, Request, Rollout, Stage, content, plain, run, text_view, usage_of
from dln.random import Key

__all__ = ["Evaluations", "Journal", "Outcome", "Recorded", "program_metric"]

T = TypeVar("T")

ONE_CALL = Usage(calls=1)


def program_metric(metric: Callable[..., Any] | str) -> FunctionMetric:
    """The metric with its name, its signature checked (see `dln.data.metrics`).

    Args:
        metric: a name (see `dln.load_metric`) for examples with a text `target`, or a callable
            (example, prediction[, trace]) -> float | bool | `Score`, sync or async; of two arguments the first is the
            example unless its name begins with "pred".

    Raises:
        InputError: it takes other arguments.
    """
    named = load_metric(metric)
    if not isinstance(named, FunctionMetric):
        return FunctionMetric(named, named.name, own=False)
    if named.reads == "texts" and named.own:
        try:
            first = next(iter(inspect.signature(named.function).parameters), "")
        except (TypeError, ValueError):  # a callable of another language: it cannot be asked
            first = ""
        if not first.startswith("pred"):
            return replace(named, reads="example")
    return named


@dataclass(frozen=True)
class Outcome:
    """A finished evaluation.

    Attributes:
        request: what was evaluated.
        rollout: the intermediate texts; without stages where the program failed.
        output: the program's output as a text.
        score: the reward R from 0 to 1, NaN where there is none.
        feedback: what the metric said.
        error: why there is no reward.
    """

    request: Request
    rollout: Rollout
    output: str = ""
    score: float = math.nan
    feedback: str = ""
    error: str = ""


class Journal:
    """What was paid for, by content hash: in memory, and in a file where there is one.

    Args:
        path: of the file; what it holds already is known. A torn last line is cut off.

    Raises:
        CorruptDataError: a complete line of the file is no record.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._records: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._file = None
        if path is None:
            return
        if path.exists():
            data = path.read_bytes()
            end = data.rfind(b"\n") + 1
            if end < len(data):
                os.truncate(path, end)
            for number, line in enumerate(data[:end].splitlines(), 1):
                try:
                    record = cast("dict[str, Any]", json.loads(line))
                    self._records[record["key"]] = record
                except (ValueError, KeyError, TypeError) as error:
                    raise CorruptDataError(
                        "this line is no record of an evaluation", where=f"{path}:{number}", fix="start a new run"
                    ) from error
        self._file = path.open("ab")

    def get(self, key: str) -> dict[str, Any] | None:
        """The record with this key."""
        return self._records.get(key)

    def add(self, key: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write a record; it is handed to the operating system before this returns."""
        entry = {"key": key, **record}
        with self._lock:
            self._records[key] = entry
            if self._file is not None:
                self._file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
                self._file.flush()
        return entry

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def digest(*parts: str) -> str:
    """A content hash."""
    return hashlib.sha256("\x1e".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:40]


class _Loop:
    """An event loop in a thread, for the awaitables of programs and metrics: their clients keep to one loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Run it to its end; called from worker threads."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="dln-programs", daemon=True)
                self._thread.start()

        async def result() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(result(), self._loop).result()

    def close(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@dataclass
class Spent:
    """What a run has used by now; what the journal knew counts as it did when it was paid."""

    metric_calls: int = 0
    rollouts: int = 0
    usage: Usage = field(default_factory=Usage)


class Evaluations:
    """Evaluates requests; a context manager.

    Args:
        program: the callable.
        examples: of all data that requests point into.
        metric: the reward.
        journal: where finished work is kept.
        key: randomness of the rollouts.
        concurrency: evaluations at a time.
        budget: of the language models.
        max_metric_calls: calls of the metric.
    """

    def __init__(
        self,
        program: Program,
        examples: Sequence[object],
        metric: FunctionMetric,
        journal: Journal,
        key: Key,
        *,
        concurrency: int = 8,
        budget: Budget | None = None,
        max_metric_calls: int | None = None,
    ) -> None:
        self.spent = Spent()
        self.failed: dict[str, int] = {}
        self._program = program
        self._examples = examples
        self._metric = metric
        self._journal = journal
        self._key = key
        self._concurrency = concurrency
        self._budget = budget or Budget()
        self._max_metric_calls = max_metric_calls
        self._contents = [content(example) for example in examples]
        self._done: dict[str, Outcome] = {}
        self._judged: dict[str, dict[str, Any]] = {}
        self._charged: set[str] = set()
        self._loop = _Loop()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="dln-programs")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        self._loop.close()
        self._journal.close()

    def __call__(self, requests: Iterable[Request]) -> list[Outcome]:
        """[N] outcomes in order; equal requests are evaluated once.

        Raises:
            BudgetReached: there is no room for all of them; what is finished by then is kept.
            InputError: from the program's trace, or a reward that is none.
        """
        wanted = list(requests)
        keys = [self._request_key(request) for request in wanted]
        pending = [(k, r) for k, r in dict(zip(keys, wanted, strict=True)).items() if k not in self._done]
        while pending:
            self.check()
            left = self._metric_calls_left()
            if left == 0:
                raise BudgetReached(
                    "the budget is spent",
                    where="max_metric_calls",
                    got=f"{self.spent.metric_calls} calls",
                    expected=f"at most {self._max_metric_calls} calls",
                    fix="raise max_metric_calls",
                )
            limited = self._budget != Budget()
            size = min(self._concurrency if limited else len(pending), len(pending) if left is None else left)
            chunk, pending = pending[:size], pending[size:]
            self._evaluate(chunk)
        return [self._done[key] for key in keys]

    def check(self, wanted: Usage = ONE_CALL) -> None:
        """Raise `BudgetReached` where the language models' budget leaves no room for `wanted`."""
        self._budget.check(self.spent.usage, wanted)

    def charge(self, key: str, usage: Usage) -> None:
        """Count what was used for `key`, once in a run."""
        if key not in self._charged:
            self._charged.add(key)
            self.spent.usage += usage

    def _metric_calls_left(self) -> int | None:
        return None if self._max_metric_calls is None else max(0, self._max_metric_calls - self.spent.metric_calls)

    def _request_key(self, request: Request) -> str:
        return digest(
            "rollout",
            self._contents[request.example],
            content(request.parameters),
            content(request.given),
            str(self._seed(request)),
        )

    def _seed(self, request: Request) -> int:
        return self._key.integer("rollout", self._contents[request.example], request.draw)

    def _evaluate(self, chunk: list[tuple[str, Request]]) -> None:
        rolled = self._map(self._roll, chunk)
        judged: dict[str, tuple[Request, object, Rollout]] = {}
        score_keys: list[str] = []
        for (key, request), (output, rollout, error) in zip(chunk, rolled, strict=True):
            self.spent.rollouts += 1
            self.charge(key, rollout.usage)
            score_key = "" if error else self._score_key(request, output, rollout)
            if score_key:
                judged.setdefault(score_key, (request, output, rollout))
            score_keys.append(score_key)
        fresh = [(key, *found) for key, found in judged.items() if key not in self._judged]
        self.spent.metric_calls += len(fresh)
        for (key, *_), record in zip(fresh, self._map(self._judge, fresh), strict=True):
            self._judged[key] = record
        for (key, request), (output, rollout, error), score_key in zip(chunk, rolled, score_keys, strict=True):
            record = self._judged.get(score_key, {"value": None, "feedback": "", "error": error})
            value = record["value"]
            if record["error"]:
                self.failed[record["error"]] = self.failed.get(record["error"], 0) + 1
            self._done[key] = Outcome(
                request,
                rollout,
                text_view(output),
                math.nan if value is None else value,
                record["feedback"],
                record["error"],
            )

    def _score_key(self, request: Request, output: object, rollout: Rollout) -> str:
        texts = content([[s.name, s.text] for s in rollout.stages]) if self._metric.reads == "trace" else ""
        return digest("score", self._contents[request.example], content(output), texts)

    def _map(self, function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """In threads, with the context variables of the caller."""
        futures = [self._pool.submit(contextvars.copy_context().run, function, item) for item in items]
        return [future.result() for future in futures]

    def _roll(self, item: tuple[str, Request]) -> tuple[object, Rollout, str]:
        key, request = item
        known = self._journal.get(key)
        if known is not None:
            output, rollout = known["output"], _rollout_of(known)
            # the metric gets the program's own object: a program whose output is no text runs again for a new reward
            if known["text"] or self._journal.get(self._score_key(request, output, rollout)) is not None:
                return output, rollout, ""
        try:
            output, rollout = run(
                self._program, self._examples[request.example], request, self._seed(request), self._loop.wait
            )
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a program raises, the example is left out and counted
            return None, Rollout((), (), Usage()), f"program: {_described(error)}"
        record = {
            "stages": [asdict(stage) for stage in rollout.stages],
            "used": list(rollout.used),
            "usage": rollout.usage.to_dict(),
            "output": plain(output),
            "text": isinstance(output, str),
        }
        self._journal.add(key, record)
        return output, rollout, ""

    def _judge(self, item: tuple[str, Request, object, Rollout]) -> dict[str, Any]:
        key, request, output, rollout = item
        known = self._journal.get(key)
        if known is not None:
            return known
        try:
            said = text_view(output) if self._metric.reads == "texts" else output
            value = self._metric.call(self._examples[request.example], said, rollout.stages)
            if inspect.isawaitable(value):
                value = self._loop.wait(value)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a metric raises, the example is left out and counted
            return {"value": None, "feedback": "", "error": f"metric {self._metric.name}: {_described(error)}"}
        if isinstance(value, float) and math.isnan(value):
            return {"value": None, "feedback": "", "error": f"metric {self._metric.name}: the reward is NaN"}
        score = as_score(value, self._metric.name)
        return self._journal.add(key, {"value": score.value, "feedback": score.feedback, "error": ""})


def _rollout_of(record: Mapping[str, Any]) -> Rollout:
    rows = cast("list[dict[str, Any]]", record["stages"])
    stages = tuple(replace(Stage(**row), parameters=tuple(row["parameters"])) for row in rows)
    return Rollout(stages, tuple(record["used"]), Usage(**record["usage"]))


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Recorded(Wrapper):
    """A language model whose draws are in the journal and count against the run's budget.

    Args:
        inner: the model.
        journal: where its draws are kept.
        evaluations: whose budget it shares.
    """

    def __init__(self, inner: LanguageModel, journal: Journal, evaluations: Evaluations) -> None:
        super().__init__(inner)
        self._journal = journal
        self._evaluations = evaluations

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Texts as the model's, without token ids.

        Raises:
            BudgetReached: before the model is called.
        """
        keys = [
            digest("draw", self.fingerprint(), context, content(asdict(sampling)), str(seed))
            for context, seed in zip(contexts, seeds, strict=True)
        ]
        self._evaluations.check(Usage(calls=len(set(keys))))
        new = [i for i, key in enumerate(keys) if self._journal.get(key) is None and keys.index(key) == i]
        if new:
            draws = self._inner.sample([contexts[i] for i in new], sampling, [seeds[i] for i in new])
            for i, draw in zip(new, draws, strict=True):
                usage = usage_of(self._inner, contexts[i], draw.text)
                self._journal.add(keys[i], {"text": draw.text, "usage": usage.to_dict()})
        texts: list[Completion] = []
        for key in keys:
            record = self._journal.get(key) or {}
            self._evaluations.charge(key, Usage(**record["usage"]))
            texts.append(Completion(record["text"]))
        return texts

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """As the model's."""
        return self._inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """As the model's."""
        return self._inner.choice_log_probs(contexts, labels)

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """As the model's."""
        return self._inner.next_token_log_probs(contexts, tokens, top)
