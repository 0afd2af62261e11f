"""The geometry of line charts: pure numbers in, positions and labels out; a template draws them as SVG.

The curves of a run: ELBO, accuracies and tokens by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dln.train.events import Event, StepDone, Validated
from dln.train.run import of_kind
from dln.view.format import count, finite, number, percent
from dln.view.summary import cost

__all__ = ["Chart", "Dot", "Line", "Point", "Series", "Tick", "curves", "line_chart", "ticks"]

Show = Callable[[float | None], str]
Position = Callable[[float], float]

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 14, 42


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a step, with the ends of its interval where it has one; None is a gap in the line."""

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
class Tick:
    """A mark of an axis."""

    position: float
    label: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A drawn value with the ends of its whisker and the text that says what it is."""

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
    """A chart with everything that its drawing and its table need."""

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
    """A chart of `series`, or None where there is no value to draw.

    Args:
        name: an id, unique on the page.
        title: what it shows.
        series: the curves.
        y_label: what the vertical axis is, with its unit.
        show: writes a value.
        x_label: what the horizontal axis is.
        bounds: what values can be at all; the axis never leaves it.
        from_zero: whether the vertical axis begins at zero.
    """
    kept = tuple(s for s in series if any(finite(p.y) is not None for p in s.points))
    drawn = (finite(value) for s in kept for p in s.points for value in (p.y, p.low, p.high))
    values = [value for value in drawn if value is not None]
    if not values:
        return None
    xs = sorted({p.x for s in kept for p in s.points})
    x_low, x_high = (xs[0], xs[-1]) if xs[0] < xs[-1] else (xs[0] - 0.5, xs[0] + 0.5)
    marks, y_low, y_high = _vertical(values, bounds, from_zero)

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    steps = [x for x in ticks(x_low, x_high, 6) if x == int(x) and x_low <= x <= x_high] or [xs[0]]
    return Chart(
        name=name,
        title=title,
        description=_description(kept, show),
        x_label=x_label,
        y_label=y_label,
        x_ticks=tuple(Tick(across(x), f"{x:.0f}") for x in steps),
        y_ticks=tuple(Tick(down(y), show(y)) for y in marks),
        lines=tuple(_line(s, across, down, show) for s in kept),
        columns=(x_label, *(s.name for s in kept)),
        rows=_rows(xs, kept, show),
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover low … high, about `most` of them, at distances 1, 2 or 5 times a power of ten."""
    if not low < high:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    distance = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [round(i * distance, 12) for i in range(first, last + 1)]


def _vertical(
    values: Sequence[float], bounds: tuple[float, float] | None, from_zero: bool
) -> tuple[list[float], float, float]:
    """Ticks and ends of the vertical axis."""
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        low, high = low - (0.0 if from_zero else room), high + room
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
        if low >= high:  # all values at one end
            low, high = bounds
    marks = ticks(low, high)
    return marks, marks[0], marks[-1]


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
        label = f"{series.name}, {point.x:.0f}: {show(y)}"
        whisker = (None, None) if low is None or high is None else (down(low), down(high))
        if low is not None and high is not None:
            label += f" ({show(low)} to {show(high)})"
        dots.append(Dot(x, down(y), *whisker, label))
    return Line(series.name, series.style, tuple(" ".join(p) for p in paths if len(p) > 1), tuple(dots))


def _rows(xs: Sequence[float], series: Sequence[Series], show: Show) -> tuple[tuple[str, ...], ...]:
    tables = [{p.x: p for p in s.points} for s in series]
    return tuple((f"{x:.0f}", *(_cell(table.get(x), show) for table in tables)) for x in xs)


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
