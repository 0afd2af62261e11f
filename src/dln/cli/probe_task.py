"""`dln probe-task`: whether training prompts can pay on a task with a model, before it is paid for."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from dln.bench.headroom import Headroom, Measured, measure_headroom
from dln.bench.headroom_table import headroom_markdown
from dln.bench.paper.made import made_here
from dln.bench.paper.publish import Circumstances, full_section
from dln.cli import complete, flags
from dln.cli.bench_page import checked_places, typed, write_places
from dln.cli.compose import build_models, build_task
from dln.cli.flags import examples
from dln.cli.lists import names_of
from dln.cli.show import err, note, out, print_record, safe
from dln.cli.sources import lm_settings, load_config
from dln.lm.metered import Meter

__all__ = ["EPILOG", "probe_task"]

EPILOG = examples(
    "dln probe-task --task questions",
    "dln probe-task --task subj --data data --prompts 12 --shots 24",
    "dln probe-task --csv mail.csv --lm openai/gpt-4o-mini --draws 0 --json",
    "dln probe-task --task mpqa,trec,subj --data data --write docs/results.md",
)


def probe_task(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(
            envvar="DLN_TASK",
            metavar="A,B,…|FILE",
            help="Known tasks (questions, subj, …), with commas between, or a .csv, .tsv or .jsonl file.",
            autocompletion=complete.tasks,
            rich_help_panel=flags.DATA,
        ),
    ] = None,
    csv: flags.Csv = None,
    jsonl: flags.Jsonl = None,
    input_column: flags.Input = None,
    target: flags.Target = None,
    instruction: flags.Instruction = None,
    data: flags.DataDirectory = None,
    prompts: Annotated[int, typer.Option(min=2, help="Random prompts that are measured.")] = 8,
    shots: Annotated[int, typer.Option(min=1, help="Random examples in each.")] = 16,
    draws: Annotated[int, typer.Option(min=0, help="Draws of thoughts, for depth; 0 leaves it out.")] = 3,
    dev_size: Annotated[int, typer.Option(min=20, help="Dev examples.", rich_help_panel=flags.DATA)] = 128,
    candidates: Annotated[int, typer.Option(min=2, help="Candidate prompts that training would see.")] = 32,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 13,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    cache: flags.Cache = None,
    no_cache: flags.NoCache = False,
    write: Annotated[
        list[Path] | None,
        typer.Option(metavar="PAGE", help="Put the table between the markers of this page.", show_default=False),
    ] = None,
    region: Annotated[str | None, typer.Option(metavar="NAME", help="The markers; default headroom.")] = None,
    config: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Say whether prompt training, and a second layer, can be expected to pay."""
    named = flags.named_task(context, task, csv, jsonl)
    given: dict[str, Any] = {
        "task": {
            "csv": csv,
            "jsonl": jsonl,
            "input": input_column,
            "target": target,
            "instruction": instruction,
        },
        "data": {"directory": data},
        "lm": lm_settings(lm, base_url, api_key_env, lm_option, None, None, cache, no_cache),
    }
    places = checked_places(write, region, "headroom")
    names: list[str | None] = [None] if named is None else [*names_of(named, "--task")]
    configs = [load_config({**given, "task": {**given["task"], "name": name}}, config) for name in names]
    loaded = [build_task(chosen) for chosen in configs]
    found: list[tuple[str, Headroom]] = []
    started = time.perf_counter()
    with ExitStack() as stack:
        models = build_models(configs[0], stack, Meter())
        for known in loaded:
            with err().status("measuring", spinner="dots") as status:
                headroom = measure_headroom(
                    known,
                    models.lm,
                    prompts=prompts,
                    shots=shots,
                    draws=draws,
                    dev_size=dev_size,
                    seed=seed,
                    candidates=candidates,
                    progress=lambda what, name=known.name: status.update(f"{safe(name)}: measuring {what}"),
                )
            found.append((known.name, headroom))
            _tell(headroom, known.name, alone=len(loaded) == 1, as_json=as_json)
    if places:
        about = Circumstances(
            typed(context, configs[0]), configs[0].lm.spec, time.perf_counter() - started, (made_here(),)
        )
        less = f"Seed {seed}; at most {dev_size} dev examples per task. No test example is looked at."
        files = write_places(places, full_section(headroom_markdown(found), about, less))
        note(f"written: {', '.join(map(str, files))}")


def _tell(found: Headroom, name: str, *, alone: bool, as_json: bool) -> None:
    if as_json:
        print_record({"kind": "headroom", "task": name, **_record(found)})
        return
    if not alone:
        out().print(f"[bold]{safe(name)}[/]")
    out().print(_table(found))
    out().print(safe(answer(found)) + ("" if alone else "\n"), soft_wrap=True)


def answer(found: Headroom) -> str:
    """Plain sentences."""
    gain, noise = found.expected_gain, found.noise
    lines = [
        f"Random prompts differ by {found.spread:.3f} nats beyond the noise of measuring one ({noise:.3f}).",
        (
            f"Prompt training can be expected to pay: the best of {found.candidates} candidates should reach "
            f"{gain:+.3f} nats per example over what is there without training."
            if found.pays
            else f"Prompt training cannot be expected to pay here: the best of {found.candidates} candidates would be "
            f"{gain:+.3f} nats per example from what is there without training, which is within the noise. "
            "Try a larger model, another wording of the labels, or more examples per prompt (--shots)."
        ),
    ]
    if found.depth_pays is None:
        lines.append("Depth was not measured.")
    elif found.depth_pays:
        lines.append(
            "A second layer can pay: the model's thoughts tell the answer apart better than the input alone. "
            f"Begin with them: dln train --layers 2{'' if found.staged else ' --hidden think'}"
        )
    else:
        lines.append(
            "A second layer cannot be expected to pay: the model's own thoughts do not help it to the answer "
            f"({found.depth_gain:+.3f} nats)."
        )
    return "\n".join(lines)


def _table(found: Headroom) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("on the dev examples", "accuracy", "without the fitted output", "log p(y|x)"):
        table.add_column(heading, justify="right" if heading != "on the dev examples" else "left")
    table.add_row("majority class", f"{found.majority:.3f}", "", f"{found.majority_log_likelihood:.3f}")
    rows: list[tuple[str, tuple[Measured, ...]]] = [("the instruction alone", (found.instruction,))]
    rows += [(f"{len(found.prompts)} random prompts, mean", found.prompts)]
    best = max(found.prompts, key=lambda m: m.log_likelihood)
    rows += [("the best of them", (best,))]
    if found.thoughts:
        rows += [(f"with thoughts, mean of {len(found.thoughts)} draws", found.thoughts)]
    for name, measured in rows:
        table.add_row(
            name,
            f"{np.mean([m.accuracy for m in measured]):.3f}",
            f"{np.mean([m.raw_accuracy for m in measured]):.3f}",
            f"{np.mean([m.log_likelihood for m in measured]):.3f}",
        )
    return table


def _record(found: Headroom) -> dict[str, Any]:
    def plain(measured: Measured) -> dict[str, float]:
        return {
            "accuracy": measured.accuracy,
            "raw_accuracy": measured.raw_accuracy,
            "log_likelihood": measured.log_likelihood,
        }

    return {
        "majority": found.majority,
        "majority_log_likelihood": found.majority_log_likelihood,
        "instruction": plain(found.instruction),
        "prompts": [plain(m) for m in found.prompts],
        "thoughts": [plain(m) for m in found.thoughts],
        "spread": found.spread,
        "noise": found.noise,
        "expected_gain": found.expected_gain,
        "pays": found.pays,
        "depth_gain": found.depth_gain,
        "depth_pays": found.depth_pays,
    }
