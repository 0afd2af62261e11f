"""`python -m benchmarks [scoring] [step] [scaling]`: measure, print tables; `--json FILE` writes the numbers too.

The benchmarks by name, their sizes, and running some of them one after another.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from benchmarks.models import bench_model
from benchmarks.record import (
    Section,
    about_run,
    as_markdown,
    as_record,
    saving_section,
    scaling_section,
    scoring_section,
    show,
    step_section,
)
from benchmarks.scoring import measure_saving, measure_scaling, measure_scoring
from benchmarks.step import StepResult, measure_step
from benchmarks.workload import choose_subject, find_data, one_layer, two_layers
from dln.errors import DlnError
from dln.experiments.tables import write_section
from dln.lm.local.engine import TransformersLM

__all__ = ["BENCHMARKS", "FULL", "QUICK", "Effort", "Outcome", "Sizes", "main", "run"]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named on the command line, all by default; the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)  # progress, on standard error
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = _parser().parse_args(words)
    console = Console(width=max(Console().width, 100))
    try:
        _measure(chosen, words, console)
    except DlnError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        return error.exit_code
    return 0


def _measure(chosen: argparse.Namespace, words: list[str], console: Console) -> None:
    lm = bench_model(chosen.model, chosen.device, chosen.dtype, chosen.tokenizer, chosen.batch_tokens)
    sizes = QUICK if chosen.quick else FULL
    about = about_run(lm, words)
    for line in about.lines:
        console.print(line, markup=False, highlight=False)
    record: dict[str, object] = {"run": as_record(about)}
    for outcome in run(
        lm, chosen.benchmark or list(BENCHMARKS), sizes, chosen.data, Effort(chosen.repeat, chosen.plain_tokens)
    ):
        show(console, outcome.section)
        record[outcome.section.name] = outcome.record
        if chosen.write:
            notes = "\n".join(f"{line}  " for line in about.lines)
            place = f"{lm.network.device.type} {outcome.section.name}"
            write_section(chosen.write, place, f"{as_markdown(outcome.section)}\n\n{notes}")
        if chosen.json:  # after each, so that an interrupted run leaves what it has measured
            chosen.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks of the engine in this process."
    )
    parser.add_argument("benchmark", nargs="*", choices=[*BENCHMARKS, []], help="which ones; all by default")
    parser.add_argument("--model", default="smollm2", help="smollm2, hf/…, or of random weights: llama-1b, llama-tiny")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer for a model of random weights")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, auto")
    parser.add_argument("--dtype", default="auto", help="auto: float32 on the CPU, bfloat16 elsewhere")
    parser.add_argument("--batch-tokens", type=int, help="tokens per pack; default: what suits the device")
    parser.add_argument("--data", type=Path, help="the paper's data; default DLN_PAPER_DATA or ../shared/data")
    parser.add_argument("--repeat", type=_positive, default=3, help="runs of each way (long ones run once)")
    parser.add_argument(
        "--plain-tokens", type=_positive, metavar="N", help="plain scoring asks about N tokens only, scaled up"
    )
    parser.add_argument("--quick", action="store_true", help="tiny workloads: a check that everything runs")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
