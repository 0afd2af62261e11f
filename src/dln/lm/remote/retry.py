"""When to ask again: what the server's headers ask for, and the back-off where they say nothing. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["back_off", "wait_asked"]

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_EPOCH = 1e9  # larger numbers are dates, in seconds since 1970


def back_off(attempt: int, jitter: float, *, first: float = 0.25, longest: float = 20.0) -> float:
    """Seconds to wait after failed attempt number `attempt` (0, 1, …): first · 2^attempt · (1 + jitter)/2, ≤ longest.

    Args:
        attempt: how many attempts failed before this one.
        jitter: in [0, 1], different for different calls, so that they do not come back all at once.
        first: seconds after the first failure.
        longest: seconds, at most.
    """
    full = min(longest, first * 2.0 ** min(attempt, 60))
    return full * (0.5 + 0.5 * jitter)


def wait_asked(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks us to wait, None if it does not say.

    `retry-after-ms`, `Retry-After` (seconds or an HTTP date), else the reset of a rate limit that is used up
    (`x-ratelimit-remaining-…: 0` with `x-ratelimit-reset-…`: seconds, a duration such as "6m0s", or a date).

    Args:
        headers: of the reply, names in lower case.
        now: seconds since 1970.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    asked = _seconds(headers.get("retry-after"), now)
    if asked is not None:
        return asked
    waits = [
        wait
        for name, value in headers.items()
        if name.startswith(("x-ratelimit-reset", "ratelimit-reset"))
        and _number(headers.get(name.replace("-reset", "-remaining", 1))) in (0, None)
        and (wait := _seconds(value, now)) is not None
    ]
    return max(waits, default=None)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _seconds(text: str | None, now: float) -> float | None:
    if text is None or not text.strip():
        return None
    text = text.strip()
    number = _number(text)
    if number is not None:
        return max(0.0, number - now if number > _EPOCH else number)
    if text.endswith("ms"):
        milliseconds = _number(text[:-2])
        return None if milliseconds is None else max(0.0, milliseconds / 1000)
    found = _DURATION.fullmatch(text)
    if found:
        units = (86400.0, 3600.0, 60.0, 1.0)
        return sum(float(part or 0) * unit for part, unit in zip(found.groups(), units, strict=True))
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)
