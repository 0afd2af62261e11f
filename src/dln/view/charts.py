"""Charts: the line charts of a report, and plots of accuracies as SVG files.

`line_chart` turns numbers into positions and labels; `templates/macros.html.j2` draws them and adds a table of the
values. `scatter` and `plot` return a whole SVG file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from dln.train.events import Event, StepDone, Validated
from dln.train.run import of_kind
from dln.view.format import count, finite, number, percent
from dln.view.summary import cost

__all__ = [
    "Chart",
    "Curve",
    "Dot",
    "Line",
    "Mark",
    "Point",
    "Series",
    "curves",
    "line_chart",
    "plot",
    "scatter",
    "ticks",
]

Show = Callable[[float | None], str]
Position = Callable[[float], float]
Tick = tuple[float, str]
"""Position and label of a mark on an axis."""

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 14, 42


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a step, with the ends of its interval if it has one; None is a gap in the line."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A named curve; `style` is a class of the style sheet."""

    name: str
    style: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Dot:
    """The position of a value, the ends of its whisker, and its tooltip."""

    x: float
    y: float
    low: float | None
    high: float | None
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A drawn curve: `paths` are its unbroken parts as SVG point lists."""

    name: str
    style: str
    paths: tuple[str, ...]
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart and the table of its values."""

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    y_label: str,
    show: Show,
    x_label: str = "step",
    bounds: tuple[float, float] | None = None,
    from_zero: bool = False,
) -> Chart | None:
    """Lay out a chart of `series`; None if no value can be drawn.

    Args:
        name: id, unique on the page.
        title: title of the chart.
        series: the curves.
        y_label: label of the vertical axis, with its unit.
        show: formats a value.
        x_label: label of the horizontal axis.
        bounds: smallest and largest possible value; the vertical axis stays within them.
        from_zero: whether the vertical axis starts at zero.
    """
    kept = tuple(s for s in series if any(finite(p.y) is not None for p in s.points))
    drawn = (finite(value) for s in kept for p in s.points for value in (p.y, p.low, p.high))
    values = [value for value in drawn if value is not None]
    if not values:
        return None
    xs = sorted({p.x for s in kept for p in s.points})
    x_low, x_high = (xs[0], xs[-1]) if xs[0] < xs[-1] else (xs[0] - 0.5, xs[0] + 0.5)
    marks = _vertical(values, bounds, from_zero)
    across, down = _scale(x_low, x_high, LEFT, WIDTH - RIGHT), _scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    steps = [x for x in ticks(x_low, x_high, 6) if x == int(x) and x_low <= x <= x_high] or [xs[0]]
    tables = [{p.x: p for p in s.points} for s in kept]
    return Chart(
        name=name,
        title=title,
        description=_description(kept, show),
        x_label=x_label,
        y_label=y_label,
        x_ticks=tuple((across(x), f"{x:.0f}") for x in steps),
        y_ticks=tuple((down(y), show(y)) for y in marks),
        lines=tuple(_line(s, across, down, show) for s in kept),
        columns=(x_label, *(s.name for s in kept)),
        rows=tuple((f"{x:.0f}", *(_cell(table.get(x), show) for table in tables)) for x in xs),
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return about `most` round numbers that cover low … high, 1, 2 or 5 times a power of ten apart."""
    if not low < high:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    distance = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [round(i * distance, 12) for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Position:
    """The linear map of low … high to the pixels start … end."""
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _vertical(values: Sequence[float], bounds: tuple[float, float] | None, from_zero: bool) -> list[float]:
    """Ticks of the vertical axis; the first and the last one are its ends."""
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - (0.0 if from_zero else margin), high + margin
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
        if low >= high:  # all values are at one end
            low, high = bounds
    return ticks(low, high)


def _line(series: Series, across: Position, down: Position, show: Show) -> Line:
    paths: list[list[str]] = [[]]
    dots: list[Dot] = []
    for point in series.points:
        y, low, high = finite(point.y), finite(point.low), finite(point.high)
        if y is None:
            paths.append([])
            continue
        x = across(point.x)
        paths[-1].append(f"{x},{down(y)}")
        whisker = (None, None) if low is None or high is None else (down(low), down(high))
        dots.append(Dot(x, down(y), *whisker, f"{series.name}, {point.x:.0f}: {_cell(point, show)}"))
    return Line(series.name, series.style, tuple(" ".join(p) for p in paths if len(p) > 1), tuple(dots))


def _cell(point: Point | None, show: Show) -> str:
    if point is None:
        return ""
    if finite(point.y) is None or finite(point.low) is None or finite(point.high) is None:
        return show(point.y)
    return f"{show(point.y)} ({show(point.low)} to {show(point.high)})"


def _description(series: Sequence[Series], show: Show) -> str:
    parts: list[str] = []
    for one in series:
        known = [p for p in one.points if finite(p.y) is not None]
        first, last = known[0], known[-1]
        parts.append(f"{one.name}: {show(first.y)} at {first.x:.0f}, {show(last.y)} at {last.x:.0f}.")
    return " ".join(parts)


def curves(events: Sequence[Event]) -> tuple[Chart, ...]:
    """Return the charts of a run by step: ELBO, accuracy, log-likelihood and tokens; empty ones are left out."""
    done, validated = of_kind(events, StepDone), of_kind(events, Validated)
    elbo = tuple(Point(e.step, finite(e.elbo)) for e in done)
    # a batch is evaluated before its step: the accuracy in step 1 is that of the initial network
    batch = tuple(Point(e.step - 1, finite(e.accuracy)) for e in done)
    results = [(e.step, e.result) for e in validated]
    dev = tuple(Point(step, finite(r.accuracy), finite(r.low), finite(r.high)) for step, r in results)
    likelihood = tuple(Point(step, finite(r.log_likelihood)) for step, r in results)
    name = "Log-likelihood of the dev set"
    charts = (
        line_chart(
            "elbo",
            "ELBO before each step",
            [Series("ELBO of the batch", "main", elbo)],
            y_label="nats per example",
            show=_nats,
        ),
        line_chart(
            "accuracy",
            "Accuracy per step",
            [Series("batch", "side", batch), Series("dev set", "main", dev)],
            x_label="steps done",
            y_label="accuracy",
            show=_share,
            bounds=(0.0, 1.0),
        ),
        line_chart(
            "likelihood",
            name,
            [Series(name.lower(), "main", likelihood)],
            x_label="steps done",
            y_label="nats per example",
            show=_nats,
        ),
        line_chart(
            "tokens",
            "Cumulative tokens",
            [Series("tokens", "main", _tokens(events))],
            y_label="tokens",
            show=_compact,
            from_zero=True,
        ),
    )
    return tuple(chart for chart in charts if chart is not None)


def _tokens(events: Sequence[Event]) -> tuple[Point, ...]:
    """Cumulative tokens; a validation comes after its step and counts towards it."""
    spent: dict[int, float | None] = {}
    total = 0.0
    for row in cost(events).rows:
        if row.step is not None:
            total += row.tokens or 0.0
            spent[row.step] = None if row.tokens is None else total
    return tuple(Point(step, tokens) for step, tokens in sorted(spent.items()))


def _nats(value: float | None) -> str:
    return number(value, 2)


def _share(value: float | None) -> str:
    return percent(value, 0) if value is not None and abs(100 * value - round(100 * value)) < 1e-9 else percent(value)


def _compact(value: float | None) -> str:
    """12.5 k and 3.4 M, so that the axis stays narrow."""
    shown = finite(value)
    if shown is None or abs(shown) < 10_000:
        return count(shown)
    size, unit = (1_000_000, "M") if abs(shown) >= 1_000_000 else (1_000, "k")
    return f"{shown / size:.4g}\u202f{unit}"


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a scatter plot: training tokens, accuracy, and the ends of its interval."""

    name: str
    tokens: float
    accuracy: float
    low: float
    high: float
    highlighted: bool


NAME_HEIGHT = 13
"""Pixels between the names at the right of a scatter plot."""


def scatter(marks: Sequence[Mark], title: str) -> str:
    """Return an SVG of accuracy (in percent) against training tokens (logarithmic); no tokens are at the left end."""
    marks = sorted(marks, key=lambda mark: -mark.accuracy)
    left, right, top = 60, 570, 40
    height = max(420, top + 52 + NAME_HEIGHT * (len(marks) + 2))
    bottom = height - 52
    tokens = [mark.tokens for mark in marks if mark.tokens > 0]
    first = max(1, math.floor(math.log10(min(tokens, default=1000.0))) - 1)
    last = max(first + 2, math.ceil(math.log10(max(tokens, default=1000.0))))
    low = min((math.floor(10 * mark.low) for mark in marks), default=0)
    high = max((math.ceil(10 * mark.high) for mark in marks), default=10)
    high = max(high, low + 1)
    across, down = _scale(first, last, left + 10, right - 10), _scale(low / 10, high / 10, bottom, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f'<rect width="760" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for tenth in range(low, high + 1, 2 if high - low > 5 else 1):
        y = down(tenth / 10)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{10 * tenth} %</text>')
    for decade in range(first, last + 1):
        x, label = across(decade), "none" if decade == first else f"{10**decade:,}"
        parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
        parts.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" stroke="#eee"/>')
    place = f'x="{(left + right) / 2}" y="{height - 12}" text-anchor="middle"'
    parts.append(f"<text {place}>training tokens per task and seed</text>")
    for mark, label in zip(marks, _names([down(mark.accuracy) for mark in marks], bottom), strict=True):
        x, y = across(math.log10(max(mark.tokens, 10.0**first))), down(mark.accuracy)
        colour, side = "#1f5fbf" if mark.highlighted else "#888", right + 12
        parts += [
            f'<line x1="{x}" x2="{x}" y1="{down(mark.low)}" y2="{down(mark.high)}" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>',
            f'<line x1="{x + 5}" x2="{side - 3}" y1="{y}" y2="{label}" stroke="{colour}" stroke-width="0.4"/>',
            f'<text x="{side}" y="{label + 4}" fill="{colour}">{escape(mark.name)} {100 * mark.accuracy:.1f}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line of a plot; its points have ends of intervals or none."""

    name: str
    points: tuple[Point, ...]
    highlighted: bool = False
    dashed: bool = False


COLOURS = ("#888", "#b3622e", "#3c8a4e", "#8a56a8", "#2f8f9d", "#a3324f")
"""Of the curves that are not highlighted, in turn."""


def plot(
    curves: Sequence[Curve],
    title: str,
    x_label: str,
    x_ticks: Sequence[Tick],
    bounds: tuple[float, float] | None = None,
) -> str:
    """Return an SVG of curves of accuracies (in percent).

    Args:
        curves: positions and accuracies, with the ends of their intervals if they have some.
        title: of the plot.
        x_label: label of the horizontal axis.
        x_ticks: positions and labels along it; the first and the last one are its ends.
        bounds: of the vertical axis; default those of the values.
    """
    left, right, top, height = 60, 540, 40, 420
    bottom = height - 52
    drawn = [finite(v) for c in curves for p in c.points for v in (p.y, p.low, p.high)]
    values = [value for value in drawn if value is not None]
    marks = _vertical(values or [0.0, 1.0], (0.0, 1.0), False) if bounds is None else ticks(*bounds)
    across = _scale(x_ticks[0][0], x_ticks[-1][0] + 1e-9, left + 10, right - 10)
    down = _scale(marks[0], marks[-1], bottom, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f'<rect width="760" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="14">{escape(title)}</text>',
        f'<text x="{(left + right) / 2}" y="{height - 12}" text-anchor="middle">{escape(x_label)}</text>',
    ]
    for mark in marks:
        parts.append(f'<line x1="{left}" x2="{right}" y1="{down(mark)}" y2="{down(mark)}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{down(mark) + 4}" text-anchor="end">{_share(mark)}</text>')
    for position, label in x_ticks:
        parts.append(f'<text x="{across(position)}" y="{bottom + 20}" text-anchor="middle">{escape(label)}</text>')
    ordered = sorted((c for c in curves if c.points), key=lambda curve: -(finite(curve.points[-1].y) or 0.0))
    ends = _names([down(finite(curve.points[-1].y) or 0.0) for curve in ordered], bottom)
    for index, (curve, name_y) in enumerate(zip(ordered, ends, strict=True)):
        colour = "#1f5fbf" if curve.highlighted else COLOURS[index % len(COLOURS)]
        known = [(across(p.x), down(p.y), p) for p in curve.points if p.y is not None]
        path = " ".join(f"{x},{y}" for x, y, _ in known)
        dashes = ' stroke-dasharray="4 4"' if curve.dashed else ""
        width = 2.5 if curve.highlighted else 1.5
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>')
        for x, y, p in known if not curve.dashed else ():
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
            if p.low is not None and p.high is not None:
                ends_of = f'y1="{down(p.low)}" y2="{down(p.high)}"'
                parts.append(f'<line x1="{x}" x2="{x}" {ends_of} stroke="{colour}" stroke-opacity="0.5"/>')
        parts.append(f'<text x="{right + 12}" y="{name_y + 4}" fill="{colour}">{escape(curve.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _names(wanted: Sequence[float], bottom: float) -> list[float]:
    """Heights of the names, none overlapping another and none below `bottom`; `wanted` goes downwards."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + NAME_HEIGHT) if placed else y)
    for i in range(len(placed) - 1, -1, -1):
        most = bottom if i == len(placed) - 1 else placed[i + 1] - NAME_HEIGHT
        placed[i] = min(placed[i], most)
    return placed
