"""Accuracy against training tokens, one point per method: an SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dln.bench.paper.summary import Row, Summary

__all__ = ["picture"]

WIDTH, LEAST = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 40, 52
LINE = 13
"""Pixels between the names at the right."""


@dataclass(frozen=True)
class Axes:
    """Where numbers lie, in pixels.

    Args:
        height: of the whole picture.
        low: accuracy at the bottom.
        high: accuracy at the top.
        first: decade of tokens at the left; everything below stands for none.
        last: decade at the right.
    """

    height: int
    low: float
    high: float
    first: int
    last: int

    def across(self, tokens: float) -> float:
        """Logarithmic."""
        share = (math.log10(max(tokens, 10.0**self.first)) - self.first) / (self.last - self.first)
        return round(LEFT + 10 + share * (WIDTH - LEFT - RIGHT - 20), 1)

    def down(self, accuracy: float) -> float:
        """Linear."""
        share = (accuracy - self.low) / (self.high - self.low)
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)


def picture(summary: Summary, title: str = "Test accuracy") -> str:
    """The mean over tasks (of the one task, where there is one), with its interval; tokens on a logarithmic axis."""
    rows = [row for method in summary.methods if (row := summary.overall(method)) is not None]
    rows.sort(key=lambda row: -row.accuracy)
    count = max(1, len(summary.tasks))
    axes = _axes(rows, count)
    bottom = axes.height - BOTTOM
    what = f"mean of {count} tasks" if count > 1 else "".join(summary.tasks)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {axes.height}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f'<rect width="{WIDTH}" height="{axes.height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)} against training tokens, {escape(what)}</text>',
    ]
    step = 20 if axes.high - axes.low > 0.5 else 10
    for percent in range(round(100 * axes.low), round(100 * axes.high) + 1, step):
        y = axes.down(percent / 100)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{percent} %</text>')
    for decade in range(axes.first, axes.last + 1):
        x = axes.across(10.0**decade)
        label = "none" if decade == axes.first else f"{10**decade:,}"
        parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="#eee"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    below = f'x="{middle}" y="{axes.height - 12}" text-anchor="middle"'
    parts.append(f"<text {below}>training tokens per task and seed</text>")
    for row, label in zip(rows, _labels([axes.down(row.accuracy) for row in rows], bottom), strict=True):
        parts.extend(_point(row, count, axes, label))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(rows: Sequence[Row], tasks: int) -> Axes:
    """As much of the plane as the points need, in tens of percent and whole decades."""
    low = min((math.floor(10 * row.low) for row in rows), default=0) / 10
    high = max((math.ceil(10 * row.high) for row in rows), default=10) / 10
    tokens = [row.train_tokens / tasks for row in rows if row.train_tokens > 0]
    first = max(1, math.floor(math.log10(min(tokens, default=1000.0))) - 1)
    last = max(first + 2, math.ceil(math.log10(max(tokens, default=1000.0))))
    height = max(LEAST, TOP + BOTTOM + LINE * (len(rows) + 2))
    return Axes(height, low, max(high, low + 0.1), first, last)


def _labels(wanted: Sequence[float], bottom: float) -> list[float]:
    """Heights of the names at the right, one below the other and none below the plane; `wanted` goes downwards."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + LINE) if placed else y)
    for i in range(len(placed) - 1, -1, -1):
        most = bottom if i == len(placed) - 1 else placed[i + 1] - LINE
        placed[i] = min(placed[i], most)
    return placed


def _point(row: Row, tasks: int, axes: Axes, label: float) -> list[str]:
    x, y = axes.across(row.train_tokens / tasks), axes.down(row.accuracy)
    colour = "#1f5fbf" if row.method.startswith(("dln", "base")) else "#888"
    side = WIDTH - RIGHT + 12
    top, low = axes.down(row.high), axes.down(row.low)
    return [
        f'<line x1="{x}" x2="{x}" y1="{low}" y2="{top}" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>',
        f'<line x1="{x + 5}" x2="{side - 3}" y1="{y}" y2="{label}" stroke="{colour}" stroke-width="0.4"/>',
        f'<text x="{side}" y="{label + 4}" fill="{colour}">{escape(row.method)} {100 * row.accuracy:.1f}</text>',
    ]
