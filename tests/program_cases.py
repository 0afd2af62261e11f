"""A two-step program without a model, a model that proposes, and a run that is killed (`python -m program_cases`)."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dln
from dln.lm.base import Capabilities, Completion, Sampling

PARAMETERS = {"find": "Take the person.", "answer": "Write it in upper case."}
TRAIN = [{"who": f"w-{i}", "place": f"p-{i}", "want": f"P-{i}"} for i in range(30)]


def program(example: Mapping[str, str], parameters: Mapping[str, str], trace: dln.Trace) -> str:
    """Find a word of the example, then write it: the fault lies in the first step."""

    def find() -> str:
        return example["place"] if "place" in parameters["find"] else example["who"]

    found = trace("find", find, reads=f"{example['who']} went to {example['place']}")
    return trace("answer", lambda: found.upper() if "upper" in parameters["answer"] else found)


def metric(example: Mapping[str, str], prediction: str) -> float:
    """1 for the place."""
    return float(prediction == example["want"])


class Writer:
    """Writes the place or another word, and the right instruction once it sees that a place was better."""

    name = "fake/writer"
    capabilities = Capabilities(False, False, False, True, None)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return [Completion(self._write(context, seed)) for context, seed in zip(contexts, seeds, strict=True)]

    def _write(self, context: str, seed: int) -> str:
        if "Better instruction" in context:
            seen = "It should have written: p-" in context
            return "Take the place." if seen and seed % 2 else f"Copy word {seed % 5}."
        place = re.search(r"place: (\S+)", context)
        return place[1] if place and seed % 2 else "nowhere"

    def log_prob(self, contexts: Any, targets: Any) -> Any:
        raise NotImplementedError

    def choice_log_probs(self, contexts: Any, labels: Any) -> Any:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return "fake writer 1"

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def logged_run(run_dir: Path, log: Path, seconds: float) -> dln.ProgramResult:
    """A run whose metric takes time and logs each call when it is over."""

    def slow(example: Mapping[str, str], prediction: str) -> float:
        time.sleep(seconds)
        with log.open("a") as file:
            file.write(f"{example['who']} {prediction}\n")
        return metric(example, prediction)

    return dln.optimize(
        program, PARAMETERS, TRAIN, metric=slow, lm=Writer(), dev=TRAIN[:6], steps=2, concurrency=1, run_dir=run_dir
    )


if __name__ == "__main__":
    logged_run(Path(sys.argv[1]), Path(sys.argv[2]), 0.05)
