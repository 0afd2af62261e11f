"""`dln eval`: how good a network is, and whether it is better than another one on the same examples.

`dln predict`: what a network says of texts, with probabilities and the hidden texts behind it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.table import Table

from dln.cli import flags
from dln.cli import flags as complete
from dln.cli.build import Loader, build_task, said_together
from dln.cli.config import training_options
from dln.cli.flags import examples
from dln.cli.output import err, evaluation_table, note, one_line, out, print_record, safe
from dln.cli.sources import lm_settings, load_config, with_server_of
from dln.cli.train import recorded_config
from dln.data import Example
from dln.data.dataset import cell_text
from dln.data.readers import INPUT_NAMES, read_csv, read_jsonl
from dln.errors import InputError
from dln.io import read_text
from dln.nn import Prediction
from dln.nn.ensemble import members_of
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


def evaluate(
    context: typer.Context,
    network: Annotated[
        Path,
        typer.Argument(metavar="NETWORK|RUN", help="A network.json, or a run directory.", autocompletion=complete.runs),
    ],
    task: flags.OneTask = None,
    csv: flags.Csv = None,
    jsonl: flags.Jsonl = None,
    input_column: flags.Input = None,
    target: flags.Target = None,
    free_form: flags.FreeForm = None,
    data: flags.DataDirectory = None,
    leaky: flags.Leaky = None,
    split: Annotated[
        Literal["test", "dev", "train"], typer.Option(help="Which examples.", rich_help_panel=flags.DATA)
    ] = "test",
    size: Annotated[
        int | None, typer.Option(min=1, help="At most so many of them.", rich_help_panel=flags.DATA)
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Average over so many draws of the hidden texts.")] = None,
    answers: flags.Answers = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="NETWORK|RUN", help="Compare with this one; default: what the run began with."),
    ] = None,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    threads: flags.Threads = None,
    cache: flags.Cache = None,
    no_cache: flags.NoCache = False,
    config: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Evaluate a network: accuracy with a 95 % interval, and a paired test against another network."""
    given: dict[str, Any] = {
        "task": {
            "name": flags.named_task(context, task, csv, jsonl),
            "csv": csv,
            "jsonl": jsonl,
            "input": input_column,
            "target": target,
            "free_form": free_form,
        },
        "data": {"directory": data, "leaky": leaky, f"{split}_size": size},
        "lm": lm_settings(lm, base_url, api_key_env, lm_option, None, None, cache, no_cache, threads),
    }
    is_run = network.is_dir() and (network / "run.yaml").exists()
    chosen = load_config(given, config)
    recorded = None
    if is_run and chosen.task.name is chosen.task.csv is chosen.task.jsonl is None:
        recorded = recorded_config(network)
        limits = recorded.data if size is None else recorded.data.model_copy(update={f"{split}_size": size})
        chosen = chosen.model_copy(update={"task": recorded.task, "data": limits})
    problem = build_task(chosen)
    dataset = cast(Any, {"train": problem.train, "dev": problem.dev, "test": problem.test}[split])
    for text in dict.fromkeys((*problem.notes, *dataset.notes)):
        note(f"note: {text}")
    if is_run and lm is None and (recorded is not None or read_meta(network).get("config")):
        chosen = chosen.model_copy(update={"lm": with_server_of(recorded_config(network).lm, chosen.lm)})
    with ExitStack() as stack:
        loader = Loader(chosen, lm, stack)
        after = loader.trained(network)
        initial = loader.initial(network) if is_run and against is None else None
        before = initial if against is None else loader.trained(against)
        if answers is not None:
            after = after.with_answers(answers)
            before = None if before is None else before.with_answers(answers)
            initial = None if initial is None else initial.with_answers(answers)
        for member in members_of(after):
            check_room(member, dataset)
        # as at the end of training: what fitting the output layer alone, on the whole dev set, would have given
        fitted, whole = None, split != "dev" or size is None
        if initial is not None and recorded is not None and whole:
            fitted = fitted_initial(initial, problem.dev, problem.metric, training_options(recorded))
        with err().status("evaluating") as status:
            event = conclude(
                before,
                after,
                dataset,
                fitted=fitted,
                split=split,
                metric=problem.metric,
                samples=samples,
                progress=lambda done, total: status.update(f"evaluating {done}/{total}"),
            )
    if as_json:
        print_record(json.loads(to_line(event)))
        return
    names = (against.name if against is not None else "before", network.name if against is not None else "after")
    out().print(evaluation_table(event, names))
    for name, evaluated in zip(names, (before, after), strict=True):
        together = None if evaluated is None else said_together(evaluated)
        if together is not None:
            out().print(safe(f"{name}: {together}"))


PREDICT_EPILOG = examples(
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
    threads: flags.Threads = None,
    cache: flags.Cache = None,
    no_cache: flags.NoCache = False,
    as_json: flags.Json = False,
) -> None:
    """Predict: the label with its probabilities, and the hidden texts."""
    inputs = _inputs(texts or [], file, column)
    config = load_config(
        {"lm": lm_settings(lm, base_url, api_key_env, lm_option, None, None, cache, no_cache, threads)}
    )
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
