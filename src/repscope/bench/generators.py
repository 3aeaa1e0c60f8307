"""Benchmark of discovery on image generators whose images have known factors: methods compared as in `discover --subject`.

Random directions must find fewer factors alone than directions with labels do: otherwise the judge tells nothing, and `violations`
reports it. Which method is best is a result, not a check.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from repscope import stats
from repscope.discovery import metrics
from repscope.discovery.generators.comparison import (
    DIFFUSION_ONLY,
    GAN_ONLY,
    IMAGE_METRICS,
    LABELLED,
    METHODS,
    ORTHOGONAL,
    RANDOM_DIRECTIONS,
    judged,
    search,
)
from repscope.discovery.generators.digit_material import DigitSetting
from repscope.discovery.generators.material import Setting
from repscope.discovery.generators.sprite_material import SpriteSetting
from repscope.errors import UserError
from repscope.progress import progress
from repscope.results import Result, Row

SOUGHT = 6
STEPS = {"gan": 100, "diffusion": 40}
_SIZES: dict[str, dict[str, Any]] = {"gan": {}, "diffusion": {"samples": 4, "images": 16}}
_TINY: dict[str, Any] = {"samples": 3, "images": 4}


def generator_benchmark(
    kind: Literal["gan", "diffusion"],
    seeds: int = 5,
    *,
    data: Literal["sprites", "digits"] = "sprites",
    methods: Sequence[str] | None = None,
    seed: int = 0,
    n: int = SOUGHT,
    steps: int | None = None,
    tiny: bool = False,
) -> Result:
    """Every method on the generator: one row per method and metric, with its interval over seeds of the search.

    Parameters
    ----------
    kind
        The generator, which is trained once and kept in the cache.
    seeds
        Searches per method.
    data
        What the generator draws; digits are drawn by a GAN.
    methods
        Keys of `METHODS`; by default all that run on this generator.
    seed
        Of generator and searches.
    n, steps
        Directions per method, and updates of gradient methods.
    tiny
        A generator for tests.

    Raises
    ------
    UserError
        For an unknown method, fewer than one seed, or a diffusion model of digits.
    """
    if seeds < 1:
        raise UserError(f"{seeds} seeds are asked for; ask for at least 1, and for 5 to have intervals.")
    if data == "digits" and kind != "gan":
        raise UserError("The diffusion model draws sprites; take the kind gan for digits.")
    sizes = _TINY if tiny else _SIZES[kind]
    setting: Setting = (
        DigitSetting(seed=seed, tiny=tiny, **sizes) if data == "digits" else SpriteSetting(kind, seed=seed, tiny=tiny, **sizes)
    )
    material = setting.material(setting.trained())
    left_out = DIFFUSION_ONLY if kind == "gan" else GAN_ONLY
    if tiny or material.judge.known.exclusive:  # factors of an untrained generator, and classes, have no directions of their own
        left_out = (*left_out, ORTHOGONAL)
    rows, labelled = [], material.labelled()
    chosen = list(methods or (name for name in METHODS if name not in left_out))
    with progress("Benchmark", len(chosen)) as advance:
        for name in chosen:
            found = search(material.bed, name, n, [seed * 1009 + i for i in range(seeds)], steps or STEPS[kind], labelled=labelled)
            each = [judged(material.bed, one, material.judge)[0] for one in found]
            for i, numbers in enumerate(each if seeds > 1 else []):
                others = [metrics.stability(found[i].unit, one.unit) for j, one in enumerate(found) if j != i]
                numbers["stability"] = float(np.mean(others))
            where: dict[str, Any] = {"study": "bench", "step": kind, "model": kind, "item": name, "seed": seed}
            rows += [
                Row.of(
                    stats.mean([one[metric] for one in each], unit="seed"),
                    metric=metric,
                    definition=IMAGE_METRICS[metric],
                    condition=METHODS[name].condition,
                    **where,
                )
                for metric in each[0]
            ]
            advance(1)
    return Result.of(rows)


def violations(result: Result) -> list[str]:
    """Faults of the benchmark itself, one sentence each; empty if it is valid, or has not both controls."""
    rows = result.table[result.table["metric"] == "selectivity"]
    chance, truth = (rows[rows["item"] == name]["value"].to_list() for name in (RANDOM_DIRECTIONS, LABELLED))
    if not chance or not truth or truth[0] > chance[0]:
        return []
    return [
        f"Directions with labels have a selectivity of {truth[0]:.2f}, random ones {chance[0]:.2f}: factors cannot be told apart."
    ]
