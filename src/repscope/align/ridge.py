"""Ridge regression of many targets with one penalty per target, by himalaya's solvers, in the cheaper of its two forms.

    primal   min ‖X b - y‖² + α ‖b‖²                 for fewer features than training rows
    kernel   the same, b = Xᵀ w                      for more: one (row, row) matrix in place of all features
    banded   min ‖Σ_g X_g b_g - y‖² + Σ_g α_g ‖b_g‖²   one penalty per feature space: kernels Σ_g γ_g K_g, γ from a random search

1. Penalties are multiples of the mean squared norm of a centred training row, so that one range fits features of any unit.
2. There is always an intercept: himalaya's own default is none. Inside every fold, data are centred by that fold's training rows.
3. The penalty of each target is the one with the least squared error over inner folds, which keep groups of rows together.

Dupré la Tour, Eickenberg, Nunez-Elizalde & Gallant (2022). Arrays in, arrays out; himalaya is loaded when first needed and its
backend, a global variable, is left as it was.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError

Backend = Literal["numpy", "torch", "torch_cuda"]
ALPHAS: tuple[float, ...] = tuple(10.0**k for k in range(-5, 5))  #: times the mean squared norm of a training row


@dataclass(frozen=True, eq=False)
class RidgeSettings:
    """alphas: in units of the mean squared norm of a training row. inner: folds that choose them. draws: of band weights.

    seed: of these. backend: himalaya's. targets: most targets at a time, for memory.
    """

    alphas: tuple[float, ...] = ALPHAS
    inner: int = 5
    draws: int = 20
    seed: int = 0
    backend: Backend = "torch"
    targets: int | None = None

    def __post_init__(self) -> None:
        """Refuse penalties that are none."""
        if not self.alphas or not all(np.isfinite(a) and a > 0 for a in self.alphas):
            raise UserError(
                "Every alpha of a ridge regression must be a number above 0; give a range such as 10.0 ** np.arange(-5, 5)."
            )


def kernel_of(x: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row row"]:
    """X Xᵀ after centring, which changes no prediction and keeps digits where features have large means."""
    centred = x - x.mean(0)
    found: np.ndarray = centred @ centred.T
    return found


def kernel_ridge(
    kernel: Float[np.ndarray, "row row"],
    y: Float[np.ndarray, "train target"],
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
    inner: Int[np.ndarray, "train"],
    settings: RidgeSettings,
) -> tuple[Float[np.ndarray, "test target"], Float[np.ndarray, "target"]]:
    """Predictions of the test rows, and the penalties that were chosen, in units of `settings.alphas`."""
    own = kernel[np.ix_(train, train)]
    unit = _unit(own)
    with _himalaya(settings.backend) as backend:
        solve = import_module("himalaya.kernel_ridge").solve_kernel_ridge_cv_eigenvalues
        k, targets = backend.asarray(own), backend.asarray(y)
        alphas = backend.asarray(np.asarray(settings.alphas, own.dtype) * unit)
        how: Any = {"cv": _splits(inner), "fit_intercept": True, "n_targets_batch": settings.targets}
        found, weights, _, intercept = solve(k, targets, alphas=alphas, **how)
        across = backend.to_cpu(backend.asarray(kernel[np.ix_(test, train)]))
        predicted = backend.to_numpy(across @ weights + intercept)
        return predicted, backend.to_numpy(found) / unit


def primal_ridge(
    x: Float[np.ndarray, "row feature"],
    y: Float[np.ndarray, "train target"],
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
    inner: Int[np.ndarray, "train"],
    settings: RidgeSettings,
) -> tuple[Float[np.ndarray, "test target"], Float[np.ndarray, "target"]]:
    """As `kernel_ridge`, from the features."""
    own = x[train]
    centre = own.mean(0)
    own = own - centre
    unit = float((own**2).sum(dtype=np.float64) / len(own))
    with _himalaya(settings.backend) as backend:
        solve = import_module("himalaya.ridge").solve_ridge_cv_svd
        alphas = backend.asarray(np.asarray(settings.alphas, own.dtype) * unit)
        how: Any = {"cv": _splits(inner), "fit_intercept": True, "n_targets_batch": settings.targets, "warn": False}
        found, weights, _, intercept = solve(backend.asarray(own), backend.asarray(y), alphas=alphas, **how)
        across = backend.to_cpu(backend.asarray(x[test] - centre))
        predicted = backend.to_numpy(across @ weights + intercept)
        return predicted, backend.to_numpy(found) / unit


def banded_ridge(
    kernels: Mapping[str, Float[np.ndarray, "row row"]],
    y: Float[np.ndarray, "train target"],
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
    inner: Int[np.ndarray, "train"],
    settings: RidgeSettings,
) -> tuple[Float[np.ndarray, "test target"], Float[np.ndarray, "space target"]]:
    """Predictions of the test rows, and log weights of the kernels, which have a mean squared norm of 1.

    Candidates of weights: equal ones, each space alone, and draws from Dirichlet distributions.
    """
    units = [_unit(k[np.ix_(train, train)]) for k in kernels.values()]
    both = np.stack([k / u for k, u in zip(kernels.values(), units)])
    own, across = both[:, train[:, None], train], both[:, test[:, None], train]
    with _himalaya(settings.backend) as backend:
        module = import_module("himalaya.kernel_ridge")
        drawn = backend.to_numpy(
            module.generate_dirichlet_samples(settings.draws, len(both), [0.1, 1.0], random_state=settings.seed)
        )
        # a space alone has the others' weights at a small number, as its logarithm is taken
        alone = np.where(np.eye(len(both), dtype=bool), 1.0, 1e-10)
        weights = np.concatenate([np.full((1, len(both)), 1 / len(both)), alone, drawn.clip(1e-10)]).astype(own.dtype)
        how: Any = {"cv": _splits(inner), "fit_intercept": True, "return_weights": "dual", "progress_bar": False}
        how |= {"n_iter": backend.asarray(weights), "alphas": backend.asarray(np.asarray(settings.alphas, own.dtype))}
        how |= {"n_targets_batch": settings.targets}
        deltas, dual, _, intercept = module.solve_multiple_kernel_ridge_random_search(
            backend.asarray(own), backend.asarray(y), **how
        )
        deltas, dual, intercept = (backend.to_numpy(part) for part in (deltas, dual, intercept))
        found = sum((part @ dual) * np.exp(delta) for part, delta in zip(across, deltas)) + intercept
        return np.asarray(found), deltas


def inner_folds(groups: Int[np.ndarray, "train"], folds: int) -> Int[np.ndarray, "train"]:
    """Fold of each training row: groups stay together, and are dealt out in turn."""
    known, code = np.unique(groups, return_inverse=True)
    return np.asarray(code % min(folds, len(known)))


def _unit(kernel: Float[np.ndarray, "row row"]) -> float:
    """Mean squared norm of a centred row, from a kernel of rows that need not be centred."""
    return float(np.trace(kernel, dtype=np.float64) / len(kernel) - kernel.mean(dtype=np.float64))


def _splits(inner: Int[np.ndarray, "train"]) -> Any:
    from sklearn.model_selection import PredefinedSplit

    return PredefinedSplit(inner)


@contextmanager
def _himalaya(name: Backend) -> Iterator[Any]:
    """himalaya with this backend; the one before it afterwards.

    Raises
    ------
    UserError
        Without himalaya.
    """
    try:
        module = import_module("himalaya.backend")
    except ImportError as error:
        raise UserError("Ridge encoding models need himalaya; install it with pip install 'repscope[brain]'.") from error
    before = module.get_backend().name
    try:
        yield module.set_backend(name)
    finally:
        module.set_backend(before)
