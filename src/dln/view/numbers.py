"""Numbers as people read them. What is missing or not finite is a dash, never a zero."""

from __future__ import annotations

import math
from datetime import UTC, datetime

__all__ = ["MISSING", "count", "date", "duration", "finite", "interval", "number", "p_value", "percent", "points"]

MISSING = "—"
_THIN = "\u202f"  # narrow and not broken at the end of a line


def finite(value: float | None) -> float | None:
    """`value`, or None where it is NaN or infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def number(value: float | None, digits: int = 3) -> str:
    """With a true minus sign.

    >>> number(-1.5), number(float("nan"))
    ('−1.500', '—')
    """
    shown = finite(value)
    if shown is None:
        return MISSING
    text = f"{shown:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")  # a rounded −0.0001 is no negative zero
    return text.replace("-", "−")


def count(value: float | None) -> str:
    """A whole number in groups of three digits."""
    shown = finite(value)
    return MISSING if shown is None else f"{round(shown):,}".replace(",", _THIN).replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A part of one in percent."""
    shown = finite(value)
    return MISSING if shown is None else f"{number(100 * shown, digits)}{_THIN}%"


def points(value: float | None) -> str:
    """A difference of two parts of one, in percentage points and with its sign."""
    shown = finite(value)
    return MISSING if shown is None else f"{'+' if shown > 0 else ''}{number(100 * shown, 1)}"


def interval(low: float | None, high: float | None) -> str:
    """Two ends in percent; nothing is known where one of them is missing."""
    if finite(low) is None or finite(high) is None:
        return MISSING
    return f"{percent(low)} to {percent(high)}"


def p_value(value: float | None) -> str:
    """With its relation sign.

    >>> p_value(0.0000123), p_value(0.0456)
    ('< 0.0001', '= 0.0456')
    """
    shown = finite(value)
    if shown is None:
        return MISSING
    return "< 0.0001" if shown < 0.0001 else f"= {shown:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds in the units that fit.

    >>> duration(4.25), duration(245), duration(7260)
    ('4.2 s', '4 min 05 s', '2 h 01 min')
    """
    shown = finite(seconds)
    if shown is None:
        return MISSING
    if shown < 60:
        return f"{number(shown, 1)} s"
    minutes, rest = divmod(round(shown), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def date(time: float | None) -> str:
    """Seconds since 1970 as a date in UTC; 0 means that nobody wrote it down."""
    shown = finite(time)
    if not shown or not 0 < shown < 253402300800:  # the year 10000
        return MISSING
    return datetime.fromtimestamp(shown, UTC).strftime("%Y-%m-%d %H:%M UTC")
