"""What the distances between four or more connected runs show: clusters, and what these predict.

1. Unsupervised clusters: spectral at the median scale, average linkage of double-centred gaps, spectral on Euclidean distances
   between the weights. There are always two clusters; the following tests show whether they are informative.
2. Every loss except the main loss (errors, other splits) is a behaviour. Mantel: is a high gap correlated with a difference in
   behaviour, also given the difference in the main loss, and is the Euclidean distance correlated as well?
3. AUC: does the cluster predict the behaviour, and does it also predict the main loss, the confound?
4. If the set's table has a column `group`: agreement of the clusters with it, and the ratio of gaps across and within groups.

Uses numbers, no network.
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from repscope.report.charts import runs as charts
from repscope.report.page import Figure, Section, Table
from repscope.results import Result, Row, records
from repscope.stats import clustering, permutation
from repscope.stats.groups import separation
from repscope.trace.barriers import GAP
from repscope.trace.interpolation import Curves

LEAST = 4  #: runs
EUCLIDEAN = "Euclidean distance"
MAIN = "loss"
_PERMUTATIONS = 1000

Matrix = Float[np.ndarray, "run run"]


def clusters(gap: Matrix, euclidean: Matrix) -> dict[str, Shaped[np.ndarray, "run"]]:
    """Two clusters of the runs by each method; 0 is the larger."""
    return {
        f"spectral, {GAP}": clustering.spectral(gap),
        f"average linkage, {GAP}, double-centred": clustering.average_linkage(clustering.double_centred(gap)),
        f"spectral, {EUCLIDEAN}": clustering.spectral(euclidean),
    }


def basins_of(
    found: Curves, euclidean: Matrix, names: tuple[str, ...], groups: Shaped[np.ndarray, "run"] | None, where: dict[str, Any]
) -> Result:
    """Rows of the steps above, and the side table `clusters`: one row per run, one column per method.

    Parameters
    ----------
    found
        Curves between all runs.
    euclidean
        Distances of their weights.
    names, groups
        Of the runs; groups if they are known.
    where
        Columns of every row.
    """
    gap = found.matrix(MAIN, GAP)
    ends = {loss: found.ends(loss) for loss in found.losses}
    labels = clusters(gap, euclidean)
    rows: list[Row] = []
    quality = np.abs(ends[MAIN][:, None] - ends[MAIN])
    for loss, values in ends.items():
        if loss == MAIN:
            continue
        differs = np.abs(values[:, None] - values)
        for name, a, given in ((GAP, gap, None), (f"{GAP}, beyond {MAIN}", gap, quality), (EUCLIDEAN, euclidean, None)):
            test = permutation.mantel(a, differs, given, _PERMUTATIONS)
            if np.isfinite(test.rho):
                columns = where | {"item": name, "definition": f"with the difference in {loss}, over pairs of runs"}
                rows.append(Row.of(test.estimate, metric=f"mantel rho of {loss}", **columns))
                rows.append(Row(value=test.p, metric=f"mantel p of {loss}", n=test.n, unit="run", **columns))
    for method, label in labels.items():
        if len(np.unique(label)) < 2:
            continue
        for loss, values in ends.items():
            apart = separation(values, label)
            columns = where | {"item": method, "definition": "P(a run of the smaller cluster has the higher)"}
            rows.append(Row.of(apart.estimate, metric=f"AUC of {loss}", **columns))
        if groups is not None:
            agreed = clustering.agreement(label, groups, _PERMUTATIONS)
            columns = where | {"item": method, "n": agreed.n, "unit": "run"}
            rows.append(Row(value=agreed.ari, metric="ARI", definition="adjusted Rand index with the groups", **columns))
            rows.append(Row(value=agreed.p, metric="ARI p", definition=f"{_PERMUTATIONS} orders of the runs", **columns))
    if groups is not None and 1 < len(np.unique(groups)) < len(groups):
        for name, matrix in ((GAP, gap), (EUCLIDEAN, euclidean)):
            ratio = permutation.across_within(matrix, groups)
            rows.append(Row.of(ratio, metric="ratio", item=name, definition="mean across groups / within", **where))
    side = pd.DataFrame({"run": list(names), **({"group": groups} if groups is not None else {}), **labels, **ends})
    return Result.of(rows, side={"clusters": side})


def sentence(result: Result) -> str:
    """Correlations of gaps and distances with the behaviour: an error if there is one."""
    behaviour = _behaviour(result.side["clusters"])
    rows = {r["item"]: r for r in records(result.table, metric=f"mantel rho of {behaviour}")}
    p = {r["item"]: r["value"] for r in records(result.table, metric=f"mantel p of {behaviour}")}
    numbers = [f"{name} {r['value']:.2f} [{r['lo']:.2f}, {r['hi']:.2f}], p {p[name]:.3g}" for name, r in rows.items()]
    text = f"Correlation with the difference in {behaviour}, over pairs of runs (Mantel's rho): {'; '.join(numbers)}."
    return text if numbers else ""


def _behaviour(side: pd.DataFrame) -> str:
    return next((str(c) for c in side.columns if str(c).endswith(" error")), "error")


def section(result: Result, gap: Matrix) -> Section:
    """The part of the page: gaps in the order of the clusters, behaviour against the main loss, the numbers."""
    side = result.side["clusters"]
    method = f"average linkage, {GAP}, double-centred"
    group = side["group"].astype(str) if "group" in side else side[method].map(lambda c: f"cluster {c}")
    order = np.lexsort((side[method].to_numpy(), group.to_numpy()))
    cells = [
        {"a": i, "b": j, "value": gap[a, b], "name_a": side["run"][a], "name_b": side["run"][b], "group_a": group[a]}
        for i, a in enumerate(order)
        for j, b in enumerate(order)
    ]
    top = float(np.quantile(gap[np.triu_indices(len(gap), 1)], 0.98)) or 1.0
    gaps = charts.distances(pd.DataFrame(cells), value_title="convexity gap", top=top)
    ordered = f"Ordered by {'group, then by ' if 'group' in side else ''}{method}."
    behaviour = _behaviour(side)
    points = pd.DataFrame({"x": side[MAIN], "y": side[behaviour], "group": group, "name": side["run"]})
    runs = charts.scattered(points, x_title=MAIN, y_title=behaviour)
    table = result.table[result.table["metric"].str.contains("mantel|AUC|ARI|ratio")]
    brackets = [f" [{r['lo']:.3g}, {r['hi']:.3g}]" if np.isfinite(r["lo"]) else "" for r in records(table)]
    values = [f"{value:.3g}{end}" for value, end in zip(table["value"], brackets)]
    lines = pd.DataFrame({"number": table["metric"], "of": table["item"], "value": values})
    return Section(
        "Are there basins, and do they predict anything?",
        "Look for clusters that differ in behaviour. Clustering always returns two clusters. They are informative if they "
        "predict behaviour that was not used for "
        "clustering, and predict it better than the main loss and Euclidean distances between weights do.",
        (
            Figure(gaps, "Convexity gaps", ordered, small=True),
            Figure(runs, "Behaviour and main loss of each run", "One point per run.", small=True),
            Table(
                lines,
                "Numbers",
                "Mantel: correlation with the difference in that number, over pairs of runs. AUC: P(a run of the smaller cluster "
                "has the higher value). Intervals over runs; p-values by permuting runs, one-sided, "
                "not corrected for multiple tests.",
            ),
        ),
    )
