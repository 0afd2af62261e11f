"""`dln eval`: the accuracy of a network on a part of its data or on a whole file, compared with another network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import typer

from dln.cli import flags
from dln.cli.build import build_task, ensemble_line, initial_network, open_network, present_models, recorded_config
from dln.cli.config import CACHE, ENGINE, PRICES, SIZES, TASK, RunConfig, training_options
from dln.cli.models import Loader
from dln.cli.output import err, evaluation_table, examples, in_flags, note, note_in_flags, out, print_record, safe
from dln.cli.sources import configured
from dln.data import Dataset, Metric, NamedMetric
from dln.data.dataset import examples_of
from dln.data.files import STANDARD_INPUT
from dln.data.metrics import METRIC_NAMES, load_metric, suggested_metric
from dln.data.registry import is_file
from dln.data.resolve import ReadReport, Resolved, resolve, row_hash
from dln.data.spec import DataSpec
from dln.data.splits import subsample
from dln.errors import InputError
from dln.nn.ensemble import AnyNetwork, members_of
from dln.train import conclude, fitted_initial
from dln.train.estimate import check_room
from dln.train.evaluate import run_grader
from dln.train.run import read_meta, to_line

__all__ = ["EVALUATE_EPILOG", "evaluate", "file_spec", "read_again"]

EVALUATE_EPILOG = examples(
    "dln eval runs/questions",
    "dln eval runs/questions --split dev --samples 8",
    "dln eval runs/mail --csv more.csv",
    "dln eval runs/questions --answers free",
    "dln eval runs/mail --base-url http://127.0.0.1:8000/v1",
    "dln eval network.json --csv mail.csv --input message --target kind --against old.json",
)


T = TypeVar("T")


@dataclass(frozen=True)
class _Data:
    """What is evaluated on, and how."""

    dataset: Dataset
    split: str
    metric: Metric | NamedMetric | str
    report: ReadReport | None = None
    dev: Dataset | None = None
    train: Dataset | None = None


@configured(TASK, "data leaky", SIZES, "lm", ENGINE, CACHE, PRICES)
def evaluate(
    config: RunConfig,
    given: dict[str, Any],
    network: flags.NetworkOrRun,
    split: Annotated[
        Literal["test", "dev", "train"] | None,
        typer.Option(
            "--split", help="Part to evaluate on (default: test; the whole of a file).", rich_help_panel=flags.DATA
        ),
    ] = None,
    include_seen: Annotated[
        bool,
        typer.Option(
            "--include-seen",
            help="Evaluate also on rows that were used in training or are shown in the prompts.",
            rich_help_panel=flags.DATA,
        ),
    ] = False,
    samples: flags.Draws = None,
    answers: flags.Answers = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="NETWORK|RUN", help="Network to compare with (default: the run's initial network)."
        ),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Evaluate a network: accuracy with a 95 % interval, and a paired test against another network.

    A file is evaluated as a whole, with the columns of the run. Rows that the run trained on are left out.
    """
    lm = given.get("lm", {}).get("spec")
    is_run = network.is_dir() and (network / "run.yaml").exists()
    recorded = recorded_config(network) if is_run and read_meta(network).get("config") else None
    explicit = cast("dict[str, Any]", given.get("task", {}))
    whole = any(explicit.get(name) for name in ("csv", "jsonl")) or is_file(str(explicit.get("name") or ""))
    models = present_models(config, network, lm)
    with ExitStack() as stack:
        load = Loader(models, lm, stack)
        after = open_network(network, load)
        try:
            if whole and split is None:
                data = _whole_file(config, recorded, explicit, after, network)
            else:
                data = _part(config, recorded, given, split or "test")
        except InputError as error:
            raise in_flags(error) from error
        left_out: dict[str, int] = {}
        if not include_seen and data.split not in ("train", "dev"):
            data, left_out = _unseen(data, after, network)
        size = given.get("data", {}).get("test_size") if data.split == "file" else None
        if size is not None:
            data = replace(data, dataset=subsample(data.dataset, size, config.data.seed))
        dataset = data.dataset
        initial = initial_network(network, load) if is_run and against is None else None
        before = initial if against is None else open_network(against, load)
        if answers is not None:
            after = after.with_answers(answers)
            before = None if before is None else before.with_answers(answers)
            initial = None if initial is None else initial.with_answers(answers)
        for member in members_of(after):
            check_room(member, dataset)
        # as at the end of training: the initial prompts with an output layer fitted on the whole dev set
        fitted = None
        cut = data.split == "dev" and "dev_size" in given.get("data", {})
        if initial is not None and recorded is not None and data.dev is not None and not cut:
            fitted = fitted_initial(initial, data.dev, data.metric, training_options(recorded), data.train)
        options = None if recorded is None else training_options(recorded)
        graded = run_grader(data.metric, after.labels, options)
        with err().status("evaluating") as status:
            event = conclude(
                before,
                after,
                dataset,
                fitted=fitted,
                split=data.split,
                metric=graded,
                samples=samples,
                progress=lambda done, total: status.update(f"evaluating {done}/{total}"),
            )
    if as_json:
        about = {} if data.report is None else {"data": {**data.report.to_json(), "left_out": left_out}}
        print_record({**json.loads(to_line(event)), **about})
        return
    names = (against.name if against is not None else "before", network.name if against is not None else "after")
    out().print(evaluation_table(event, names))
    _print_ensembles(zip(names, (before, after), strict=True))


def _print_ensembles(named: Iterable[tuple[str, AnyNetwork | None]]) -> None:
    for name, network in named:
        several = None if network is None else ensemble_line(network)
        if several is not None:
            out().print(safe(f"{name}: {several}"))


def _part(config: RunConfig, recorded: RunConfig | None, given: Mapping[str, Any], split: str) -> _Data:
    """A part of the run's own data, read as it was then unless a flag says otherwise; or of another known task."""
    named = {key: value for key, value in given.get("task", {}).items() if key in ("name", "csv", "jsonl")}
    own = recorded is not None and (not named or named == {"name": recorded.task.name})
    if recorded is not None and own:
        task = recorded.task.model_copy(update=_fields(given.get("task", {})))
        if set(task.spec.path) & set(STANDARD_INPUT) and sys.stdin.isatty():
            raise InputError(
                "the run's data came from standard input",
                where="eval",
                got="a terminal",
                expected="the same data on standard input, or a file",
                fix="dln eval RUN --csv FILE, or dln eval RUN < FILE",
            )
        sizes = {key: value for key, value in given.get("data", {}).items() if key in SIZES.split()}
        data = recorded.data.model_copy(update=sizes)
        options = recorded.options
        config = config.model_copy(update={"task": task, "data": data, "options": options})
    task = build_task(config)
    dataset = cast(Dataset, getattr(task, split))
    return _Data(dataset, split, task.metric, task.report, *((task.dev, task.train) if own else ()))


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task that flags gave, validated."""
    read = RunConfig.model_validate({"task": dict(given)}).task
    return {name: getattr(read, name) for name in given}


def file_spec(config: RunConfig, recorded: RunConfig | None, explicit: Mapping[str, Any]) -> tuple[DataSpec, DataSpec]:
    """How a file is read for a run: by the flags, and below them by the settings of the run or of a settings file."""
    own = RunConfig.model_validate({"task": {name: v for name, v in explicit.items() if name in _READ}}).task.spec
    below = (config if recorded is None else recorded).task.spec
    fresh = {name: getattr(DataSpec(), name) for name in ("path", "dev_file", "test_file", "format", *_SPLITTING)}
    return own, below.model_copy(update=fresh)


_SPLITTING = ("split_column", "group", "split_by")
_READ = frozenset(DataSpec.model_fields)
_DIALECT = ("encoding", "delimiter", "quotechar", "header", "sheet")


def read_again(own: DataSpec, below: DataSpec, read: Callable[[DataSpec], T]) -> T:
    """Call `read` with the specification of a file: the dialect of the run's file counts if this file has it too."""
    spec = own.over(below)
    inherited = {name: None for name in _DIALECT if getattr(own, name) is None and getattr(below, name) is not None}
    try:
        return read(spec)
    except InputError:
        if not inherited:
            raise
    found = read(spec.model_copy(update=inherited))
    note(f"note: this file is not read with the run's {' and '.join(inherited)}, which do not fit it")
    return found


def _whole_file(
    config: RunConfig, recorded: RunConfig | None, explicit: Mapping[str, Any], network: AnyNetwork, place: Path
) -> _Data:
    """All rows of a file, with the columns and labels of the run."""
    own, below = file_spec(config, recorded, explicit)
    files = config.task.spec
    own = own.model_copy(update={"path": files.path, "format": own.format or files.format})
    if network.labels is None:
        below = below.model_copy(update={"labels": None, "free_form": True})
    elif below.labels is None or own.labels is not None:
        below = below.model_copy(update={"labels": list(network.labels), "free_form": None})

    def read(spec: DataSpec) -> Resolved:
        return resolve(spec, evaluation=True)

    found = read_again(own, below, read)
    note(found.report.summary)
    for text in found.report.notes:
        note(f"note: {note_in_flags(text)}")
    dataset = examples_of(found)
    name = config.task.metric if "metric" in explicit else None if recorded is None else recorded.task.metric
    if name is None and network.labels is None:
        known = read_meta(place).get("metric") if place.is_dir() and (place / "run.yaml").exists() else None
        name = known if known in METRIC_NAMES else suggested_metric(dataset.targets)
    return _Data(dataset, "file", load_metric(name or "exact_match", network.labels), found.report)


def _unseen(data: _Data, network: AnyNetwork, place: Path) -> tuple[_Data, dict[str, int]]:
    """The rows that the run has not used: neither trained or selected on, nor shown in the prompts.

    Raises:
        InputError: no row is left.
    """
    run = place if place.is_dir() else place.parent
    seen = cast("dict[str, str]", read_meta(run).get("seen") or {}) if (run / "run.yaml").exists() else {}
    parts = {f"{part} rows of the run": frozenset(hashes.split()) for part, hashes in seen.items()}
    shown = (d.x for member in members_of(network) for p in member.parameters() for d in p.demonstrations)
    parts["shown in the prompts"] = frozenset(map(row_hash, shown))
    counts: dict[str, int] = {}
    kept: list[int] = []
    for i, example in enumerate(data.dataset):
        key = row_hash(example.input)
        found = next((name for name, hashes in parts.items() if key in hashes), None)
        if found is None:
            kept.append(i)
        else:
            counts[found] = counts.get(found, 0) + 1
    if not counts:
        if data.split == "file" and seen:
            note("note: no row of this file was used in training")
        return data, {}
    listed = ", ".join(f"{n} {name}" for name, n in counts.items())
    if not kept:
        raise InputError(
            "every row was used in training",
            where=data.dataset.name,
            got=listed,
            expected="rows that the run has not seen",
            fix="--include-seen evaluates them all the same",
        )
    total = sum(counts.values())
    note(f"note: {total} of {len(data.dataset)} rows are left out: {listed} (--include-seen evaluates them too)")
    return replace(data, dataset=data.dataset.select(kept)), counts
