"""`dln predict`: what a network says of texts, with probabilities and the hidden texts behind it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dln.cli import complete, flags
from dln.cli.endpoints import with_server_of
from dln.cli.flags import examples
from dln.cli.networks import Loader, said_together
from dln.cli.resume import recorded_config
from dln.cli.show import note, one_line, out, print_record, safe
from dln.cli.sources import lm_settings, load_config
from dln.data import Example
from dln.data.columns import INPUT_NAMES
from dln.data.csv_source import read_csv
from dln.data.jsonl_source import read_jsonl
from dln.data.table import cell_text
from dln.data.text_file import read_text
from dln.errors import InputError
from dln.nn import Prediction
from dln.nn.ensemble import members_of
from dln.nn.predict import Vote
from dln.train.room import check_room
from dln.train.run import read_meta

__all__ = ["EPILOG", "predict"]

EPILOG = examples(
    'dln predict runs/questions "How tall is the tower?"',
    "dln predict runs/questions --file questions.txt --json",
    "dln predict network.json --file mail.csv --column message --samples 8",
    "dln predict runs/mail --base-url http://127.0.0.1:8000/v1 --file mail.txt",
    "cat questions.txt | dln predict runs/questions -",
)
CHUNK = 64
STANDARD_INPUT = Path("-")


def predict(
    network: Annotated[
        Path,
        typer.Argument(metavar="NETWORK|RUN", help="A network.json, or a run directory.", autocompletion=complete.runs),
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Inputs; - or none: lines of standard input.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Inputs: one per line (- is standard input), or a .csv, .tsv or .jsonl file."
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the inputs in that file.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Average over so many draws of the hidden texts.")] = None,
    seed: Annotated[int, typer.Option(help="Of these draws.")] = 0,
    answers: flags.Answers = None,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    cache: flags.Cache = None,
    no_cache: flags.NoCache = False,
    as_json: flags.Json = False,
) -> None:
    """Predict: the label with its probabilities, and the hidden texts."""
    inputs = _inputs(texts or [], file, column)
    config = load_config({"lm": lm_settings(lm, base_url, api_key_env, lm_option, None, None, cache, no_cache)})
    if lm is None and (network / "run.yaml").exists() and read_meta(network).get("config"):
        config = config.model_copy(update={"lm": with_server_of(recorded_config(network).lm, config.lm)})
    with ExitStack() as stack:
        trained = Loader(config, lm, stack).trained(network)
        trained = trained if answers is None else trained.with_answers(answers)
        for member in members_of(trained):
            check_room(member, inputs)
        together = said_together(trained)
        if together is not None:
            note(together)
        for start in range(0, len(inputs), CHUNK):
            part = [example.input for example in inputs[start : start + CHUNK]]
            for text, prediction in zip(part, trained.predict_many(part, samples=samples, seed=seed), strict=True):
                if as_json:
                    print_record(_record(text, prediction))
                else:
                    out().print(_table(text, prediction))


def _inputs(texts: list[str], file: Path | None, column: str | None) -> list[Example]:
    """What is to be predicted, each with its place as its id."""
    if file is not None and texts:
        raise InputError(
            "inputs are given twice",
            where="TEXT and --file",
            got=f"{texts[0]!r} and {file}",
            fix="leave out one of them",
        )
    if column is not None and file is None:
        raise InputError("a column is one of a file", where="--column", got=column, fix="name it with --file")
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
            raise InputError("this file has lines, not columns", where=file, got=f"--column {column}")
        return _lines(read_text(file, "utf-8").splitlines(), file)
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
            fix="name one of them with --column",
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
        table.add_row(f"[bold]member[/] {vote.member + 1}", _vote(vote))
    for number, chain in enumerate(prediction.hidden[:3], 1):
        for level, hidden in enumerate(chain, 1):
            table.add_row(
                f"[bold]h{level}[/]" + (f" draw {number}" if prediction.draws > 1 else ""), one_line(hidden, 300)
            )
    table.add_row("", "")
    return table


def _vote(vote: Vote) -> str:
    """What one of several networks says, and what it counts."""
    probability = vote.probabilities.get(vote.label)
    said = "– (no finite score)" if probability is None else f"{one_line(vote.label, 40)} {probability:.3f}"
    return f"weight {vote.weight:.3f}: {said}"
