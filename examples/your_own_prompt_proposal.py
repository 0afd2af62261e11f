"""Your own prompt proposal: a class with one method that returns candidate prompts.

Run it again with the same folder and it continues the run.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dln


@dataclass(frozen=True)
class AddHint:
    """The present instruction with a hint behind it."""

    hints: tuple[str, ...] = ("Look at the verbs.", "Mind the negations.", "Ignore the names.")

    def __call__(self, key: dln.Key, layer: Any, feedback: dln.Feedback, num: int) -> list[dln.Proposal]:
        order = key.child("hint").generator().permutation(len(self.hints))[:num]
        present = layer.prompt
        hinted = [present.with_instruction(f"{present.instruction} {self.hints[int(i)]}") for i in order]
        return [dln.Proposal(prompt, "hint") for prompt in hinted]


def main(folder: Path, **settings: Any) -> dln.FitResult:
    data = dln.Dataset.from_pairs([(f"film {n}", "yes" if n % 3 else "no") for n in range(24)], labels=["yes", "no"])
    lm = dln.TableLM.random([" yes", " no"], seed=8)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", "Is the review positive?", ["yes", "no"]))
    settings = {"steps": 4, "batch_size": 6, "prompt_proposals": {AddHint(): 2, "wording": 1}} | settings
    return dln.fit(network, data, data, run_dir=folder, resume=(folder / "run.yaml").exists(), **settings)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())).network.parameters()[0])
