"""Result table of a set of runs: barriers between runs and their relation to behaviour.

Input: curves between all runs, their Euclidean distances, behaviour and quality of each run, and, if any, the training conditions.
Output, rows of the shared schema:

1. Heights by all four definitions, within and across groups, and their ratio with its interval; control: shuffled labels.
2. Mantel tests: whether pairs with a high gap behave differently, also after controlling for the difference in quality; baseline:
   Euclidean distance.
3. Unsupervised clusters compared with the groups: spectral at the median and the published scale, average linkage with and without
   subtraction of each run's own effect, and the same on Euclidean distances.
4. Alternative explanations: separation of the groups by quality alone, bimodality of behaviour, broken triangle inequalities.

Groups are the training conditions if any, else the strategy of each run (behaviour above one half or not).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from repscope import stats
from repscope.conditions import ESTIMATE, shuffled
from repscope.results import Row
from repscope.stats import clustering, permutation
from repscope.stats.distances import triangle, upper
from repscope.stats.groups import separation
from repscope.trace.barriers import GAP, HEIGHTS
from repscope.trace.interpolation import Curves

EUCLIDEAN = "Euclidean distance"
_SHUFFLES = 200

Matrix = Float[np.ndarray, "run run"]


@dataclass(frozen=True, eq=False)
class RunMeasurements:
    """Measurements of runs and between runs.

    curves: between all pairs. euclidean: distance of weights. behaviour: share of the rule on disambiguating examples. quality:
    loss on ambiguous examples. training_groups: training condition of each run, None if all are equal.
    """

    curves: Curves
    euclidean: Matrix
    behaviour: Float[np.ndarray, "run"]
    quality: Float[np.ndarray, "run"]
    training_groups: Shaped[np.ndarray, "run"] | None = None

    @property
    def groups(self) -> Shaped[np.ndarray, "run"]:
        """Training conditions, or the strategy of each run."""
        return np.where(self.behaviour > 0.5, "rule", "lexical overlap") if self.training_groups is None else self.training_groups

    def matrix(self, how: str) -> Matrix:
        """Heights of the loss between all runs, or their Euclidean distance."""
        return self.euclidean if how == EUCLIDEAN else self.curves.matrix("loss", how)


def rows(held: RunMeasurements, *, seed: int = 0, permutations: int = 1000, **where: Any) -> list[Row]:
    """All numbers of a set of runs; `where` fills in columns of the schema. Undefined numbers have no row."""
    condition = where.pop("condition", ESTIMATE)

    def row(estimate: stats.Estimate | float, metric: str, item: str, **more: Any) -> Row:
        at = {"metric": metric, "item": item, "condition": condition, "seed": seed, **where} | more
        if isinstance(estimate, stats.Estimate):
            return Row.of(estimate, **at)
        return Row(value=estimate, **{"n": len(held.behaviour), "unit": "run", **at})

    runs = np.column_stack([held.behaviour, held.quality])
    names = ("share of the rule", "ID loss")
    found = [
        row(stats.mean(runs[held.groups == g, k], unit="run", seed=seed), names[k], str(g))
        for g in np.unique(held.groups)
        for k in range(2)
    ]
    found += _heights(held, row, seed, condition)
    found += _mantel(held, row, seed, permutations)
    found += _clusters(held, row, seed, permutations)
    return [*found, *_confounds(held, row, seed)]


Make = Callable[..., Row]


def _two_groups(groups: Shaped[np.ndarray, "run"]) -> bool:
    """Whether there are two groups with pairs within each."""
    _, sizes = np.unique(groups, return_counts=True)
    return len(sizes) == 2 and int(sizes.min()) >= 2


def _heights(held: RunMeasurements, row: Make, seed: int, condition: str) -> Iterable[Row]:
    groups = held.groups
    rng = np.random.default_rng(seed)
    pairs = upper(groups[:, None] == groups)
    for how in (*HEIGHTS, EUCLIDEAN):
        matrix = held.matrix(how)
        values = upper(matrix)
        metric = "distance" if how == EUCLIDEAN else "height"
        for name, mask in (("within", pairs), ("across", ~pairs)):
            if mask.any():
                yield row(float(values[mask].mean()), metric, f"{name}: {how}", n=int(mask.sum()), unit="pair")
        if not _two_groups(groups) or (matrix < 0).any():
            continue
        yield row(permutation.across_within(matrix, groups, seed), "ratio", how, definition="mean across groups / within")
        null = permutation.across_within_null(matrix, groups, _SHUFFLES, rng)
        if null is not None:
            yield row(null, "ratio", how, definition="mean across groups / within", condition=shuffled(condition))


def _mantel(held: RunMeasurements, row: Make, seed: int, permutations: int) -> Iterable[Row]:
    differs, quality = (np.abs(x[:, None] - x) for x in (held.behaviour, held.quality))
    asked = [
        (GAP, held.matrix(GAP), differs, None),
        (f"{GAP}, beyond ID loss", held.matrix(GAP), differs, quality),
        (EUCLIDEAN, held.euclidean, differs, None),
        ("ID loss", quality, differs, None),
        (f"{GAP} with ID loss", held.matrix(GAP), quality, None),
    ]
    for name, a, b, given in asked:
        test = permutation.mantel(a, b, given, permutations, seed)
        if np.isfinite(test.rho):
            what = "behaviour" if b is differs else "ID loss"
            yield row(test.estimate, "mantel rho", name, definition=f"Spearman over pairs with the difference in {what}")
            yield row(test.p, "mantel p", name, definition=f"one-sided, {permutations} orders of the runs")


def _clusters(held: RunMeasurements, row: Make, seed: int, permutations: int) -> Iterable[Row]:
    groups = held.groups
    if not _two_groups(groups):
        return
    gap = held.matrix(GAP)
    ways: dict[str, np.ndarray] = {
        f"average linkage, {GAP}": clustering.average_linkage(gap),
        f"average linkage, {GAP}, double-centred": clustering.average_linkage(clustering.double_centred(gap)),
        f"spectral, {EUCLIDEAN}": clustering.spectral(held.euclidean, seed=seed),
        f"average linkage, {EUCLIDEAN}": clustering.average_linkage(held.euclidean),
        f"average linkage, {EUCLIDEAN}, double-centred": clustering.average_linkage(clustering.double_centred(held.euclidean)),
    }
    for at in clustering.sensitivity(gap, seed=seed):
        ways[f"spectral, {GAP}, δ {'= 1 (published)' if at.name == 'published' else at.name}"] = at.labels
    for name, labels in ways.items():
        found = clustering.agreement(labels, groups, permutations, seed)
        yield row(found.ari, "ARI", name, definition="adjusted Rand index with the groups")
        yield row(found.p, "ARI p", name, definition=f"one-sided, {permutations} orders of the runs")


def _confounds(held: RunMeasurements, row: Make, seed: int) -> Iterable[Row]:
    broken = triangle(held.matrix(GAP))
    yield row(broken.violations, "triangles broken", GAP, n=broken.n, unit="triple")
    modes = clustering.bimodality(held.behaviour, seed=seed)
    yield row(float(modes.modes), "modes", "share of the rule", definition="Gaussians by BIC, one or two")
    yield row(modes.sarle, "Sarle's coefficient", "share of the rule", definition="above .555 speaks for two modes")
    if not _two_groups(held.groups):
        return
    rule = (held.groups == "rule").astype(int)
    for name, values in (("ID loss", -held.quality), ("share of the rule", held.behaviour)):
        found = separation(values, rule, seed=seed)
        yield row(found.estimate, "AUC", name, definition="P(a run of the rule's group scores better)")
