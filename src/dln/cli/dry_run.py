"""`dln train --dry-run`: calls, tokens, money and time, before anything is spent but a second of measuring."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from rich.table import Table

from dln.cli.compose import build_models, build_network, build_task
from dln.cli.config import RunConfig
from dln.cli.endpoints import price_table, remote, wanted_models
from dln.cli.forecast import LengthOnly, assumed_seconds, dollars, estimate_record, expected
from dln.cli.show import duration, note, out, print_record
from dln.cli.spending import within_budget
from dln.data import Task
from dln.keys import Key
from dln.lm.base import LanguageModel
from dln.lm.wrapper import Wrapper
from dln.nn import ChoiceLayer, LanguageLayer, LayerInput, Sequential
from dln.train.estimate import Cost, Estimate, Speed
from dln.train.sizes import layer_sizes

__all__ = ["dry_run"]

ASSUMED = "time assumes half a second a call, 50 tokens drawn a second, 16 calls at once"


def dry_run(config: RunConfig, *, as_json: bool = False) -> None:
    """Print what a run would cost. A model on a server is not asked; with `as_json` no speed is measured either.

    Raises:
        DlnError: the task, a model or the options cannot be used.
    """
    task = build_task(config)
    with ExitStack() as stack:
        lm, speed, written = _lm(config, stack), None, None
        network = build_network(config, task, lm)
        if not as_json and not remote(config.lm.spec):
            speed, written = _probe(network, task)
        # a run is made smaller before its speed is known, from assumed lengths: the same must be said here
        config, notes = within_budget(config, task, layer_sizes(network, task.train))
        result = expected(config, task, layer_sizes(network, task.train, written))
    record, money = estimate_record(result, config, speed), dollars(result, config)
    if as_json:
        rows = {name: {**_record(cost), "usd": money[name]} for name, cost in result.phases.items()}
        rows["total"] = {**_record(result.total), "usd": record["usd"]}
        print_record({"kind": "estimate", "phases": rows, **{n: record[n] for n in ("usd", "seconds", "tokens_by")}})
        return
    out().print(_table(result, config, speed, money, record))
    note("at most: what the cache knows already is free, and equal requests are asked once")
    for text in notes:
        note(f"note: {text}")
    if remote(config.lm.spec):
        note(f"nothing was asked: tokens are counted as {record['tokens_by']}; {ASSUMED}")
    if record["usd"] is None:
        note(f"the price of {config.lm.spec} or a model beside it is not known: --price MODEL=IN/OUT")


def _lm(config: RunConfig, stack: ExitStack) -> LanguageModel:
    """The model without cache and meter; of one on a server only the lengths of texts."""
    if remote(config.lm.spec):
        wanted_models(config.lm)  # a missing variable or model is an error here too
        if config.budget.max_usd is not None:
            price_table(config.lm).needed(config.lm.spec)
        return LengthOnly(config.lm.spec)
    changes = {"cache": False, "prompt_lm": None, "hidden_lm": None}
    models = build_models(config.model_copy(update={"lm": config.lm.model_copy(update=changes)}), stack)
    return models.lm.unwrapped if isinstance(models.lm, Wrapper) else models.lm


def _probe(network: Sequential, task: Task) -> tuple[Speed, float]:
    """The model's speed at reading and drawing, and how long its texts are; about a second each."""
    inputs = list(task.train.inputs[:16])
    rows = [LayerInput(x, x) for x in inputs]
    first, last = network.layers[0], network.layers[-1]
    writer = first if isinstance(first, LanguageLayer) else LanguageLayer(first.lm, "think", first.prompt)
    lm = network.layers[0].lm
    writer.sample(Key(0), rows[:1], 0.7)  # the first call warms up
    began = time.perf_counter()
    drawn, count, turn = 0, 0, 0
    while time.perf_counter() - began < 0.5 and turn < 8:
        for draw in writer.sample(Key(0).child("probe", turn), rows, 0.7):
            drawn += len(draw.token_ids or ()) or max(1, lm.count_tokens(draw.text))
            count += 1
        turn += 1
    drawing = drawn / max(1e-9, time.perf_counter() - began)
    contexts = last.contexts(rows)
    began, read, turn = time.perf_counter(), 0, 0
    while time.perf_counter() - began < 0.5 and turn < 1000:
        scored = [f"{turn} {context}" for context in contexts]
        if isinstance(last, ChoiceLayer):
            last.label_log_masses(scored)
        else:
            last.log_prob_contexts(scored, [" yes"] * len(scored))
        read += sum(map(lm.count_tokens, scored))
        turn += 1
    return Speed(read / max(1e-9, time.perf_counter() - began), drawing), drawn / max(1, count)


def _record(cost: Cost) -> dict[str, int]:
    return {
        "calls": round(cost.calls),
        "prompt_tokens": round(cost.prompt_tokens),
        "completion_tokens": round(cost.completion_tokens),
    }


def _table(
    result: Estimate,
    config: RunConfig,
    speed: Speed | None,
    money: Mapping[str, float | None],
    record: Mapping[str, Any],
) -> Table:
    table = Table(title="Estimate", title_justify="left")
    for heading in ("", "calls", "tokens read", "tokens drawn", "US dollars", "time"):
        table.add_column(heading, justify="right" if heading else "left")
    shown: list[tuple[str, Cost, float | None]] = [
        (name, cost, money[name]) for name, cost in result.phases.items() if cost.calls
    ]
    for name, cost, usd in (*shown, ("total", result.total, record["usd"])):
        seconds = assumed_seconds(cost, config) if remote(config.lm.spec) else cost.seconds(speed) if speed else None
        table.add_row(
            name,
            f"{cost.calls:,.0f}",
            f"{cost.prompt_tokens:,.0f}",
            f"{cost.completion_tokens:,.0f}",
            "not known" if usd is None else f"{usd:,.4f}" if usd else "0",
            "–" if seconds is None else duration(seconds),
            style="bold" if name == "total" else None,
        )
    return table
