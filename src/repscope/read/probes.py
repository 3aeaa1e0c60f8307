"""Linear probes: ridge regression of attributes on representations.

1. Features are standardised, classes are one-hot columns, the largest prediction wins.
2. All attributes and label shuffles are columns of one regression per fold (`read.ridge`). Each attribute and each shuffle has the
   penalty of its least leave-one-out error in the training rows.
3. Held-out rows are predicted; every entity has a score, so that intervals and paired differences are over entities.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from repscope import stats
from repscope.directions import Direction
from repscope.read.ridge import PENALTIES, Features, Fold, Ridge, predictions
from repscope.stats import Estimate

UNIT = "entity"
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  #: inverse penalties of the logistic probe


@dataclass(frozen=True)
class ProbeTask:
    """Target of a probe for each entity.

    name: the attribute. kind: class or number. values: (entity), class codes or numbers. classes: names of the codes.
    """

    name: str
    kind: Literal["class", "number"]
    values: np.ndarray
    classes: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """`accuracy` for classes, `r2` for numbers."""
        return "accuracy" if self.kind == "class" else "r2"

    def columns(self, values: np.ndarray) -> Float[np.ndarray, "entity column"]:
        """Values as columns to fit: one-hot for classes."""
        if self.kind == "class":
            onehot: np.ndarray = np.eye(len(self.classes))[values]
            return onehot
        return values[:, None].astype(np.float64)


@dataclass(frozen=True)
class ProbeScores:
    """Held-out scores of each entity.

    The score is Σ top / Σ bottom over entities: for classes top is 1 if correct and bottom is 1; for numbers bottom is the squared
    distance to the training mean and top is bottom minus the squared error, so the ratio is an out-of-sample R².

    top, bottom: (1 + shuffles, entity); the first row is the estimate, the others are label shuffles. Untested entities have NaN.
    predicted: (entity), class code or number, or NaN.
    """

    task: ProbeTask
    top: Float[np.ndarray, "run entity"]
    bottom: Float[np.ndarray, "run entity"]
    predicted: Float[np.ndarray, "entity"]

    @property
    def tested(self) -> Int[np.ndarray, "entity"]:
        """Indices of tested entities."""
        return np.flatnonzero(np.isfinite(self.top[0]))

    def estimate(self, entities: Int[np.ndarray, "some"] | None = None, seed: int = 0) -> Estimate:
        """The score with its bootstrap interval over entities."""
        rows = self.tested if entities is None else entities
        return score(self.task, self.top[0, rows], self.bottom[0, rows], seed)

    def shuffled(self, entities: Int[np.ndarray, "some"] | None = None) -> Estimate:
        """The control: mean and range of the same score over label shuffles."""
        return stats.null(self.null(entities), unit="shuffle")

    def null(self, entities: Int[np.ndarray, "some"] | None = None) -> Float[np.ndarray, "shuffle"]:
        """The score of each label shuffle."""
        rows = self.tested if entities is None else entities
        result: np.ndarray = self.top[1:, rows].sum(1) / self.bottom[1:, rows].sum(1)
        return result


def score(task: ProbeTask, top: Float[np.ndarray, "entity"], bottom: Float[np.ndarray, "entity"], seed: int = 0) -> Estimate:
    """Σ top / Σ bottom with its interval over entities."""
    if task.kind == "class":
        return stats.proportion(top, unit=UNIT, seed=seed)
    return stats.ratio(top, bottom, unit=UNIT, seed=seed)


def probe(
    features: Features,
    tasks: Sequence[ProbeTask],
    folds: Sequence[Fold],
    *,
    shuffles: int = 20,
    seed: int = 0,
    tested: Features | None = None,
    eigenvectors: bool = False,
) -> list[ProbeScores]:
    """Probe each task on held-out entities.

    Parameters
    ----------
    features
        (entity, feature).
    tasks
        Targets; all for the same entities, in the same order as the features.
    folds
        Pairs of training and test entities. An entity is tested at most once.
    shuffles
        Number of label permutations, the control; equal for every call with this seed.
    tested
        Features of the entities when they are tested, where these differ from those that probes are fitted on.
    eigenvectors
        As for `ridge.predictions`; where calls run in parallel.

    Returns
    -------
    list of Scores
        One a task.

    Raises
    ------
    UserError
        For features that are not finite.
    """
    n = len(features)
    if not folds:  # halves too small to have folds of their own: nobody is tested
        nobody = np.full((1 + shuffles, n), np.nan)
        return [ProbeScores(task, nobody.copy(), nobody.copy(), nobody[0].copy()) for task in tasks]
    runs = [_runs(task, shuffles, seed + 1000 * i) for i, task in enumerate(tasks)]
    blocks = [[task.columns(values) for values in run] for task, run in zip(tasks, runs)]
    columns = np.concatenate([b for block in blocks for b in block], axis=1)
    widths = np.array([b.shape[1] for block in blocks for b in block])
    solved = predictions(features, folds, columns, widths, tested=tested, eigenvectors=eigenvectors)
    tests = np.concatenate([test for _, test in folds])
    fold = np.repeat(np.arange(len(folds)), [len(test) for _, test in folds])
    parts = np.split(np.concatenate(solved), np.cumsum([sum(b.shape[1] for b in block) for block in blocks])[:-1], axis=1)
    found = []
    for task, run, part in zip(tasks, runs, parts):
        top, bottom, predicted = np.full((1 + shuffles, n), np.nan), np.full((1 + shuffles, n), np.nan), np.full(n, np.nan)
        means = np.empty((1, len(folds)))
        if task.kind == "number":
            means = np.stack([run[:, train].mean(1) for train, _ in folds], axis=1)
        top[:, tests], bottom[:, tests], predicted[tests] = _scored(task, part, run[:, tests], means[:, fold])
        found.append(ProbeScores(task, top, bottom, predicted))
    return found


def within_halves(folds: Sequence[Fold], half: Bool[np.ndarray, "entity"]) -> list[Fold]:
    """The same folds within each half of the entities: training and test entities are of one half."""
    return [
        (train[half[train] == side], test[half[test] == side])
        for train, test in folds
        for side in (True, False)
        if (half[test] == side).any() and (half[train] == side).sum() > 1
    ]


def chosen_elsewhere(
    by_site: Sequence[ProbeScores], choosing: Sequence[ProbeScores], half: Bool[np.ndarray, "entity"]
) -> tuple[Float[np.ndarray, "entity"], Float[np.ndarray, "entity"], tuple[int, int]]:
    """Each tested entity's score at the site that was best on the *other* half of the entities.

    Scores from folds over all entities would bias the selection: a site where half B happens to predict half A is one where A
    predicts B. `choosing` must come from `within_halves`, so that the selection uses no label of the half that is reported.

    Parameters
    ----------
    by_site
        Scores of one task at several sites, to report.
    choosing
        Scores at the same sites, trained and tested within halves.
    half
        The half of each entity.

    Returns
    -------
    top, bottom, sites
        Scores of the tested entities, and the index of the site selected on the True half and on the False half.
    """
    rows = by_site[0].tested
    top, bottom = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    picked = []
    for side in (True, False):
        choose, report = rows[half[rows] == side], half[rows] != side
        best = int(np.argmax([_sum_ratio(s.top[0, choose], s.bottom[0, choose]) for s in choosing]))
        picked.append(best)
        top[report], bottom[report] = by_site[best].top[0, rows[report]], by_site[best].bottom[0, rows[report]]
    return top, bottom, (picked[0], picked[1])


def _sum_ratio(top: Float[np.ndarray, "entity"], bottom: Float[np.ndarray, "entity"]) -> float:
    """Σ top / Σ bottom over tested entities; minus infinity if there are none."""
    below = float(np.nansum(bottom))
    return float(np.nansum(top)) / below if below else -np.inf


def logistic(features: Features, task: ProbeTask, train: Int[np.ndarray, "train"], test: Int[np.ndarray, "test"]) -> np.ndarray:
    """Correctness of a multinomial logistic probe on test entities; its penalty is selected by cross-validation in `train`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    x, y = features[train], task.values[train]
    smallest = int(np.bincount(y).clip(min=1).min())
    shares = np.zeros(len(_STRENGTHS))
    for fit, check in StratifiedKFold(max(2, min(3, smallest))).split(x, y):
        scaler = StandardScaler().fit(x[fit])  # once for all strengths, which scikit-learn's search would scale for one by one
        inside, outside = scaler.transform(x[fit]), scaler.transform(x[check])
        for i, strength in enumerate(_STRENGTHS):
            shares[i] += _logistic(LogisticRegression, strength).fit(inside, y[fit]).score(outside, y[check])
    scaler = StandardScaler().fit(x)
    best = _logistic(LogisticRegression, _STRENGTHS[int(np.argmax(np.round(shares, 12)))]).fit(scaler.transform(x), y)
    return np.asarray((best.predict(scaler.transform(features[test])) == task.values[test]).astype(np.float64))


def _logistic(kind: Any, strength: float) -> Any:
    return kind(C=strength, max_iter=300, tol=1e-3)


def ridge_classes(
    train: Features, labels: Sequence[str], test: Features, penalties: Float[np.ndarray, "penalty"] = PENALTIES
) -> list[str]:
    """The class of each test row by a ridge probe whose penalty is that of the least leave-one-out error."""
    names, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    said = Ridge.of(train, test, penalties).predict(np.eye(len(names))[codes], np.array([len(names)]))
    return [str(names[i]) for i in said.argmax(1)]


def probe_directions(features: Features, task: ProbeTask, site: str) -> list[Direction]:
    """Weights of a probe fitted on all entities, as directions in the network's own units: one per class, or one for a number.

    The score of a row is `scale × (row · vector) + offset`; the largest of the classes' scores wins.
    """
    columns = task.columns(task.values)
    weights, offsets = Ridge.of(features, features[:0]).weights(columns)
    names = task.classes if task.kind == "class" else (task.name,)
    found_by = f"ridge probe of {task.name}, penalty by leave-one-out, all {len(features)} entities"
    return [
        Direction.of(
            weights[:, c],
            site,
            f"{task.name}={name}" if task.kind == "class" else name,
            offset=float(offsets[c]),
            found_by=found_by,
        )
        for c, name in enumerate(names)
    ]


def _runs(task: ProbeTask, shuffles: int, seed: int) -> Num[np.ndarray, "run entity"]:
    """The values as they are, then their permutations."""
    rng = np.random.default_rng(seed)
    return np.stack([task.values, *(rng.permutation(task.values) for _ in range(shuffles))])


def _scored(
    task: ProbeTask,
    said: Float[np.ndarray, "test run_column"],
    test: Num[np.ndarray, "run test"],
    means: Float[np.ndarray, "run test"],
) -> tuple[Float[np.ndarray, "run test"], Float[np.ndarray, "run test"], Float[np.ndarray, "test"]]:
    """Top and bottom of all runs, and what the first one predicts; `said` has the columns of one run after the other.

    means: of the training rows of each test row's fold, for numbers.
    """
    each = said.reshape(len(said), len(test), said.shape[1] // len(test))
    if task.kind == "class":
        codes = each.argmax(2).T
        return (codes == test).astype(np.float64), np.ones(test.shape), codes[0].astype(np.float64)
    total = (test - means) ** 2
    return total - (test - each[:, :, 0].T) ** 2, total, each[:, 0, 0]


def average(scores: Iterable[ProbeScores]) -> ProbeScores:
    """Mean scores per entity over several scorings (one per prompt template)."""
    held = list(scores)
    return ProbeScores(
        held[0].task,
        np.mean([s.top for s in held], axis=0),
        np.mean([s.bottom for s in held], axis=0),
        held[0].predicted if held[0].task.kind == "class" else np.mean([s.predicted for s in held], axis=0),
    )


def majority(task: ProbeTask, folds: Sequence[Fold]) -> Float[np.ndarray, "entity"]:
    """Correctness of the most common class of the training fold on tested entities: the baseline without a representation."""
    right = np.full(len(task.values), np.nan)
    for train, test in folds:
        right[test] = task.values[test] == np.bincount(task.values[train]).argmax()
    tested: np.ndarray = right[np.isfinite(right)]
    return tested
