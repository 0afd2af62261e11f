"""Your own task and metric: sums in words, where an answer that is close counts in part.

Run it again with the same folder and it continues the run.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import dln

NUMBERS = ["zero", "one", "two", "three", "four"]


def closeness(prediction: str, target: str) -> dln.Score:
    if prediction not in NUMBERS:
        return dln.Score(0.0, "not a number word")
    distance = abs(NUMBERS.index(prediction) - NUMBERS.index(target))
    return dln.Score(1.0 / (1 + distance), "right" if distance == 0 else f"off by {distance}")


def task() -> dln.Task:
    pairs = [(f"{NUMBERS[a]} plus {NUMBERS[b]}", NUMBERS[a + b]) for a in range(5) for b in range(5 - a)] * 4
    data = dln.Dataset.from_pairs([(f"{text} ({n})", y) for n, (text, y) in enumerate(pairs)], labels=NUMBERS)
    return dln.Task.from_dataset(data, instruction="Add the numbers.", metric=closeness, name="sums")


def main(folder: Path, **settings: Any) -> dln.FitResult:
    sums = task()
    lm = dln.TableLM.random([f" {word}" for word in NUMBERS], seed=4)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", sums.instruction, sums.labels or ()))
    settings = {"steps": 3, "batch_size": 5, "num_prompts": 3, "select_by": "accuracy", "val_every": 1} | settings
    resume = (folder / "run.yaml").exists()
    result = dln.fit(network, sums.train, sums.dev, metric=sums.metric, run_dir=folder, resume=resume, **settings)
    print(dln.evaluate(result.network, sums.test, metric=sums.metric))
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()))
