"""The order in which networks learn: do they learn the same examples, or phenomena, first?

Of correctness, (network, step, example):

1. Accessibility of an example: the share of steps (and networks) at which it is classified correctly. TP-agreement: the share of
   networks that are correct at a step. Agreement: the share that gives the most common prediction, right or wrong.
2. Bimodality of TP-agreement at a step: kurtosis − skew², 1 for two points, lower is more bimodal. Null: correctness permuted over
   examples within each network, which keeps each accuracy and removes what networks share.
3. Order correlation: Spearman's rho of accessibility for every pair of networks, within one architecture or across two; with
   classes, of what is left after each class's mean (classes differ in difficulty).
Of accuracies, (run, step, item), such as phenomena of grammar:

4. `matched`: each run's accuracies where its loss crosses given values, so that runs are compared at equal loss and not at equal
   step.
5. Agreement on the order: mean pairwise rho, Kendall's W, share of the first principal component. Agreement on single items beyond
   accuracy: Fleiss' kappa of several raters, Cohen's of two.

Networks share an order wherever they share difficulty, and not only in structured data: labels drawn at random but given to all
networks have one too. Valid nulls remove what is shared: labels drawn for each network, orthogonal inputs, classes taken out.
Hacohen, Choshen & Weinshall 2020, arXiv:1905.10854; Choshen et al. 2022, arXiv:2109.06096. Arrays in, estimates out; no network.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from repscope import stats
from repscope.errors import UserError
from repscope.stats import Estimate
from repscope.stats.bootstrap import LEVEL
from repscope.stats.permutation import mean_of_pairs

PERMUTATIONS = 200


def agreement(predicted: Int[ArrayLike, "network step example"]) -> Float[np.ndarray, "step example"]:
    """Share of networks that give the most common prediction, at each step and example.

    >>> agreement(np.array([[[1, 2]], [[1, 0]], [[3, 2]]])).round(2).tolist()
    [[0.67, 0.67]]
    """
    given = np.asarray(predicted)
    if given.ndim != 3 or len(given) < 2:
        raise UserError(f"Predictions have the shape {given.shape}; give (network, step, example) of at least 2 networks.")
    counts = np.stack([(given == k).sum(0) for k in np.unique(given)])
    found: np.ndarray = counts.max(0) / len(given)
    return found


def accessibility(correct: Bool[ArrayLike, "network step example"]) -> Float[np.ndarray, "network example"]:
    """Share of steps at which each network is correct on each example; its mean over networks is the accessibility of a family."""
    return np.asarray(_correct(correct).mean(1))


def bimodality(values: Float[ArrayLike, "example"]) -> float:
    """Kurtosis − skew²: 1 for two points, 1.8 for a uniform distribution, 3 for a normal one; NaN for a constant.

    >>> bimodality([0.0, 0.0, 1.0, 1.0])
    1.0
    """
    x = np.asarray(values, dtype=np.float64)
    spread = x.std()
    if spread == 0:
        return float("nan")
    z = (x - x.mean()) / spread
    return float((z**4).mean() - (z**3).mean() ** 2)


def bimodality_test(
    correct: Bool[ArrayLike, "network step example"], share: float = 0.6, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, Estimate, float]:
    """Bimodality of TP-agreement at the step where mean accuracy is nearest `share` of its maximum.

    Returns
    -------
    tuple
        The bimodality, its null (correctness permuted within each network: mean and range), and p of being this low.
    """
    held = _correct(correct)
    accuracy = held.mean((0, 2))
    at = held[:, int(np.argmin(np.abs(accuracy - share * accuracy.max())))]
    rng = np.random.default_rng(seed)
    drawn = np.array([bimodality(rng.permuted(at, axis=1).mean(0)) for _ in range(permutations)])
    own = bimodality(at.mean(0))
    return own, stats.null(drawn, unit="permutation"), stats.p_value(-own, -drawn)


def order_correlation(
    values: Float[ArrayLike, "network example"],
    groups: Sequence[str] | None = None,
    classes: Int[ArrayLike, "example"] | None = None,
    *,
    unit: str = "network",
    seed: int = 0,
) -> Estimate:
    """Mean of Spearman's rho over pairs of networks; with two groups (architectures), over pairs across them.

    `classes`: each class's mean is subtracted first, in every network. The interval is over networks.

    Raises
    ------
    UserError
        For a single network, fewer than four examples, or a network whose values do not vary.
    """
    return mean_of_pairs(rank_correlations(values, classes, unit=unit), groups, unit=unit, seed=seed)


def rank_correlations(
    values: Float[ArrayLike, "network example"], classes: Int[ArrayLike, "example"] | None = None, *, unit: str = "network"
) -> Float[np.ndarray, "network network"]:
    """Spearman's rho of every pair of rows; arguments and errors as `order_correlation`."""
    from scipy.stats import rankdata

    x = np.array(values, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise UserError(f"One {unit} has no order to share: values have the shape {x.shape}; give at least 2 {unit}s.")
    if x.shape[1] < 4:
        raise UserError(f"An order of {x.shape[1]} items says little; give at least 4.")
    if not np.isfinite(x).all():
        raise UserError(f"A value of {unit} {int(np.flatnonzero(~np.isfinite(x).all(1))[0])} is not a number; leave it out.")
    for one in np.unique(np.asarray(classes)) if classes is not None else ():
        members = np.asarray(classes) == one
        x[:, members] -= x[:, members].mean(1, keepdims=True)
    x[np.abs(x) < 1e-12] = 0.0  # rounding must not break ties
    ranks = rankdata(x, axis=1)
    if (ranks.std(1) == 0).any():
        raise UserError(f"The values of {unit} {int(np.argmin(ranks.std(1)))} do not vary, so they have no order; leave it out.")
    return np.asarray(np.corrcoef(ranks))


def residuals(
    values: Float[ArrayLike, "run item"], covariates: Float[ArrayLike, "item covariate"]
) -> Float[np.ndarray, "run item"]:
    """What the ranks of covariates (frequency, distance) leave of each run's ranks of items, by linear regression.

    Raises
    ------
    UserError
        Unless there are at least three items more than covariates.
    """
    from scipy.stats import rankdata

    x, z = rankdata(np.asarray(values), axis=1), rankdata(np.asarray(covariates), axis=0)
    if x.ndim != 2 or len(z) != x.shape[1] or len(z) < z.shape[1] + 3:
        raise UserError(f"{z.shape[1]} covariates of {len(z)} items explain too much of {x.shape[-1]} items; give more items.")
    full = np.column_stack([np.ones(len(z)), z])
    found: np.ndarray = (x.T - full @ np.linalg.lstsq(full, x.T, rcond=None)[0]).T
    return found.round(9)


def kendall_w(values: Float[ArrayLike, "run item"], *, unit: str = "run", seed: int = 0) -> tuple[Estimate, float]:
    """Kendall's coefficient of concordance of the runs' orders, with ties, and p by permuting items within each run.

    W = (1 + (m − 1) r) / m, with r the mean Spearman correlation of pairs of the m runs, whose interval over runs is W's.

    >>> w, p = kendall_w([[1, 2, 3, 4], [1, 2, 3, 4], [2, 1, 3, 4]])
    >>> round(w.value, 3)
    0.911
    """
    x = np.asarray(values, dtype=np.float64)
    r = order_correlation(x, unit=unit, seed=seed)
    m, rng = len(x), np.random.default_rng(seed)
    off = ~np.eye(m, dtype=bool)
    drawn = [rank_correlations(rng.permuted(x, axis=1), unit=unit)[off].mean() for _ in range(PERMUTATIONS)]
    value, lo, hi = ((1 + (m - 1) * v) / m for v in (r.value, r.lo, r.hi))
    return Estimate(value, lo, hi, LEVEL, r.method, unit, m), stats.p_value(r.value, drawn)


def first_component(values: Float[ArrayLike, "point item"], *, seed: int = 0) -> tuple[float, Estimate]:
    """Share of the variance of points (runs × steps, or runs) over items that lies on the first principal component, and its null:
    every item permuted over points.

    Raises
    ------
    UserError
        For fewer than three points, or points that are all equal.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or len(x) < 3 or np.ptp(x, axis=0).max() == 0:
        raise UserError(f"Principal components need at least 3 points that differ; the values have the shape {x.shape}.")
    rng = np.random.default_rng(seed)
    drawn = [_first_share(rng.permuted(x, axis=0)) for _ in range(PERMUTATIONS)]
    return _first_share(x), stats.null(drawn, unit="permutation")


def _first_share(x: Float[np.ndarray, "point item"]) -> float:
    squares = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    return float(squares[0] / squares.sum())


def fleiss_kappa(ratings: Int[ArrayLike, "rater item"]) -> float:
    """Agreement of several raters on categories beyond what their shares explain (Fleiss 1971); NaN where all give one category.

    >>> fleiss_kappa([[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0]]).__round__(3)
    0.657
    """
    given = _ratings(ratings)
    counts = np.stack([(given == k).sum(0) for k in np.unique(given)])  # (category, item)
    n = len(given)
    observed = ((counts**2).sum(0) - n).mean() / (n * (n - 1))
    expected = ((counts.sum(1) / counts.sum()) ** 2).sum()
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def cohen_kappa(a: Int[ArrayLike, "item"], b: Int[ArrayLike, "item"]) -> float:
    """Agreement of two raters on categories beyond what each one's shares explain (Cohen 1960); NaN where both give one category.

    >>> cohen_kappa([0, 1, 1, 0], [0, 1, 0, 0])
    0.5
    """
    given = _ratings(np.stack([np.asarray(a), np.asarray(b)]))
    shares = np.stack([(given == k).mean(1) for k in np.unique(given)])  # (category, rater)
    observed, expected = float((given[0] == given[1]).mean()), float(shares.prod(1).sum())
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def matched(
    values: Float[ArrayLike, "run step item"], losses: Float[ArrayLike, "run step"], targets: Float[ArrayLike, "target"]
) -> Float[np.ndarray, "run target item"]:
    """Each run's values where its loss first falls to each target, linear between steps.

    Losses are made to fall first (the lowest so far), as noise would cross a target several times.

    Raises
    ------
    UserError
        When a target is outside the losses that every run has passed.
    """
    x, loss, wanted = (np.asarray(v, dtype=np.float64) for v in (values, losses, targets))
    if x.ndim != 3 or loss.shape != x.shape[:2]:
        raise UserError(f"Values have the shape {x.shape} and losses {loss.shape}; give (run, step, item) and (run, step).")
    falling = np.minimum.accumulate(loss, axis=1)
    lowest, highest = float(falling[:, -1].max()), float(falling[:, 0].min())
    if (wanted < lowest).any() or (wanted > highest).any():
        raise UserError(f"Every run passes the losses {highest:.3g} to {lowest:.3g}; give targets between them.")
    found = np.empty((len(x), len(wanted), x.shape[2]))
    for run, curve in enumerate(falling):
        for k, target in enumerate(wanted):
            after = int(np.argmax(curve <= target))
            before = max(after - 1, 0)
            drop = curve[before] - curve[after]
            share = (curve[before] - target) / drop if drop > 0 else 1.0
            found[run, k] = (1 - share) * x[run, before] + share * x[run, after]
    return found


def common_losses(losses: Float[ArrayLike, "run step"], count: int) -> Float[np.ndarray, "target"]:
    """Losses that every run passes, evenly spaced, from high to low, without the highest."""
    falling = np.minimum.accumulate(np.asarray(losses, dtype=np.float64), axis=1)
    lowest, highest = float(falling[:, -1].max()), float(falling[:, 0].min())
    if not lowest < highest:
        raise UserError("The runs have no loss in common; train them longer.")
    return np.linspace(highest, lowest, count + 1)[1:]


def _correct(correct: ArrayLike) -> Float[np.ndarray, "network step example"]:
    held = np.asarray(correct)
    if held.ndim != 3 or len(held) < 2 or not held.size:
        raise UserError(f"Correctness has the shape {held.shape}; give (network, step, example) of at least 2 networks.")
    if not np.isin(held, (0, 1)).all():
        raise UserError("Correctness has other values than right and wrong (1 and 0); compare predictions with labels first.")
    return held.astype(np.float64)


def _ratings(ratings: ArrayLike) -> Int[np.ndarray, "rater item"]:
    given = np.asarray(ratings)
    if given.ndim != 2 or len(given) < 2 or given.shape[1] < 1:
        raise UserError(f"Ratings have the shape {given.shape}; give (rater, item) of at least 2 raters.")
    return given
