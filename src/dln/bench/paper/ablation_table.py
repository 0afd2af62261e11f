"""The table of an ablation: what every change of the base does to accuracy, likelihood and cost."""

from __future__ import annotations

from collections.abc import Mapping

from dln.bench.paper.comparison import ALL, Comparison
from dln.bench.paper.markdown import accuracy, count, difference, nats, p_text, points, table
from dln.bench.paper.summary import Row, Summary
from dln.bench.paper.variants import BASE
from dln.bench.paper.write import examples_line

__all__ = ["ablation_markdown", "frontier"]


def ablation_markdown(summary: Summary, abouts: Mapping[str, str]) -> str:
    """One row per variant, then accuracies task by task, then what is more than noise.

    Args:
        summary: with `BASE` among the methods, and every other one compared with it.
        abouts: what each variant changes.
    """
    base = summary.overall(BASE)
    best = frontier(summary)
    against = {c.after: c for c in summary.comparisons if c.task == (ALL if len(summary.tasks) > 1 else c.task)}
    rows = [_row(summary, name, base, against.get(name), name in best, abouts) for name in summary.methods]
    heads = (
        *("variant", "accuracy", "points [95 %]", "p", "log p(y|x)", "nats [95 %]"),
        *("training tokens", "× base", "seconds", "what is changed"),
    )
    parts = [
        "Train and dev examples only: one half of the dev set selects, the other half judges. Accuracy in percent on "
        "the half that judges: mean over seeds ± half of its 95 % interval. Points, p and nats are the paired "
        f"difference to *{BASE}* on the same examples. Tokens and seconds are those of training per task and seed. "
        "\\* No other variant has a higher log p(y|x) for as few training tokens.",
        table(heads, rows),
        examples_line(summary),
    ]
    if len(summary.tasks) > 1:
        heads = ("variant", *summary.columns)
        single = [(m, *(accuracy(summary.row(t, m)) for t in summary.columns)) for m in summary.methods]
        parts += ["Task by task.", table(heads, single)]
    return "\n\n".join([*parts, _verdict(against)]) + "\n"


def frontier(summary: Summary) -> set[str]:
    """Variants that none beats in likelihood at as few training tokens (in accuracy where there is no likelihood)."""
    rows = [row for name in summary.methods if (row := summary.overall(name)) is not None]
    known = all(row.log_likelihood is not None for row in rows)

    def gain(row: Row) -> float:
        return row.log_likelihood if known and row.log_likelihood is not None else row.accuracy

    return {
        row.method
        for row in rows
        if not any(
            gain(other) >= gain(row)
            and other.train_tokens <= row.train_tokens
            and (gain(other), -other.train_tokens) != (gain(row), -row.train_tokens)
            for other in rows
        )
    }


def _row(
    summary: Summary,
    name: str,
    base: Row | None,
    found: Comparison | None,
    best: bool,
    abouts: Mapping[str, str],
) -> tuple[str, ...]:
    row, tasks = summary.overall(name), len(summary.tasks)
    if row is None:
        return (name, *[""] * 8, f"{abouts.get(name, '')} (not on every task)")
    times = f"{row.train_tokens / base.train_tokens:.2f}" if base is not None and base.train_tokens else ""
    return (
        f"{name} \\*" if best else name,
        accuracy(row),
        "" if found is None else points(found.result.difference),
        "" if found is None else p_text(found.result.p_value),
        nats(row.log_likelihood),
        "" if found is None else difference(found.log_likelihood),
        count(row.train_tokens / tasks),
        times,
        count(row.train_seconds / tasks),
        abouts.get(name, ""),
    )


def _verdict(against: Mapping[str, Comparison]) -> str:
    """Which changes are more than noise, in plain words."""
    better, worse = ([name for name, c in against.items() if _side(c) == side] for side in (1, -1))
    return (
        f"Better than *{BASE}* by more than noise: {', '.join(better) or 'none'}. "
        f"Worse by more than noise: {', '.join(worse) or 'none'}. "
        "What is more than noise is read from the 95 % interval of the difference in nats (in points where there are "
        f"no nats); with {len(against)} variants about {len(against) / 20:.1g} of these would be outside by chance."
    )


def _side(comparison: Comparison) -> int:
    found = comparison.log_likelihood or comparison.result.difference
    return 1 if found.low > 0 else -1 if found.high < 0 else 0
