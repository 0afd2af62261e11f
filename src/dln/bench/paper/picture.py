"""Accuracy against training tokens, one point per method: an SVG that needs nothing else."""

from __future__ import annotations

import math
from html import escape

from dln.bench.paper.summary import Row, Summary

__all__ = ["picture"]

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 40, 52


def picture(summary: Summary) -> str:
    """The mean over tasks (of the one task, where there is one), with its interval; tokens on a logarithmic axis."""
    of = "mean" if len(summary.tasks) > 1 else "".join(summary.tasks)
    rows = [row for method in summary.methods if (row := summary.row(of, method)) is not None]
    most = max((row.train_tokens for row in rows), default=0.0)
    decades = max(3, math.ceil(math.log10(max(most, 1000.0))))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">Test accuracy against training tokens, {_what(summary)}</text>',
    ]
    for percent in range(0, 101, 20):
        y = _down(percent / 100)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{percent} %</text>')
    for decade in range(2, decades + 1):
        x = _across(10.0**decade, decades)
        label = "none" if decade == 2 else f"{10**decade:,}"
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{label}</text>')
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">training tokens per task and seed</text>')
    taken: list[float] = []
    for row in sorted(rows, key=lambda row: -row.accuracy):
        parts.extend(_point(row, len(summary.tasks) if of == "mean" else 1, decades, taken))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _what(summary: Summary) -> str:
    return f"mean of {len(summary.tasks)} tasks" if len(summary.tasks) > 1 else escape("".join(summary.tasks))


def _point(row: Row, tasks: int, decades: int, taken: list[float]) -> list[str]:
    x, y = _across(row.train_tokens / tasks, decades), _down(row.accuracy)
    label = y + 4
    while any(abs(label - other) < 13 for other in taken):  # names are listed at the right, one below the other
        label += 1
    taken.append(label)
    colour = "#1f5fbf" if row.method.startswith("dln") else "#888"
    side = WIDTH - RIGHT + 12
    return [
        f'<line x1="{x}" x2="{x}" y1="{_down(row.low)}" y2="{_down(row.high)}" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>',
        f'<line x1="{x + 5}" x2="{side - 3}" y1="{y}" y2="{label - 4}" stroke="{colour}" stroke-width="0.4"/>',
        f'<text x="{side}" y="{label}" fill="{colour}">{escape(row.method)} {100 * row.accuracy:.1f}</text>',
    ]


def _across(tokens: float, decades: int) -> float:
    """100 tokens and fewer stand for none."""
    share = (math.log10(max(tokens, 100.0)) - 2) / (decades - 2)
    return round(LEFT + 10 + share * (WIDTH - LEFT - RIGHT - 20), 1)


def _down(accuracy: float) -> float:
    return round(HEIGHT - BOTTOM - accuracy * (HEIGHT - TOP - BOTTOM), 1)
