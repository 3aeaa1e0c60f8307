"""Text shared by the pages of all studies: numbers with their intervals, and the facts of a run."""

from collections.abc import Mapping, Sequence
from math import floor, isfinite, log10
from typing import Any

from repscope.studies.run.study import Run


def format_estimate(row: Mapping[Any, Any]) -> str:
    """A value and its interval, to two decimals, or to two significant digits if small; below 5e-7 it is 0.00.

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
    value, lo, hi = (f"{x:{sign}.{digits}f}" for x in numbers)
    return f"{value} [{lo}, {hi}]" if isfinite(numbers[1]) else value


def facts(run: Run[Any], **more: str) -> dict[str, str]:
    """How the run was made, as the last section of a page shows it; `more` stands after the checks of the engine."""
    held = run.facts()
    network = (
        {}
        if run.study.trains
        else {"Fingerprint of the weights": held["fingerprint"], "Engine checked on this model": run.verification.sentence}
    )
    shown = {
        "Model": f"{held['model']} ({held['precision']})",
        **network,
        **more,
        "Options": ", ".join(f"{k} = {_plain(v)}" for k, v in held["options"].items() if v not in (None, [], False)),
        "Versions": ", ".join(f"{k} {v}" for k, v in held["versions"].items()),
        "Command": held["command"],
    }
    return {k: str(v) for k, v in shown.items()}


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
