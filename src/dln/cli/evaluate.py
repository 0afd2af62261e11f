"""`dln eval` and `dln predict`: the accuracy of a network, compared with another one, and its predictions."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, cast

import typer
from rich.table import Table

from dln.cli import flags
from dln.cli.build import build_task, ensemble_line, initial_network, open_network, present_models, recorded_config
from dln.cli.config import CACHE, ENGINE, PRICES, SIZES, TASK, RunConfig, training_options
from dln.cli.models import Loader
from dln.cli.output import err, evaluation_table, examples, note, one_line, out, print_record, record_line, safe
from dln.cli.sources import configured, named_file
from dln.data import Example
from dln.data.dataset import Dataset, cell_text
from dln.data.readers import INPUT_NAMES, read_csv, read_jsonl
from dln.errors import InputError
from dln.io import read_text
from dln.nn import Prediction
from dln.nn.ensemble import AnyNetwork, members_of
from dln.nn.sequential import Vote
from dln.train import conclude, fitted_initial
from dln.train.estimate import check_room
from dln.train.run import read_meta, to_line

__all__ = ["EVALUATE_EPILOG", "PREDICT_EPILOG", "evaluate", "predict"]

EVALUATE_EPILOG = examples(
    "dln eval runs/questions",
    "dln eval runs/questions --split dev --samples 8",
    "dln eval runs/questions --answers free",
    "dln eval runs/mail --base-url http://127.0.0.1:8000/v1",
    "dln eval network.json --csv mail.csv --input message --target kind --against old.json",
)


@configured(TASK, "data leaky", SIZES, "lm", ENGINE, CACHE, PRICES)
def evaluate(
    config: RunConfig,
    given: dict[str, Any],
    network: flags.NetworkOrRun,
    split: Annotated[
        Literal["test", "dev", "train"],
        typer.Option("--split", help="Examples to evaluate on.", rich_help_panel=flags.DATA),
    ] = "test",
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
    """Evaluate a network: accuracy with a 95 % interval, and a paired test against another network."""
    lm = given.get("lm", {}).get("spec")
    is_run = network.is_dir() and (network / "run.yaml").exists()
    recorded = _recorded(network, config, given) if is_run else None
    if recorded is not None:
        config = config.model_copy(update={"task": recorded.task, "data": recorded.data})
    task = build_task(config)
    dataset = cast(Dataset, getattr(task, split))
    for text in dict.fromkeys((*task.notes, *dataset.notes)):
        note(f"note: {text}")
    config = present_models(config, network, lm)
    with ExitStack() as stack:
        load = Loader(config, lm, stack)
        after = open_network(network, load)
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
        if (
            initial is not None
            and recorded is not None
            and not (split == "dev" and "dev_size" in given.get("data", {}))
        ):
            fitted = fitted_initial(initial, task.dev, task.metric, training_options(recorded))
        with err().status("evaluating") as status:
            event = conclude(
                before,
                after,
                dataset,
                fitted=fitted,
                split=split,
                metric=task.metric,
                samples=samples,
                progress=lambda done, total: status.update(f"evaluating {done}/{total}"),
            )
    if as_json:
        print_record(json.loads(to_line(event)))
        return
    names = (against.name if against is not None else "before", network.name if against is not None else "after")
    out().print(evaluation_table(event, names))
    _print_ensembles(zip(names, (before, after), strict=True))


def _print_ensembles(named: Iterable[tuple[str, AnyNetwork | None]]) -> None:
    for name, network in named:
        several = None if network is None else ensemble_line(network)
        if several is not None:
            out().print(safe(f"{name}: {several}"))


def _recorded(run: Path, config: RunConfig, given: dict[str, Any]) -> RunConfig | None:
    """The settings of the run whose data is evaluated on; None where another task is named."""
    if not read_meta(run).get("config"):
        return recorded_config(run) if config.task == RunConfig.model_validate({}).task else None
    recorded = recorded_config(run)
    other = (config.task.name, config.task.csv, config.task.jsonl)
    if other not in ((None, None, None), (recorded.task.name, recorded.task.csv, recorded.task.jsonl)):
        return None
    if "task" in given and other == (None, None, None):
        return None  # columns without a file: the error says that a task is missing
    sizes = {name: value for name, value in given.get("data", {}).items() if name in SIZES.split()}
    return recorded.model_copy(update={"data": recorded.data.model_copy(update=sizes)})


PREDICT_EPILOG = examples(
    'dln predict runs/questions "How tall is the tower?"',
    "dln predict runs/questions --file questions.txt --json",
    "dln predict network.json --file mail.csv --input message --out answers.csv",
    "dln predict runs/mail --base-url http://127.0.0.1:8000/v1 --file mail.txt",
    "cat questions.txt | dln predict runs/questions -",
)
CHUNK = 64
FORMS: dict[str, str | None] = {".csv": ",", ".tsv": "\t", ".jsonl": None}
"""Extensions of output files, with the delimiter of a table."""

STANDARD_INPUT = Path("-")


@configured("input seed lm", ENGINE, CACHE, seed=0)
def predict(
    config: RunConfig,
    given: dict[str, Any],
    network: flags.NetworkOrRun,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Inputs; - or none: lines of standard input.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="Inputs: one per line (- is standard input), or a .csv, .tsv or .jsonl file."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write predictions to a .csv, .tsv or .jsonl file."),
    ] = None,
    samples: flags.Draws = None,
    answers: flags.Answers = None,
    as_json: flags.Json = False,
) -> None:
    """Predict the label of each input, with probabilities and hidden texts."""
    inputs = _inputs(texts or [], file, given.get("task", {}).get("input"))
    lm, seed = given.get("lm", {}).get("spec"), int(given["options"]["seed"])
    config = present_models(config, network, lm)
    if output is not None and output.suffix.lower() not in FORMS:
        raise InputError("unknown format of the output file", where="--out", got=output, expected=", ".join(FORMS))
    with ExitStack() as stack:
        trained = open_network(network, Loader(config, lm, stack))
        trained = trained if answers is None else trained.with_answers(answers)
        for member in members_of(trained):
            check_room(member, inputs)
        several = ensemble_line(trained)
        if several is not None:
            note(several)
        write = _print_json if as_json else _print_table
        if output is not None:
            write = stack.enter_context(_writer(output, trained.labels or ()))
        for start in range(0, len(inputs), CHUNK):
            part = [example.input for example in inputs[start : start + CHUNK]]
            for text, prediction in zip(part, trained.predict_many(part, samples=samples, seed=seed), strict=True):
                write(text, prediction)
    if output is not None:
        note(f"written: {output} ({len(inputs)} predictions)")


Write = Callable[[str, Prediction], None]


def _print_json(text: str, prediction: Prediction) -> None:
    print_record(_record(text, prediction))


def _print_table(text: str, prediction: Prediction) -> None:
    out().print(_table(text, prediction))


@contextmanager
def _writer(path: Path, labels: Sequence[str]) -> Generator[Write]:
    """A function that adds a prediction to a file, in the format of its extension.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = FORMS[path.suffix.lower()]
            yield _json_lines(file) if delimiter is None else _rows(file, delimiter, labels)
    except OSError as error:
        raise InputError("cannot write the output file", where=path, got=error.strerror, fix="another --out") from error


def _json_lines(file: TextIO) -> Write:
    def write(text: str, prediction: Prediction) -> None:
        file.write(record_line(_record(text, prediction)))

    return write


def _rows(file: TextIO, delimiter: str, labels: Sequence[str]) -> Write:
    """Input, label and its probability; then the probability of each label of a closed set."""
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["input", "label", "probability", *(f"p({name})" for name in labels)])

    def write(text: str, prediction: Prediction) -> None:
        p = prediction.probabilities
        writer.writerow([text, prediction.label, p.get(prediction.label, ""), *(p.get(name, "") for name in labels)])

    return write


def _inputs(texts: list[str], file: Path | None, column: str | None) -> list[Example]:
    """The inputs, each with its place as its id."""
    if file is not None and texts:
        raise InputError(
            "inputs are given twice",
            where="TEXT and --file",
            got=f"{texts[0]!r} and {file}",
            fix="leave out one of them",
        )
    if column is not None and file is None:
        raise InputError("a column needs a file", where="--input", got=column, fix="name the file with --file")
    if file == STANDARD_INPUT and column is None:
        file, texts = None, ["-"]
    if len(texts) > 1 and "-" in texts:
        raise InputError(
            "inputs are given twice", where="TEXT", got="- and other texts", expected="texts, or - for standard input"
        )
    if file is not None:
        found = _read(file, column)
    elif texts and texts != ["-"]:
        found = [Example(text, "", f"text {n}") for n, text in enumerate(texts, 1)]
    elif not texts and sys.stdin.isatty():
        raise InputError(
            "there is nothing to predict", expected="texts, --file, or lines on standard input", fix=EXAMPLE
        )
    else:
        found = _lines((line.rstrip("\r\n") for line in sys.stdin), "standard input")
    if not found:
        raise InputError("there is nothing to predict", where=file or "standard input", got="no lines")
    return found


def _lines(lines: Iterable[str], source: object) -> list[Example]:
    return [Example(line, "", f"{source}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]


EXAMPLE = 'dln predict runs/questions "How tall is the tower?"'


def _read(file: Path, column: str | None) -> list[Example]:
    suffix = file.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        if column is not None:
            raise InputError(
                "this file has lines, not columns", where=file, got=f"--input {column}", fix="leave out --input"
            )
        return _lines(read_text(named_file(file), "utf-8").splitlines(), file)
    if suffix in (".csv", ".tsv"):
        table = read_csv(file, delimiter="\t" if suffix == ".tsv" else None, wanted=(column,))
    else:
        table = read_jsonl(file)
    by_case = {name.strip().casefold(): name for name in reversed(table.columns)}
    guess = next((by_case[name] for name in INPUT_NAMES if name in by_case), None)
    if guess is None and len(table.columns) == 1:
        guess = table.columns[0]
    chosen = column or guess
    if chosen is None or chosen not in table.columns:
        raise InputError(
            "cannot tell which column has the inputs" if column is None else f"there is no column {column!r}",
            where=file,
            got=f"columns {', '.join(map(repr, table.columns))}",
            fix="name one of them with --input",
        )
    return [Example(cell_text(table, row, chosen), "", table.where(row)) for row in table.rows]


def _record(text: str, prediction: Prediction) -> dict[str, Any]:
    return {
        "input": text,
        "label": prediction.label,
        "probabilities": prediction.probabilities,
        "hidden": [list(chain) for chain in prediction.hidden],
        "label_mass": prediction.label_mass,
        "members": [vote.to_json() for vote in prediction.members],
    }


def _table(text: str, prediction: Prediction) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]input[/]", one_line(text, 200))
    table.add_row("[bold]label[/]", safe(prediction.label) if prediction.scored else "– (no finite score)")
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
