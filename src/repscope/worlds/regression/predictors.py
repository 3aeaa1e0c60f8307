"""Exact Bayes predictors of in-context linear regression, in float64: E[y | x, the pairs before].

With pairs (x_1, y_1) … (x_k, y_k) and a query x:

* dMMSE, for the list of pretraining tasks: ŵ = Σ_i softmax_i(−Σ_j (y_j − w_i·x_j)² / 2σ²) w_i.
* ridge, for w ~ N(0, I): ŵ = (XᵀX + σ² I)⁻¹ Xᵀ y.

Both give the prediction for every number of pairs in one pass: running sums of squared residuals for dMMSE; for ridge the recursive
(Kalman) form of the same solution, P ← P − P x xᵀ P / (σ² + xᵀ P x), which needs no solve per number of pairs.
Source: Raventós et al. 2023, eq. 3 and 4.
"""

import numpy as np
from jaxtyping import Float

_CELLS = 1 << 21  #: prompts × examples × tasks at a time


def discrete_mmse(
    x: Float[np.ndarray, "prompt example feature"],
    y: Float[np.ndarray, "prompt example"],
    tasks: Float[np.ndarray, "task feature"],
    noise: float,
) -> Float[np.ndarray, "prompt example"]:
    """Prediction of each y from the pairs before it, by the posterior over these tasks, which are equally likely at first."""
    found = np.empty(y.shape)
    step = max(1, _CELLS // (y.shape[1] * len(tasks)))
    for at in range(0, len(x), step):
        own = slice(at, at + step)
        outputs = x[own] @ tasks.T  # prompt, example, task
        errors = (y[own, :, None] - outputs) ** 2
        log = np.cumsum(errors, axis=1)
        log -= errors  # of the pairs before
        log *= -0.5 / noise**2
        log -= log.max(-1, keepdims=True)
        weights = np.exp(log, out=log)
        found[own] = np.einsum("pkt,pkt->pk", weights, outputs) / weights.sum(-1)
    return found


def ridge(
    x: Float[np.ndarray, "prompt example feature"], y: Float[np.ndarray, "prompt example"], noise: float
) -> Float[np.ndarray, "prompt example"]:
    """Prediction of each y from the pairs before it, for tasks w ~ N(0, I)."""
    prompts, examples, d = x.shape
    found, mean = np.empty((prompts, examples)), np.zeros((prompts, d))
    covariance = np.broadcast_to(np.eye(d), (prompts, d, d)).copy()
    for k in range(examples):
        query = x[:, k]
        found[:, k] = np.einsum("pd,pd->p", mean, query)
        along = np.einsum("pde,pe->pd", covariance, query)
        gain = along / (noise**2 + np.einsum("pd,pd->p", query, along))[:, None]
        mean += gain * (y[:, k] - found[:, k])[:, None]
        covariance -= gain[:, :, None] * along[:, None]
    return found
