"""The curves of a run: ELBO, accuracies and tokens by step."""

from __future__ import annotations

from collections.abc import Sequence

from dln.train.event_log import of_kind
from dln.train.events import Event, StepDone, Validated
from dln.view.charts import Chart, Point, Series, line_chart
from dln.view.cost import cost
from dln.view.numbers import count, finite, number, percent

__all__ = ["curves"]


def curves(events: Sequence[Event]) -> tuple[Chart, ...]:
    """The charts that have something to show."""
    done, validated = of_kind(events, StepDone), of_kind(events, Validated)
    elbo = Series("ELBO of the batch", "main", tuple(Point(e.step, finite(e.elbo)) for e in done))
    # a batch is measured before its step: the accuracy in step 1 is the initial network's
    batch = Series("batch", "side", tuple(Point(e.step - 1, finite(e.accuracy)) for e in done))
    dev = Series(
        "dev set",
        "main",
        tuple(Point(e.step, finite(e.result.accuracy), finite(e.result.low), finite(e.result.high)) for e in validated),
    )
    likelihood = Series(
        "log-likelihood of the dev set",
        "main",
        tuple(Point(e.step, finite(e.result.log_likelihood)) for e in validated),
    )
    charts = (
        line_chart("elbo", "ELBO before each step", [elbo], y_label="nats per example", show=_nats),
        line_chart(
            "accuracy",
            "Accuracy after so many steps",
            [batch, dev],
            x_label="steps done",
            y_label="accuracy",
            show=_share,
            bounds=(0.0, 1.0),
        ),
        line_chart(
            "likelihood",
            "Log-likelihood of the dev set",
            [likelihood],
            x_label="steps done",
            y_label="nats per example",
            show=_nats,
        ),
        line_chart("tokens", "Tokens used so far", [_tokens(events)], y_label="tokens", show=_compact, from_zero=True),
    )
    return tuple(chart for chart in charts if chart is not None)


def _tokens(events: Sequence[Event]) -> Series:
    """The newest sum at each step: validations come after the step they measure."""
    spent: dict[int, float | None] = {}
    total = 0.0
    for row in cost(events).rows:
        if row.step is not None:
            total += row.tokens or 0.0
            spent[row.step] = None if row.tokens is None else total
    return Series("tokens", "main", tuple(Point(step, tokens) for step, tokens in sorted(spent.items())))


def _nats(value: float | None) -> str:
    return number(value, 2)


def _share(value: float | None) -> str:
    return percent(value, 0) if value is not None and abs(100 * value - round(100 * value)) < 1e-9 else percent(value)


def _compact(value: float | None) -> str:
    """12.5 k and 3.4 M, so that an axis stays narrow."""
    shown = finite(value)
    if shown is None or abs(shown) < 10_000:
        return count(shown)
    size, unit = (1_000_000, "M") if abs(shown) >= 1_000_000 else (1_000, "k")
    return f"{shown / size:.4g}\u202f{unit}"
