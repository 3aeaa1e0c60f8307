"""Encoding models: how well do features of stimuli predict each channel's (neuron's, voxel's) response to stimuli left out?

1. Conditions are cut into folds; conditions of one group (a stimulus in several versions, a story, a run) stay together.
2. Per fold, a model is fitted to the other folds and predicts the left-out conditions: ridge regression (`ridge`: kernel form for
   more features than rows), banded ridge for several feature spaces, or PLS regression with 25 components as in Brain-Score.
3. Scores are of left-out conditions alone, with intervals over conditions:

    r            correlation of predicted and observed within each fold, mean over folds. Over all folds at once it would be below 0
                 for pure noise: folds whose responses happen to agree have large predictions, the others weigh less
    R²           1 - Σ (y - ŷ)² / Σ (y - ȳ_train)²: 0 is the mean of the training conditions
    r²/ceiling   `ceilings`

Scores are per channel; an estimate is their mean over channels. Arrays in, arrays out; no network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.align.ceilings import over_ceiling
from repscope.align.ridge import RidgeSettings, banded_ridge, inner_folds, kernel_of, kernel_ridge, primal_ridge
from repscope.align.rows import as_rows, same_rows
from repscope.errors import UserError
from repscope.stats import Estimate

Method = Literal["ridge", "PLS"]
Score = Literal["r", "R²", "r²/ceiling"]
OfSums = Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, "draw"]]
COMPONENTS = 25  #: of PLS, as in Brain-Score
_LEAST = 10  #: conditions


@dataclass(frozen=True, eq=False)
class Encoding:
    """Predictions of left-out conditions.

    predicted, observed: the responses. baseline: mean of the training conditions. fold: of each condition. penalties: chosen per
    fold and channel, in units of `ALPHAS` (None of PLS); with bands, log weights per fold, space and channel. at_edge: share of
    penalties at the ends of their range, where a wider range may predict better.
    """

    predicted: Float[np.ndarray, "condition channel"]
    observed: Float[np.ndarray, "condition channel"]
    baseline: Float[np.ndarray, "condition channel"]
    fold: Int[np.ndarray, "condition"]
    penalties: np.ndarray | None
    at_edge: float

    def r(self) -> Float[np.ndarray, "channel"]:
        """Correlation per channel; a fold whose prediction does not vary predicts nothing and counts as 0."""
        found: np.ndarray = _r(self._moments().sum(0)[None])[0]
        return found

    def r2(self) -> Float[np.ndarray, "channel"]:
        """R² per channel."""
        return np.asarray(1 - ((self.observed - self.predicted) ** 2).sum(0) / ((self.observed - self.baseline) ** 2).sum(0))

    def estimate(
        self,
        score: Score = "r",
        *,
        ceiling: Float[np.ndarray, "channel"] | None = None,
        seed: int = 0,
        rows: Int[np.ndarray, "row"] | None = None,
    ) -> Estimate:
        """Mean over channels with its interval over conditions, `rows` of them if given.

        Raises
        ------
        UserError
            For "r²/ceiling" without a ceiling, or without a channel whose ceiling is above 0.
        """
        moments, function = self.columns(score, ceiling)
        held = moments if rows is None else moments[rows]
        flat = held.reshape(len(held), -1)
        return stats.functions_of_ratios(flat, np.ones_like(flat), {"score": function}, unit="condition", seed=seed)["score"]

    def columns(
        self, score: Score, ceiling: Float[np.ndarray, "channel"] | None = None
    ) -> tuple[
        Float[np.ndarray, "condition moment channel"], Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, "draw"]]
    ]:
        """What a score is made of, summed over conditions, and the function of these sums that is its mean over channels."""
        if score == "R²":
            parts = np.stack([(self.observed - self.predicted) ** 2, (self.observed - self.baseline) ** 2], 1)
            return parts, lambda sums: np.asarray((1 - _moments(sums, 2)[:, 0] / _moments(sums, 2)[:, 1]).mean(1))
        if score == "r":
            return self._moments(), lambda sums: np.asarray(_r(_moments(sums, 3)).mean(1))
        if ceiling is None:
            raise UserError("r²/ceiling needs ceiling=, one number per channel (`split_half` of the repeats).")
        known = np.asarray(ceiling, dtype=np.float64)
        over_ceiling(np.zeros(len(known)), known)  # refuses ceilings of which none is above 0
        return self._moments(), lambda sums: np.asarray(np.nanmean(over_ceiling(_r(_moments(sums, 3)), known), axis=1))

    def _moments(self) -> Float[np.ndarray, "condition moment channel"]:
        """Products of observed and predicted, and their squares, after standardising both within folds."""
        (a, aa), (b, bb) = (_standardised_within(side, self.fold) for side in (self.observed, self.predicted))
        return np.stack([a * b, aa, bb], 1)


def encode(
    x: Any,
    y: Any,
    method: Method = "ridge",
    *,
    folds: int = 5,
    groups: Sequence[Any] | None = None,
    settings: RidgeSettings | None = None,
    components: int = COMPONENTS,
    seed: int = 0,
) -> Encoding:
    """Predict each channel's responses to left-out conditions from features.

    Parameters
    ----------
    x : Float[Array, "condition feature"]
        Features of the stimuli.
    y : Float[Array, "condition channel"]
        Responses, means over repeats.
    folds
        Number of folds of conditions.
    groups
        A label per condition; conditions of one label are never on both sides of a fold.
    settings
        Penalties of ridge regression, and himalaya's backend.
    components
        Of PLS.
    seed
        Of the order in which conditions are dealt into folds.

    Raises
    ------
    UserError
        For fewer than 10 conditions, different numbers of rows, values that are not finite, constant channels or features, fewer
        groups than folds, or when himalaya is missing.
    """
    features, responses = _checked(x, y)
    fold, code = _folds(len(responses), folds, groups, seed)
    chosen = settings or RidgeSettings(seed=seed)
    features = features.astype(responses.dtype, copy=False)
    if method == "PLS":
        return _by_folds(responses, fold, lambda train, test: _pls(features, responses, train, test, components))
    if method != "ridge":
        raise UserError(f"There is no encoding method {method!r}; give 'ridge' or 'PLS'.")
    least = min(int((fold != f).sum()) for f in range(folds))
    kernel = kernel_of(features) if least <= features.shape[1] else None

    def fit(train: Int[np.ndarray, "train"], test: Int[np.ndarray, "test"]) -> tuple[np.ndarray, np.ndarray | None]:
        inner = inner_folds(code[train], chosen.inner)
        if kernel is not None:
            return kernel_ridge(kernel, responses[train], train, test, inner, chosen)
        return primal_ridge(features, responses[train], train, test, inner, chosen)

    return _edges(_by_folds(responses, fold, fit), chosen)


def encode_banded(
    spaces: Mapping[str, Any],
    y: Any,
    *,
    folds: int = 5,
    groups: Sequence[Any] | None = None,
    settings: RidgeSettings | None = None,
    seed: int = 0,
) -> Encoding:
    """As `encode`, from several feature spaces at once with one penalty each: banded ridge regression.

    Raises
    ------
    UserError
        As `encode`, and without a space.
    """
    if not spaces:
        raise UserError("No feature space was given; give a mapping from names to features.")
    pairs = {name: _checked(x, y) for name, x in spaces.items()}
    responses = next(iter(pairs.values()))[1]
    kernels = {name: kernel_of(features.astype(responses.dtype, copy=False)) for name, (features, _) in pairs.items()}
    fold, code = _folds(len(responses), folds, groups, seed)
    chosen = settings or RidgeSettings(seed=seed)

    def fit(train: Int[np.ndarray, "train"], test: Int[np.ndarray, "test"]) -> tuple[np.ndarray, np.ndarray | None]:
        return banded_ridge(kernels, responses[train], train, test, inner_folds(code[train], chosen.inner), chosen)

    return _by_folds(responses, fold, fit)


def _checked(x: Any, y: Any) -> tuple[Float[np.ndarray, "condition feature"], Float[np.ndarray, "condition channel"]]:
    features, responses = as_rows(x, "The feature space", 1), as_rows(y, "The recording", 1)
    same_rows(features, responses)
    if len(responses) < _LEAST:
        raise UserError(f"The recording has {len(responses)} conditions; an encoding model needs at least {_LEAST}.")
    for rows, what, part in ((features, "features", "feature"), (responses, "responses", "channel")):
        if not np.isfinite(rows).all():
            raise UserError(
                f"{int((~np.isfinite(rows)).sum())} of the {what} are not finite; leave those conditions or {part}s out."
            )
    constant = np.ptp(responses, axis=0) == 0
    if constant.any():
        raise UserError(f"Channel {int(constant.argmax())} has the same response to every condition; leave it out.")
    if not np.ptp(features, axis=0).any():
        raise UserError("All features are the same for every condition, so they predict nothing; check the layer and the stimuli.")
    return features, responses


def _folds(
    count: int, folds: int, groups: Sequence[Any] | None, seed: int
) -> tuple[Int[np.ndarray, "condition"], Int[np.ndarray, "condition"]]:
    """Fold of each condition, and the number of its group in a random order."""
    if groups is not None and len(groups) != count:
        raise UserError(f"There are {len(groups)} groups for {count} conditions; give one label per condition.")
    _, code = np.unique(np.arange(count) if groups is None else np.asarray(groups), return_inverse=True)
    total = int(code.max()) + 1
    if folds < 2 or total < max(folds, 3) or count < 3 * folds:
        raise UserError(
            f"{count} conditions in {total} groups cannot be cut into {folds} folds; give at least 2 folds, as many groups, and 3 "
            "conditions per fold."
        )
    code = np.random.default_rng(seed).permutation(total)[code]
    return code % folds, code


def _by_folds(
    responses: Float[np.ndarray, "condition channel"],
    fold: Int[np.ndarray, "condition"],
    fit: Callable[[Int[np.ndarray, "train"], Int[np.ndarray, "test"]], tuple[np.ndarray, np.ndarray | None]],
) -> Encoding:
    predicted, baseline = np.empty_like(responses), np.empty_like(responses)
    penalties = []
    for f in range(int(fold.max()) + 1):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        predicted[test], chosen = fit(train, test)
        baseline[test] = responses[train].mean(0)
        penalties.append(chosen)
    if not np.isfinite(predicted).all():
        raise UserError("Some predictions are not finite; scale the features, or give float64 in place of float32.")
    known = [p for p in penalties if p is not None]
    return Encoding(predicted, responses, baseline, fold, np.stack(known) if known else None, 0.0)


def _edges(found: Encoding, settings: RidgeSettings) -> Encoding:
    """How many penalties are at the ends of their range."""
    ends = [min(settings.alphas), max(settings.alphas)]
    near = np.isclose(np.asarray(found.penalties)[..., None], ends, rtol=1e-3)
    return replace(found, at_edge=float(near.any(-1).mean()))


def _pls(
    x: Float[np.ndarray, "condition feature"],
    y: Float[np.ndarray, "condition channel"],
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
    components: int,
) -> tuple[Float[np.ndarray, "test channel"], None]:
    """PLS regression, features centred and not scaled, as Brain-Score has it; as many components as the data allow."""
    from sklearn.cross_decomposition import PLSRegression

    most = min(components, len(train) - 1, x.shape[1])
    model = PLSRegression(n_components=most, scale=False).fit(x[train], y[train])
    return np.asarray(model.predict(x[test])).reshape(len(test), -1), None


def _standardised_within(
    x: Float[np.ndarray, "condition channel"], fold: Int[np.ndarray, "condition"]
) -> tuple[Float[np.ndarray, "condition channel"], Float[np.ndarray, "condition channel"]]:
    """Mean 0 and variance 1 in each fold, and squares. What does not vary in a fold is 0 there with squares of 1: r counts as 0."""
    found = x.astype(np.float64)
    squares = np.ones_like(found)
    for f in np.unique(fold):
        part = found[fold == f] - found[fold == f].mean(0)
        scale = part.std(0)
        varies = scale > 1e-9 * np.abs(x[fold == f]).max(0)
        found[fold == f] = np.divide(part, scale, out=np.zeros_like(part), where=varies)
        squares[fold == f] = np.where(varies, found[fold == f] ** 2, 1.0)
    return found, squares


def _moments(sums: Float[np.ndarray, "draw column"], count: int) -> Float[np.ndarray, "draw moment channel"]:
    return sums.reshape(len(sums), count, -1)


def _r(moments: Float[np.ndarray, "draw 3 channel"]) -> Float[np.ndarray, "draw channel"]:
    return np.asarray(moments[:, 0] / np.sqrt(moments[:, 1] * moments[:, 2]))
