"""What a budget means for a run, before it begins: smaller steps where they would not fit, and what is said of that."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from dln.cli.config import RunConfig, training_options
from dln.cli.forecast import estimate_record, expected
from dln.data import Task
from dln.train.afford import affordable, beginning, reduced
from dln.train.estimate import LayerSize
from dln.train.options import Options, dotted_names, merge_options, nested

__all__ = ["within_budget"]

MARGIN = 1.5
"""An estimate from mean lengths is seldom further off than this."""


def within_budget(config: RunConfig, task: Task, sizes: Sequence[LayerSize]) -> tuple[RunConfig, tuple[str, ...]]:
    """The configuration that the budget suffices for, and what to say about it.

    Options that the user has named stay as they are.

    Args:
        config: of the run.
        task: with its data.
        sizes: of the requests of the network that training begins with.
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
    """(Unit, what the run is expected to take, limit, digits to show) of every limit that can be foreseen."""
    cost, limits = expected(config, task, sizes, options), config.budget
    usd = estimate_record(cost, config)["usd"]
    rows = (
        ("tokens", cost.total.tokens, limits.max_tokens, 0),
        ("calls", cost.total.calls, limits.max_calls, 0),
        ("US dollars", usd, limits.max_usd, 2),
    )
    return [(name, cost, limit, digits) for name, cost, limit, digits in rows if limit is not None and cost is not None]


def _said(value: object) -> str:
    return str(value).replace(" ", "")
