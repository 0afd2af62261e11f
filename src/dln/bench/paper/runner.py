"""Making the cells: each on its own meter, side by side where that is faster, every finished one on disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from dln.bench.paper.alarm import Alarm
from dln.bench.paper.cell import Cell, CellResult, Cells, Spent
from dln.bench.paper.method import Known, Learnt, Method, Setup
from dln.bench.paper.nearest import sentence_encoder
from dln.bench.paper.protocol import Protocol
from dln.data import Task
from dln.lm.base import LanguageModel
from dln.lm.metered import Budget, Metered, Usage
from dln.nn import Prediction, Sequential, load_network, save_network
from dln.train.evaluate import judge

__all__ = ["Bench", "Progress"]

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
    """

    lm: LanguageModel
    tasks: Sequence[Task]
    methods: Sequence[Method]
    seeds: Sequence[int]
    protocol: Protocol
    cells: Cells
    jobs: int = 1

    def run(self, progress: Progress) -> list[CellResult]:
        """Make the missing cells and return all, task by task and seed by seed.

        Raises:
            BudgetReached: the budget of all cells is spent; finished cells are kept, and the same call goes on.
            DlnError: a method could not work; finished cells are kept.
        """
        groups = [(task, seed) for task in self.tasks for seed in self.seeds]
        if self.jobs == 1:
            return [result for task, seed in groups for result in self._group(task, seed, progress)]
        with ThreadPoolExecutor(self.jobs) as pool:
            running = [pool.submit(self._group, task, seed, progress) for task, seed in groups]
            try:
                return [result for group in running for result in group.result()]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _group(self, task: Task, seed: int, progress: Progress) -> list[CellResult]:
        """All methods on one task under one seed, in order, because some build upon others."""
        results: list[CellResult] = []
        known: dict[str, Known] = {}
        seen = self.protocol.examples(task, seed)
        for method in self.methods:
            cell = Cell(task.name, method.name, seed)
            result = self.cells.load(cell)
            progress("begins" if result is None else "known", cell, result)
            if result is None:
                result = self._make(method, seen, cell, known)
                progress("done", cell, result)
            path = self.cells.network(cell)
            network = load_network(path, self.lm) if path.exists() else None
            known[method.name] = Known(network, result.train.tokens)
            results.append(result)
        return results

    def _make(self, method: Method, task: Task, cell: Cell, known: dict[str, Known]) -> CellResult:
        alarm = Alarm(self.lm)
        lm = Metered(alarm, Budget(max_tokens=self.protocol.equal_tokens))
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
        if isinstance(found.predictor, Sequential):
            save_network(found.predictor, self.cells.network(cell), {"task": cell.task, "method": cell.method})
        result = _result(cell, task, found, predictions, train, test)
        self.cells.save(result)
        shutil.rmtree(workspace, ignore_errors=True)
        return result


def _on(lm: LanguageModel, network: Sequential | None) -> Sequential | None:
    """The same network on the meter of another cell."""
    return None if network is None else Sequential(replace(layer, lm=lm) for layer in network.layers)


def _result(
    cell: Cell, task: Task, found: Learnt, predictions: Sequence[Prediction], train: Spent, test: Spent
) -> CellResult:
    right = judge(task.metric, task.label_names)
    correct = [right(p.label, e.target) >= 0.5 for p, e in zip(predictions, task.test, strict=True)]
    by_class: dict[str, list[bool]] = {}
    for example, outcome in zip(task.test, correct, strict=True):
        by_class.setdefault(example.target, []).append(outcome)
    return CellResult(
        task=cell.task,
        method=cell.method,
        seed=cell.seed,
        correct=correct,
        accuracy=sum(correct) / len(correct),
        balanced_accuracy=sum(sum(row) / len(row) for row in by_class.values()) / len(by_class),
        unscored=sum(not p.scored for p in predictions),
        train=train,
        test=test,
        prompts=list(found.prompts),
        dev_score=found.dev_score,
        notes=list(found.notes),
    )


def _spent(usage: Usage, seconds: float) -> Spent:
    counts = {name: getattr(usage, name) for name in ("calls", "prompt_tokens", "completion_tokens")}
    return Spent(**counts, usd=usage.usd, seconds=seconds)
