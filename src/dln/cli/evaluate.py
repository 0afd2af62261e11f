"""`dln eval`: how good a network is, and whether it is better than another one on the same examples."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from dln.cli import complete, flags
from dln.cli.compose import build_task
from dln.cli.config import training_options
from dln.cli.endpoints import with_server_of
from dln.cli.flags import examples
from dln.cli.networks import Loader, said_together
from dln.cli.resume import recorded_config
from dln.cli.show import err, evaluation_table, note, out, print_record, safe
from dln.cli.sources import lm_settings, load_config
from dln.nn.ensemble import members_of
from dln.train import conclude, fitted_initial
from dln.train.event_log import to_line
from dln.train.room import check_room
from dln.train.run import read_meta

__all__ = ["EPILOG", "evaluate"]

EPILOG = examples(
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
        "lm": lm_settings(lm, base_url, api_key_env, lm_option, None, None, cache, no_cache),
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
