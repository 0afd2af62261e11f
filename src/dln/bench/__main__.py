"""`python -m dln.bench`: measure and print a table; `--json FILE` writes the numbers too."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from dln.bench.scoring import measure_scoring
from dln.lm.load import load_lm
from dln.lm.transformers import TransformersLM

__all__ = ["main"]


def main() -> None:
    """Run the benchmarks on the embedded model."""
    parser = argparse.ArgumentParser(prog="python -m dln.bench", description=__doc__)
    parser.add_argument("--prompts", type=int, default=4, help="candidate prompts (N)")
    parser.add_argument("--batch", type=int, default=20, help="examples per step (B)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    lm = cast(TransformersLM, load_lm("smollm2"))
    measure_scoring(lm, prompts=1, batch=2)  # warms up both ways
    result = measure_scoring(lm, arguments.prompts, arguments.batch)
    table = Table(title="label scoring of a one-layer step, embedded model", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in (
        ("prompts x examples x labels", f"{result.prompts} x {result.batch} x {result.labels}"),
        ("tokens asked", f"{result.tokens_asked:,}"),
        ("tokens needed", f"{result.tokens_needed:,}"),
        ("tokens evaluated", f"{result.tokens_evaluated:,}"),
        ("planner efficiency", f"{result.planner_efficiency:.3f}"),
        ("plain padded batches", f"{result.plain_seconds:.2f} s"),
        ("shared prefixes", f"{result.shared_seconds:.2f} s"),
        ("speed-up", f"{result.speed_up:.1f} x"),
        ("largest log-prob difference", f"{result.largest_difference:.1e} nats"),
    ):
        table.add_row(name, value)
    Console().print(table)
    if arguments.json:
        derived = {"speed_up": result.speed_up, "planner_efficiency": result.planner_efficiency}
        arguments.json.write_text(json.dumps(asdict(result) | derived, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
