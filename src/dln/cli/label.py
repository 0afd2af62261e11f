"""`dln label`: a person labels the inputs that a network is least sure of, with one keystroke each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Annotated, Any

import click
import typer

from dln.cli import flags
from dln.cli.build import build_task, open_network, present_models, recorded_config
from dln.cli.config import CACHE, ENGINE, READ, RunConfig
from dln.cli.models import Loader
from dln.cli.output import examples, note, out, print_record, safe
from dln.cli.predict import predict_items, read_inputs
from dln.cli.sources import configured
from dln.data import Task
from dln.data.dataset import text_key
from dln.errors import InputError
from dln.train.labels import (
    LABELS,
    Label,
    Waiting,
    entropy,
    give_label,
    given_labels,
    least_sure_first,
    read_waiting,
    seen_inputs,
    write_waiting,
)

__all__ = ["LABEL_EPILOG", "keys_of", "label"]

LABEL_EPILOG = examples(
    "dln label runs/mail new.csv",
    "dln label runs/mail",
    "dln label runs/mail new.csv --rank-only",
    "dln train --csv mail.csv --labelled runs/mail",
)
BACK, SKIP, QUIT = "u", "s", "q"


def keys_of(labels: Sequence[str]) -> dict[str, str]:
    """The key of each label: 1 to 9, then letters; labels beyond these have none and are typed.

    >>> keys_of(["no", "yes"])
    {'1': 'no', '2': 'yes'}
    """
    free = [key for key in digits[1:] + ascii_lowercase if key not in (BACK, SKIP, QUIT)]
    return dict(zip(free, labels, strict=False))


@configured(READ, "seed lm", ENGINE, CACHE, seed=0)
def label(
    config: RunConfig,
    given: dict[str, Any],
    run: flags.RunDirectory,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Inputs without labels, of any format; none: those that still wait."),
    ] = None,
    rank_only: Annotated[
        bool, typer.Option("--rank-only", help="Rank the inputs and exit; label them in dln view.")
    ] = False,
    as_json: flags.Json = False,
) -> None:
    """Label the inputs that the network of a run is least sure of, with one key each.

    Each label is a line of labels.jsonl in the run directory at once. dln train --labelled RUN trains with them. What
    is in the run's dev or test set is not asked for.
    """
    task = build_task(_whole(recorded_config(run)))
    labels = _labels(run, task)
    if file is not None:
        _rank(run, file, config, given, task)
    done = _given(run)
    waiting = [row for row in read_waiting(run) if row.x not in done]
    if as_json:
        for row in waiting:
            print_record({"x": row.x, "entropy": entropy(row.probabilities.values()), **row.model_dump(exclude={"x"})})
    elif not rank_only and waiting:
        _ask(run, waiting, labels)
    note(f"{len(_given(run))} labels in {run / LABELS}; train with them: dln train … --labelled {run}")


def _given(run: Path) -> dict[str, str]:
    """The labels that hold by now, by input."""
    return given_labels(run / LABELS) if (run / LABELS).exists() else {}


def _labels(run: Path, task: Task) -> tuple[str, ...]:
    """The labels of the run's task.

    Raises:
        InputError: its answers are free texts.
    """
    names = task.label_names
    if names is None:
        raise InputError("this network writes free texts: there are no labels to give", where=run)
    return names


def _whole(config: RunConfig) -> RunConfig:
    """The configuration with all examples of its data, also those that the run did not use."""
    sizes = {"train_size": None, "dev_size": None, "test_size": None, "labelled": None}
    return config.model_copy(update={"data": config.data.model_copy(update=sizes)})


def _rank(run: Path, file: Path, config: RunConfig, given: dict[str, Any], task: Task) -> None:
    """Write the inputs of a file that wait for a label, the least sure first."""
    recorded = recorded_config(run)
    items, _, told = read_inputs([], [file], config, recorded, given.get("task", {}))
    for text in told:
        note(text)
    places = seen_inputs(task)
    fresh = [item for item in items if text_key(item.input) not in places]
    if len(fresh) < len(items):
        note(f"note: {len(items) - len(fresh)} inputs are in the data of the run already and are not asked for")
    spec = given.get("lm", {}).get("spec")
    with ExitStack() as stack:
        network = open_network(run, Loader(present_models(config, run, spec), spec, stack))
        found = predict_items(network, fresh, None, int(given["options"]["seed"]))
    rows = [
        Waiting(x=item.input, probabilities=prediction.probabilities)
        for item, (prediction, _) in zip(fresh, found, strict=True)
        if prediction is not None
    ]
    if len(rows) < len(fresh):
        note(f"note: {len(fresh) - len(rows)} inputs have no prediction and are not asked for")
    write_waiting(run, least_sure_first(rows))


def _ask(run: Path, waiting: Sequence[Waiting], labels: Sequence[str]) -> None:
    """Show one input after another until a person quits or all have a label."""
    keys = keys_of(labels)
    read = _reader(lines=len(keys) < len(labels))
    console = out()
    console.print(safe("  ".join(f"{key} {name}" for key, name in keys.items())), soft_wrap=True)
    console.print(f"{BACK} take back  {SKIP} skip  {QUIT} quit")
    at, order = 0, list[int]()
    while at < len(waiting):
        row = waiting[at]
        shares = sorted(row.probabilities.items(), key=lambda pair: -pair[1])[:3]
        console.print(safe(f"\n[{at + 1} of {len(waiting)}] {row.x}"), soft_wrap=True)
        console.print(safe("  " + ", ".join(f"{name} {p:.2f}" for name, p in shares)), soft_wrap=True)
        key = read()
        if key == QUIT:
            return
        if key == SKIP:
            at += 1
        elif key == BACK:
            if not order:
                note("there is nothing to take back")
                continue
            at = order.pop()
            give_label(run, Label(x=waiting[at].x, y=None), labels)
        elif (y := keys.get(key, key)) in labels:
            give_label(run, Label(x=row.x, y=y, predicted=row.predicted), labels)
            console.print(safe(f"  → {y}"), soft_wrap=True)
            order.append(at)
            at += 1
        else:
            note(f"no label has the key {key!r}")


def _reader(*, lines: bool) -> Callable[[], str]:
    """Reads one key on a terminal, and elsewhere one line: a key or the name of a label; the end of input quits."""
    if sys.stdin.isatty() and not lines:
        return click.getchar

    def read() -> str:
        return (sys.stdin.readline() or QUIT).strip()

    return read
