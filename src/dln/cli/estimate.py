"""Estimates of a run before it starts: calls, tokens, money and time, without a request to a server.

`dln train --dry-run` prints the estimate. A run with a budget is made smaller where the budget would end it before
its first validation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from shlex import quote
from typing import Any, Protocol, runtime_checkable

from rich.table import Table

from dln.cli.build import build_network, build_task
from dln.cli.config import RunConfig, training_options
from dln.cli.models import CHARACTERS, LengthOnly, build_models, price_table, remote, wanted_models
from dln.cli.output import duration, note, out, print_record
from dln.data import Task
from dln.lm.base import LanguageModel, Wrapper
from dln.lm.prices import Quote
from dln.nn import LanguageLayer, LayerInput, Sequential
from dln.random import Key
from dln.train.estimate import Cost, Estimate, LayerSize, Speed, affordable, beginning, estimate, layer_sizes, reduced
from dln.train.options import Options, dotted_names, merge_options, nested

__all__ = [
    "Expected",
    "assumed_seconds",
    "both",
    "counted_by",
    "dollars",
    "dry_run",
    "estimate_record",
    "expected",
    "within_budget",
]


@runtime_checkable
class Diagnosed(Protocol):
    """An engine that counts the tokens it evaluates."""

    @property
    def diagnostics(self) -> Mapping[str, int]:
        """Counts since loading."""
        ...


CALL_SECONDS, TOKEN_SECONDS, AT_ONCE = 0.5, 0.02, 16
"""Assumptions about servers: seconds per call, seconds per generated token, concurrent calls."""


def counted_by(spec: str) -> str:
    """Return how the tokens of a model are counted, in words."""
    return f"{CHARACTERS} characters a token" if remote(spec) else "the model's tokenizer"


def assumed_seconds(cost: Cost, config: RunConfig) -> float:
    """Seconds on a server, assuming 0.5 s per call, 50 generated tokens per second and at most 16 concurrent calls."""
    at_once = min(AT_ONCE, int(config.lm.options.get("max_concurrency", AT_ONCE)))
    return (cost.calls * CALL_SECONDS + cost.completion_tokens * TOKEN_SECONDS) / max(1, at_once)


def dollars(result: Estimate, config: RunConfig) -> dict[str, float | None]:
    """US dollars by phase, proposals at the price of the prompt model; None where a price is unknown."""
    table = price_table(config.lm)
    quotes: Mapping[str, Quote | None] = {w.purpose: table.find(w.spec) for w in wanted_models(config.lm)}
    found: dict[str, float | None] = {}
    for name, cost in result.phases.items():
        purpose = "prompts" if name == "proposals" and "prompts" in quotes else "layers"
        quote = quotes[purpose]
        found[name] = None if quote is None else quote.price.usd(cost.prompt_tokens, cost.completion_tokens)
    return found


@dataclass(frozen=True, slots=True)
class Expected:
    """The likely cost of a run, and an upper bound."""

    likely: Estimate
    most: Estimate


def estimate_record(result: Expected, config: RunConfig, speed: Speed | None = None) -> dict[str, Any]:
    """Return the estimate of a whole run as plain data, as written to run.yaml and the first event."""
    return {
        **_amounts(result.likely, config, speed),
        "at_most": _amounts(result.most, config, speed),
        "tokens_by": counted_by(config.lm.spec),
    }


def _amounts(result: Estimate, config: RunConfig, speed: Speed | None) -> dict[str, Any]:
    """The totals of an estimate; money and time are None where they are not known."""
    money, total = dollars(result, config), result.total
    known = [value for value in money.values() if value is not None]
    return {
        **_record(total),
        "usd": sum(known) if len(known) == len(money) else None,
        "seconds": _seconds(total, config, speed),
    }


def _seconds(cost: Cost, config: RunConfig, speed: Speed | None) -> float | None:
    if remote(config.lm.spec):
        return assumed_seconds(cost, config)
    return None if speed is None else cost.seconds(speed)


def expected(
    config: RunConfig, task: Task, sizes: Sequence[LayerSize], options: Options | None = None, *, most: bool = False
) -> Estimate:
    """Estimate the cost of training and testing a network whose requests have these sizes.

    Args:
        config: configuration of the run.
        task: the task with its data.
        sizes: sizes of the requests, first layer to last (`layer_sizes`).
        options: training options; default those of `config`.
        most: an upper bound from the largest sizes, in place of the likely cost from mean ones.
    """
    return estimate(
        sizes,
        options or training_options(config),
        train_size=len(task.train),
        dev_size=len(task.dev),
        test_size=len(task.test) if config.test else 0,
        most=most,
    )


def both(config: RunConfig, task: Task, network: Sequential, written: float | None = None) -> Expected:
    """The likely cost of a run and an upper bound.

    Args:
        config: configuration of the run.
        task: the task with its data.
        network: with its initial prompts.
        written: mean tokens of the texts that hidden layers write, where it has been measured.
    """
    likely = expected(config, task, layer_sizes(network, task.train, written))
    return Expected(likely, expected(config, task, layer_sizes(network, task.train, most=True), most=True))


MARGIN = 1.5
"""Factor by which an estimate from mean lengths is rarely exceeded."""


def within_budget(config: RunConfig, task: Task, sizes: Sequence[LayerSize]) -> tuple[RunConfig, tuple[str, ...]]:
    """Reduce the options of a run so that its budget lasts to the first validation.

    Options set by the user are kept.

    Args:
        config: configuration of the run.
        task: the task with its data.
        sizes: sizes of the requests of the initial network.

    Returns:
        the reduced configuration, and notes for the user.
    """
    limits, wanted = config.budget, training_options(config)
    if (limits.max_tokens, limits.max_calls, limits.max_usd) == (None, None, None) or wanted.steps == 0:
        return config, ()

    def needed(options: Options) -> list[tuple[str, float, float, int]]:
        return _needed(config.model_copy(update={"test": False}), options, task, sizes)

    def fits(options: Options) -> bool:
        return all(cost <= limit for _, cost, limit, _ in needed(options))

    chosen = affordable(wanted, fits, keep=dotted_names(config.options))
    notes: list[str] = []
    if changes := reduced(wanted, chosen):
        told = ", ".join(
            f"{name} {_said(after)} instead of {_said(before)}" for name, (before, after) in changes.items()
        )
        insist = " ".join(f"--set {quote(f'{name}={_said(before)}')}" for name, (before, _) in changes.items())
        notes.append(f"so that the budget lasts to the first validation: {told}; to insist: {insist}")
    for name, cost, limit, digits in needed(beginning(chosen)):
        if MARGIN * cost > limit:
            notes.append(
                f"the budget of {limit:,} {name} may end before the first validation (about {cost:,.{digits}f}), and "
                "training would then return the prompts it began with; a larger budget helps, or less work: "
                "--set inference.num_prompts=… --set batch_size=… --dev-size …"
            )
            break
    smaller = nested({name: after for name, (_, after) in changes.items()})
    return config.model_copy(update={"options": merge_options(config.options, smaller)}), tuple(notes)


def _needed(
    config: RunConfig, options: Options, task: Task, sizes: Sequence[LayerSize]
) -> list[tuple[str, float, float, int]]:
    """Return (unit, expected use, limit, digits to show) of every limit with an estimate."""
    cost, limits = expected(config, task, sizes, options), config.budget
    usd = _amounts(cost, config, None)["usd"]
    rows = (
        ("tokens", cost.total.tokens, limits.max_tokens, 0),
        ("calls", cost.total.calls, limits.max_calls, 0),
        ("US dollars", usd, limits.max_usd, 2),
    )
    return [(name, cost, limit, digits) for name, cost, limit, digits in rows if limit is not None and cost is not None]


def _said(value: object) -> str:
    return str(value).replace(" ", "")


ASSUMED = "time assumes half a second a call, 50 tokens drawn a second, 16 calls at once"


def dry_run(config: RunConfig, *, as_json: bool = False) -> None:
    """Print the estimated cost of a run, without a request to a server; with `as_json` no speed is measured either.

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
        result = both(config, task, network, written)
    record, money = estimate_record(result, config, speed), dollars(result.likely, config)
    if as_json:
        rows = {name: {**_record(cost), "usd": money[name]} for name, cost in result.likely.phases.items()}
        rows["total"] = {**_record(result.likely.total), "usd": record["usd"]}
        rest = {n: record[n] for n in ("usd", "seconds", "at_most", "tokens_by")}
        print_record({"kind": "estimate", "phases": rows, **rest})
        return
    out().print(_table(result, config, speed, money, record))
    note(
        "phases and total: likely, for the mean lengths of the data; at most: for the longest rows and texts, and with "
        "every candidate scored to the end; cached and duplicate requests are free"
    )
    if speed is not None and speed.shares:
        total = result.likely.total
        note(
            f"time follows {total.evaluated:,.0f} of the {total.prompt_tokens:,.0f} tokens read: a prompt that several "
            "requests share is evaluated once"
        )
    for text in notes:
        note(f"note: {text}")
    if remote(config.lm.spec):
        note(f"no request was sent: tokens are counted as {record['tokens_by']}; {ASSUMED}")
    if record["usd"] is None:
        note(f"the price of {config.lm.spec} or a model beside it is not known: --price MODEL=IN/OUT")


def _lm(config: RunConfig, stack: ExitStack) -> LanguageModel:
    """Load the model without cache and meter; for a server return a model that only counts tokens."""
    if remote(config.lm.spec):
        wanted_models(config.lm)  # a missing variable or model is an error here too
        if config.budget.max_usd is not None:
            price_table(config.lm).needed(config.lm.spec)
        return LengthOnly(config.lm.spec)
    changes = {"cache": False, "prompt_lm": None, "hidden_lm": None}
    models = build_models(config.model_copy(update={"lm": config.lm.model_copy(update=changes)}), stack)
    return models.lm.unwrapped if isinstance(models.lm, Wrapper) else models.lm


def _probe(network: Sequential, task: Task) -> tuple[Speed, float]:
    """Measure the speeds of scoring and generation and the mean length of the texts, for half a second each."""
    inputs = list(task.train.inputs[:16])
    rows = [LayerInput(x, x) for x in inputs]
    first, last = network.prompted[0], network.prompted[-1]
    writer = first.writer or LanguageLayer(first.lm, "think", first.prompt)
    lm = first.lm
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
    before = _fed(lm)
    began, read, turn = time.perf_counter(), 0, 0
    while time.perf_counter() - began < 0.5 and turn < 1000:
        scored = [f"{turn} {context}" for context in contexts]
        if last.classifier is not None:
            last.classifier.label_log_masses(scored)
        else:
            lm.log_prob(scored, [" yes"] * len(scored))
        read += sum(map(lm.count_tokens, scored))
        turn += 1
    seconds, after = max(1e-9, time.perf_counter() - began), _fed(lm)
    shares = before is not None and after is not None and after - before < 0.9 * read
    evaluated = after - before if shares and after is not None and before is not None else read
    return Speed(evaluated / seconds, drawing, shares), drawn / max(1, count)


def _fed(lm: LanguageModel) -> int | None:
    """Tokens that an engine in this process has evaluated so far; None where it does not count them."""
    return lm.diagnostics["tokens"] if isinstance(lm, Diagnosed) else None


def _record(cost: Cost) -> dict[str, int]:
    return {
        "calls": round(cost.calls),
        "prompt_tokens": round(cost.prompt_tokens),
        "completion_tokens": round(cost.completion_tokens),
    }


def _table(
    result: Expected,
    config: RunConfig,
    speed: Speed | None,
    money: Mapping[str, float | None],
    record: Mapping[str, Any],
) -> Table:
    table = Table(title="Estimate", title_justify="left")
    for heading in ("", "calls", "tokens read", "tokens drawn", "US dollars", "time"):
        table.add_column(heading, justify="right" if heading else "left")
    shown: list[tuple[str, Cost, float | None]] = [
        (name, cost, money[name]) for name, cost in result.likely.phases.items() if cost.calls
    ]
    shown.append(("total", result.likely.total, record["usd"]))
    shown.append(("at most", result.most.total, record["at_most"]["usd"]))
    for name, cost, usd in shown:
        seconds = _seconds(cost, config, speed)
        table.add_row(
            name,
            f"{cost.calls:,.0f}",
            f"{cost.prompt_tokens:,.0f}",
            f"{cost.completion_tokens:,.0f}",
            "not known" if usd is None else f"{usd:,.4f}" if usd else "0",
            "–" if seconds is None else duration(seconds),
            style="bold" if name == "total" else "dim" if name == "at most" else None,
        )
    return table
