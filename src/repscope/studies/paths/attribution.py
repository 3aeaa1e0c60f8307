"""Which part of a recipe decides how a run generalises: a crossed design over pretrained network, head, order of data, early data.

Every combination is one fine-tuning run; its behaviour is the share of the rule on disambiguating examples. `stats.variance`
gives the share of the variance over runs that is due to each factor, with its interval. Early data is a fixed factor (biased
towards the rule or towards lexical overlap), the others are seeds. A second design has no early bias. All runs start from the
chosen fork of their pretrained network.

Path dependence of a cell of the phase diagram (fork × learning rate): the part of the variance of behaviour over its runs, which
differ in their seeds alone, that is not noise of the evaluation on so many examples.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from repscope.conditions import ESTIMATE, NO_BIAS
from repscope.results import Result, Row, records
from repscope.stats.variance import crossed, variance_shares
from repscope.studies.paths.order_names import DEPENDENCE, SHARE

INIT, HEAD, DATA, EARLY = "pretrained network", "head", "order of data", "early data"


def design(inits: int, levels: int, groups: tuple[str, ...], seed: int) -> pd.DataFrame:
    """One row per run: every combination of a pretrained network, `levels` heads, `levels` orders of data and the early data."""
    rows = [
        {
            "run": f"{group.replace(' ', '-')}-{i}-{h}-{d}",
            "init": i,
            "group": group,
            "head_seed": 5000 * (seed + 1) + h,
            "data_seed": 5000 * (seed + 1) + 500 + d,
        }
        for i, h, d, group in product(range(inits), range(levels), range(levels), groups)
    ]
    return pd.DataFrame(rows)


def share_rows(plan: pd.DataFrame, rule: np.ndarray, condition: str, seed: int) -> list[Row]:
    """Shares of variance of one design. A design whose runs all behave alike has none, and no rows."""
    factors = {INIT: "init", HEAD: "head_seed", DATA: "data_seed"} | ({EARLY: "group"} if condition == ESTIMATE else {})
    factors = {name: column for name, column in factors.items() if plan[column].nunique() > 1}
    rows = records(plan.assign(rule=rule).rename(columns={column: name for name, column in factors.items()}))
    held: list[Any] = rows
    values = crossed(held, tuple(factors), "rule")
    if np.ptp(values) == 0:
        return []
    shares = variance_shares(values, tuple(factors), fixed=(EARLY,) if EARLY in factors else (), seed=seed)
    at: dict[str, Any] = {"metric": SHARE, "definition": "crossed design, share of the rule", "condition": condition, "seed": seed}
    return [Row.of(e, item=name, **at) for name, e in shares.items()]


def result(plans: dict[str, tuple[pd.DataFrame, np.ndarray]], seed: int, cells: Sequence[Row] = ()) -> Result:
    """Shares of the designs with and without early bias, and their runs; `cells`: rows on the cells of the phase diagram."""
    rows = [row for condition, (plan, rule) in plans.items() for row in share_rows(plan, rule, condition, seed)]
    side = {f"crossed {condition}": plan.assign(rule=rule) for condition, (plan, rule) in plans.items()}
    notes = [
        f"All runs of the crossed design ({c}) behave alike, so no variance is attributed." for c in plans if not _any(rows, c)
    ]
    return Result.of([*rows, *cells], side=side, notes=tuple(notes))


def path_dependence_rows(phases: pd.DataFrame, examples: int, seed: int) -> list[Row]:
    """Path dependence of every cell: (s² − e) / s², 0 where it would be negative; s² is the variance over runs of the share of the
    rule p, and e = p (1 − p) / examples the binomial variance of one evaluation."""
    cell = ["item", "token", "split"]
    share = phases[phases["metric"] == "share of the rule"].set_index(cell)["value"]
    rows = []
    for row in records(phases[phases["metric"] == "spread"]):
        at = tuple(row[name] for name in cell)
        p, square = float(share.to_dict()[at]), float(row["value"]) ** 2
        noise = p * (1 - p) / examples
        where: dict[str, Any] = dict(zip(cell, at))
        value = max(0.0, square - noise) / square if square > 0 else 0.0
        rows.append(Row(metric=DEPENDENCE, value=value, n=int(row["n"]), unit="run", condition=NO_BIAS, seed=seed, **where))
    return rows


def _any(rows: list[Row], condition: str) -> bool:
    return any(row.condition == condition for row in rows)
