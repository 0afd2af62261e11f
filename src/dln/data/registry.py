"""Tasks by name or from a file: the bundled ones, the paper's, and files of every format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import yaml

from dln import extensions
from dln.arguments import Seed, checked, unknown_name
from dln.data.dataset import Dataset, Example
from dln.data.metrics import Metric
from dln.data.paper import PAPER_TASKS, paper_task
from dln.data.spec import FORMATS, DataSpec, suffix_format
from dln.data.tasks import Task, task_from_spec
from dln.errors import CorruptDataError, InputError

__all__ = ["ALIASES", "bundled_names", "is_file", "load_task", "task_from_file", "task_names"]

ALIASES: Mapping[str, str] = {
    "date": "date_understanding",
    "hyper": "hyperbaton",
    "logic7": "logical_deduction_seven_objects",
    "logic.7": "logical_deduction_seven_objects",
    "logical_deduction": "logical_deduction_seven_objects",
    "nav": "navigate",
}
"""Short names of tasks."""

_BUNDLED = ("questions", "asked", "corrected", "topics", "stars", "orders", "fields")


def task_names() -> tuple[str, ...]:
    """Return the names for `load_task`, those of `bundled_names` first."""
    return (*_BUNDLED, *PAPER_TASKS)


def bundled_names() -> tuple[str, ...]:
    """Return the names of the tasks that come with the package."""
    return _BUNDLED


@checked
def load_task(
    name: str | Path,
    data: str | Path | None = None,
    *,
    leaky: bool = False,
    seed: Seed = 42,
    options: bool | None = None,
    synthetic: bool = False,
) -> Task:
    """Load a task by name, or from a file.

    Args:
        name: one of `bundled_names`, one of the paper's nine tasks or "gsm8k" (or their short
            names, `ALIASES`), a registered name (see `dln.extensions`), or the path of a file (`task_from_file`).
        data: for the paper's tasks and gsm8k, the directory with the files, in the layout of
            microsoft/deep-language-networks; default the environment variable DLN_PAPER_DATA.
        leaky: for the paper's tasks, the splits of the original loader, leaks included.
        seed: seed of the sampling or splitting; 42 gives the original's samples.
        options: list the labels after each input, as the original does for five tasks; default only with `leaky`.
        synthetic: for hyperbaton, train and dev from the generated stand-in file.

    Raises:
        InputError: an unknown name, an option that the task does not have, or missing data.
    """
    if is_file(str(name)):
        _refuse(str(name), data=data, leaky=leaky, options=options, synthetic=synthetic)
        return task_from_file(name, seed=seed)
    wanted = str(name).strip().lower()
    wanted = ALIASES.get(wanted, wanted)
    if wanted in _BUNDLED:
        _refuse(wanted, data=data, leaky=leaky, options=options, synthetic=synthetic)
        return _bundled(wanted)
    if wanted not in PAPER_TASKS and any(one.name == str(name) for one in extensions.registered("task")):
        _refuse(str(name), data=data, leaky=leaky, options=options, synthetic=synthetic)
        return extensions.create("task", str(name))
    if wanted not in PAPER_TASKS:
        expected = f"one of {', '.join(task_names())}, or the path of a {', '.join(FORMATS)} file or of a folder"
        raise unknown_name("task", str(name), [*task_names(), *ALIASES], where="task", expected=expected)
    if synthetic and wanted != "hyperbaton":
        raise InputError("only hyperbaton has a synthetic version", where=wanted, got="synthetic=True")
    directory = data if data is not None else os.environ.get("DLN_PAPER_DATA")
    if not directory:
        raise InputError(
            f"the data of the task {wanted} is not bundled with dln",
            where="data",
            expected="the directory in the layout of microsoft/deep-language-networks",
            fix='give data="path/to/data" or set DLN_PAPER_DATA; the bundled tasks need no data',
        )
    return paper_task(wanted, Path(directory), leaky=leaky, seed=seed, options=options, synthetic=synthetic)


@checked
def task_from_file(
    path: str | Path | Sequence[str | Path],
    input: str | Sequence[str] | None = None,  # noqa: A002
    target: str | None = None,
    *,
    instruction: str | None = None,
    seed: Seed = 42,
    dev_fraction: float = 0.25,
    test_fraction: float = 0.25,
    metric: Metric | str | None = None,
    **options: Any,
) -> Task:
    """Make a task of a file, or of several: CSV, JSON, JSON Lines, Excel, Parquet, or a folder of texts.

    See `Dataset.from_file` for columns and further options (fields of `dln.DataSpec`: `labels`, `encoding`, `group`,
    `split_by`, `split_column`, `test_file`, …), `Task.from_dataset` for the other arguments.

    Raises:
        InputError: the file, its columns or its labels are invalid; names file and line.
    """
    columns = input if input is None or isinstance(input, str) else tuple(input)
    spec = DataSpec.make(path, "task_from_file", input=columns, target=target, **options)
    first = Path(spec.path[0]) if spec.path else Path("task")
    return task_from_spec(
        spec,
        name=first.name.split(".")[0] or "task",
        instruction=instruction,
        seed=seed,
        dev_fraction=dev_fraction,
        test_fraction=test_fraction,
        metric=metric,
    )


def is_file(name: str) -> bool:
    """Whether a task is named by a path: the suffix of a format, a folder, standard input, or "hf/<name>"."""
    if not name.strip():
        return False
    if name == "-" or name.startswith("hf/") or suffix_format(name) is not None:
        return True
    return name.lower() not in (*_BUNDLED, *PAPER_TASKS, *ALIASES) and Path(name).is_dir()


def _refuse(name: str, **given: object) -> None:
    """Refuse options that would have no effect."""
    useless = [f"{option}={value!r}" for option, value in given.items() if value is not None and value is not False]
    if useless:
        raise InputError(
            "this task does not have that option",
            where=f"task {name}",
            got=", ".join(useless),
            expected="no options",
            fix="leave it out",
        )


def _bundled(name: str) -> Task:
    """Load a task of `bundled/tasks.yaml`; its splits are fixed.

    Raises:
        CorruptDataError: the file of its examples is damaged.
    """
    folder = resources.files("dln.data") / "bundled"
    about: dict[str, Any] = yaml.safe_load((folder / "tasks.yaml").read_text(encoding="utf-8"))[name]
    sizes: list[int] = about["splits"]
    source = folder / f"{name}.jsonl"
    labels = None if about["labels"] is None else tuple(about["labels"])
    try:
        records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        examples = [Example(r["input"], r["target"], f"{name}:{i}") for i, r in enumerate(records, start=1)]
        if len(examples) != sum(sizes):
            raise ValueError(f"{len(examples)} examples instead of {sum(sizes)}")
    except (OSError, ValueError, KeyError) as error:
        raise CorruptDataError(
            "the bundled task is damaged", where=source, got=str(error), fix="reinstall the package"
        ) from error
    train, dev, test = (
        Dataset(tuple(examples[a:b]), labels, name=f"{name}.{part}")
        for part, (a, b) in zip(("train", "dev", "test"), pairwise([0, *accumulate(sizes)]), strict=True)
    )
    return Task(
        name=name,
        instruction=about["instruction"],
        labels=labels,
        train=train,
        dev=dev,
        test=test,
        metric=about.get("metric", "exact_match"),
        notes=tuple(about["notes"]),
        input_name=about["input_name"],
        stages=tuple(about.get("stages", ())),
        output_layer=about.get("output_layer", "words"),
    )
