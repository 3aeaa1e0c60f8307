"""Numbers as text, with their intervals."""

from collections.abc import Mapping
from math import floor, isfinite, log10
from typing import Any


def format_estimate(row: Mapping[Any, Any]) -> str:
    """A value and its interval, to two decimals, or to two significant digits if small; below 5e-7 it is 0.00.

    >>> format_estimate({"value": -0.001, "lo": -0.5, "hi": 0.49})
    '0.00 [-0.50, 0.49]'
    >>> format_estimate({"value": 0.5, "lo": 0.4, "hi": 0.61}), format_estimate({"value": 0.0031, "lo": 0.0012, "hi": 0.0052})
    ('0.50 [0.40, 0.61]', '0.0031 [0.0012, 0.0052]')
    """
    return _formatted(row, "")


def format_gain(row: Mapping[Any, Any]) -> str:
    """A difference and its interval, with signs."""
    return _formatted(row, "+")


def _formatted(row: Mapping[Any, Any], sign: str) -> str:
    numbers = [float(row[key]) for key in ("value", "lo", "hi")]
    if not isfinite(numbers[0]):
        return "not known"
    largest = max((abs(x) for x in numbers if isfinite(x)), default=0.0)
    digits = 2 if largest >= 0.095 or largest < 5e-7 else min(6, 1 - floor(log10(largest)))
    value, lo, hi = (f"{x if abs(x) >= 0.5 * 10**-digits else 0.0:{sign}.{digits}f}" for x in numbers)  # never -0.00
    return f"{value} [{lo}, {hi}]" if isfinite(numbers[1]) else value
