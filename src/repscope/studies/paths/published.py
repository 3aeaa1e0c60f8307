"""A published table of runs and their clusters: do the clusters separate how runs generalise, and what else separates as well?

Input: accuracies by run (several tables are joined on the run), and two clusters of the runs. For each score:

1. AUC: the probability that a run of the larger cluster scores above one of the smaller, with the means of both clusters. Control:
   the same for in-domain accuracy. If it separates the clusters as well, cluster and quality are confounded.
2. AUC after in-domain accuracy was regressed out. One slope for all runs also removes what the clusters differ in (the AUC is too
   low); the slope within clusters removes only what accuracy explains there (too high). Scores with one value in more than half of
   the runs are skipped: their residuals would be the negative accuracy.
3. Spearman's rho of score and in-domain accuracy, over all runs and within the larger cluster.
4. Unimodal or bimodal: BIC of one and of two Gaussians, modes of the better density, Sarle's coefficient. Clusters of barriers are
   not modes of scores: each can occur without the other.

Output: a table in the common schema, the side table `scores` (run, cluster, id, score, ood) for figures, and notes in sentences.
A constant score has only its means. p-values are not corrected for the number of scores.
Juneja et al., 2205.12411 (clusters); McCoy et al., 1911.02969 (accuracies). Uses no network and no barriers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from repscope import stats
from repscope.data.published import FEATHER_ID, FEATHER_OOD, RUN, Clusters, accuracies, feather_clusters
from repscope.data.published import clusters as read_clusters
from repscope.data.reading import How
from repscope.errors import UserError, unknown
from repscope.results import Result, Row
from repscope.stats.clustering import UNIFORM, Bimodality, bimodality
from repscope.stats.groups import Separation, separation, separation_given
from repscope.stats.permutation import spearman

STUDY, STEP = "paths", "published"
IN_DOMAIN = "in-domain accuracy"
LEFT = {"in-domain accuracy regressed out": False, "in-domain accuracy regressed out, slope within clusters": True}
LEAST = 4  #: runs
_LEAVES = (
    "the residual does not separate the clusters",
    "the residual separates the clusters with one of the two slopes only",
    "the residual still separates the clusters",
)


@dataclass(frozen=True, eq=False)
class Joined:
    """A table and its clusters. large, small: names of the clusters. is_large: for each run. id, ood: names of columns. notes:
    how the table was read."""

    frame: pd.DataFrame
    large: str
    small: str
    is_large: Bool[np.ndarray, "run"]
    id: str
    ood: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> Float[np.ndarray, "run"]:
        """One score, one value per run."""
        return self.frame[name].to_numpy(dtype=np.float64)

    def long(self) -> pd.DataFrame:
        """One row per run and out-of-domain score: run, cluster, id (its in-domain accuracy), score (the column's name), ood."""
        n, k = len(self.frame), len(self.ood)
        each = {
            RUN: self.frame[RUN].to_numpy(),
            "cluster": np.where(self.is_large, self.large, self.small),
            "id": self.column(self.id),
        }
        return pd.DataFrame(
            {name: np.tile(values, k) for name, values in each.items()}
            | {"score": np.repeat(self.ood, n), "ood": np.concatenate([self.column(name) for name in self.ood])}
        )


def published(
    files: str | Path | Sequence[str | Path],
    clusters: str | Path | Clusters | None = None,
    id_column: str = "",
    seed: int = 0,
    **how: Unpack[How],
) -> Result:
    """Separation, confound and heaps of every score of a published table.

    Parameters
    ----------
    files
        Tables for `repscope.data.published.accuracies`, all of the same runs.
    clusters
        A file for `repscope.data.published.clusters`, or what it returns. None: the twelve runs of the README of
        aNOnWhyMooS/connectivity, which are of the BERTs of a feather and are taken for no other table.
    id_column
        The in-domain accuracy; else "MNLI dev acc." where there is one, else the first score.
    how
        `decimal`, `na` and `quote` of the tables, see `repscope.data.reading.Reading`.

    Returns
    -------
    result
        `item` is the score's column; `condition` is "estimate" or the control.

    Raises
    ------
    UserError
        When files cannot be read or joined, or the clusters are not two.
    """
    joined = join_tables(files, clusters, id_column, **how)
    varying = [name for name in (joined.id, *joined.ood) if np.ptp(joined.column(name)) > 0]
    heaps = {name: bimodality(joined.column(name), seed=seed) for name in varying}
    apart = {name: separation(joined.column(name), joined.is_large, seed=seed) for name in varying}
    rows = [row for name in (joined.id, *joined.ood) for row in _means(joined, name, seed)]
    for name in varying:
        rows += _separated(joined, name, apart[name], seed) + _heaps(name, heaps[name], seed)
        if name != joined.id and joined.id in varying:
            rows += _given_id(joined, name, seed)
    result = Result.of(rows, side={"scores": joined.long()})
    return Result(result.table, side=result.side, notes=_notes(joined, apart, heaps, result.table))


def join_tables(
    files: str | Path | Sequence[str | Path], clusters: str | Path | Clusters | None = None, id_column: str = "", **how: Unpack[How]
) -> Joined:
    """Tables joined on the run, their clusters, and which column is in-domain.

    Raises
    ------
    UserError
        When tables are not of the same runs or share a score, or there are not two clusters.
    """
    paths = [Path(f) for f in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise UserError("No table of accuracies was given; `repscope.data.published.where()` tells where to get one.")
    tables = [(path, accuracies(path, **how)) for path in paths]
    frame = reduce(_merged, tables)[1]
    notes = tuple(note for _, table in tables for note in table.attrs["notes"])
    scores = [str(c) for c in frame.columns if c != RUN]
    if id_column and id_column not in scores:
        raise unknown(f"column of {_names(paths)}", id_column, scores)
    chosen = id_column or (FEATHER_ID if FEATHER_ID in scores else scores[0])
    if len(scores) < 2:
        raise UserError(f"{_names(paths)} has only the score {chosen!r}; give out-of-domain scores as well.")
    if len(frame) < LEAST:
        raise UserError(f"{_names(paths)} has {len(frame)} runs; a comparison needs at least {LEAST}.")
    if clusters is None:
        if not {FEATHER_ID, FEATHER_OOD} <= set(scores):
            raise UserError(
                f"{_names(paths)} is not the table of the BERTs of a feather (no {FEATHER_OOD!r}), whose clusters are built "
                "in; give the clusters of these runs."
            )
        clusters = feather_clusters()
    known = clusters if isinstance(clusters, Clusters) else read_clusters(clusters)
    labels = np.array(known.of(frame[RUN]))
    names, counts = np.unique(labels, return_counts=True)
    if len(names) != 2:
        raise UserError(f"{known.source} puts the {len(frame)} runs into {len(names)} clusters; give two.")
    small, large = (str(names[i]) for i in np.argsort(counts, kind="stable"))
    ood = tuple(name for name in scores if name != chosen)
    return Joined(frame, large, small, labels == large, chosen, ood, known.source, notes)


def _merged(a: tuple[Path, pd.DataFrame], b: tuple[Path, pd.DataFrame]) -> tuple[Path, pd.DataFrame]:
    (first, left), (second, right) = a, b
    if odd := sorted(set(left[RUN]) ^ set(right[RUN])):
        raise UserError(f"{first.name} and {second.name} are not of the same runs (run {odd[0]} is in one of them).")
    if twice := (set(left.columns) & set(right.columns)) - {RUN}:
        raise UserError(f"{first.name} and {second.name} both have {min(twice)!r}; keep it in one of them.")
    return first, left.merge(right, on=RUN)


def _means(joined: Joined, name: str, seed: int) -> list[Row]:
    return [
        Row.of(
            stats.mean(joined.column(name)[joined.is_large == is_large], unit="run", seed=seed),
            **_at(name, seed),
            metric="mean",
            definition=f"of the runs of cluster {cluster!r}",
        )
        for cluster, is_large in ((joined.large, True), (joined.small, False))
    ]


def _separated(joined: Joined, name: str, apart: Separation, seed: int) -> list[Row]:
    at = _at(name, seed) | ({"condition": IN_DOMAIN} if name == joined.id else {})
    return [
        Row.of(apart.estimate, **at, metric="auc", definition=_orientation(joined)),
        Row(**at, metric="p", definition="auc: Mann–Whitney, two-sided", value=apart.p, unit="run", n=apart.n),
    ]


def _given_id(joined: Joined, name: str, seed: int) -> list[Row]:
    y, x, at = joined.column(name), joined.column(joined.id), _at(name, seed)
    rows = [
        Row.of(
            separation_given(y, joined.is_large, x, within=within, seed=seed),
            **at,
            metric="auc",
            definition=_orientation(joined),
            condition=condition,
        )
        for condition, within in LEFT.items()
        if not _mostly_one_value(y)
    ]
    every = np.ones(len(y), dtype=bool)
    for runs, definition in (
        (every, "with in-domain accuracy"),
        (joined.is_large, f"with in-domain accuracy, within {joined.large!r}"),
    ):
        if runs.sum() >= LEAST:
            found = spearman(y[runs], x[runs], seed=seed)
            rows.append(Row.of(found.estimate, **at, metric="spearman", definition=definition))
            p = f"spearman {definition}: runs permuted, two-sided"
            rows.append(Row(**at, metric="p", definition=p, value=found.p, unit="run", n=found.n))
    return rows


def _heaps(name: str, heaps: Bimodality, seed: int) -> list[Row]:
    numbers = (
        ("bic", "one Gaussian, lower is better", heaps.bic_1),
        ("bic", "two Gaussians, lower is better", heaps.bic_2),
        ("components", "Gaussians with the lower BIC", heaps.modes),
        ("heaps", "peaks of the curve with the lower BIC", heaps.peaks),
        ("sarle", "bimodality coefficient, small-sample; .555 for a uniform", heaps.sarle),
    )
    return [Row(**_at(name, seed), metric=m, definition=d, value=v, unit="run", n=heaps.n) for m, d, v in numbers]


def _notes(joined: Joined, apart: dict[str, Separation], heaps: dict[str, Bimodality], table: pd.DataFrame) -> tuple[str, ...]:
    """The results in sentences: of the main score (else the first), then of all scores."""
    n, few, varying = len(joined.frame), int((~joined.is_large).sum()), [name for name in joined.ood if name in apart]
    notes = [
        f"{n} runs, {few} in cluster {joined.small!r} and {n - few} in {joined.large!r}; source: {joined.source}. "
        f"In-domain accuracy is {joined.id!r}. AUC is {_orientation(joined)}; p-values are not corrected for the number of scores.",
        *joined.notes,
    ]
    if flat := [name for name in (joined.id, *joined.ood) if name not in apart]:
        notes.append(f"Constant over all runs, and therefore not analysed: {_listed(flat)}.")
    if varying:
        focus = FEATHER_OOD if FEATHER_OOD in varying else varying[0]
        notes.append(f"{focus!r}: {_separation_text(apart[focus], joined)}.")
        if joined.id in apart:
            notes.append(
                f"The control, {joined.id!r}: {_separation_text(apart[joined.id], joined)}. "
                f"{_confound(joined, focus, apart, table)}"
            )
        notes.append(_modality(focus, heaps[focus]))
    if mostly := [name for name in varying if _mostly_one_value(joined.column(name))]:
        notes.append(f"One value in more than half of the runs, and therefore no regression: {_listed(mostly)}.")
    below = [name for name in varying if apart[name].hi < 0.5]
    above = [name for name in varying if apart[name].lo > 0.5]
    notes.append(
        f"Of {len(varying)} out-of-domain scores (some may be parts of others), the larger cluster scores higher in {len(above)} "
        f"and lower in {len(below)}, with intervals that exclude .5{'; lower: ' + _listed(below) if below else ''}."
    )
    if two := [name for name in varying if heaps[name].peaks == 2 and heaps[name].sarle > UNIFORM]:
        notes.append(f"Bimodal by BIC and by Sarle's coefficient (a peak at 0 or 1 counts as a mode): {_listed(two)}.")
    return tuple(notes)


def _confound(joined: Joined, focus: str, apart: dict[str, Separation], table: pd.DataFrame) -> str:
    """The separation after in-domain accuracy was regressed out."""
    if _mostly_one_value(joined.column(focus)):
        return f"More than half of the runs have one value of {focus!r}: no regression on accuracy."
    left = [table[(table["item"] == focus) & (table["condition"] == c)].iloc[0] for c in LEFT]
    aucs = " and ".join(f"{_short(r['value'])} [{_short(r['lo'])}, {_short(r['hi'])}]" for r in left)
    accuracy, own = apart[joined.id], apart[focus]
    if accuracy.lo <= 0.5 <= accuracy.hi:
        opening = "In-domain accuracy does not separate the clusters"
    elif accuracy.lo <= own.auc <= accuracy.hi or own.lo <= accuracy.auc <= own.hi:
        opening = "In-domain accuracy separates the clusters as well as the score does: cluster and quality are confounded"
    else:
        opening = "In-domain accuracy separates the clusters too, but not to the same degree"
    clear = sum(row["lo"] > 0.5 or row["hi"] < 0.5 for row in left)
    return (
        f"{opening}. With it regressed out of {focus!r} the AUC is {aucs} (one slope for all runs; slope within clusters): "
        f"{_LEAVES[clear]}."
    )


def _modality(name: str, heaps: Bimodality) -> str:
    better = "one Gaussian is better" if heaps.modes == 1 else "two Gaussians are better"
    if heaps.peaks == 1:
        then = "it is unimodal, so clusters of runs are not modes of this score"
    else:
        then = "it is bimodal" if heaps.sarle > UNIFORM else "the two criteria disagree"
    return (
        f"{name!r}: {better} by BIC ({heaps.bic_1:.1f} with one, {heaps.bic_2:.1f} with two), Sarle's coefficient is "
        f"{_short(heaps.sarle)} (a uniform distribution has {_short(UNIFORM)}; higher values suggest two modes); {then}."
    )


def _separation_text(apart: Separation, joined: Joined) -> str:
    return (
        f"AUC {_short(apart.auc)} [{_short(apart.lo)}, {_short(apart.hi)}], p {apart.p:.2g}, "
        f"mean {apart.mean_a:.3f} in {joined.large!r} and {apart.mean_b:.3f} in {joined.small!r}"
    )


def _mostly_one_value(values: Float[np.ndarray, "run"]) -> bool:
    return bool(2 * np.unique(values, return_counts=True)[1].max() > len(values))


def _orientation(joined: Joined) -> str:
    return f"P(a run of {joined.large!r} scores above one of {joined.small!r})"


def _at(item: str, seed: int) -> dict[str, Any]:
    return {"study": STUDY, "step": STEP, "item": item, "seed": seed}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if 0 <= value < 1 else f"{value:.3f}"
