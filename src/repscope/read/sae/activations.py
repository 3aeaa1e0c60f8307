"""Activation functions of sparse autoencoders: which latents are active for a row, and with what value.

Each takes pre-activations h (row, latent) and gives (mask, values): a latent is active where the mask is true, and its activation
is positive there.

    ReLU        h > 0                                     Bricken et al. 2023, Towards monosemanticity
    TopK        among the k largest of its row, h > 0     Gao et al. 2024, arXiv:2406.04093
    BatchTopK   h > threshold, one threshold for all; in training the k · rows largest of a batch
                                                          Bussmann et al. 2024, arXiv:2412.06410
    JumpReLU    h > threshold of the latent               Rajamanoharan et al. 2024, arXiv:2407.14435, equation 5
    Gated       h + b_gate > 0; value exp(r_mag) h + b_mag      Rajamanoharan et al. 2024, arXiv:2404.16014, equations 6 and 7
    GroupMax    largest of its group of consecutive latents, h > 0      sparsify (EleutherAI)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from repscope.errors import UserError

Pre = Float[Tensor, "row latent"]
Active = tuple[Bool[Tensor, "row latent"], Pre]


@dataclass(frozen=True)
class ReLU:
    """The positive part."""

    def __call__(self, h: Pre) -> Active:
        """Mask and values."""
        return h > 0, h


@dataclass(frozen=True)
class TopK:
    """The k largest positive pre-activations of each row."""

    k: int

    def __post_init__(self) -> None:
        """Refuse a k below 1."""
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UserError(f"TopK has k={self.k!r}; k must be a whole number of at least 1.")

    def __call__(self, h: Pre) -> Active:
        """Mask and values."""
        top = h.topk(min(self.k, h.shape[1]), dim=1, sorted=False)
        mask = torch.zeros_like(h, dtype=torch.bool).scatter_(1, top.indices, True)
        return mask & (h > 0), h


@dataclass(frozen=True)
class GroupMax:
    """The largest of each of k groups of consecutive latents, if positive."""

    k: int

    def __post_init__(self) -> None:
        """Refuse a k below 1."""
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UserError(f"GroupMax has k={self.k!r} groups; there must be a whole number of at least 1.")

    def __call__(self, h: Pre) -> Active:
        """Mask and values."""
        grouped = h.reshape(len(h), self.k, -1)
        best = torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, grouped.argmax(2, keepdim=True), True)
        return best.flatten(1) & (h > 0), h


@dataclass(frozen=True)
class BatchTopK:
    """One threshold for all latents, estimated in training so that a row has k active latents on average.

    k is the average that was trained for; only the threshold acts.
    """

    k: float
    threshold: float

    def __post_init__(self) -> None:
        """Refuse a threshold that was never estimated."""
        if not 0 <= self.threshold < float("inf"):
            raise UserError(
                f"BatchTopK has the threshold {self.threshold}, so it was not estimated in training; without one the latents of a "
                "row would depend on the other rows of its batch: give a threshold of at least 0."
            )

    def __call__(self, h: Pre) -> Active:
        """Mask and values."""
        return h > self.threshold, h


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """One threshold per latent: (latent)."""

    threshold: Float[Tensor, "latent"]

    def __call__(self, h: Pre) -> Active:
        """Mask and values."""
        return (h > self.threshold) & (h > 0), h


@dataclass(frozen=True, eq=False)
class Gated:
    """A gate decides which latents are active, a rescaled copy of the same pre-activation gives their values. All are (latent)."""

    b_gate: Float[Tensor, "latent"]
    b_mag: Float[Tensor, "latent"]
    r_mag: Float[Tensor, "latent"]

    def __call__(self, h: Pre) -> Active:
        """Mask and values."""
        values = h * self.r_mag.exp() + self.b_mag
        return (h + self.b_gate > 0) & (values > 0), values


Activation = ReLU | TopK | GroupMax | BatchTopK | JumpReLU | Gated
#: the fields of each activation that are tensors over latents
TENSORS: dict[type, tuple[str, ...]] = {JumpReLU: ("threshold",), Gated: ("b_gate", "b_mag", "r_mag")}
#: the activations where a latent of a row depends on no other latent
ELEMENTWISE = (ReLU, BatchTopK, JumpReLU, Gated)


def with_tensors(activation: Activation, change: Callable[[Tensor], Tensor]) -> Activation:
    """The activation with each of its tensors over latents replaced by its change."""
    match activation:
        case JumpReLU():
            return JumpReLU(change(activation.threshold))
        case Gated():
            return Gated(change(activation.b_gate), change(activation.b_mag), change(activation.r_mag))
    return activation
