"""Scoring: the engine against plain padded batches, the same deduplicated, and the limit, in one process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dln.bench.clock import Measured, measure
from dln.bench.limit import Machine, measure_machine
from dln.bench.plain import PlainLM
from dln.bench.workload import Labels, Texts, Work, Workload, answers, work
from dln.lm.transformers import TransformersLM

__all__ = ["BATCH_ROWS", "ScoringResult", "Seconds", "best_rows", "measure_scoring", "sample_of"]

BATCH_ROWS = {"cpu": (1, 4, 8, 16), "cuda": (8, 16, 32, 64)}
"""Batch sizes that the plain ways choose their fastest from."""


@dataclass(frozen=True)
class Seconds:
    """Best and median of some runs, least processor time of one, and the memory that a run took on top, in bytes."""

    best: float
    median: float
    runs: int
    cpu: float
    memory: float

    @classmethod
    def of(cls, measured: Measured[Any], scale: float = 1.0) -> Seconds:
        """Without the values; times `scale` where only a part was measured."""
        seconds = (measured.best * scale, measured.median * scale)
        return cls(*seconds, len(measured.seconds), measured.cpu * scale, measured.memory)


@dataclass(frozen=True)
class ScoringResult:
    """One workload, three ways.

    Attributes:
        name: of the workload.
        about: what it is made of.
        work: tokens asked, needed, rows for the head.
        evaluated: tokens that the engine fed.
        engine: its seconds and memory.
        plain: padded batches.
        deduplicated: the same with equal pairs once, sorted by length.
        plain_rows: batch size that was fastest for `plain`.
        deduplicated_rows: and for `deduplicated`.
        machine: the speed of matrix products around the engine's runs.
        plain_part: of the tokens asked, how much the plain ways scored; their seconds are scaled up.
        largest_difference: of a log-probability between engine and `plain`, in nats.
    """

    name: str
    about: str
    work: Work
    evaluated: int
    engine: Seconds
    plain: Seconds
    deduplicated: Seconds
    plain_rows: int
    deduplicated_rows: int
    machine: Machine
    plain_part: float
    largest_difference: float

    @property
    def limit(self) -> float:
        """Seconds; see `dln.bench.limit`."""
        return self.machine.limit(self.work)

    @property
    def strict_limit(self) -> float:
        """Seconds; likewise."""
        return self.machine.strict_limit(self.work)

    @property
    def speed_up(self) -> float:
        """Best seconds of plain batches over the engine's best."""
        return self.plain.best / self.engine.best

    @property
    def speed_up_deduplicated(self) -> float:
        """The same for deduplicated plain batches."""
        return self.deduplicated.best / self.engine.best

    @property
    def planner_efficiency(self) -> float:
        """Tokens needed over tokens evaluated."""
        return self.work.needed / self.evaluated

    @property
    def hardware_efficiency(self) -> float:
        """Limit over the engine's median seconds: both at the speed that the machine kept up."""
        return self.limit / self.engine.median

    @property
    def strict_efficiency(self) -> float:
        """Strict limit over the engine's median seconds."""
        return self.strict_limit / self.engine.median


def measure_scoring(
    lm: TransformersLM, workload: Workload, repeat: int, plain_tokens: int | None = None
) -> ScoringResult:
    """Score `workload` with the engine and with both plain ways, and compare the numbers.

    Args:
        lm: the engine.
        workload: what is scored.
        repeat: runs of each way.
        plain_tokens: the plain ways score requests that ask for about so many tokens, evenly spread over all, and
            their seconds are multiplied by the tokens asked in all requests over those asked in these: what they
            cost is a sum over batches. None is all.
    """
    device = lm.network.device
    counted = work(lm, workload)
    small = sample_of(workload, max(BATCH_ROWS[device.type]))
    if plain_tokens is not None:  # the batch size is chosen from less than is measured
        small = sample_of(workload, min(small.largest, _requests(workload, counted, plain_tokens // 4)))
    answers(lm, small)  # warms up
    before = lm.diagnostics["tokens"]
    machine = measure_machine(lm)
    engine = measure(lambda: answers(lm, workload), device, repeat, name=f"{workload.name}, engine")
    machine = machine.joined(measure_machine(lm))
    evaluated = (lm.diagnostics["tokens"] - before) // len(engine.seconds)
    plain_lm, sorted_lm = (best_rows(PlainLM(lm, deduplicate=once), small) for once in (False, True))
    part = workload
    if plain_tokens is not None and plain_tokens < counted.asked:
        part = sample_of(workload, _requests(workload, counted, plain_tokens))
    scale = counted.asked / work(lm, part).asked
    plain = measure(lambda: answers(plain_lm, part), device, repeat, name=f"{workload.name}, (a)")
    deduplicated = measure(lambda: answers(sorted_lm, part), device, repeat, name=f"{workload.name}, (b)")
    own = engine.value if part is workload else answers(lm, part)
    return ScoringResult(
        name=workload.name,
        about=workload.about,
        work=counted,
        evaluated=evaluated,
        engine=Seconds.of(engine),
        plain=Seconds.of(plain, scale),
        deduplicated=Seconds.of(deduplicated, scale),
        plain_rows=plain_lm.rows,
        deduplicated_rows=sorted_lm.rows,
        machine=machine,
        plain_part=1 / scale,
        largest_difference=float(np.abs(own - plain.value).max()),
    )


def _requests(workload: Workload, counted: Work, tokens: int) -> int:
    """How many requests of the largest part ask for about so many tokens."""
    return max(1, -(-workload.largest * tokens // counted.asked))


def best_rows(lm: PlainLM, sample: Workload) -> PlainLM:
    """The plain way with the batch size that scores `sample` fastest."""
    device = lm.engine.network.device
    choices = [lm.with_rows(rows) for rows in BATCH_ROWS[device.type]]
    answers(lm, sample_of(sample, 2))  # warms up
    seconds = [measure(lambda lm=lm: answers(lm, sample), device, repeat=1).best for lm in choices]
    return choices[int(np.argmin(seconds))]


def sample_of(workload: Workload, count: int) -> Workload:
    """`count` requests of every part (or all, where there are fewer), evenly spread over it."""
    parts: list[Texts | Labels] = []
    for part in workload.parts:
        size = len(part.contexts)
        chosen = [int(i) for i in np.linspace(0, size - 1, min(count, size)).round()]
        contexts = tuple(part.contexts[i] for i in chosen)
        if isinstance(part, Texts):
            parts.append(Texts(contexts, tuple(part.targets[i] for i in chosen)))
        else:
            parts.append(Labels(contexts, part.words))
    return replace(workload, parts=tuple(parts))
