"""`load_task`: one name, or one file, to a task."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dln import extensions
from dln.arguments import Seed, checked, unknown_name
from dln.data.dataset import Dataset
from dln.data.labels import label_specs
from dln.data.metrics import Metric
from dln.data.paper import PAPER_TASKS, paper_task
from dln.data.tasks import Packaged, Task, asked_task, corrected_task, questions_task
from dln.errors import InputError

__all__ = ["ALIASES", "bundled_names", "load_task", "task_from_file", "task_names"]

ALIASES: Mapping[str, str] = {
    "date": "date_understanding",
    "hyper": "hyperbaton",
    "logic7": "logical_deduction_seven_objects",
    "logic.7": "logical_deduction_seven_objects",
    "logical_deduction": "logical_deduction_seven_objects",
    "nav": "navigate",
}
"""Short names of tasks."""

_BUNDLED: Mapping[str, Packaged] = {task.name: task for task in (questions_task, asked_task, corrected_task)}

_FILE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")


def task_names() -> tuple[str, ...]:
    """The names `load_task` knows; the first are `bundled_names`."""
    return (*_BUNDLED, *PAPER_TASKS)


def bundled_names() -> tuple[str, ...]:
    """The tasks that come with the package and need no data."""
    return tuple(_BUNDLED)


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
    """A task by name, or of a CSV or JSON-lines file.

    Args:
        name: "questions", "asked" or "corrected" (bundled), one of the paper's nine tasks, "gsm8k", a short
            name of theirs (`ALIASES`), a registered name (see `dln.extensions`), or the path of a `.csv`, `.tsv`,
            `.jsonl` or `.ndjson` file.
        data: for the paper's tasks and gsm8k: the directory with the files, in the layout of
            microsoft/deep-language-networks. None takes the environment variable DLN_PAPER_DATA.
        leaky: the paper's tasks: the original loader's splits, leaks included.
        seed: of the sampling or splitting; 42 gives the original's samples.
        options: list the labels after each input, as the original does for five tasks; None does so
            only with `leaky`.
        synthetic: hyperbaton: train and dev from the generated stand-in file.

    Raises:
        InputError: an unknown name, an option that the task does not have, or missing data.
    """
    if Path(name).suffix.lower() in _FILE_SUFFIXES:
        _refuse(str(name), data=data, leaky=leaky, options=options, synthetic=synthetic)
        return task_from_file(name, seed=seed)
    wanted = str(name).strip().lower()
    wanted = ALIASES.get(wanted, wanted)
    if wanted in _BUNDLED:
        _refuse(wanted, data=data, leaky=leaky, options=options, synthetic=synthetic)
        return _BUNDLED[wanted]()
    if wanted not in PAPER_TASKS and any(one.name == str(name) for one in extensions.registered("task")):
        _refuse(str(name), data=data, leaky=leaky, options=options, synthetic=synthetic)
        return extensions.create("task", str(name))
    if wanted not in PAPER_TASKS:
        expected = f"one of {', '.join(task_names())}, or the path of a {', '.join(_FILE_SUFFIXES)} file"
        raise unknown_name("task", str(name), [*task_names(), *ALIASES], where="task", expected=expected)
    if synthetic and wanted != "hyperbaton":
        raise InputError("only hyperbaton has a synthetic variant", where=wanted, got="synthetic=True")
    directory = data if data is not None else os.environ.get("DLN_PAPER_DATA")
    if not directory:
        raise InputError(
            f"the task {wanted} needs data that is not part of this program",
            where="data",
            expected="the directory in the layout of microsoft/deep-language-networks",
            fix='say data="path/to/data" or set DLN_PAPER_DATA; the bundled tasks need nothing',
        )
    return paper_task(wanted, Path(directory), leaky=leaky, seed=seed, options=options, synthetic=synthetic)


@checked
def task_from_file(
    path: str | Path,
    input: str | None = None,  # noqa: A002
    target: str | None = None,
    *,
    labels: Sequence[str] | Mapping[str, str] | None = None,
    free_form: bool | None = None,
    instruction: str | None = None,
    seed: Seed = 42,
    dev_fraction: float = 0.25,
    test_fraction: float = 0.25,
    metric: Metric | str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> Task:
    """A task of one CSV (`.csv`, `.tsv`) or JSON-lines (`.jsonl`, `.ndjson`) file, split at random.

    See `Dataset.from_csv` for the columns and labels, `Task.from_dataset` for the rest.

    Raises:
        InputError: the file, its columns or labels are not usable; with file and line.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        dataset = Dataset.from_jsonl(path, input, target, labels=labels, free_form=free_form, encoding=encoding)
    elif suffix in (".csv", ".tsv"):
        divider = delimiter or ("\t" if suffix == ".tsv" else None)
        dataset = Dataset.from_csv(
            path, input, target, labels=labels, free_form=free_form, delimiter=divider, encoding=encoding
        )
    else:
        raise InputError(
            "unknown kind of file",
            where=path,
            got=suffix,
            expected=", ".join(_FILE_SUFFIXES),
            fix="save it as .csv or .jsonl",
        )
    return Task.from_dataset(
        dataset,
        instruction=instruction,
        labels=None if labels is None or free_form else label_specs(labels)[0],
        seed=seed,
        dev_fraction=dev_fraction,
        test_fraction=test_fraction,
        metric=metric,
        name=path.stem,
    )


def _refuse(name: str, **given: object) -> None:
    """An option that would have no effect is a mistake of the caller."""
    useless = [f"{option}={value!r}" for option, value in given.items() if value is not None and value is not False]
    if useless:
        raise InputError(
            "this task does not have that option",
            where=f"task {name}",
            got=", ".join(useless),
            expected="no options",
            fix="leave it out",
        )
