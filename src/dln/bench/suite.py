"""The benchmarks by name, their sizes, and running some of them one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dln.bench.one_layer import one_layer
from dln.bench.record import as_record
from dln.bench.saving import measure_saving
from dln.bench.scaling import measure_scaling
from dln.bench.scoring import measure_scoring
from dln.bench.section import Section
from dln.bench.sections import saving_section, scaling_section, scoring_section, step_section
from dln.bench.step import StepResult, measure_step
from dln.bench.subject import choose_subject, find_data
from dln.bench.two_layers import two_layers
from dln.lm.transformers import TransformersLM

__all__ = ["BENCHMARKS", "FULL", "QUICK", "Effort", "Outcome", "Sizes", "run"]


@dataclass(frozen=True)
class Sizes:
    """How large the workloads are: (N, B), then (N, B, K), tokens of a hidden text, (N, B, K) that are doubled."""

    one_layer: tuple[int, int]
    two_layers: tuple[int, int, int]
    hidden_tokens: int
    scaling: tuple[int, int, int]


FULL = Sizes((20, 20), (10, 10, 5), 80, (5, 5, 2))
QUICK = Sizes((4, 4), (3, 4, 2), 8, (2, 2, 2))


@dataclass(frozen=True)
class Outcome:
    """A table and the same as plain data."""

    section: Section
    record: object


@dataclass(frozen=True)
class Effort:
    """How often each way runs, and about how many tokens the plain ways of scoring are asked for; None for all."""

    repeat: int = 3
    plain_tokens: int | None = None


Benchmark = Callable[[TransformersLM, Sizes, "Path | None", Effort], Iterator[Outcome]]


def run(lm: TransformersLM, names: Sequence[str], sizes: Sizes, data: Path | None, effort: Effort) -> Iterator[Outcome]:
    """Run the named benchmarks; an outcome comes as soon as it is measured."""
    found = find_data(data)
    for name in names:
        yield from BENCHMARKS[name](lm, sizes, found, effort)


def _scoring(lm: TransformersLM, sizes: Sizes, data: Path | None, effort: Effort) -> Iterator[Outcome]:
    binary, six = choose_subject(2, data), choose_subject(6, data)
    prompts, batch = sizes.one_layer
    setting = two_layers(lm, binary, *sizes.two_layers, sizes.hidden_tokens)
    workloads = (
        one_layer(lm, binary, prompts, batch, "default"),
        one_layer(lm, six, prompts, batch, "default"),
        one_layer(lm, binary, prompts, batch, "instructions"),
        setting.workload(),
    )
    results = [measure_scoring(lm, workload, effort.repeat, effort.plain_tokens) for workload in workloads]
    yield Outcome(scoring_section(results), {"workloads": as_record(results)})
    saving = measure_saving(lm, setting, results[-1].plain.best, effort.repeat)
    yield Outcome(saving_section(saving), as_record(saving))


def _step(lm: TransformersLM, sizes: Sizes, data: Path | None, effort: Effort) -> Iterator[Outcome]:
    prompts, batch, hidden = sizes.two_layers
    results: list[StepResult] = []
    for preset in ("default", "paper"):
        results.append(
            measure_step(
                lm,
                choose_subject(2, data),
                preset=preset,
                prompts=prompts,
                batch=batch,
                hidden=hidden,
                hidden_tokens=sizes.hidden_tokens,
                repeat=effort.repeat,
            )
        )
        yield Outcome(step_section(results), as_record(results))  # the second one takes the first one's place


def _scaling(lm: TransformersLM, sizes: Sizes, data: Path | None, effort: Effort) -> Iterator[Outcome]:
    points = measure_scaling(
        lm, choose_subject(2, data), base=sizes.scaling, hidden_tokens=sizes.hidden_tokens, repeat=effort.repeat
    )
    yield Outcome(scaling_section(points), as_record(points))


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({"scoring": _scoring, "step": _step, "scaling": _scaling})
"""What can be measured; scoring includes the work-saving rules, which are compared with its plain batches."""
