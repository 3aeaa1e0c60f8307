"""Dictionaries without sparse training, as autoencoders of equal size and L0: what a trained one must exceed.

| name | dictionary | latents |
|---|---|---|
| `random` | random unit directions | as many as asked for |
| `pca` | ± principal components, largest first | up to 2 d |
| `ica` | ± independent components (FastICA; Hyvärinen & Oja 2000) | up to 2 d |

Each is a TopK autoencoder: encoder rows read the components of x − mean, the k largest of a row stay active. Components have either
sign, and activations are positive, so each component stands twice. A random dictionary reads with its own transpose; one factor for
all latents, the least-squares one, makes up for the overlap of its directions.
"""

import dataclasses
import warnings

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from repscope.errors import UserError, unknown
from repscope.read.sae.activations import TopK
from repscope.read.sae.autoencoder import SparseAutoencoder

BASELINES = ("random", "pca", "ica")


def baseline(name: str, rows: Float[Tensor, "row d"], latents: int, k: int, *, seed: int = 0) -> SparseAutoencoder:
    """A dictionary as a TopK autoencoder.

    Parameters
    ----------
    name
        One of `BASELINES`.
    rows
        Training rows; for the random dictionary they give the mean and the factor.
    latents
        Size; PCA and ICA have at most 2 d latents.
    k
        Active latents per row.
    seed
        Of the random directions, and of FastICA's start.

    Raises
    ------
    UserError
        For an unknown name, or fewer rows than components.
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    d = rows.shape[1]
    mean = rows.double().mean(0)
    centred = rows.double() - mean
    if name == "random":
        generator = torch.Generator().manual_seed(seed)
        decoder = normalize(torch.randn(latents, d, generator=generator, dtype=torch.float64), dim=1)
        encoder = decoder.T
    else:
        count = min(d, max(1, latents // 2))
        if len(rows) <= count:
            raise UserError(f"{name} of {count} components needs more than {len(rows)} rows; give more rows or fewer latents.")
        down, up = _principal(centred, count) if name == "pca" else _independent(centred, count, seed)
        encoder, decoder = torch.cat([down, -down], dim=1), torch.cat([up, -up])
        norms = decoder.norm(dim=1)  # latents in units of unit directions, so that they compare with each other
        encoder, decoder = encoder * norms, decoder / norms[:, None]
    made = SparseAutoencoder(
        W_enc=encoder.float().contiguous(),
        b_enc=torch.zeros(decoder.shape[0]),
        W_dec=decoder.float().contiguous(),
        b_dec=mean.float(),
        activation=TopK(min(k, decoder.shape[0])),
        subtract_b_dec=True,
        source=f"baseline {name}",
        metadata={"seed": seed, "rows": len(rows)},
    )
    if name != "random":
        return made
    rebuilt = (made.reconstruct(rows.float()) - made.b_dec).double()
    factor = float((rebuilt * centred).sum() / rebuilt.square().sum().clamp(min=1e-300))
    return dataclasses.replace(made, W_enc=made.W_enc * factor)


def _principal(centred: Float[Tensor, "row d"], count: int) -> tuple[Float[Tensor, "d c"], Float[Tensor, "c d"]]:
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    down = vectors.flip(1)[:, :count]
    return down, down.T


def _independent(centred: Float[Tensor, "row d"], count: int, seed: int) -> tuple[Float[Tensor, "d c"], Float[Tensor, "c d"]]:
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    fit = FastICA(n_components=count, whiten="unit-variance", random_state=seed, max_iter=400, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that did not converge is still one
        fit.fit(centred.numpy())
    return torch.from_numpy(np.ascontiguousarray(fit.components_.T)), torch.from_numpy(np.ascontiguousarray(fit.mixing_.T))
