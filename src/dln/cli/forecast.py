"""What a run is expected to use: calls, tokens, money and time, from the data and without a call to a server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from dln.cli.config import RunConfig, training_options
from dln.cli.endpoints import price_table, remote, wanted_models
from dln.data import Task
from dln.errors import InputError
from dln.lm.base import Capabilities, Completion, Sampling, Target, TokenLogProbs
from dln.lm.prices import Quote
from dln.numerics import Floats
from dln.train.estimate import Cost, Estimate, LayerSize, Speed, estimate
from dln.train.options import Options

__all__ = ["CHARACTERS", "LengthOnly", "assumed_seconds", "counted_by", "dollars", "estimate_record", "expected"]

CHARACTERS = 4
"""Of a token, where nobody can be asked."""

CALL_SECONDS, TOKEN_SECONDS, AT_ONCE = 0.5, 0.02, 16
"""Assumed of a server that is not asked: a call's latency, the time of a drawn token, calls in flight."""


class LengthOnly:
    """Stands for a model on a server where only lengths matter: asks nothing, four characters are a token."""

    def __init__(self, spec: str) -> None:
        self._spec = spec

    @property
    def name(self) -> str:
        """The model's name."""
        return self._spec

    @property
    def capabilities(self) -> Capabilities:
        """As of a server that can do everything."""
        return Capabilities(True, True, False, self._spec.endswith(":chat"), None)

    def fingerprint(self) -> str:
        """Nobody was asked which model it is."""
        return f"length-only:{self._spec}"

    def count_tokens(self, text: str) -> int:
        """Characters / 4, rounded up."""
        return math.ceil(len(text) / CHARACTERS)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Nothing is asked before a run."""
        self._refuse()

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """Nothing is asked before a run."""
        self._refuse()

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """Nothing is asked before a run."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError("a model on a server is not asked before the run", where=self._spec)


def counted_by(spec: str) -> str:
    """How tokens are counted, in words."""
    return f"{CHARACTERS} characters a token" if remote(spec) else "the model's tokenizer"


def assumed_seconds(cost: Cost, config: RunConfig) -> float:
    """Time on a server that is not asked: half a second a call, 50 tokens a second, 16 calls at once at most."""
    at_once = min(AT_ONCE, int(config.lm.options.get("max_concurrency", AT_ONCE)))
    return (cost.calls * CALL_SECONDS + cost.completion_tokens * TOKEN_SECONDS) / max(1, at_once)


def dollars(result: Estimate, config: RunConfig) -> dict[str, float | None]:
    """US dollars by phase; the proposals are those of the proposing model. None where a price is not known."""
    table = price_table(config.lm)
    quotes: Mapping[str, Quote | None] = {w.purpose: table.find(w.spec) for w in wanted_models(config.lm)}
    found: dict[str, float | None] = {}
    for name, cost in result.phases.items():
        purpose = "prompts" if name == "proposals" and "prompts" in quotes else "layers"
        quote = quotes[purpose]
        found[name] = None if quote is None else quote.price.usd(cost.prompt_tokens, cost.completion_tokens)
    return found


def estimate_record(result: Estimate, config: RunConfig, speed: Speed | None = None) -> dict[str, Any]:
    """The estimate of a whole run as plain data, as run.yaml and the first event keep it."""
    money, total = dollars(result, config), result.total
    known = [value for value in money.values() if value is not None]
    seconds = assumed_seconds(total, config) if remote(config.lm.spec) else total.seconds(speed) if speed else None
    return {
        "calls": round(total.calls),
        "prompt_tokens": round(total.prompt_tokens),
        "completion_tokens": round(total.completion_tokens),
        "usd": sum(known) if len(known) == len(money) else None,
        "seconds": seconds,
        "tokens_by": counted_by(config.lm.spec),
    }


def expected(config: RunConfig, task: Task, sizes: Sequence[LayerSize], options: Options | None = None) -> Estimate:
    """The estimate for a network whose requests have these sizes; nothing is asked.

    Args:
        config: of the run.
        task: with its data.
        sizes: of the requests, first layer to last (`layer_sizes`).
        options: of training; default those of `config`.
    """
    return estimate(
        sizes,
        options or training_options(config),
        train_size=len(task.train),
        dev_size=len(task.dev),
        test_size=len(task.test) if config.test else 0,
    )
