"""Closed-form directions of a generator with a latent, and directions with labels as the upper reference.

SeFa (Shen & Zhou 2021)            leading right singular vectors of the weight that reads z, its rows at unit norm
GANSpace (Härkönen et al. 2020)    PCA of features y_i of latents z_i; coordinates x_i = V^T (y_i - mean); U = argmin
                                   sum_i ||U x_i - z_i||²: column k of U moves z along component k
factor regression                  W = argmin sum_i ||W z_i - f_i||²: row j moves the factor j that was read from the images,
                                   with labels
factor regression, orthogonal      columns of the pseudo-inverse of W: column j moves factor j and leaves what the regression reads
                                   of the other factors
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from repscope.arrays import as_tensor
from repscope.errors import UserError
from repscope.models.generators import LatentGenerator


def sefa(generator: LatentGenerator, n: int) -> Float[Tensor, "direction latent"]:
    """SeFa's directions, the largest singular value first.

    Raises
    ------
    UserError
        For no direction, if the layer has fewer singular vectors, or no layer reads z.
    """
    _need_some(n)
    weight = functional.normalize(generator.projection().double(), dim=1)
    _, _, right = torch.linalg.svd(weight, full_matrices=False)
    if n > len(right):
        raise UserError(f"The weight that reads z has {len(right)} singular vectors; {n} directions are asked for.")
    found: Tensor = right[:n].float()
    return found


@torch.no_grad()
def ganspace(generator: LatentGenerator, n: int, *, samples: int = 10_000, seed: int = 0) -> Float[Tensor, "direction latent"]:
    """GANSpace's directions, the largest component first.

    Raises
    ------
    UserError
        For no direction, or more than components.
    """
    _need_some(n)
    z = generator.latents(samples, seed)
    y = torch.cat([generator.features(some) for some in torch.split(z, 2048)]).double()
    y = y - y.mean(0)
    if n > min(samples - 1, y.shape[1]):
        raise UserError(f"The features have {min(samples - 1, y.shape[1])} components; {n} directions are asked for.")
    _, vectors = torch.linalg.eigh(y.T @ y / samples)
    coordinates = y @ vectors.flip(1)[:, :n]
    solved: Tensor = torch.linalg.lstsq(coordinates, z.double()).solution
    return functional.normalize(solved, dim=1).float()


def regressed(latents: Float[Tensor, "sample latent"], factors: Float[Tensor, "sample factor"]) -> Float[Tensor, "factor latent"]:
    """Directions from labels: the weights of a linear regression of factors on latents, at unit norm.

    Raises
    ------
    UserError
        For fewer samples than latent dimensions, other numbers of factors, and values that are not finite.
    """
    latents, factors = as_tensor(latents, "latents", "sample latent"), as_tensor(factors, "factors", "sample factor")
    if len(factors) != len(latents):
        raise UserError(f"There are {len(latents)} latents and factors of {len(factors)} samples; give one row of each per sample.")
    if not bool(torch.isfinite(latents).all() and torch.isfinite(factors).all()):
        raise UserError("Some latents or factors are not finite; leave these samples out.")
    if len(latents) <= latents.shape[1]:
        raise UserError(f"{len(latents)} samples do not determine {latents.shape[1]} weights; give more.")
    z, f = (x.double() - x.double().mean(0) for x in (latents, factors))
    solved: Tensor = torch.linalg.lstsq(z, f).solution
    return functional.normalize(solved.T, dim=1).float()


def orthogonalised(directions: Float[Tensor, "factor width"]) -> Float[Tensor, "factor width"]:
    """Each direction without what it shares with the others, at unit norm: orthogonal to all of them.

    Raises
    ------
    UserError
        For directions that are not finite, or depend on each other linearly, of which some have nothing of their own.
    """
    rows = functional.normalize(as_tensor(directions, "directions", "factor width").double(), dim=1)
    if not bool(torch.isfinite(rows).all()):
        raise UserError("Some directions are not finite; leave them out.")
    if int(torch.linalg.matrix_rank(rows, rtol=1e-5)) < len(rows):
        raise UserError(f"The {len(rows)} directions depend on each other, so that none can be orthogonal to the others.")
    return functional.normalize(torch.linalg.pinv(rows).T, dim=1).float()


def _need_some(n: int) -> None:
    if n < 1:
        raise UserError(f"{n} directions are asked for; ask for at least 1.")
