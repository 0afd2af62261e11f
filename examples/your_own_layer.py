"""Your own layer: a retriever below the layer that answers; any class with `draw` is a layer.

For a plain function, decorate it with `dln.function_layer`. Run it again with the same folder and it continues the run.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dln


@dataclass(frozen=True)
class Retriever(dln.Layer):
    """Passes on the document that shares the most words with the input."""

    documents: tuple[str, ...]
    deterministic = True  # nothing is inferred about its output

    def draw(
        self, inputs: Sequence[Any], seeds: Sequence[int], temperature: float | None = None
    ) -> list[dln.Completion]:
        return [dln.Completion(max(self.documents, key=lambda d: _shared(d, item.x))) for item in inputs]


def _shared(document: str, text: str) -> int:
    return len(set(document.lower().split()) & set(text.lower().split()))


DOCUMENTS = ("A refund takes five days.", "A parcel that is late can be traced.", "We open at nine.")


def main(folder: Path, **settings: Any) -> dln.FitResult:
    pairs = [(f"where is my late parcel {n}", "parcel") for n in range(12)]
    pairs += [(f"is a refund possible {n}", "refund") for n in range(12)]
    data = dln.Dataset.from_pairs(pairs, labels=["parcel", "refund"])
    lm = dln.TableLM.random([" parcel", " refund"], seed=2)
    choose = dln.ChoiceLayer(lm, "classify_residual", "What is it about?", ["parcel", "refund"])
    network = dln.Sequential(Retriever(DOCUMENTS), choose)
    settings = {"steps": 3, "batch_size": 6, "num_prompts": 3} | settings
    return dln.fit(network, data, data, run_dir=folder, resume=(folder / "run.yaml").exists(), **settings)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())).network.parameters())
