"""What the pages of all studies say alike: numbers with their intervals, and how a run was made."""

from collections.abc import Mapping, Sequence
from typing import Any

from repscope.studies.study import Run


def number(row: Mapping[Any, Any]) -> str:
    """A value and its interval.

    >>> number({"value": 0.5, "lo": 0.4, "hi": 0.61})
    '0.50 [0.40, 0.61]'
    """
    return f"{row['value']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}]"


def gain(row: Mapping[Any, Any]) -> str:
    """A difference and its interval, with signs."""
    return f"{row['value']:+.2f} [{row['lo']:+.2f}, {row['hi']:+.2f}]"


def facts(run: Run[Any], **more: str) -> dict[str, str]:
    """How the run was made, as the last section of a page shows it; `more` stands after the checks of the engine."""
    held = run.facts()
    shown = {
        "Model": f"{held['model']} ({held['precision']})",
        "Fingerprint of the weights": held["fingerprint"],
        "Engine checked on this model": run.verification.sentence,
        **more,
        "Options": ", ".join(f"{k} = {_plain(v)}" for k, v in held["options"].items() if v not in (None, [], False)),
        "Versions": ", ".join(f"{k} {v}" for k, v in held["versions"].items()),
        "Command": held["command"],
    }
    return {k: str(v) for k, v in shown.items()}


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
