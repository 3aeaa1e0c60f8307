"""Are the features of one autoencoder found by another? Decoder vectors matched one to one, by their cosine.

The assignment with the largest sum of cosines (Hungarian algorithm; Paulo and Belrose 2025, arXiv:2501.16615). Matching many
vectors gives cosines above zero by itself, so the control matches the second dictionary with its coordinates permuted: its vectors
keep their norms and their angles with each other, and lose their relation to the first.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from repscope.errors import UserError


@dataclass(frozen=True)
class Matched:
    """Partners in another dictionary. partner: (feature). cosine: with the partner. null: cosine in the permuted control."""

    partner: Int[np.ndarray, "feature"]
    cosine: Float[np.ndarray, "feature"]
    null: Float[np.ndarray, "feature"]


def matched_features(first: Float[Tensor, "feature d"], second: Float[Tensor, "other d"], *, seed: int = 0) -> Matched:
    """Match the decoder vectors of one dictionary to those of another.

    Raises
    ------
    UserError
        If the widths differ, a vector is zero, or the second has fewer features than the first.
    """
    if first.shape[1] != second.shape[1] or len(first) > len(second):
        raise UserError(
            f"The dictionaries are {tuple(first.shape)} and {tuple(second.shape)}; the second needs the same width and no fewer "
            "features."
        )
    a, b = (_unit(m) for m in (first, second))
    order = torch.randperm(b.shape[1], generator=torch.Generator().manual_seed(seed))
    partner, cosine = _assigned(a @ b.T)
    return Matched(partner, cosine, _assigned(a @ b[:, order].T)[1])


def _assigned(cosines: Float[Tensor, "feature other"]) -> tuple[Int[np.ndarray, "feature"], Float[np.ndarray, "feature"]]:
    table = cosines.numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    return columns, table[rows, columns]


def _unit(vectors: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d"]:
    held = vectors.detach().float().cpu()
    norms = held.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise UserError(f"{int((norms == 0).sum())} decoder vectors are zero and have no direction; leave them out.")
    unit: Tensor = held / norms
    return unit
