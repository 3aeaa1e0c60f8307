"""Dose-response of a direction: effect and side effects at each strength.

1. A strength is the norm of the added vector over the median norm of the activations at the site; negative ones reverse it.
2. Per strength: effect (log-odds of the choices), KL and damage to fluency (`effects`), each with a bootstrap interval over the
   units of generalisation: groups of choices, openings.
3. Controls: random directions of equal norm, whose interval is their range; and prompting, an instruction in words.
4. Working range: consecutive strengths, from the lowest on, at which the effect exceeds that of random directions with disjoint
   intervals and the damage is within its limit. It may be empty. The strength of the largest effect in it becomes the scale.

Select on one half of the choices and report on the other: call it on each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope import stats
from repscope.conditions import ESTIMATE, PROMPTING, RANDOM
from repscope.data.contrasts import Choice
from repscope.directions import Direction
from repscope.directions.random import random_units
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import with_continuation
from repscope.models.sites import Site
from repscope.results import Result, Row, at
from repscope.stats import Estimate
from repscope.steer.effects import DEFINITIONS, Written, divergence, in_turn, log_odds, written

STRENGTHS = (-0.6, -0.4, -0.2, -0.1, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
MOST_DAMAGE = 0.5  #: nats per token: a perplexity under the unsteered model of 1.65 times the baseline
PROMPTED, PLAIN = PROMPTING, "unsteered"
_READ_RANDOM = 3  #: random directions with KL and damage; these cost more than choices


@dataclass(frozen=True, eq=False)
class DoseResponse:
    """Effects of a direction at each strength.

    direction: with its working range, its scale within it, and its effects at that scale. result: all numbers; the side table
    "dose" has one row per strength, metric and condition, "texts" the generated texts.
    """

    direction: Direction
    result: Result

    @property
    def table(self) -> pd.DataFrame:
        """Strength, condition, metric, value, lo, hi, n, unit."""
        return self.result.side["dose"]

    def _repr_html_(self) -> str:
        return str(self.table.to_html(index=False, float_format=lambda v: f"{v:.3g}"))


def dose(
    lm: LanguageModel,
    direction: Direction,
    choices: Sequence[Choice],
    openings: Sequence[str],
    *,
    strengths: Sequence[float] = STRENGTHS,
    random: int = 16,
    instruction: str = "",
    chat: bool = False,
    new_tokens: int = 24,
    most_damage: float = MOST_DAMAGE,
    seed: int = 0,
) -> DoseResponse:
    """Effect, KL and damage per strength, for a direction and its controls.

    Parameters
    ----------
    lm
        The model.
    direction
        The direction to add. A missing `norm` is measured on the openings.
    choices
        Choices on which the effect is measured.
    openings
        Beginnings of neutral texts, for KL and damage.
    strengths
        Norms relative to the median norm at the site; at least one above 0.
    random
        Number of random directions.
    instruction
        Instruction of the prompting control, put before each prompt; empty for no such control.
    chat
        Whether prompts and openings are user turns.
    new_tokens
        Tokens per text.
    most_damage
        Largest damage in the working range, in nats per token.
    seed
        Of the random directions, the sampling and the intervals.

    Raises
    ------
    UserError
        For no strength above 0, no choices or openings, or fewer than 2 random directions.
    """
    _see(choices, openings, strengths, random)
    levels = sorted({float(s) for s in strengths if s != 0})
    norm = direction.norm if np.isfinite(direction.norm) else _norm(lm, direction.site, openings, chat)
    sizes = sorted({abs(s) for s in levels})
    add = partial(Edit.add, direction.site, tokens=direction.tokens)
    mine = [add(s * norm * direction.vector) for s in levels]
    others = [[add(s * norm * u) for u in random_units(len(direction.vector), random, seed)] for s in sizes]

    groups = [c.group for c in choices]
    odds = log_odds(lm, choices, [*mine, *chain(*others)], chat=chat)
    effect = by_group(odds[1:] - odds[0], groups)
    turns = [in_turn(lm, o, chat) for o in openings]
    plain = written(lm, turns, [None], new_tokens=new_tokens, seed=seed)[0]
    kept = [(o, t) for o, t in zip(turns, plain.texts) if t]
    if not kept:
        raise UserError("The model ends its text at once after every opening; give other openings.")
    few = min(random, _READ_RANDOM)
    read = [*mine, *(edit for group in others for edit in group[:few])]
    kl = divergence(lm, [with_continuation(o, t) for o, t in kept], read)
    wrote = written(lm, turns, read, new_tokens=new_tokens, seed=seed)

    found = _Table(direction, seed)
    n = len(mine)
    for i, level in enumerate(levels):
        found.mean(level, ESTIMATE, "effect", effect[i], "group of choices")
        found.mean(level, ESTIMATE, "kl", kl[i], "opening")
        found.fluency(level, ESTIMATE, wrote[i], plain)
    for i, size in enumerate(sizes):
        found.null(size, "effect", effect[n + i * random : n + (i + 1) * random].mean(1))
        rows = slice(n + i * few, n + (i + 1) * few)
        found.null(size, "kl", kl[rows].mean(1))
        found.null(size, "damage", np.array([(w.nats - plain.nats).mean() for w in wrote[rows]]))
        found.null(size, "repeats", np.array([w.repeats.mean() for w in wrote[rows]]))
    found.mean(0.0, PLAIN, "repeats", plain.repeats, "opening")
    found.mean(0.0, PLAIN, "log-odds", by_group(odds[:1], groups)[0], "group of choices")
    if instruction:
        instructed = [replace(c, prompt=instruction + c.prompt) for c in choices]
        prompting = by_group(log_odds(lm, instructed, [], chat=chat) - odds[:1], groups)[0]
        found.mean(0.0, PROMPTED, "effect", prompting, "group of choices")
        instructed_texts = written(lm, turns, [None], new_tokens=new_tokens, seed=seed, prefixes=[instruction])[0]
        found.fluency(0.0, PROMPTED, instructed_texts, plain)
    side = found.frame()
    low_high = working_range(side, most_damage)
    texts = _texts(openings, plain, zip(levels, wrote))
    done = _with_range(replace(direction, norm=norm), side, low_high)
    arrays = {
        "strengths": np.array(levels),
        "effect": effect[:n],
        "sizes": np.array(sizes),
        "random": effect[n:].mean(1).reshape(len(sizes), random),
    }
    if instruction:
        arrays["prompting"] = prompting
    return DoseResponse(done, Result.of(found.rows, arrays=arrays, side={"dose": side, "texts": texts}))


def working_range(table: pd.DataFrame, most_damage: float = MOST_DAMAGE) -> tuple[float, float] | None:
    """Lowest and highest of the first consecutive strengths above 0 that work; None if none does.

    A strength works if the effect's interval lies above that of random directions and the damage is at most `most_damage`.
    """
    cells = {(r["strength"], r["condition"], r["metric"]): r for r in table.to_dict("records") if r["strength"] > 0}
    works: list[float] = []
    for strength in sorted({key[0] for key in cells}):
        mine, null = (cells.get((strength, condition, "effect")) for condition in (ESTIMATE, RANDOM))
        cost = cells.get((strength, ESTIMATE, "damage"))
        if mine is None or null is None or cost is None:
            continue
        if mine["lo"] > null["hi"] and cost["value"] <= most_damage:
            works.append(strength)
        elif works:
            break
    return (works[0], works[-1]) if works else None


class _Table:
    """Collects rows of the shared schema and of the side table."""

    def __init__(self, direction: Direction, seed: int) -> None:
        self.direction, self.seed = direction, seed
        self.rows: list[Row] = []
        self._side: list[dict[str, object]] = []

    def mean(self, strength: float, condition: str, metric: str, values: Float[np.ndarray, "unit"], unit: str) -> None:
        self._add(strength, condition, metric, stats.mean(values, unit=unit, seed=self.seed))

    def null(self, strength: float, metric: str, values: Float[np.ndarray, "draw"]) -> None:
        self._add(strength, RANDOM, metric, stats.null(values, unit="random direction"))

    def fluency(self, strength: float, condition: str, text: Written, plain: Written) -> None:
        self.mean(strength, condition, "damage", text.nats - plain.nats, "opening")
        self.mean(strength, condition, "repeats", text.repeats, "opening")

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self._side)

    def _add(self, strength: float, condition: str, metric: str, found: Estimate) -> None:
        one = self.direction
        where = {"metric": metric, "definition": DEFINITIONS[metric], "token": one.tokens, **at(Site.parse(one.site))}
        row = Row.of(found, item=f"{one.name} at {strength:+.2f}", condition=condition, seed=self.seed, **where)
        self.rows.append(row)
        shared = ("condition", "metric", "value", "lo", "hi", "n", "unit")
        self._side.append({"direction": one.name, "strength": strength} | {name: getattr(row, name) for name in shared})


def _see(choices: Sequence[Choice], openings: Sequence[str], strengths: Sequence[float], random: int) -> None:
    if not choices:
        raise UserError("There is no choice to measure an effect on; give prompts with two continuations each.")
    if not openings:
        raise UserError("There is no opening to measure fluency on; give a few beginnings of neutral texts.")
    if not any(s > 0 for s in strengths) or not np.isfinite(list(strengths)).all():
        raise UserError(f"The strengths are {list(strengths)}; give finite ones, at least one of them above 0.")
    if random < 2:
        raise UserError(f"{random} random directions have no range; ask for 2 at least.")


def _norm(lm: LanguageModel, site: str, openings: Sequence[str], chat: bool) -> float:
    acts = lm.capture([in_turn(lm, o, chat) for o in openings], site, "all")
    return float(np.median(np.linalg.norm(acts[site][acts.positions > 0], axis=1)))


def by_group(values: Float[np.ndarray, "added choice"], groups: Sequence[str]) -> Float[np.ndarray, "added group"]:
    """Means over the choices of each group; a choice without a group is its own group."""
    names = [name or f"\x00{i}" for i, name in enumerate(groups)]
    return np.stack([values[:, [i for i, n in enumerate(names) if n == name]].mean(1) for name in dict.fromkeys(names)], axis=1)


def _texts(openings: Sequence[str], plain: Written, wrote: Iterable[tuple[float, Written]]) -> pd.DataFrame:
    rows = [{"strength": 0.0, "opening": o, "text": t} for o, t in zip(openings, plain.texts)]
    for level, found in wrote:
        rows += [{"strength": level, "opening": o, "text": t} for o, t in zip(openings, found.texts)]
    return pd.DataFrame(rows)


def _with_range(direction: Direction, table: pd.DataFrame, found: tuple[float, float] | None) -> Direction:
    if found is None:
        return replace(direction, works=None)
    mine = [r for r in table.to_dict("records") if r["condition"] == ESTIMATE and found[0] <= r["strength"] <= found[1]]
    best = max((r for r in mine if r["metric"] == "effect"), key=lambda r: float(r["value"]))["strength"]
    direction = replace(direction, scale=best * direction.norm, does={**direction.does, **doing(table, best)})
    low, high = (strength * direction.norm for strength in found)
    return replace(direction, works=(low, high))


def doing(table: pd.DataFrame, strength: float) -> dict[str, float]:
    """Numbers of a direction's card at a strength: effect with its interval, damage and KL."""
    at = {r["metric"]: r for r in table.to_dict("records") if r["condition"] == ESTIMATE and r["strength"] == strength}
    effect = {f"effect{end}": float(at["effect"][key]) for end, key in (("", "value"), ("_lo", "lo"), ("_hi", "hi"))}
    return effect | {metric: float(at[metric]["value"]) for metric in ("damage", "kl")}
