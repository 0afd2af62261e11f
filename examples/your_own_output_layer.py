"""Your own output layer: batch calibration (Zhou et al., ICLR 2024), a bias without a look at the targets.

Run it again with the same folder and it continues the run.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dln


@dataclass(frozen=True)
class BatchCalibration:
    """b_y = −strength · log of the mean p(y|x) over the examples."""

    strength: float = 1.0

    def __call__(self, layer: Any, log_masses: np.ndarray, targets: Any, weights: Any, groups: Any) -> dln.Calibration:
        if not len(targets):
            return dln.Calibration.of(layer, log_masses, targets)
        p = np.exp(dln.LabelReadout(np.zeros(len(layer.labels))).log_probs(log_masses))
        fitted = layer.with_calibration(-self.strength * np.log(p.mean(axis=0)), 1.0)
        return dln.Calibration.of(fitted, fitted.readout.log_probs(log_masses), targets)


def main(folder: Path, **settings: Any) -> dln.FitResult:
    data = dln.Dataset.from_pairs([(f"film {n}", "yes" if n % 3 else "no") for n in range(24)], labels=["yes", "no"])
    lm = dln.TableLM.random([" yes", " no"], seed=8)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", "Is the review positive?", ["yes", "no"]))
    settings = {"steps": 4, "batch_size": 6, "num_prompts": 4, "output_layer": BatchCalibration()} | settings
    return dln.fit(network, data, data, run_dir=folder, resume=(folder / "run.yaml").exists(), **settings)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())).network.layers[-1].bias)
