"""Your own data: a CSV with columns of any name, one task, one network, one saved file.

A `TableLM` stands in for the model, so that this runs at once; with `dln.load_lm("smollm2")` in its place
the same program learns something. From the shell: `dln train --csv mail.csv`.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import dln


def main(folder: Path) -> None:
    rows = [(f"the parcel came {days} days late", "complaint") for days in range(2, 22)]
    rows += [(f'thank you,\nall {n} items "as described"', "praise") for n in range(2, 22)]
    with (folder / "mail.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("message", "sort"), *rows])

    task = dln.task_from_file(folder / "mail.csv", input="message", target="sort", dev_fraction=0.3)
    for note in (*task.notes, task.instruction):
        print("-", note)

    lm = dln.TableLM.random([f" {label}" for label in task.label_names or ()], seed=3)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", task.instruction, task.labels or ()))
    result = dln.fit(network, task.train, task.dev, steps=3, run_dir=folder / "run", metric=task.metric)

    print("test:", dln.evaluate(result.network, task.test, metric=task.metric))
    again = dln.load_network(folder / "run" / "network.json", lm)
    print(again.predict("where is my parcel?"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
