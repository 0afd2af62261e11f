"""Your own objective: candidates are ranked by the worst class, not by the mean over examples.

Run it again with the same folder and it continues the run.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import dln

EXPECTED = dln.ExpectedLogProb("log_prob", dln.FixedOutput())


@dataclass(frozen=True)
class WorstClass:
    """The expected log-probability of the class for which it is lowest."""

    expected: dln.Objective = EXPECTED

    def __call__(self, candidates: dln.Candidates) -> dln.Scored:
        scored = self.expected(candidates)  # [N candidates, B examples], NaN where an example is not used
        wanted = np.array([str(target) for target in candidates.posterior.mode(candidates.depth)])
        used = [row for row in ((wanted == y) & scored.used for y in np.unique(wanted)) if row.any()]
        worst = np.min([scored.per_example[:, row].mean(axis=1) for row in used], axis=0)
        return replace(scored, per_example=np.where(scored.used, worst[:, None], np.nan))


def main(folder: Path, **settings: Any) -> dln.FitResult:
    data = dln.Dataset.from_pairs([(f"film {n}", "yes" if n % 3 else "no") for n in range(24)], labels=["yes", "no"])
    lm = dln.TableLM.random([" yes", " no"], seed=8)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", "Is the review positive?", ["yes", "no"]))
    settings = {"steps": 4, "batch_size": 6, "output_objective": WorstClass(), "race": False} | settings
    return dln.fit(network, data, data, run_dir=folder, resume=(folder / "run.yaml").exists(), **settings)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())).network.parameters()[0])
