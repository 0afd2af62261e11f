"""Your own callback and stopper: write a line per validation, and stop at a dev score that is good enough.

Run it again with the same folder and it continues the run.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dln


class Diary:
    """Appends every validation to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_event(self, event: dln.Event) -> None:
        if isinstance(event, dln.Validated):
            with self.path.open("a") as file:
                file.write(f"step {event.step}: {event.score:.3f}\n")


@dataclass(frozen=True)
class GoodEnough:
    """Stops at a validation score."""

    score: float

    def __call__(self, progress: dln.Progress) -> bool:
        return progress.best is not None and progress.best.score >= self.score


def main(folder: Path, **settings: Any) -> dln.FitResult:
    data = dln.Dataset.from_pairs([(f"film {n}", "yes" if n % 3 else "no") for n in range(24)], labels=["yes", "no"])
    lm = dln.TableLM.random([" yes", " no"], seed=8)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", "Is the review positive?", ["yes", "no"]))
    settings = {
        "steps": 9,
        "output_layer": "fitted",
        "batch_size": 6,
        "num_prompts": 4,
        "val_every": 1,
        "stopper": GoodEnough(-0.664),
    } | settings
    callbacks = [Diary(folder.with_suffix(".txt")), *settings.pop("callbacks", ())]
    resume = (folder / "run.yaml").exists()
    return dln.fit(network, data, data, run_dir=folder, resume=resume, callbacks=callbacks, **settings)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())).reason)
