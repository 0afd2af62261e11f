"""Your own engine: a language model of a few lines that can score labels and cannot write.

Run it again with the same folder and it continues the run.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dln


class SharedLetters:
    """Labels are as probable as they share letters with the last line of the context."""

    capabilities = dln.Capabilities(
        scores_targets=False, scores_labels=True, token_ids=False, chat=False, context_length=None
    )

    def __init__(self, model: str = "small") -> None:
        self.name = f"letters/{model}"

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        counts = [[1.0 + sum(c.count(letter) for letter in y.strip()) for y in labels] for c in contexts]
        return np.log(np.array(counts) / np.array(counts).sum(axis=1, keepdims=True))

    def sample(self, contexts: Sequence[str], sampling: dln.Sampling, seeds: Sequence[int]) -> list[dln.Completion]:
        return [dln.Completion(context.split()[-1]) for context in contexts]

    def fingerprint(self) -> str:
        return f"{self.name} version 1"

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def main(folder: Path, **settings: Any) -> dln.FitResult:
    data = dln.Dataset.from_pairs([(f"film {n}", "yes" if n % 3 else "no") for n in range(24)], labels=["yes", "no"])
    network = dln.Sequential(dln.ChoiceLayer(SharedLetters(), "classify", "Is it positive?", ["yes", "no"]))
    settings = {"steps": 3, "batch_size": 6, "prompt_proposals": ["demonstrations", "wording"]} | settings
    return dln.fit(network, data, data, run_dir=folder, resume=(folder / "run.yaml").exists(), **settings)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())).network.parameters()[0])
