"""Your own hidden proposal: texts that the first layer might have written, proposed for each example.

Run it again with the same folder and it continues the run.
"""

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dln

THOUGHTS = (" warm words", " cold words", " a plain report")


@dataclass(frozen=True)
class FromAList:
    """Texts from a fixed list, drawn at random; log q is the logarithm of their probability."""

    texts: tuple[str, ...] = THOUGHTS

    def __call__(self, key: dln.Key, request: dln.HiddenRequest, num: int) -> list[list[dln.HiddenDraw]]:
        chosen = key.child("list").generator().integers(len(self.texts), size=(len(request.inputs), num))
        log_q = -math.log(len(self.texts))
        return [[dln.HiddenDraw(dln.Completion(self.texts[int(i)]), "list", log_q) for i in row] for row in chosen]


def main(folder: Path, **settings: Any) -> dln.FitResult:
    data = dln.Dataset.from_pairs([(f"film {n}", "yes" if n % 3 else "no") for n in range(24)], labels=["yes", "no"])
    think = dln.LanguageLayer(dln.TableLM.random(THOUGHTS, seed=5), "think", "What stands out?")
    choose = dln.ChoiceLayer(dln.TableLM.random([" yes", " no"], seed=6), "classify_residual", "Good?", ["yes", "no"])
    network = dln.Sequential(think, choose)
    settings = {"steps": 3, "batch_size": 4, "num_prompts": 2, "hidden_proposals": ["prior", FromAList()]} | settings
    return dln.fit(network, data, data, run_dir=folder, resume=(folder / "run.yaml").exists(), **settings)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())).network.parameters()[0])
