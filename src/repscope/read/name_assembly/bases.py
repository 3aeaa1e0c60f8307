"""Is there more structure than a look-up: are single neurons (or latents) more informative than random directions?

1. k-sparse probes (`read.sae.sparse_probes`) on the features themselves, and on random rotations: same space, other axes.
2. Excess kurtosis of each feature over the names, averaged over features: features that fire for few names have a high one, sums of
   many have one near 0. Its interval is from the jackknife over names, as resampled names repeat and make tails thinner.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.errors import UserError
from repscope.read.probes import ProbeScores, ProbeTask
from repscope.read.ridge import Features, Fold
from repscope.read.sae.sparse_probes import sparse_probe
from repscope.stats.bootstrap import student


@dataclass(frozen=True, eq=False)
class Basis:
    """scores: by k, of sparse probes on the features. rotated: by k, of each random rotation. kurtosis, rotated_kurtosis: means
    over features with intervals over names.
    """

    scores: dict[int, ProbeScores]
    rotated: dict[int, list[ProbeScores]]
    kurtosis: stats.Estimate
    rotated_kurtosis: stats.Estimate

    def gain(self, k: int, seed: int = 0) -> stats.Estimate:
        """Score of k features minus the mean score of k rotated ones, paired over entities."""
        ours = self.scores[k]
        rows = ours.tested
        theirs = np.mean([s.top[0, rows] for s in self.rotated[k]], axis=0)
        if ours.task.kind == "class":
            return stats.mean(ours.top[0, rows] - theirs, unit="entity", seed=seed)
        return stats.ratio(ours.top[0, rows] - theirs, ours.bottom[0, rows], unit="entity", seed=seed)


def basis_scores(
    features: Features, task: ProbeTask, folds: Sequence[Fold], ks: Sequence[int], *, rotations: int = 3, seed: int = 0
) -> Basis:
    """Compare a basis with random rotations of it.

    Parameters
    ----------
    features
        (entity, feature), of the entities of the task.
    ks
        Numbers of features that a probe may read.

    Raises
    ------
    UserError
        When no feature varies, or there is no rotation to compare with.
    """
    x = features.astype(np.float64)
    if rotations < 1:
        raise UserError("A basis is compared with at least 1 random rotation of it.")
    if not x.std(0).any():
        raise UserError("No feature varies over these names; read another site.")
    turned = [x @ _rotation(x.shape[1], [seed, r]) for r in range(rotations)]
    scores = {k: found[0] for k, found in sparse_probe(x, [task], folds, ks, seed=seed).items()}
    rotated: dict[int, list[ProbeScores]] = {k: [] for k in ks}
    for other in turned:
        for k, found in sparse_probe(other, [task], folds, ks, seed=seed).items():
            rotated[k].append(found[0])
    return Basis(scores, rotated, mean_kurtosis([x]), mean_kurtosis(turned))


def mean_kurtosis(sets: Sequence[Float[np.ndarray, "entity feature"]]) -> stats.Estimate:
    """Excess kurtosis averaged over the features that vary, of one or several sets of features; interval over entities."""
    n = len(sets[0])
    found = np.zeros(1 + n)
    for x in sets:
        x = (x - x.mean(0))[:, x.std(0) > 1e-9 * max(float(np.abs(x).max()), 1e-30)]
        powers = [(x / x.std(0)) ** k for k in (1, 2, 3, 4)]
        m1, m2, m3, m4 = (np.concatenate([p.mean(0)[None], (p.sum(0) - p) / (n - 1)]) for p in powers)
        variance = np.maximum(m2 - m1**2, 1e-12)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        found += (fourth / variance**2 - 3).mean(1) / len(sets)
    left_out = found[1:]
    variance_of_mean = float((n - 1) / n * np.square(left_out - left_out.mean()).sum())
    return student(float(found[0]), variance_of_mean, unit="entity", n=n)


def _rotation(width: int, seed: Sequence[int]) -> Float[np.ndarray, "feature feature"]:
    """A rotation drawn uniformly: Q of a normal matrix, with the signs of R's diagonal (Mezzadri 2007)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    turned: np.ndarray = q * np.sign(np.diag(r))
    return turned
