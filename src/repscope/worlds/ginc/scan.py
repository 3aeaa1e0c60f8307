"""Choice of a world: the first seed whose prompts have few near-ties, with what was looked at."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from repscope.errors import UserError
from repscope.worlds.ginc.prompts import NEAR_TIE, prompts
from repscope.worlds.ginc.world import GincSizes, GincWorld

MOST_TIES = 0.2  #: share of prompts with a margin below NEAR_TIE


def scan(sizes: GincSizes, seeds: Sequence[int], *, length: int = 3, count: int = 500) -> tuple[GincWorld, pd.DataFrame]:
    """The first world that passes the margin rule, and a table of all seeds.

    A world in which many labels are nearly coins cannot show learning by accuracy. The rule looks at the oracle alone, never at a
    network or a predictor.

    Raises
    ------
    UserError
        If no seed passes.
    """
    rows, chosen = [], None
    for seed in seeds:
        world = GincWorld.drawn(sizes, seed)
        margins = prompts(world, count, 0, length, np.random.default_rng(seed)).margins
        share = float((margins < NEAR_TIE).mean())
        passes = share <= MOST_TIES
        if passes and chosen is None:
            chosen = world
        rows.append({"seed": seed, "share of near-ties": share, "passes": passes, "chosen": chosen is world})
    if chosen is None:
        least = min(row["share of near-ties"] for row in rows)
        raise UserError(
            f"None of {len(rows)} worlds has at most {MOST_TIES:.0%} prompts whose label is nearly a coin's (least: {least:.0%}); "
            "take more symbols or seeds."
        )
    return chosen, pd.DataFrame(rows)
