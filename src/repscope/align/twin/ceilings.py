"""How well a twin predicts neurons, and how well any model could: correlations and explained variance with noise ceilings.

With y_nr the response of one neuron to stimulus n in repeat r (R repeats), ȳ_n its mean over repeats, ŷ_n the prediction:

    CCabs  = corr(ŷ, ȳ)
    TP     = mean over repeats of Var_n(y_nr),   SP = (R Var_n(ȳ_n) - TP) / (R - 1)
    CCmax  = √(SP / Var_n(ȳ_n)),   CCnorm = CCabs / CCmax        Schoppe et al. 2016, doi 10.3389/fncom.2016.00010, eq. 5 and 7
    σ²     = mean over stimuli of the variance over repeats,   FEVE = 1 - (MSE - σ²) / (Var(y) - σ²),   FEV = (Var(y) - σ²) / Var(y)
    oracle = corr(y_nr, mean of the other repeats), over all trials: below the ceiling, as the mean of few repeats is noisy

All variances divide by n - 1. A neuron without signal (SP ≤ 0) has no CCnorm: NaN, and is counted; with little signal CCnorm is
noisy, so that neurons below `least` of FEV are left out of means, by their responses alone, never by the prediction.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from repscope import stats
from repscope.errors import UserError
from repscope.results import Row
from repscope.stats import Estimate

LEAST_FEV = 0.15
Neurons = Float[np.ndarray, "neuron"]


@dataclass(frozen=True, eq=False)
class TwinScores:
    """Scores per neuron; NaN where a neuron has none. counted: neurons with enough signal, over which means are taken.

    cc_single: mean over repeats of the correlation of the prediction with single trials.
    """

    cc_abs: Neurons
    cc_max: Neurons
    cc_norm: Neurons
    fev: Neurons
    feve: Neurons
    oracle: Neurons
    cc_single: Neurons
    counted: Bool[np.ndarray, "neuron"]

    def mean(self, metric: str = "cc_norm", seed: int = 0) -> Estimate:
        """Mean over counted neurons, with its interval over neurons.

        Raises
        ------
        UserError
            If no neuron has enough signal.
        """
        values = getattr(self, metric)[self.counted]
        if not values.size:
            raise UserError(f"None of {len(self.counted)} neurons has a signal of {LEAST_FEV:g} of its variance; use more repeats.")
        return stats.mean(values, unit="neuron", seed=seed)

    def rows(self, item: str = "", condition: str = "estimate", seed: int = 0) -> list[Row]:
        """One row per metric."""
        names = {"cc_norm": "CCnorm", "cc_abs": "CCabs", "cc_max": "CCmax", "feve": "FEVE", "oracle": "oracle correlation"}
        return [Row.of(self.mean(key, seed), metric=name, item=item, condition=condition, seed=seed) for key, name in names.items()]


def score_twin(predicted: Any, responses: Any, *, least: float = LEAST_FEV) -> TwinScores:
    """Scores of predictions (stimulus, neuron) for responses (repeat, stimulus, neuron).

    Raises
    ------
    UserError
        For fewer than two repeats or three stimuli, other shapes, or values that are not finite.
    """
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(responses, dtype=np.float64)
    if y.ndim != 3 or p.shape != y.shape[1:]:
        raise UserError(
            f"Predictions of shape {p.shape} and responses of shape {y.shape} do not fit; give (stimulus, neuron) and "
            f"(repeat, stimulus, neuron)."
        )
    repeats, stimuli, _ = y.shape
    if repeats < 2 or stimuli < 3:
        raise UserError(
            f"{repeats} repeats of {stimuli} stimuli have no noise ceiling; at least 2 repeats of 3 stimuli are needed."
        )
    if not (np.isfinite(p).all() and np.isfinite(y).all()):
        raise UserError("Some predictions or responses are not finite; leave those stimuli or neurons out.")
    mean = y.mean(0)
    total, averaged = y.var(1, ddof=1).mean(0), mean.var(0, ddof=1)
    signal = (repeats * averaged - total) / (repeats - 1)
    noise = y.var(0, ddof=1).mean(0)
    whole = y.reshape(-1, y.shape[2]).var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cc_max = np.sqrt(np.where(signal > 0, signal / averaged, np.nan))
        fev = (whole - noise) / whole
        feve = 1 - (((y - p) ** 2).mean((0, 1)) - noise) / (whole - noise)
    cc_abs = _correlation(p, mean)
    others = (mean[None] * repeats - y) / (repeats - 1)
    oracle = _correlation(others.reshape(-1, y.shape[2]), y.reshape(-1, y.shape[2]))
    single = np.mean([_correlation(p, one) for one in y], axis=0)
    counted = np.isfinite(cc_max) & (np.nan_to_num(fev) >= least)
    return TwinScores(cc_abs, cc_max, cc_abs / cc_max, fev, np.where(fev > 0, feve, np.nan), oracle, single, counted)


def _correlation(a: Float[np.ndarray, "trial neuron"], b: Float[np.ndarray, "trial neuron"]) -> Neurons:
    """Per neuron; a constant prediction correlates with nothing: 0."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.asarray(np.divide((a * b).sum(0), size, out=np.zeros(a.shape[1]), where=size > 1e-12))
