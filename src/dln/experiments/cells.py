"""The cells of a comparison: run each method on each task under each seed, and keep every result as a file.

A cell is one (task, method, seed). Its result is written atomically, so a bench that was stopped continues with the
missing cells. Each cell has its own meter; (task, seed) pairs run in parallel where that is faster.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from dln.data import Answer, Task
from dln.errors import BudgetReached, CorruptDataError, InputError
from dln.experiments.encoders import sentence_encoder
from dln.experiments.method import EvaluationProtocol, Known, Learnt, Method, Setup, changed_settings, recipe_of
from dln.io import write_atomically
from dln.lm.base import (
    Completion,
    LanguageModel,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    Wrapper,
    next_tokens_verb,
)
from dln.lm.meter import Budget, Metered, Usage
from dln.lm.prices import Price
from dln.nn import Prediction, Sequential, load_network, save_network
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.numerics import Floats
from dln.train.evaluate import grader

__all__ = [
    "Alarm",
    "Bench",
    "Cell",
    "CellResult",
    "Cells",
    "Made",
    "Progress",
    "Spent",
    "made_here",
    "outcome",
    "processor",
]

A = TypeVar("A")


def processor() -> str:
    """Return the name of the processor, if the system tells it."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Record(BaseModel):
    """A frozen record without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Made(Record):
    """When, where and with which version a cell was measured; `threads` are those of torch if it is loaded."""

    date: str
    machine: str
    threads: int
    version: str

    @property
    def place(self) -> str:
        """Machine and threads, for readers."""
        return f"{self.machine}, {self.threads} thread{'' if self.threads == 1 else 's'}"


def made_here() -> Made:
    """Describe this process, now."""
    torch = sys.modules.get("torch")  # not imported only for its number of threads
    threads = int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1
    return Made(
        date=datetime.now(UTC).strftime("%Y-%m-%d"), machine=processor(), threads=threads, version=version("dln")
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """A method on a task under a seed."""

    task: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task} · {self.method} · seed {self.seed}"


class Spent(Record):
    """The cost of training or testing a cell, as counted by the meter (see `dln.lm.meter.Usage`).

    `computed` is how many tokens an in-process model was fed, where a prefix that several requests share counts once;
    None for other models.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    computed: int | None = None

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


class CellResult(Record):
    """The result of a cell.

    Attributes:
        task: name of the task.
        method: name of the method.
        seed: the random seed.
        correct: whether each test example was answered correctly, in the order of the test set.
        accuracy: mean of `correct`.
        balanced_accuracy: mean of the per-class accuracies.
        log_likelihood: mean log p(y|x) of the scored test examples, in nats; None without probabilities, or if a
            correct label has probability zero.
        log_probs: log p(y|x) per test example, in nats; None for an example without a usable score.
        confidences: probability of each predicted label; None for an example without a usable score.
        tested: short hash of each test input, so that only equal examples are compared.
        unscored: number of test examples without a usable score; they count as wrong.
        train: cost of training.
        test: cost of testing.
        prompts: prompts of the tested network, or a description of it.
        dev_score: the score that the method selected by, if any.
        notes: notes for the reader.
        recipe: settings of the method (see `recipe_of`).
        made: when and where.
    """

    task: str
    method: str
    seed: int
    correct: list[bool]
    accuracy: float
    balanced_accuracy: float | None
    log_likelihood: float | None = None
    log_probs: list[float | None] | None = None
    confidences: list[float | None] | None = None
    tested: list[str] = []
    unscored: int
    train: Spent
    test: Spent
    prompts: list[str] = []
    dev_score: float | None = None
    notes: list[str] = []
    recipe: dict[str, Any] | None = None
    made: Made | None = None


class Cells:
    """The results of a bench: a directory of files and the protocol they were made under.

    Args:
        directory: created if missing.
        protocol: settings common to all cells; cells of another protocol are refused.

    Raises:
        InputError: the directory contains cells of another protocol, or is not writable.
    """

    def __init__(self, directory: Path, protocol: Mapping[str, Any]) -> None:
        self.directory = directory
        self._cells = directory / "cells"
        try:
            self._cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("cannot write the bench directory", where=directory, got=error.strerror) from error
        text = json.dumps(dict(protocol), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        path = directory / "protocol.json"
        if not path.exists():
            write_atomically(path, text)
        elif path.read_text(encoding="utf-8") != text:
            before = _object(path)
            changed = sorted(k for k in {*before, *protocol} if before.get(k) != json.loads(text).get(k))
            raise InputError(
                "this directory contains cells of another protocol",
                where=directory,
                got=f"another {', '.join(changed)}",
                fix="use another --run-dir, or the same settings as before",
            )

    def path(self, cell: Cell) -> Path:
        """Path of the result of a cell."""
        return self._cells / f"{cell.task}.{cell.method}.{cell.seed}.json"

    def network(self, cell: Cell) -> Path:
        """Path of the network of a cell, if it has one."""
        return self._cells / f"{cell.task}.{cell.method}.{cell.seed}.network.json"

    def workspace(self, cell: Cell) -> Path:
        """Create an empty directory for the files of a cell in progress."""
        path = self.directory / "work" / f"{cell.task}.{cell.method}.{cell.seed}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def load(self, cell: Cell, recipe: Mapping[str, Any] | None = None) -> CellResult | None:
        """Return the result of a cell; None if it is missing.

        Raises:
            CorruptDataError: the file is damaged.
            InputError: it was made with other settings than `recipe`.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        document = _object(path)
        body = document.get("result")
        try:
            if document.get("sha256") != _digest(body):
                raise CorruptDataError("this cell is damaged", where=path, fix="delete it; it will be made again")
            result = CellResult.model_validate(body)
        except ValidationError as error:
            raise CorruptDataError("this cell is damaged", where=path, got=str(error).splitlines()[0]) from error
        changed = changed_settings(result.recipe or {}, recipe or {})
        if changed:
            raise InputError(
                f"the settings of {cell.method} have changed since this cell was made",
                where=path,
                got=f"another {', '.join(changed)}",
                fix="use another --run-dir, or delete the cell to make it again",
            )
        return result

    def save(self, result: CellResult) -> None:
        """Write a result atomically."""
        body = result.model_dump(mode="json")
        path = self.path(Cell(result.task, result.method, result.seed))
        text = json.dumps({"sha256": _digest(body), "result": body}, ensure_ascii=False, indent=1)
        write_atomically(path, text + "\n")


def _object(path: Path) -> dict[str, Any]:
    try:
        document: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptDataError("cannot read this file", where=path, got=str(error), fix="delete it") from error
    if not isinstance(document, dict):
        raise CorruptDataError("this file is not a JSON object", where=path, fix="delete it")
    return cast("dict[str, Any]", document)


def _digest(body: object) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def outcome(
    cell: Cell,
    task: Task,
    found: Learnt,
    predictions: Sequence[Prediction],
    spent: tuple[Spent, Spent],
    recipe: Mapping[str, Any],
) -> CellResult:
    """Compare predictions with the test examples of `task`; `spent` is the cost of training and of testing."""
    pairs = zip(task.test, predictions, strict=True)
    answers = [Answer(e, p.label, p.hidden[0] if p.hidden else ()) for e, p in pairs]
    correct = [grade.value >= 0.5 for grade in grader(task.metric, task.label_names)(answers)]
    by_class: dict[str, list[bool]] = {}
    for example, answer in zip(task.test, correct, strict=True):
        by_class.setdefault(example.target, []).append(answer)
    log_probs = _log_probs(task, predictions)
    scored = [value for value in log_probs or () if value is not None]
    return CellResult(
        task=cell.task,
        method=cell.method,
        seed=cell.seed,
        correct=correct,
        accuracy=sum(correct) / len(correct),
        balanced_accuracy=sum(sum(row) / len(row) for row in by_class.values()) / len(by_class),
        log_likelihood=math.fsum(scored) / len(scored) if scored else None,
        log_probs=log_probs,
        confidences=[round(p.probabilities[p.label], 6) if p.label in p.probabilities else None for p in predictions],
        tested=[hashlib.sha256(e.input.encode()).hexdigest()[:12] for e in task.test],
        unscored=sum(not p.scored for p in predictions),
        train=spent[0],
        test=spent[1],
        prompts=list(found.prompts),
        dev_score=found.dev_score,
        notes=list(found.notes),
        recipe=dict(recipe),
        made=made_here(),
    )


def _log_probs(task: Task, predictions: Sequence[Prediction]) -> list[float | None] | None:
    """log p(y|x) of each test example, None without a score.

    None altogether without labels, or if a correct label has probability zero: its likelihood has no finite log.
    """
    if task.label_names is None:
        return None
    found: list[float | None] = []
    for prediction, example in zip(predictions, task.test, strict=True):
        if not prediction.scored:
            found.append(None)
            continue
        p = prediction.probabilities.get(example.target, 0.0)
        if not p > 0.0:
            return None
        found.append(round(math.log(p), 6))
    return found


class Alarm(Wrapper):
    """Tell apart the budget of a cell from that of the whole bench, and stop a cell on request.

    Training ends normally when a budget is spent, whichever it is. This wrapper remembers a refusal of the wrapped
    model, which holds the budget of the whole bench.

    Args:
        inner: the model with the budget of all cells.
        stop: once set, the next request raises `KeyboardInterrupt` in its thread.
    """

    def __init__(self, inner: LanguageModel, stop: Event | None = None) -> None:
        super().__init__(inner)
        self._refused: BudgetReached | None = None
        self._stop = stop or Event()

    def check(self) -> None:
        """Raise the remembered refusal, if any."""
        if self._refused is not None:
            raise self._refused

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """As the wrapped model."""
        return self._watched(lambda: self._inner.sample(contexts, sampling, seeds))

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """As the wrapped model."""
        return self._watched(lambda: self._inner.log_prob(contexts, targets))

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """As the wrapped model."""
        return self._watched(lambda: self._inner.choice_log_probs(contexts, labels))

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """As the wrapped model."""
        return self._watched(lambda: next_tokens_verb(self._inner)(contexts, tokens, top))

    def _watched(self, call: Callable[[], A]) -> A:
        if self._stop.is_set():
            raise KeyboardInterrupt("the bench is being stopped")
        try:
            return call()
        except BudgetReached as error:
            self._refused = error
            raise


Progress = Callable[[str, Cell, CellResult | None], None]
"""Called with "begins", "done" or "known"."""

CHUNK = 250
"""Test inputs per request."""


@dataclass(frozen=True)
class Bench:
    """A comparison of methods.

    Args:
        lm: the model of all methods, with the budget of the whole bench.
        tasks: with their full splits.
        methods: each after those it builds on (see `in_order`).
        seeds: one cell per task, method and seed.
        protocol: settings common to all cells.
        cells: the results.
        jobs: number of (task, seed) pairs to run in parallel: 1 for a model in this process, more for a server.
        price: price of the model's tokens; None looks up the list price.
    """

    lm: LanguageModel
    tasks: Sequence[Task]
    methods: Sequence[Method]
    seeds: Sequence[int]
    protocol: EvaluationProtocol
    cells: Cells
    jobs: int = 1
    price: Price | None = None

    @property
    def wanted(self) -> list[Cell]:
        """All cells, in the order of running."""
        return [Cell(t.name, m.name, seed) for t in self.tasks for seed in self.seeds for m in self.methods]

    def known(self) -> dict[Cell, CellResult]:
        """Return the finished cells.

        Raises:
            CorruptDataError: one is damaged.
            InputError: the settings of its method have changed.
        """
        recipes = {method.name: recipe_of(method, self.protocol.options) for method in self.methods}
        found = {cell: self.cells.load(cell, recipes[cell.method]) for cell in self.wanted}
        return {cell: result for cell, result in found.items() if result is not None}

    def run(self, progress: Progress) -> list[CellResult]:
        """Make the missing cells and return all, task by task and seed by seed.

        Finished cells are kept if it is interrupted; the same call then continues with the missing ones.

        Raises:
            BudgetReached: the budget of the whole bench is spent.
            DlnError: a method failed, or a cell is damaged.
            KeyboardInterrupt: passed on; cells in progress stop at their next request.
        """
        self.known()  # report a bad cell before any work is done
        groups = [(task, seed) for task in self.tasks for seed in self.seeds]
        after, now = Event(), Event()
        if self.jobs == 1:
            return [result for task, seed in groups for result in self._group(task, seed, progress, after, now)]
        with ThreadPoolExecutor(self.jobs) as pool:
            running = [pool.submit(self._group, task, seed, progress, after, now) for task, seed in groups]
            try:
                return [result for group in running for result in group.result()]
            except BaseException as error:
                after.set()  # the others finish their cell in progress, unless the user interrupts
                if isinstance(error, KeyboardInterrupt):
                    now.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _group(self, task: Task, seed: int, progress: Progress, after: Event, now: Event) -> list[CellResult]:
        """All methods on a task under a seed, in order, because some build on others."""
        results: list[CellResult] = []
        known: dict[str, Known] = {}
        try:
            seen = self.protocol.examples(task, seed)
            for method in self.methods:
                cell = Cell(task.name, method.name, seed)
                result = self.cells.load(cell)
                if result is None and after.is_set():
                    break
                progress("begins" if result is None else "known", cell, result)
                if result is None:
                    result = self._make(method, seen, cell, known, now)
                    progress("done", cell, result)
                path = self.cells.network(cell)
                network = load_network(path, self.lm) if path.exists() else None
                known[method.name] = Known(network, result.train.tokens)
                results.append(result)
        except BaseException:
            after.set()  # let the other groups end, so that the error is reported soon
            raise
        return results

    def _fed(self, lm: Wrapper) -> int | None:
        """Tokens that an in-process model has been fed since it was loaded; None where cells run side by side."""
        counts: dict[str, int] = getattr(lm.unwrapped, "diagnostics", {})
        return counts.get("tokens") if self.jobs == 1 else None

    def _make(self, method: Method, task: Task, cell: Cell, known: dict[str, Known], stop: Event) -> CellResult:
        alarm = Alarm(self.lm, stop)
        lm = Metered(alarm, Budget(max_tokens=self.protocol.equal_tokens), price=self.price)
        workspace = self.cells.workspace(cell)
        setup = Setup(
            task=task,
            lm=lm,
            seed=cell.seed,
            options=self.protocol.options,
            budget=self.protocol.equal_tokens,
            encoder=None if self.protocol.encoder is None else sentence_encoder(self.protocol.encoder),
            workspace=workspace,
            known={name: replace(found, network=_on(lm, found.network)) for name, found in known.items()},
            readable=task.test,
        )
        started, fed = time.perf_counter(), self._fed(lm)
        found = method(setup)
        alarm.check()
        train = _spent(lm.meter.snapshot(), time.perf_counter() - started, fed, self._fed(lm))
        lm.budget = Budget()  # the budget of a cell is for training; testing always completes
        before, started, fed = lm.meter.snapshot(), time.perf_counter(), self._fed(lm)
        predictions: list[Prediction] = []
        for start in range(0, len(task.test), CHUNK):
            predictions.extend(found.predictor.predict_many(list(task.test.inputs[start : start + CHUNK])))
        test = _spent(lm.meter.snapshot() - before, time.perf_counter() - started, fed, self._fed(lm))
        if isinstance(found.predictor, Sequential | Ensemble):
            save_network(found.predictor, self.cells.network(cell), {"task": cell.task, "method": cell.method})
        recipe = recipe_of(method, self.protocol.options)
        result = outcome(cell, task, found, predictions, (train, test), recipe)
        self.cells.save(result)
        shutil.rmtree(workspace, ignore_errors=True)
        return result


def _on(lm: LanguageModel, network: AnyNetwork | None) -> AnyNetwork | None:
    """The same network or ensemble on the meter of another cell."""

    def moved(one: Sequential) -> Sequential:
        return Sequential(layer.map_models(lambda _: lm) for layer in one.layers)

    if isinstance(network, Ensemble):
        return network.each(moved)
    return None if network is None else moved(network)


def _spent(usage: Usage, seconds: float, before: int | None, after: int | None) -> Spent:
    counts = {name: getattr(usage, name) for name in ("calls", "prompt_tokens", "completion_tokens")}
    computed = None if before is None or after is None else after - before
    return Spent(**counts, usd=usage.usd, seconds=seconds, computed=computed)
