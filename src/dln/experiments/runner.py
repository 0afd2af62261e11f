"""Making the cells: each on its own meter, side by side where that is faster, every finished one on disk.

What a cell's model passes on besides answers: that everybody's budget is spent, and that all shall stop.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from typing import TypeVar

from dln.data import Task
from dln.errors import BudgetReached
from dln.experiments.baselines import sentence_encoder
from dln.experiments.cells import Cell, CellResult, Cells, Spent, outcome
from dln.experiments.method import EvaluationProtocol, Known, Method, Setup, recipe_of
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs, Wrapper
from dln.lm.meter import Budget, Metered, Usage
from dln.lm.prices import Price
from dln.nn import Prediction, Sequential, load_network, save_network
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.numerics import Floats

__all__ = ["Alarm", "Bench", "Progress"]

A = TypeVar("A")


class Alarm(Wrapper):
    """Tells the two budgets apart, and lets a cell be left in the middle.

    Training ends well when a cell's own budget is spent, and takes the refusal of the model below for that; so
    such a refusal is remembered here.

    Args:
        inner: a model whose wrapper holds the budget of all cells.
        stop: once it is set, the next request raises `KeyboardInterrupt` in the thread that makes it.
    """

    def __init__(self, inner: LanguageModel, stop: Event | None = None) -> None:
        super().__init__(inner)
        self._refused: BudgetReached | None = None
        self._stop = stop or Event()

    def check(self) -> None:
        """Raise what the model below raised, if it did."""
        if self._refused is not None:
            raise self._refused

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """As the wrapped model draws."""
        return self._watched(lambda: self._inner.sample(contexts, sampling, seeds))

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """As the wrapped model scores."""
        return self._watched(lambda: self._inner.log_prob(contexts, targets))

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """As the wrapped model scores."""
        return self._watched(lambda: self._inner.choice_log_probs(contexts, labels))

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

CHUNK = 50
"""Test inputs per request."""


@dataclass(frozen=True)
class Bench:
    """A table in the making.

    Args:
        lm: the model of every method. A budget of all cells together is its wrapper's business.
        tasks: with their full splits.
        methods: each after those it builds upon (see `in_order`).
        seeds: one cell per task, method and seed.
        protocol: what all cells share.
        cells: where they are kept.
        jobs: (task, seed) pairs side by side: 1 for a model in this process, more for one behind a server.
        price: of the model's tokens; None looks up the list price.
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
        """All cells of the table, in the order in which they are made."""
        return [Cell(t.name, m.name, seed) for t in self.tasks for seed in self.seeds for m in self.methods]

    def known(self) -> dict[Cell, CellResult]:
        """The cells that are finished.

        Raises:
            CorruptDataError: one is damaged.
            InputError: one was made by a method that has other settings now.
        """
        recipes = {method.name: recipe_of(method, self.protocol.options) for method in self.methods}
        found = {cell: self.cells.load(cell, recipes[cell.method]) for cell in self.wanted}
        return {cell: result for cell, result in found.items() if result is not None}

    def run(self, progress: Progress) -> list[CellResult]:
        """Make the missing cells and return all, task by task and seed by seed.

        Whatever ends it before that, finished cells are kept, and the same call goes on with those that are missing.

        Raises:
            BudgetReached: the budget of all cells is spent.
            DlnError: a method could not work, or a cell is not what it should be.
            KeyboardInterrupt: passed on; cells that are being made side by side are left at their next request.
        """
        self.known()  # what is wrong with a cell is said before any work is done
        groups = [(task, seed) for task in self.tasks for seed in self.seeds]
        after, now = Event(), Event()
        if self.jobs == 1:
            return [result for task, seed in groups for result in self._group(task, seed, progress, after, now)]
        with ThreadPoolExecutor(self.jobs) as pool:
            running = [pool.submit(self._group, task, seed, progress, after, now) for task, seed in groups]
            try:
                return [result for group in running for result in group.result()]
            except BaseException as error:
                after.set()  # the others finish the cell that they are paying for, unless somebody waits
                if isinstance(error, KeyboardInterrupt):
                    now.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _group(self, task: Task, seed: int, progress: Progress, after: Event, now: Event) -> list[CellResult]:
        """All methods on one task under one seed, in order, because some build upon others."""
        try:
            return self._in_order(task, seed, progress, after, now)
        except BaseException:
            after.set()  # the others come to an end too, so that the error is seen soon
            raise

    def _in_order(self, task: Task, seed: int, progress: Progress, after: Event, now: Event) -> list[CellResult]:
        results: list[CellResult] = []
        known: dict[str, Known] = {}
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
        return results

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
            encoder=sentence_encoder(self.protocol.encoder),
            workspace=workspace,
            known={name: replace(found, network=_on(lm, found.network)) for name, found in known.items()},
            readable=task.test,
        )
        started = time.perf_counter()
        found = method(setup)
        alarm.check()
        train = _spent(lm.meter.snapshot(), time.perf_counter() - started)
        lm.budget = Budget()  # a cell's budget is for training; the test examples are answered in any case
        before, started = lm.meter.snapshot(), time.perf_counter()
        predictions: list[Prediction] = []
        for start in range(0, len(task.test), CHUNK):
            predictions.extend(found.predictor.predict_many(list(task.test.inputs[start : start + CHUNK])))
        test = _spent(lm.meter.snapshot() - before, time.perf_counter() - started)
        if isinstance(found.predictor, Sequential | Ensemble):
            save_network(found.predictor, self.cells.network(cell), {"task": cell.task, "method": cell.method})
        recipe = recipe_of(method, self.protocol.options)
        result = outcome(cell, task, found, predictions, (train, test), recipe)
        self.cells.save(result)
        shutil.rmtree(workspace, ignore_errors=True)
        return result


def _on(lm: LanguageModel, network: AnyNetwork | None) -> AnyNetwork | None:
    """The same network, or the same several, on the meter of another cell."""

    def moved(one: Sequential) -> Sequential:
        return Sequential(replace(layer, lm=lm) for layer in one.layers)

    if isinstance(network, Ensemble):
        return network.each(moved)
    return None if network is None else moved(network)


def _spent(usage: Usage, seconds: float) -> Spent:
    counts = {name: getattr(usage, name) for name in ("calls", "prompt_tokens", "completion_tokens")}
    return Spent(**counts, usd=usage.usd, seconds=seconds)
