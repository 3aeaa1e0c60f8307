"""What the distances between connected runs show, with four runs or more: clusters, and what they predict.

1. Clusters that know no label: spectral at the median scale, average linkage of gaps without each run's own effect, spectral on
   Euclidean distances of the weights. Two clusters are always found; whether they are worth anything is what the rest asks.
2. Every loss that is not the plain one (errors, other splits) is a behaviour. Mantel: do pairs with a high gap behave
   differently, do they beyond what their difference in the plain loss says, and does Euclidean distance tell as much?
3. AUC: does the cluster tell the behaviour, and does it tell the plain loss as well, the confound?
4. Where the set's table has a column `group`, agreement of clusters with it, and gaps across over within.

Knows numbers, no network.
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from repscope.report.charts import runs as charts
from repscope.report.page import Figure, Section, Table
from repscope.results import Result, Row
from repscope.stats import clustering, permutation
from repscope.stats.groups import separation
from repscope.trace.barriers import GAP
from repscope.trace.interpolation import Curves

LEAST = 4  #: runs
EUCLIDEAN = "Euclidean distance"
PLAIN = "loss"
_PERMUTATIONS = 1000

Matrix = Float[np.ndarray, "run run"]


def clusters(gap: Matrix, euclidean: Matrix) -> dict[str, Shaped[np.ndarray, "run"]]:
    """Two clusters of the runs by each way, 0 the larger."""
    return {
        f"spectral, {GAP}": clustering.spectral(gap),
        f"average linkage, {GAP}, double-centred": clustering.average_linkage(clustering.double_centred(gap)),
        f"spectral, {EUCLIDEAN}": clustering.spectral(euclidean),
    }


def basins_of(
    found: Curves, euclidean: Matrix, names: tuple[str, ...], arm: Shaped[np.ndarray, "run"] | None, where: dict[str, Any]
) -> Result:
    """Rows of the steps above, and the side table `clusters`: a row a run, a column a way.

    Parameters
    ----------
    found
        Curves between all runs.
    euclidean
        Distances of their weights.
    names, arm
        Of the runs; how each was trained, where that is known.
    where
        Columns of every row.
    """
    gap = found.matrix(PLAIN, GAP)
    ends = {loss: found.ends(loss) for loss in found.losses}
    labels = clusters(gap, euclidean)
    rows: list[Row] = []
    quality = np.abs(ends[PLAIN][:, None] - ends[PLAIN])
    for loss, values in ends.items():
        if loss == PLAIN:
            continue
        differs = np.abs(values[:, None] - values)
        for name, a, given in ((GAP, gap, None), (f"{GAP}, beyond {PLAIN}", gap, quality), (EUCLIDEAN, euclidean, None)):
            test = permutation.mantel(a, differs, given, _PERMUTATIONS)
            if np.isfinite(test.rho):
                told = where | {"item": name, "definition": f"with the difference in {loss}, over pairs of runs"}
                rows.append(Row.of(test.estimate, metric=f"mantel rho of {loss}", **told))
                rows.append(Row(value=test.p, metric=f"mantel p of {loss}", n=test.n, unit="run", **told))
    for way, label in labels.items():
        if len(np.unique(label)) < 2:
            continue
        for loss, values in ends.items():
            apart = separation(values, label)
            told = where | {"item": way, "definition": "P(a run of the smaller cluster has the higher)"}
            rows.append(Row.of(apart.estimate, metric=f"AUC of {loss}", **told))
        if arm is not None:
            agreed = clustering.agreement(label, arm, _PERMUTATIONS)
            told = where | {"item": way, "n": agreed.n, "unit": "run"}
            rows.append(Row(value=agreed.ari, metric="ARI", definition="adjusted Rand index with the arms", **told))
            rows.append(Row(value=agreed.p, metric="ARI p", definition=f"{_PERMUTATIONS} orders of the runs", **told))
    if arm is not None and 1 < len(np.unique(arm)) < len(arm):
        for name, matrix in ((GAP, gap), (EUCLIDEAN, euclidean)):
            ratio = permutation.across_within(matrix, arm)
            rows.append(Row.of(ratio, metric="ratio", item=name, definition="mean across arms / within", **where))
    side = pd.DataFrame({"run": list(names), **({"group": arm} if arm is not None else {}), **labels, **ends})
    return Result.of(rows, side={"clusters": side})


def sentence(result: Result) -> str:
    """What gaps and distances tell of the behaviour that is farthest from the plain loss."""
    behaviour = _behaviour(result.side["clusters"])
    rows = {r["item"]: r for r in result.select(metric=f"mantel rho of {behaviour}").to_dict("records")}
    p = {r["item"]: r["value"] for r in result.select(metric=f"mantel p of {behaviour}").to_dict("records")}
    said = [f"{name} {r['value']:.2f} [{r['lo']:.2f}, {r['hi']:.2f}], p {p[name]:.3g}" for name, r in rows.items()]
    return f"Against the difference in {behaviour}, over pairs of runs (Mantel's rho): {'; '.join(said)}." if said else ""


def _behaviour(side: pd.DataFrame) -> str:
    return next((str(c) for c in side.columns if str(c).endswith(" error")), "error")


def section(result: Result, gap: Matrix) -> Section:
    """The part of the page: gaps in the order of the clusters, behaviour beside the plain loss, the numbers."""
    side = result.side["clusters"]
    way = f"average linkage, {GAP}, double-centred"
    group = side["group"].astype(str) if "group" in side else side[way].map(lambda c: f"cluster {c}")
    order = np.lexsort((side[way].to_numpy(), group.to_numpy()))
    frame = pd.DataFrame(
        [
            {"a": i, "b": j, "value": gap[a, b], "name_a": side["run"][a], "name_b": side["run"][b], "group_a": group[a]}
            for i, a in enumerate(order)
            for j, b in enumerate(order)
        ]
    )
    top = float(np.quantile(gap[np.triu_indices(len(gap), 1)], 0.98)) or 1.0
    behaviour = _behaviour(side)
    points = pd.DataFrame({"x": side[PLAIN], "y": side[behaviour], "group": group, "name": side["run"]})
    table = result.table[result.table["metric"].str.contains("mantel|AUC|ARI|ratio")]
    lines = pd.DataFrame(
        [
            {
                "number": r["metric"],
                "of": r["item"],
                "value": f"{r['value']:.3g}" + (f" [{r['lo']:.3g}, {r['hi']:.3g}]" if np.isfinite(r["lo"]) else ""),
            }
            for r in table.to_dict("records")
        ]
    )
    return Section(
        "Are there basins, and do they predict anything?",
        "Two clusters are always found. They mean something where they tell what runs do on data that they "
        "were not clustered by, more than the plain loss does, and more than plain distances of weights tell.",
        (
            Figure(
                charts.distances(frame, value_title="convexity gap", top=top),
                "Convexity gaps",
                f"Ordered by {'group, then by ' if 'group' in side else ''}{way}.",
                small=True,
            ),
            Figure(
                charts.scattered(points, x_title=PLAIN, y_title=behaviour),
                "What runs do, beside how well they do",
                "A point a run.",
                small=True,
            ),
            Table(
                lines,
                "Numbers",
                "Mantel: with the difference in that number, over pairs of runs. AUC: P(a run of the smaller "
                "cluster has the higher). Intervals over runs; p by permuting runs, one-sided, not corrected for their number.",
            ),
        ),
    )
