"""k-sparse probes: linear probes that read only k features, chosen on the training entities (Gurnee et al. 2023, arXiv:2305.01610).

1. In each training fold rank the features: for classes by the share of a feature's variance between classes (for two classes the
   order of the standardised mean difference), for numbers by the absolute correlation.
2. Fit the ridge probe of `read.probes` on the k first and score the held-out entities.
3. The control permutes the labels before step 1, so that it contains the choice among many features too.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from repscope.read.probes import ProbeScores, ProbeTask, probe
from repscope.read.ridge import Features, Fold


def rank_features(features: Features, task: ProbeTask, rows: Int[np.ndarray, "train"]) -> Int[np.ndarray, "feature"]:
    """Features in order of what each says of a task by itself, on some entities; constant features come last."""
    x = features[rows].astype(np.float64)
    x = x - x.mean(0)
    total = np.square(x).sum(0)
    y = task.columns(task.values[rows])
    if task.kind == "class":
        counts = y.sum(0)
        means = y.T @ x / np.maximum(counts, 1)[:, None]
        between = (counts[:, None] * np.square(means)).sum(0)
    else:
        centred = y[:, 0] - y[:, 0].mean()
        between = np.square(centred @ x) / max(float(np.square(centred).sum()), 1e-300)
    share = between / np.where(total > 1e-12 * len(x), total, np.inf)
    return np.asarray(np.argsort(-share, kind="stable"))


def sparse_probe(
    features: Features, tasks: Sequence[ProbeTask], folds: Sequence[Fold], ks: Sequence[int], *, shuffles: int = 0, seed: int = 0
) -> dict[int, list[ProbeScores]]:
    """Held-out scores of k-sparse probes.

    Parameters
    ----------
    features
        (entity, feature), such as latents, neurons or coordinates.
    tasks, folds, shuffles, seed
        As `read.probes.probe`.
    ks
        Numbers of features; those above the number that there are use all of them.

    Returns
    -------
    dict
        k → one `ProbeScores` per task, as `probe` gives.
    """
    n = len(features)
    found: dict[int, list[ProbeScores]] = {k: [] for k in ks}
    for number, task in enumerate(tasks):
        rng = np.random.default_rng(seed + 1000 * number)
        runs = [task, *(replace(task, values=rng.permutation(task.values)) for _ in range(shuffles))]
        tops, bottoms = ({k: np.full((1 + shuffles, n), np.nan) for k in ks} for _ in range(2))
        predicted = {k: np.full(n, np.nan) for k in ks}
        for r, run in enumerate(runs):
            for train, test in folds:
                order = rank_features(features, run, train)
                for k in ks:
                    scores = probe(features[:, order[:k]], [run], [(train, test)], shuffles=0)[0]
                    tops[k][r, test], bottoms[k][r, test] = scores.top[0, test], scores.bottom[0, test]
                    if r == 0:
                        predicted[k][test] = scores.predicted[test]
        for k in ks:
            found[k].append(ProbeScores(task, tops[k], bottoms[k], predicted[k]))
    return found


def cross_fitted_share(
    values: Float[np.ndarray, "row feature"], codes: Int[np.ndarray, "row"], half: Int[np.ndarray, "row"]
) -> Float[np.ndarray, "feature"]:
    """Share of each feature's variance that a code (such as the current token) explains: means of one half predict the other.

    values: activations. codes: an integer per row. half: 0 or 1; rows of one document belong to one half. A code that the other
    half has not predicts its overall mean. NaN for features that do not vary in a half.
    """
    error, spread = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    names, at = np.unique(codes, return_inverse=True)
    for side in (0, 1):
        fit, test = half == side, half != side
        overall = values[fit].mean(0)
        counts = np.bincount(at[fit], minlength=len(names))
        sums = np.zeros((len(names), values.shape[1]))
        np.add.at(sums, at[fit], values[fit])
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], overall)
        error += np.square(values[test] - means[at[test]]).sum(0)
        spread += np.square(values[test] - overall).sum(0)
    share: np.ndarray = 1 - error / np.where(spread > 0, spread, np.nan)
    return share
