"""`dln predict`: a record for every input row, on the terminal or in a file that an interrupted command continues."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Self, cast

import typer
from rich.table import Table as Grid

from dln.cli import flags
from dln.cli.build import ensemble_line, open_network, present_models, recorded_config
from dln.cli.config import CACHE, ENGINE, READ, RunConfig
from dln.cli.evaluate import file_spec, read_again
from dln.cli.models import Loader
from dln.cli.output import (
    err,
    examples,
    in_flags,
    note,
    note_in_flags,
    one_line,
    out,
    print_record,
    record_line,
    safe,
)
from dln.cli.sources import configured
from dln.data import Example
from dln.data.files import STANDARD_INPUT
from dln.data.readers import read_table
from dln.data.resolve import Item, ReadReport, read_items
from dln.data.spec import DataSpec, suffix_format
from dln.data.tables import Table, cell_of
from dln.errors import InputError
from dln.nn import Prediction
from dln.nn.ensemble import AnyNetwork, members_of
from dln.nn.sequential import Vote
from dln.train.estimate import check_room
from dln.train.run import read_meta

__all__ = ["PREDICT_EPILOG", "predict", "predict_items", "read_inputs"]

PREDICT_EPILOG = examples(
    'dln predict runs/questions "How tall is the tower?"',
    "dln predict runs/questions --file questions.txt --json",
    "dln predict runs/mail --file more.csv --out answers.csv",
    "dln predict network.json --file mail.xlsx --input message --out answers.parquet",
    "dln predict runs/mail --base-url http://127.0.0.1:8000/v1 --file mail.txt",
    "cat questions.txt | dln predict runs/questions -",
)
CHUNK = 64
FORMS = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of output files."""

EXAMPLE = 'dln predict runs/questions "How tall is the tower?"'


@configured(READ, "seed lm", ENGINE, CACHE, seed=0)
def predict(
    config: RunConfig,
    given: dict[str, Any],
    network: flags.NetworkOrRun,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Inputs; - or none: lines of standard input.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="Inputs: a text file with one per line (- is standard input), a table of any format, or a folder of "
            "texts; several are read as one.",
        ),
    ] = None,
    output: flags.Out = None,
    samples: flags.Draws = None,
    answers: flags.Answers = None,
    as_json: flags.Json = False,
) -> None:
    """Predict the label of each input row, with probabilities and hidden texts.

    There is one record per row, in order. An interrupted command with --out is continued by the same command.
    """
    lm, seed = given.get("lm", {}).get("spec"), int(given["options"]["seed"])
    _check_output(output, file or [])
    is_run = network.is_dir() and (network / "run.yaml").exists()
    recorded = recorded_config(network) if is_run and read_meta(network).get("config") else None
    explicit = cast("dict[str, Any]", given.get("task", {}))
    try:
        items, carried, told = read_inputs(texts or [], file or [], config, recorded, explicit)
    except InputError as error:
        raise in_flags(error) from error
    for text in told:
        note(text)
    config = present_models(config, network, lm)
    with ExitStack() as stack:
        trained = open_network(network, Loader(config, lm, stack))
        trained = trained if answers is None else trained.with_answers(answers)
        several = ensemble_line(trained)
        if several is not None:
            note(several)
        settings = [samples, seed, answers, [(i.input, i.problem, i.id) for i in items], _network_text(network), lm]
        key = hashlib.sha256(repr(settings).encode()).hexdigest()
        store = None if output is None else stack.enter_context(_Partial(output, key))
        done = 0 if store is None else len(store.records)
        if done:
            note(f"note: {output}: {done} of {len(items)} predictions are there already; continuing")
        status = stack.enter_context(err().status("predicting")) if len(items) > CHUNK else None
        missing = 0
        for start in range(done, len(items), CHUNK):
            part = items[start : start + CHUNK]
            found = zip(part, predict_items(trained, part, samples, seed), strict=True)
            for row, (item, (prediction, reason)) in enumerate(found, start + 1):
                missing += prediction is None
                record = {"row": row, **_record(item, prediction, reason, carried)}
                if store is not None:
                    store.add(record)
                elif as_json:
                    print_record(record)
                else:
                    out().print(_grid(item, prediction, reason))
            if status is not None:
                status.update(f"predicting {start + len(part)}/{len(items)}")
        if store is not None and output is not None:
            records = store.records
            missing = sum(record["label"] is None for record in records)
            _write(output, records, trained.labels or (), carried, with_id=any(item.id for item in items))
            store.remove()
            note(f"written: {output} ({len(records)} predictions)")
    if missing:
        note(f"note: {missing} of {len(items)} rows have no prediction; the field `reason` says why")


def _check_output(output: Path | None, files: Sequence[Path]) -> None:
    if output is None:
        return
    if output.suffix.lower() not in FORMS:
        raise InputError("unknown format of the output file", where="--out", got=output, expected=", ".join(FORMS))
    if any(file.exists() and output.exists() and file.samefile(output) for file in files):
        raise InputError("the output would replace the input", where="--out", got=output, fix="another name for --out")
    if output.suffix.lower() == ".parquet":
        _arrow(output)
    if not output.parent.is_dir():
        raise InputError(
            "cannot write the output file", where=output, got="no such folder", fix=f"mkdir -p {output.parent}"
        )


def _network_text(place: Path) -> str:
    """What identifies the network: the content of its file."""
    file = place / "network.json" if place.is_dir() else place
    return file.read_text(encoding="utf-8") if file.is_file() else str(place)


def read_inputs(
    texts: list[str], files: list[Path], config: RunConfig, recorded: RunConfig | None, explicit: Mapping[str, Any]
) -> tuple[list[Item], tuple[str, ...], list[str]]:
    """The input rows, the columns to carry along, and what to tell the user."""
    if files and texts:
        raise InputError(
            "inputs are given twice",
            where="TEXT and --file",
            got=f"{texts[0]!r} and {files[0]}",
            fix="leave out one of them",
        )
    if explicit.get("input") and not files:
        raise InputError(
            "a column needs a file", where="--input", got=", ".join(explicit["input"]), fix="name the file with --file"
        )
    if len(texts) > 1 and "-" in texts:
        raise InputError(
            "inputs are given twice", where="TEXT", got="- and other texts", expected="texts, or - for standard input"
        )
    if texts and texts != ["-"]:
        reasons = ["" if text.strip() else "empty text" for text in texts]
        rows = enumerate(zip(texts, reasons, strict=True), 1)
        return [Item("text", n, text, problem=reason) for n, (text, reason) in rows], (), []
    if not texts and not files and sys.stdin.isatty():
        raise InputError(
            "there is nothing to predict", expected="texts, --file, or lines on standard input", fix=EXAMPLE
        )
    own, below = file_spec(config, recorded, explicit)
    paths = tuple("-" if str(path) in STANDARD_INPUT else str(path) for path in files) or ("-",)
    own = own.model_copy(update={"path": paths})
    plain = own.format is None and not own.input and (suffix_format(paths[0]) or "lines") == "lines"
    default = "lines" if plain else "csv"

    def read(spec: DataSpec) -> tuple[list[Item], ReadReport, Table]:
        return _read(spec, own, paths, default)

    items, report, table = read_again(own, below, read)
    if not items:
        raise InputError("there is nothing to predict", where=report.source, got="no lines")
    carried = tuple(c for c in table.columns if c and c != "".join(report.input[:1]) * (len(report.input) == 1))
    lines = [] if report.facts.get("format") == "lines" and len(report.notes) == 0 else [report.summary]
    told = [*lines, *(f"note: {note_in_flags(text)}" for text in report.notes)]
    return items, () if report.facts.get("format") == "lines" else carried, told


def _read(spec: DataSpec, own: DataSpec, paths: Sequence[str], default: str) -> tuple[list[Item], ReadReport, Table]:
    """All rows of the files; columns of the run that a file does not have are told, and guessed if that is safe."""
    tables = [read_table(spec, path, columns=spec.input, default=default) for path in paths]
    first = tables[0]
    if first.facts.get("format") == "lines":
        if own.input:
            raise InputError(
                "this file has lines, not columns", where=first.source, got=own.input[0], fix="leave out --input"
            )
        spec = spec.model_copy(update={"input": ("text",), "id": None})
    known = set(first.columns)
    if spec.id is not None and own.id is None and spec.id not in known:
        spec = spec.model_copy(update={"id": None})
    missing = [c for c in spec.input if c not in known and all(cell_of(r.cells, c) is None for r in first.rows[:50])]
    single = [c for c in first.columns if c]
    if missing and not own.input and len(single) == 1:
        note(f"note: there is no column {missing[0]!r}, the input of the run; its only column {single[0]!r} is read")
        spec = spec.model_copy(update={"input": tuple(single)})
    _, items, report = read_items(spec, tables, with_target=False)
    return items, report, first


def predict_items(
    network: AnyNetwork, items: Sequence[Item], samples: int | None, seed: int
) -> list[tuple[Prediction | None, str]]:
    """A prediction or a reason for every item."""
    results: list[tuple[Prediction | None, str]] = [(None, item.problem) for item in items]
    usable = [i for i, item in enumerate(items) if not item.problem]
    usable = [i for i in usable if _has_room(network, items[i], i, results)]
    found = network.predict_many([items[i].input for i in usable], samples=samples, seed=seed) if usable else []
    for i, prediction in zip(usable, found, strict=True):
        empty = "the model gave no finite score" if network.labels else "the model wrote nothing"
        results[i] = (prediction, "") if prediction.scored else (None, empty)
    return results


def _has_room(network: AnyNetwork, item: Item, i: int, results: list[tuple[Prediction | None, str]]) -> bool:
    """Whether an input fits the models' contexts; notes the reason if it does not."""
    try:
        for member in members_of(network):
            check_room(member, [Example(item.input, "", item.place)])
    except InputError as error:
        results[i] = (None, f"{error.message}: {error.got}")
        return False
    return True


def _record(item: Item, prediction: Prediction | None, reason: str, carried: Sequence[str]) -> dict[str, Any]:
    p = prediction
    return {
        "line": item.row,
        "id": item.id or None,
        "input": item.input,
        "label": None if p is None else p.label,
        "probabilities": {} if p is None else p.probabilities,
        "hidden": [] if p is None else [list(chain) for chain in p.hidden],
        "label_mass": None if p is None else p.label_mass,
        "members": [] if p is None else [vote.to_json() for vote in p.members],
        "reason": reason or None,
        "data": {name: _plain(cell_of(item.cells, name)) for name in carried},
    }


def _plain(value: object) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


class _Partial:
    """Records that are done, on disk until all are: `answers.csv.partial`, one JSON record a line."""

    def __init__(self, output: Path, key: str) -> None:
        self._path = output.with_name(f"{output.name}.partial")
        self._key = key
        self.records: list[dict[str, Any]] = []
        self._file: io.TextIOBase | None = None

    def __enter__(self) -> Self:
        """Open the file, and read the records of the same command that are there."""
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")[:-1] if self._path.exists() else []
            if lines and json.loads(lines[0]) == {"key": self._key}:
                self.records = [json.loads(line) for line in lines[1:]]
            elif lines:
                note(f"note: {self._path} is of other inputs, settings or another network: starting anew")
        except (OSError, ValueError):
            self.records = []
        try:
            self._file = cast("io.TextIOBase", self._path.open("w", encoding="utf-8"))
            self._file.write(record_line({"key": self._key}))
            self._file.writelines(record_line(record) for record in self.records)
        except OSError as error:
            raise InputError(
                "cannot write the output file", where=self._path, got=error.strerror, fix="another --out"
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self.records.append(record)
        if self._file is not None:
            self._file.write(record_line(record))
            self._file.flush()

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)


def _write(
    path: Path, records: Sequence[dict[str, Any]], labels: Sequence[str], carried: Sequence[str], *, with_id: bool
) -> None:
    """Write records in the format of a suffix.

    Raises:
        InputError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".jsonl":
            _replace(path, "".join(map(record_line, records)))
            return
        columns = _columns(records, labels, carried, with_id=with_id)
        if suffix == ".parquet":
            arrow = _arrow(path)
            table = arrow.table({name: _alike(values) for name, values in columns.items()})
            arrow.parquet.write_table(table, path)
            return
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(map(_cells, zip(*columns.values(), strict=True)))
        _replace(path, buffer.getvalue())
    except OSError as error:
        raise InputError("cannot write the output file", where=path, got=error.strerror, fix="another --out") from error


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole, with the usual permissions."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8", newline="")
    draft.replace(path)


def _columns(
    records: Sequence[dict[str, Any]], labels: Sequence[str], carried: Sequence[str], *, with_id: bool
) -> dict[str, list[Any]]:
    """The columns of a table: the row, the prediction, the probability of each label, and the columns of the input."""
    columns: dict[str, list[Any]] = {"row": [r["row"] for r in records]}
    if with_id:
        columns["id"] = [r["id"] for r in records]
    columns["input"] = [r["input"] for r in records]
    columns["label"] = [r["label"] for r in records]
    columns["probability"] = [r["probabilities"].get(r["label"]) for r in records]
    for name in labels:
        columns[f"p({name})"] = [r["probabilities"].get(name) for r in records]
    columns["reason"] = [r["reason"] for r in records]
    for name in carried:
        columns[f"data.{name}" if name in columns else name] = [r["data"].get(name) for r in records]
    return columns


def _cells(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _alike(values: list[Any]) -> list[Any]:
    """Values of one type; a mixture as texts."""
    kinds = {type(value).__name__ for value in values if value is not None}
    if len(kinds) <= 1 and not kinds & {"list", "dict"}:
        return values
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _arrow(path: Path) -> Any:
    try:
        pyarrow = import_module("pyarrow")
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError("writing Parquet files needs pyarrow", where=path, fix="pip install 'dln[parquet]'") from error
    return cast(Any, pyarrow)


def _grid(item: Item, prediction: Prediction | None, reason: str) -> Grid:
    table = Grid.grid(padding=(0, 2))
    table.add_row("[bold]input[/]", one_line(item.input, 200))
    if prediction is None:
        table.add_row("[bold]label[/]", f"– ({safe(item.place)}: {safe(reason)})")
        table.add_row("", "")
        return table
    table.add_row("[bold]label[/]", safe(prediction.label))
    best = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:10]
    table.add_row("[bold]probabilities[/]", ", ".join(f"{one_line(name, 40)} {p:.3f}" for name, p in best))
    for vote in prediction.members:
        table.add_row(f"[bold]member {vote.member + 1}[/]", _vote(vote))
    for number, chain in enumerate(prediction.hidden[:3], 1):
        for level, hidden in enumerate(chain, 1):
            table.add_row(
                f"[bold]h{level}[/]" + (f" draw {number}" if prediction.draws > 1 else ""), one_line(hidden, 300)
            )
    table.add_row("", "")
    return table


def _vote(vote: Vote) -> str:
    """The prediction of one member of an ensemble, and its weight."""
    probability = vote.probabilities.get(vote.label)
    said = "– (no finite score)" if probability is None else f"{one_line(vote.label, 40)} {probability:.3f}"
    return f"weight {vote.weight:.3f}: {said}"
