"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_MEASURED = "–"
_MINUS = "\u2212"


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Formats a number with a true minus sign; what rounds to zero has no sign.

    Args:
        value: The number, or None where there is none.
        digits: Digits after the point.
        signed: Write a plus sign before positive numbers.

    Returns:
        For instance "−0.120".
    """
    if value is None:
        return NOT_MEASURED
    text = f"{abs(value):,.{digits}f}"
    if not text.strip("0.,"):
        return text
    return (_MINUS if value < 0 else "+" if signed else "") + text


def interval(measured: Mapping[str, Any] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Formats the interval of {"value", "low", "high"}: "2.41 to 2.63", or "" without one."""
    if not measured or measured.get("low") is None or measured.get("high") is None:
        return ""
    low, high = (number(measured[end], digits, signed=signed) for end in ("low", "high"))
    return f"{low} to {high}"


def value(measured: Mapping[str, Any] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Formats the value of {"value", "low", "high"}, or a dash where it was not measured."""
    return number(None if not measured else measured.get("value"), digits, signed=signed)


def percent(measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns a measured share in per cent, in the same form."""
    if not measured:
        return None
    return {
        end: None if measured.get(end) is None else 100 * measured[end]
        for end in ("value", "low", "high")
    }


def negative(measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the opposite of a measured value, in the same form: a loss's fall from its change."""
    if not measured:
        return None
    flipped = {"value": "value", "low": "high", "high": "low"}
    return {
        end: None if measured.get(source) is None else -measured[source]
        for end, source in flipped.items()
    }


def count(amount: float | None) -> str:
    """Formats a count with three significant digits: 950, 17.7 M, 1.2 B."""
    if amount is None:
        return NOT_MEASURED
    for size, suffix in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if amount >= size:
            scaled = amount / (1e3 if suffix == " k" else size)
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{suffix}"
    return f"{amount:,.0f}"


def memory(size: float | None) -> str:
    """Formats bytes in MiB or GiB."""
    if size is None:
        return NOT_MEASURED
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """Formats seconds: 8.4 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float | None) -> str:
    """Formats seconds in little space: 0:08, 3:20, 2:05:10."""
    if seconds is None:
        return NOT_MEASURED
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
