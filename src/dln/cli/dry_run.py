"""`dln train --dry-run`: calls, tokens, money and time, before anything is spent but a second of measuring."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from rich.table import Table

from dln.cli.compose import build_models, build_network, build_task
from dln.cli.config import RunConfig, training_options
from dln.cli.endpoints import price_table, remote, wanted_models
from dln.cli.forecast import LengthOnly, assumed_seconds, dollars, estimate_record
from dln.cli.show import duration, note, out, print_record
from dln.data import Dataset, Task
from dln.keys import Key
from dln.lm.base import LanguageModel
from dln.lm.wrapper import Wrapper
from dln.nn import AnyLayer, ChoiceLayer, Demonstration, LanguageLayer, LayerInput, Prompt, Sequential
from dln.train.estimate import Cost, Estimate, LayerSize, Speed, estimate

__all__ = ["budget_note", "dry_run", "expected", "layer_sizes"]

ASSUMED = "time assumes half a second a call, 50 tokens drawn a second, 16 calls at once"
MARGIN = 1.5
"""An estimate from mean lengths is seldom further off than this."""

SHOWN = 20
"""Examples whose lengths are measured."""


def dry_run(config: RunConfig, *, as_json: bool = False) -> None:
    """Print what a run would cost. A model on a server is not asked; with `as_json` no speed is measured either.

    Raises:
        DlnError: the task, a model or the options cannot be used.
    """
    task = build_task(config)
    with ExitStack() as stack:
        lm, speed, written = _lm(config, stack), None, config.network.hidden_tokens / 2
        network = build_network(config, task, lm)
        if not as_json and not remote(config.lm.spec):
            speed, written = _probe(network, task)
        result, small = expected(config, task, network, written), budget_note(config, task, network)
    record, money = estimate_record(result, config, speed), dollars(result, config)
    if as_json:
        rows = {name: {**_record(cost), "usd": money[name]} for name, cost in result.phases.items()}
        rows["total"] = {**_record(result.total), "usd": record["usd"]}
        print_record({"kind": "estimate", "phases": rows, **{n: record[n] for n in ("usd", "seconds", "tokens_by")}})
        return
    out().print(_table(result, config, speed, money, record))
    note("at most: what the cache knows already is free, and equal requests are asked once")
    if small:
        note(f"note: {small}")
    if remote(config.lm.spec):
        note(f"nothing was asked: tokens are counted as {record['tokens_by']}; {ASSUMED}")
    if record["usd"] is None:
        note(f"the price of {config.lm.spec} or a model beside it is not known: --price MODEL=IN/OUT")


def expected(config: RunConfig, task: Task, network: Sequential, written: float | None = None) -> Estimate:
    """The estimate for a network with its initial prompts; its models' tokens are counted, and nothing is asked.

    Args:
        config: of the run.
        task: with its data.
        network: with its initial prompts.
        written: mean tokens of a hidden text or free answer; default half of the longest.
    """
    return estimate(
        layer_sizes(network, task.train, config.network.hidden_tokens / 2 if written is None else written),
        training_options(config),
        train_size=len(task.train),
        dev_size=len(task.dev),
        test_size=len(task.test) if config.test else 0,
    )


def budget_note(config: RunConfig, task: Task, network: Sequential) -> str | None:
    """What to say of a budget that may end before the first step's prompts are validated; None where it suffices."""
    limits = config.budget
    unlimited = limits.max_tokens is None and limits.max_calls is None and limits.max_usd is None
    if unlimited or training_options(config).steps == 0:
        return None
    first = config.model_copy(update={"options": {**config.options, "steps": 1}, "test": False})
    cost = expected(first, task, network)
    usd = estimate_record(cost, config)["usd"]
    for name, needed, limit, digits in (
        ("tokens", cost.total.tokens, limits.max_tokens, 0),
        ("calls", cost.total.calls, limits.max_calls, 0),
        ("US dollars", usd, limits.max_usd, 2),
    ):
        if limit is not None and needed is not None and MARGIN * needed > limit:
            return (
                f"the budget of {limit:,} {name} may end before the first step and its validation (about "
                f"{needed:,.{digits}f}), and training would then return the prompts it began with; a larger budget "
                "helps, or less work: --set inference.num_prompts=… --set batch_size=… --dev-size …"
            )
    return None


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


def layer_sizes(network: Sequential, dataset: Dataset, written: float) -> list[LayerSize]:
    """Mean sizes of each layer's requests, on examples spread over the data set.

    Args:
        network: with its initial prompts.
        dataset: whose lengths are measured.
        written: tokens of a hidden text or free answer.
    """
    stride = max(1, len(dataset) // SHOWN)
    shown = [dataset[i] for i in range(0, len(dataset), stride)][:SHOWN]
    text = " ".join(["word"] * max(1, round(written)))
    sizes: list[LayerSize] = []
    for position, layer in enumerate(network.layers):
        rows = [LayerInput(e.input, text if position else e.input) for e in shown]
        last = position == len(network) - 1
        outputs = [e.target if last else text for e in shown]
        worked = tuple(Demonstration(r.x, r.h, o) for r, o in zip(rows, outputs, strict=True))
        plain = _mean(layer, layer.contexts(rows))
        with_one = _mean(
            layer,
            [
                layer.with_prompt(Prompt(layer.prompt.instruction, (d,))).contexts([row])[0]
                for d, row in zip(worked, rows, strict=True)
            ],
        )
        bare = _mean(layer, layer.with_prompt(Prompt(layer.prompt.instruction)).contexts(rows))
        choice = isinstance(layer, ChoiceLayer)
        words = [w for label in layer.labels for w in label.split("|")] if isinstance(layer, ChoiceLayer) else []
        sizes.append(
            LayerSize(
                context=plain,
                demonstration=with_one - bare,
                written=written if not choice else _mean(layer, outputs),
                labels=sum(layer.lm.count_tokens(layer.target_prefix + word) for word in words) if choice else None,
                prompt=layer.lm.count_tokens(layer.prompt.instruction),
            )
        )
    return sizes


def _mean(layer: AnyLayer, texts: list[str]) -> float:
    return sum(map(layer.lm.count_tokens, texts)) / len(texts)


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
