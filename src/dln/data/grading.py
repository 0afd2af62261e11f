"""Grading: a metric applied to many predictions, with bounded concurrency, a time limit and a memory of what is done.

A metric may be slow (another model, a compiler, a test suite), may fail, and may cost money. `Grader` calls it once per
distinct question, several at a time where that is allowed, and makes a `Grade` of every outcome: a value from 0 to 1
with feedback, or NaN and the reason why there is none. What has no value is excluded and counted, never taken for 0.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import json
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from typing import Any, Protocol, TypeVar, cast

from dln.data.metrics import FunctionMetric, NamedMetric, as_score
from dln.errors import BudgetReached, InputError

__all__ = ["Answer", "Grade", "GradeStore", "Grader"]

T = TypeVar("T")

_ASYNC_WORKERS = 8
_DEEPEST = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What a metric is asked about.

    Attributes:
        example: with the attributes `input` and `target`; of a program, its own kind of example.
        prediction: the text that the network answered; of a program, its own kind of prediction.
        trace: the intermediate texts that led to it: h_1 … h_{L−1} of a network, by name of a program; None where they
            are not known.
    """

    example: Any
    prediction: Any
    trace: Sequence[str] | Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Grade:
    """The outcome of a metric for one answer.

    Attributes:
        value: from 0 to 1; NaN where there is none, and then the answer is excluded.
        feedback: what the metric says of the answer.
        problem: why there is no value; empty where there is one.
    """

    value: float
    feedback: str = ""
    problem: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not self.problem


class GradeStore(Protocol):
    """Where grades are kept, by the hash of what was asked."""

    def get(self, key: str) -> Grade | None:
        """The grade of an earlier call, if there was one."""
        ...

    def put(self, key: str, grade: Grade) -> None:
        """Keep a grade. Called as soon as the metric has returned, one call at a time."""
        ...


class Grader:
    """A metric applied to many answers.

    Equal questions are asked once: answers are compared by their content. A user's metric is called in threads where
    `workers` is above 1 or there is a `timeout`, and an async one as coroutines of one event loop. A call that has not
    returned in time is given up (its thread goes on, and its result is not used).

    Args:
        metric: what is called.
        workers: calls at the same time; default 1, and 8 of an async metric.
        timeout: seconds that one call may take; None for no limit.
        store: where grades are kept beyond this process; grades without a value are not.
    """

    def __init__(
        self,
        metric: NamedMetric,
        *,
        workers: int | None = None,
        timeout: float | None = None,
        store: GradeStore | None = None,
    ) -> None:
        self.metric = metric
        self._asynchronous = isinstance(metric, FunctionMetric) and metric.asynchronous
        self._workers = workers or (_ASYNC_WORKERS if self._asynchronous else 1)
        self._timeout = timeout
        self._store = store
        self._memory: dict[str, Grade] = {}

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.metric.name

    def stored(self, store: GradeStore) -> Grader:
        """The same metric with another store."""
        return Grader(self.metric, workers=self._workers, timeout=self._timeout, store=store)

    def __call__(self, answers: Sequence[Answer]) -> list[Grade]:
        """One grade per answer.

        Raises:
            InputError: the metric returned something that is no score.
        """
        if not isinstance(self.metric, FunctionMetric) or not self.metric.own:
            return [self._of_texts(answer) for answer in answers]
        traced = self.metric.reads == "trace"
        keys = [_key(self.name, answer, traced=traced) or f"unknown {i}" for i, answer in enumerate(answers)]
        found = {key: grade for key in keys if (grade := self._recalled(key)) is not None}
        asked = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in found}
        if asked:
            found |= self._ask(self.metric, asked)
        return [found[key] for key in keys]

    def grade(self, example: Any, prediction: Any, trace: Sequence[str] | Mapping[str, str] | None = None) -> Grade:
        """The grade of one answer."""
        return self([Answer(example, prediction, trace)])[0]

    def _of_texts(self, answer: Answer) -> Grade:
        """A built-in metric: quick, pure, and never without a value."""
        if isinstance(self.metric, FunctionMetric):
            score = self.metric.score(answer.prediction, answer.example.target)
            return Grade(score.value, score.feedback)
        return Grade(float(self.metric(answer.prediction, answer.example.target)))

    def _recalled(self, key: str) -> Grade | None:
        known = self._memory.get(key)
        if known is None and self._store is not None and not key.startswith("unknown"):
            known = self._store.get(key)
        return known

    def _ask(self, metric: FunctionMetric, asked: Mapping[str, Answer]) -> dict[str, Grade]:
        found: dict[str, Grade] = {}

        def done(key: str, grade: Grade) -> None:
            found[key] = grade
            if key.startswith("unknown"):
                return
            self._memory[key] = grade
            if self._store is not None and grade.known:
                self._store.put(key, grade)

        if self._workers == 1 and self._timeout is None and not self._asynchronous:
            for key, answer in asked.items():
                done(key, _graded(metric, _call(metric, answer)))
        else:
            _run(self._all(metric, asked, done))
        return found

    async def _all(
        self, metric: FunctionMetric, asked: Mapping[str, Answer], done: Callable[[str, Grade], None]
    ) -> None:
        free = asyncio.Semaphore(self._workers)

        async def one(key: str, answer: Answer) -> None:
            async with free:
                try:
                    outcome = await asyncio.wait_for(self._outcome(metric, answer), self._timeout)
                except TimeoutError:
                    outcome = _Problem(f"no result within {self._timeout:g} s")
                done(key, _graded(metric, outcome))

        tasks = [asyncio.create_task(one(key, answer)) for key, answer in asked.items()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _outcome(self, metric: FunctionMetric, answer: Answer) -> object:
        if not self._asynchronous:
            return await _in_thread(lambda: _call(metric, answer))
        try:
            return await cast("Awaitable[object]", metric.call(answer.example, answer.prediction, answer.trace))
        except BudgetReached:
            raise
        except Exception as error:  # noqa: BLE001  # a metric may fail in any way
            return _Problem(_said(error))


@dataclass(frozen=True, slots=True)
class _Problem:
    """In the place of a value: why there is none."""

    why: str


def _call(metric: FunctionMetric, answer: Answer) -> object:
    try:
        value = metric.call(answer.example, answer.prediction, answer.trace)
        return _run(_awaited(value)) if inspect.isawaitable(value) else value
    except BudgetReached:
        raise
    except Exception as error:  # noqa: BLE001  # a metric may fail in any way
        return _Problem(_said(error))


async def _awaited(value: Awaitable[object]) -> object:
    return await value


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")[:300]


def _graded(metric: FunctionMetric, outcome: object) -> Grade:
    if isinstance(outcome, _Problem):
        return Grade(math.nan, problem=outcome.why)
    if isinstance(outcome, Real) and not math.isfinite(outcome):
        return Grade(math.nan, problem=f"returned {outcome}")
    score = as_score(outcome, metric.name)
    return Grade(score.value, score.feedback)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where the caller is within an event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    box: list[T] = []
    failed: list[BaseException] = []

    def target() -> None:
        try:
            box.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(target,), daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return box[0]


async def _in_thread(call: Callable[[], T]) -> T:
    """The result of a call in a thread of its own, which nobody waits for if the task is cancelled.

    A pool would be joined when the interpreter ends, and a call that never returns would keep it from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(cast(T, value))
        else:
            future.set_exception(error)

    def target() -> None:
        value, failed = None, None
        try:
            value = call()
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            failed = error
        with suppress(RuntimeError):  # the loop was closed in the meantime
            loop.call_soon_threadsafe(tell, value, failed)

    threading.Thread(target=contextvars.copy_context().run, args=(target,), daemon=True).start()
    return await future


def _key(name: str, answer: Answer, *, traced: bool) -> str | None:
    """A hash of what is asked, or None where that has no content that can be written down."""
    try:
        read = (answer.example, answer.prediction, answer.trace if traced else None)
        content = [name, *map(_plain, read)]
    except InputError:
        return None
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _plain(value: object, depth: int = 0) -> object:
    """Plain data with the content of a value."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > _DEEPEST:
        raise InputError("this value is nested too deeply to be compared", got=type(value).__name__)
    if isinstance(value, Mapping):
        rows = cast("Mapping[object, object]", value)
        return {"mapping": {str(name): _plain(one, depth + 1) for name, one in rows.items()}}
    if isinstance(value, list | tuple):
        return [_plain(one, depth + 1) for one in cast("Sequence[object]", value)]
    if is_dataclass(value) and not isinstance(value, type):
        attributes = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        attributes = dict(getattr(value, "__dict__", {}))
    if not attributes or callable(value):
        raise InputError("this value has no content that can be compared", got=type(value).__name__)
    return {type(value).__qualname__: _plain(attributes, depth + 1)}
