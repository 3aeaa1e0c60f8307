"""Rows that are sparse combinations of known directions: the ground truth of dictionary learning.

    x = Σ_i z_i v_i + offset + noise        v_i random unit vectors, more of them than features

Feature i is active in a share f_i of the rows; the f_i fall geometrically from the most to the least frequent and sum to the mean
number of active features. Features come in groups of equal size: those of a group are active together more often than by chance, by
a Gaussian copula: feature i is active where √ρ u_group + √(1 − ρ) e_i exceeds the normal quantile of 1 − f_i. So its frequency
stays f_i for each ρ. Activations are 1 + spread · uniform(−1, 1).

Directions, rows and methods draw from generators of their own, as in `functions`. Sharkey, Braun & Millidge 2022 (Taking features
out of superposition with sparse autoencoders) recover such dictionaries and score them by MMCS.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from repscope import stats
from repscope.errors import UserError
from repscope.stats import Estimate
from repscope.worlds.planted.functions import drawn_from, unit_rows

RECOVERED = 0.9  #: cosine above which a feature counts as recovered


@dataclass(frozen=True, eq=False)
class DictionaryRecovery:
    """cosines: (feature), the largest cosine of each planted feature with a found direction."""

    cosines: Float[np.ndarray, "feature"]

    @property
    def mmcs(self) -> Estimate:
        """Mean max cosine similarity, with its interval over planted features."""
        return stats.mean(self.cosines, unit="feature")

    @property
    def share(self) -> Estimate:
        """Share of planted features with a cosine above `RECOVERED`."""
        return stats.proportion((self.cosines > RECOVERED).astype(np.float64), unit="feature")


@dataclass(frozen=True, eq=False)
class PlantedDictionary:
    """Directions and how they are combined.

    truth: (feature, width), unit rows. frequencies: (feature), share of rows with each active. groups: size of a group.
    correlation: ρ within a group. spread, noise: of activations, and of each coordinate. offset: (width), added to all rows. seed:
    how it was drawn.
    """

    truth: Float[Tensor, "feature width"]
    frequencies: Float[Tensor, "feature"]
    groups: int
    correlation: float
    spread: float
    noise: float
    offset: Float[Tensor, "width"]
    seed: int

    def rows(self, n: int, split: str = "train") -> tuple[Float[Tensor, "row width"], Float[Tensor, "row feature"]]:
        """Rows and the activations that made them; another split draws others."""
        generator = drawn_from("dictionary rows", split, self.seed)
        features, width = self.truth.shape
        shared = torch.randn(n, -(-features // self.groups), generator=generator).repeat_interleave(self.groups, dim=1)
        own = torch.randn(n, features, generator=generator)
        level = self.correlation**0.5 * shared[:, :features] + (1 - self.correlation) ** 0.5 * own
        active = level > torch.special.ndtri(1 - self.frequencies.double()).float()
        z = active * (1 + self.spread * (2 * torch.rand(n, features, generator=generator) - 1))
        noise = self.noise * torch.randn(n, width, generator=generator)
        return z @ self.truth + self.offset + noise, z

    def recovery(self, found: Float[Tensor, "direction width"]) -> DictionaryRecovery:
        """How well found directions recover the planted ones. The sign counts: directions of either sign must be given twice.

        Raises
        ------
        UserError
            For directions of another width, or that are zero or not finite.
        """
        if found.dim() != 2 or found.shape[1] != self.truth.shape[1] or not len(found):
            raise UserError(f"The directions have the shape {tuple(found.shape)}; they must be (direction, {self.truth.shape[1]}).")
        norms = found.detach().float().norm(dim=1)
        if not bool((norms > 0).all() and torch.isfinite(norms).all()):
            raise UserError(f"{int((~((norms > 0) & norms.isfinite())).sum())} directions are zero or not finite; leave them out.")
        cosines = self.truth @ normalize(found.detach().float(), dim=1).T
        return DictionaryRecovery(cosines.max(1).values.double().numpy())


def planted_dictionary(
    seed: int = 0,
    *,
    width: int = 32,
    features: int = 64,
    active: float = 3.0,
    ratio: float = 4.0,
    groups: int = 4,
    correlation: float = 0.0,
    spread: float = 0.5,
    noise: float = 0.02,
    offset: float = 0.5,
) -> PlantedDictionary:
    """Draw a dictionary.

    Parameters
    ----------
    seed
        Of the directions and of the rows.
    width, features
        Sizes.
    active
        Mean number of active features per row.
    ratio
        Of the largest frequency to the smallest.
    groups, correlation
        Size of groups, and ρ within them, 0 to below 1.
    spread, noise, offset
        Half width of the activations around 1, standard deviation of the noise, norm of the offset.

    Raises
    ------
    UserError
        If the numbers do not fit, such as more active features than there are.
    """
    if not 0 <= correlation < 1 or not ratio >= 1 or not 0 <= spread < 1 or groups < 1 or noise < 0:
        raise UserError(
            f"A planted dictionary needs 0 ≤ correlation < 1, ratio ≥ 1, 0 ≤ spread < 1, groups ≥ 1 and noise ≥ 0; it got "
            f"{correlation}, {ratio}, {spread}, {groups} and {noise}."
        )
    frequencies = ratio ** -torch.linspace(0, 1, features)
    frequencies = frequencies * (active / frequencies.sum())
    if not 0 < float(frequencies.min()) <= float(frequencies.max()) < 1:
        raise UserError(f"{features} features cannot have {active} active per row at a ratio of {ratio}; choose fewer active ones.")
    generator = drawn_from("dictionary", seed)
    truth = unit_rows(features, width, generator)
    order = torch.randperm(features, generator=generator)  # so that groups hold frequent and rare features
    at = offset * unit_rows(1, width, generator)[0]
    return PlantedDictionary(truth, frequencies[order], groups, correlation, spread, noise, at, seed)
