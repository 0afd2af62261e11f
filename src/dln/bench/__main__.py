"""`python -m dln.bench [scoring] [step] [scaling]`: measure, print tables; `--json FILE` writes the numbers too."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dln.bench.models import bench_model
from dln.bench.page import write_section
from dln.bench.record import about_run, as_record
from dln.bench.section import as_markdown, show
from dln.bench.suite import BENCHMARKS, FULL, QUICK, Effort, run
from dln.errors import DlnError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named on the command line, all by default; the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dln.bench").setLevel(logging.INFO)  # progress, on standard error
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
        prog="python -m dln.bench", description="Benchmarks of the engine in this process."
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
