"""Selection of the direction and strength with the largest effect at an acceptable cost.

1. Every direction is added at each strength (relative to the median norm at its site). The effect is the mean change of log-odds
   over the choices, the cost the mean next-token KL on short neutral texts.
2. Control: random directions of equal norm at every site.
3. Of the directions and strengths with a cost of at most `most_kl`, the one with the largest effect is selected; if there is none,
   the one of least cost (`best`). Report effects on other choices than those used here.

Classification accuracy is not used: the best classifier of texts need not be the best steering direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from repscope import stats
from repscope.conditions import ESTIMATE, RANDOM
from repscope.data.contrasts import Choice
from repscope.directions import Direction, DirectionSet
from repscope.directions.random import random_units
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import with_continuation
from repscope.models.sites import Site
from repscope.results import Result, Row, at
from repscope.steer.effects import DEFINITIONS, divergence, in_turn, log_odds

STRENGTHS = (0.1, 0.2, 0.4)
MOST_KL = 0.5  #: nats per token
_TAIL = " and so it went on for the rest of the day, as it often does."


@dataclass(frozen=True, eq=False)
class Selection:
    """The selected direction, with the selected strength as its scale, and all candidates.

    direction: the selected one. table: one row per direction and strength: name, site, strength, condition, effect, lo, hi, kl.
    result: the same in the shared schema.
    """

    direction: Direction
    table: pd.DataFrame
    result: Result


def choose(
    lm: LanguageModel,
    directions: DirectionSet | Sequence[Direction],
    choices: Sequence[Choice],
    openings: Sequence[str],
    *,
    strengths: Sequence[float] = STRENGTHS,
    most_kl: float = MOST_KL,
    random: int = 3,
    chat: bool = False,
    seed: int = 0,
) -> Selection:
    """Select a direction and a strength by effect and cost.

    Parameters
    ----------
    lm
        The model.
    directions
        Candidates; each needs its `norm`.
    choices
        Choices for selection; report on others.
    openings
        Neutral beginnings of texts.
    strengths
        Norms relative to the median norm at the site.
    most_kl
        Largest cost, in nats per token.
    random
        Number of random directions per site.
    chat
        Whether prompts and openings are user turns.
    seed
        Of the random directions and the intervals.

    Raises
    ------
    UserError
        Without candidates or choices; for a candidate without `norm`.
    """
    candidates = list(directions)
    if not candidates or not choices or not openings:
        raise UserError("There is nothing to choose from: give directions, choices and openings.")
    if unknown := [d.name for d in candidates if not np.isfinite(d.norm)]:
        raise UserError(f"The direction {unknown[0]!r} does not say what its strength is relative to; give it a norm.")
    rows = [(d, ESTIMATE, s) for d in candidates for s in strengths]
    for site, like in {d.site: d for d in candidates}.items():
        units = random_units(len(like.vector), random, seed)
        away = [replace(like, vector=u, name=f"random {i}, {site}") for i, u in enumerate(units)]
        rows += [(d, RANDOM, s) for d in away for s in strengths]
    added = [Edit.add(d.site, s * d.norm * d.vector, tokens=d.tokens) for d, _, s in rows]
    odds = log_odds(lm, choices, added, chat=chat)
    moved = odds[1:] - odds[0]
    kl = divergence(lm, [with_continuation(in_turn(lm, o, chat), _TAIL) for o in openings], added).mean(1)
    found: list[Row] = []
    table: list[dict[str, Any]] = []
    for (d, condition, s), effect, cost in zip(rows, moved, kl):
        estimate = stats.mean(effect, unit="choice", seed=seed)
        place = at(Site.parse(d.site))
        where = {**place, "token": d.tokens, "condition": condition, "split": "choosing half", "item": f"{d.name} at {s:+.2f}"}
        found.append(Row.of(estimate, metric="effect", definition=DEFINITIONS["effect"], seed=seed, **where))
        where |= {"seed": seed, "n": len(openings), "unit": "opening"}
        found.append(Row(metric="kl", definition=DEFINITIONS["kl"], value=float(cost), **where))
        numbers = {"effect": estimate.value, "lo": estimate.lo, "hi": estimate.hi, "kl": float(cost)}
        table.append({"name": d.name, **place, "strength": s, "condition": condition, **numbers})
    frame = pd.DataFrame(table)
    return Selection(best(candidates, frame, most_kl), frame, Result.of(found))


def best(directions: Sequence[Direction], table: pd.DataFrame, most_kl: float = MOST_KL) -> Direction:
    """The direction with the largest effect at an acceptable cost, with that strength as its scale.

    Parameters
    ----------
    directions
        Candidates.
    table
        A `Selection.table` that contains them.
    most_kl
        Largest cost, in nats per token.
    """
    by_name = {d.name: d for d in directions}
    rows = [r for r in table.to_dict("records") if r["condition"] == ESTIMATE and r["name"] in by_name]
    cheap = [r for r in rows if r["kl"] <= most_kl]
    row = max(cheap, key=lambda r: float(r["effect"])) if cheap else min(rows, key=lambda r: float(r["kl"]))
    direction = by_name[row["name"]]
    return replace(direction, scale=float(row["strength"]) * direction.norm)
