"""Forecasts: how long a step takes, from its cost, the machine's rate of products, and what such steps took before.

A cost counts floating-point operations. What a step takes per operation depends on its calls, tokens and products; the
factors in `forecast.toml` are measured: seconds taken by the short form on the default model over seconds forecast without a factor
(`benchmarks/forecasts.py` prints them from finished runs).
"""

import tomllib
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from repscope.studies.run.study import Cost

_FILE = Path(__file__).with_name("forecast.toml")
_FIT_SHARE = 0.2  #: of the rate of products that fits reach
_START = 0.05  #: seconds of a step that computes nothing
_NOMINAL_RATE = 1e11  #: products per second, where only the ratio of steps counts


def forecast_seconds(study: str, step: str, cost: Cost, rate: float = _NOMINAL_RATE) -> float:
    """Seconds that a step of a study takes on a machine with this rate of products (floating-point operations per second)."""
    return _START + factor(study, step) * raw_seconds(cost, rate)


def raw_seconds(cost: Cost, rate: float) -> float:
    """Seconds by operations alone: the network at the share of the rate that it reaches, fits at theirs."""
    from repscope.models.engine.cost_estimate import REACHED

    return (cost.network_flops / REACHED + cost.fit_flops / _FIT_SHARE) / rate


def factor(study: str, step: str) -> float:
    """The measured factor of a step: that of the first pattern that its name fits, or 1."""
    return next((value for pattern, value in _factors().get(study, {}).items() if fnmatchcase(step, pattern)), 1.0)


@cache
def _factors() -> dict[str, dict[str, float]]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))
