"""Optimizers of DSPy programs on a scripted model: metric calls until the best program is found, and its final score.

    python -m benchmarks.programs --seeds 5 --write docs/results.md

The task and the model are in `benchmarks.scripted`. All optimizers get the same program, training examples, metric and
model, and one thread. The metric gives 1 or 0 and says which answer was wanted; GEPA gets that as feedback. The best
program is found when the metric is first called on a rollout whose first predictor follows the right rule for every
topic, by its instruction or by its demonstrations.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.scripted import ScriptedEngine, examples, policy_is_best, two_steps
from dln.train.evaluate import over_runs

BUDGET = 400
"""Calls of the metric."""
TRAIN, TEST = 24, 100


@dataclass(frozen=True)
class Result:
    """One optimizer under one seed.

    Attributes:
        method: its name.
        seed: of data and model.
        found: calls of the metric by which the best program was found; infinite if it was not.
        calls: of the metric in all.
        lm_calls: of the model in all, without repeated ones.
        score: of the program that it returned, on test examples.
    """

    method: str
    seed: int
    found: float
    calls: int
    lm_calls: int
    score: float


class Counting:
    """The metric, counting its calls, in the forms that the optimizers take."""

    def __init__(self) -> None:
        self.calls = 0
        self.found = math.inf
        self._best = dict[str, bool]()

    def watch(self, document: str, instruction: str, demonstrations: list[tuple[str, str]]) -> None:
        """Told of every call of the first predictor."""
        self._best[document] = policy_is_best(instruction, demonstrations)

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """The reward: 1.0 or 0.0."""
        self.calls += 1
        if self._best.get(example.document):
            self.found = min(self.found, self.calls)
        return float(example.answer == prediction.answer)

    def feedback(self, gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        """With feedback; GEPA's further call for feedback on a rollout that it has scored is not counted."""
        dspy: Any = import_module("dspy")
        right = gold.answer == pred.answer
        if pred_name is None:
            self(gold, pred)
        text = "Right." if right else f"Wrong: the answer should be {gold.answer!r}."
        return dspy.Prediction(score=float(right), feedback=text)


def _variational(metric: Counting, seed: int, train: list[Any], engine_lm: Any) -> Any:
    from dln.integrations.dspy import VariationalOptimizer

    optimizer = VariationalOptimizer(
        metric.feedback, max_metric_calls=BUDGET, steps=100, seed=seed, num_threads=1, max_demos=4
    )
    return optimizer.compile(two_steps(), trainset=train)


def _bootstrap(metric: Counting, seed: int, train: list[Any], engine_lm: Any) -> Any:
    dspy: Any = import_module("dspy")
    # as many candidates as the budget allows: each is scored on all examples after its demonstrations were made
    optimizer = dspy.BootstrapFewShotWithRandomSearch(metric, num_candidate_programs=16, num_threads=1)
    return optimizer.compile(two_steps(), trainset=train)


def _mipro(metric: Counting, seed: int, train: list[Any], engine_lm: Any) -> Any:
    dspy: Any = import_module("dspy")
    optimizer = dspy.MIPROv2(metric, auto="light", num_threads=1, seed=seed)
    return optimizer.compile(two_steps(), trainset=train, valset=train)


def _gepa(metric: Counting, seed: int, train: list[Any], engine_lm: Any) -> Any:
    dspy: Any = import_module("dspy")
    optimizer = dspy.GEPA(metric.feedback, max_metric_calls=BUDGET, reflection_lm=engine_lm, num_threads=1, seed=seed)
    return optimizer.compile(two_steps(), trainset=train)


METHODS: dict[str, Callable[[Counting, int, list[Any], Any], Any]] = {
    "BootstrapFewShotWithRandomSearch": _bootstrap,
    "MIPROv2": _mipro,
    "GEPA": _gepa,
    "VariationalOptimizer": _variational,
}


def measure(method: str, seed: int, *, is_open: bool = False) -> Result:
    """Run one optimizer."""
    dspy: Any = import_module("dspy")
    metric = Counting()
    engine = ScriptedEngine(seed, metric.watch, is_open=is_open)
    lm = dspy.LM(f"scripted-{method}-{seed}-{is_open}", engine=engine)
    train, test = examples(TRAIN, seed, is_open=is_open), examples(TEST, 10_000 + seed, is_open=is_open)
    with dspy.context(lm=lm, num_threads=1):
        program = METHODS[method](metric, seed, train, lm)
        calls, found, lm_calls = metric.calls, metric.found, sum(engine.calls.values())
        score = sum(example.answer == program(**example.inputs()).answer for example in test) / len(test)
    return Result(method, seed, found, calls, lm_calls, score)


def table(results: Sequence[Result]) -> str:
    """One row per optimizer."""
    rows = [
        "| optimizer | found the best program | median calls until then | range | calls | model calls | final score |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for method in METHODS:
        mine = [result for result in results if result.method == method]
        if not mine:
            continue
        found = sorted(result.found if result.found <= BUDGET else math.inf for result in mine)
        score = over_runs([result.score for result in mine])
        spread = f" ({max(0.0, score.low):.2f} to {min(1.0, score.high):.2f})" if len(mine) > 1 else ""
        rows.append(
            f"| {method} | {sum(map(math.isfinite, found))} of {len(mine)} | {_calls(statistics.median(found))} | "
            f"{_calls(found[0])} to {_calls(found[-1])} | {statistics.median(r.calls for r in mine):.0f} | "
            f"{statistics.median(r.lm_calls for r in mine):.0f} | {score.mean:.2f}{spread} |"
        )
    return "\n".join(rows)


def _calls(count: float) -> str:
    return f"{count:.0f}" if math.isfinite(count) else f"> {BUDGET}"


OPAQUE = "Opaque: the wanted answer does not tell which note was needed."
OPEN = "Open: the wanted answer, which the feedback names, contains the note that was needed."
START, END = "<!-- measured: programs -->", "<!-- end of programs -->"


def _write(path: Path, text: str, seeds: int) -> None:
    """Put the tables into the marked region of a page, below the command."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    version = str(import_module("dspy").__version__)
    command = f"python -m benchmarks.programs --seeds {seeds} --write {path}"
    said = f"```console\n$ {command}\n```\n\ndspy {version}; {seeds} seeds."
    path.write_text(f"{before}{START}\n\n{said}\n\n{text}\n{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, and write it into a page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.programs", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(arguments)
    dspy: Any = import_module("dspy")
    dspy.configure_cache(enable_disk_cache=False)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    tables: list[str] = []
    for is_open, about in ((False, OPAQUE), (True, OPEN)):
        results: list[Result] = []
        for seed in range(options.seeds):
            for method in options.methods.split(","):
                with contextlib.ExitStack() as stack:
                    if not options.verbose:
                        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
                    results.append(measure(method, seed, is_open=is_open))
                sys.stderr.write(f"{results[-1]}\n")
        tables.append(f"{about}\n\n{table(results)}\n")
    text = "\n".join(tables)
    print(text)  # noqa: T201 - the output of a script
    if options.write:
        _write(options.write, text, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
