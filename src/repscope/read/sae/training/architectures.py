"""Architectures that can be trained: what is selected in the forward pass, and which terms the loss has.

With pre-activations h = (x − b_dec) W_enc + b_enc, latents z and reconstruction x̂ = z W_dec + b_dec, all losses are
‖x − x̂‖² per row plus the terms named here.

| architecture | latents | further terms | source |
|---|---|---|---|
| `TopK` | the k largest of a row, ReLU | AuxK | Gao et al. 2024, arXiv:2406.04093 |
| `BatchTopK` | the k · B largest of a batch, ReLU | AuxK | Bussmann et al. 2024, arXiv:2412.06410 |
| `Matryoshka` | as BatchTopK | ‖x − x̂_m‖² of the first m latents, each m; AuxK | Bussmann et al. 2025, arXiv:2503.17547 |
| `JumpReLU` | h where h > θ | λ L0, straight-through to θ | Rajamanoharan et al. 2024, arXiv:2407.14435 |
| `Gated` | gate, magnitude | λ ‖ReLU(gate)‖₁, ‖x − x̂(ReLU(gate))‖², decoder frozen | Rajamanoharan et al. 2024, arXiv:2404.16014 |
| `ReLU` | ReLU(h) | λ Σ z_i Σ_s ‖W_dec,i‖ over sources s | Bricken et al. 2023; for crosscoders Lindsey et al. 2024 |

AuxK: latents that have not fired for `Recipe.dead_after` rows reconstruct the residual x − x̂ with their own `aux_k` largest
pre-activations; α times the squared error is added (Gao et al. 2024, appendix A.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from repscope.errors import UserError


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each row. aux: the coefficient α of AuxK, 0 for none. aux_k: its k; d_out / 2 if None."""

    k: int
    aux: float = 1 / 32
    aux_k: int | None = None
    name: ClassVar[str] = "topk"
    decoder_norm: ClassVar[str] = "unit"

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        _positive(self, "k")
        _not_negative(self, "aux")
        if self.aux_k is not None:
            _positive(self, "aux_k")


@dataclass(frozen=True)
class BatchTopK(TopK):
    """The k · B largest pre-activations of a batch of B rows: k per row on average.

    The saved autoencoder has one threshold, the mean over batches of the smallest selected activation.
    """

    name: ClassVar[str] = "batchtopk"


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """BatchTopK with nested dictionaries: the first m latents alone must reconstruct, too, for each m of `prefixes`.

    prefixes: sizes of the nested dictionaries, ascending; the whole dictionary is added if it is not the last one.
    """

    prefixes: tuple[int, ...] = ()
    name: ClassVar[str] = "matryoshka_batchtopk"

    def __post_init__(self) -> None:
        """Refuse prefixes that are no ascending positive numbers."""
        super().__post_init__()
        sizes = self.prefixes
        if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
            raise UserError(f"Matryoshka has the prefixes {sizes}; give ascending numbers of latents, such as (1024, 4096).")


@dataclass(frozen=True)
class JumpReLU:
    """One learned threshold per latent. sparsity: λ. bandwidth: ε of the straight-through estimator. threshold: its start.

    target_l0: with it the penalty is λ (L0 / target − 1)² instead of λ L0, which settles at that L0.
    """

    sparsity: float
    bandwidth: float = 0.05
    threshold: float = 0.01
    target_l0: float | None = None
    name: ClassVar[str] = "jumprelu"
    decoder_norm: ClassVar[str] = "unit"

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        _not_negative(self, "sparsity")
        _positive(self, "bandwidth")
        _positive(self, "threshold")
        if self.target_l0 is not None:
            _positive(self, "target_l0")


@dataclass(frozen=True)
class Gated:
    """A gate selects the latents, a rescaled copy gives their magnitudes. sparsity: λ of the gate's L1."""

    sparsity: float
    name: ClassVar[str] = "gated"
    decoder_norm: ClassVar[str] = "unit"

    def __post_init__(self) -> None:
        """Refuse a negative coefficient."""
        _not_negative(self, "sparsity")


@dataclass(frozen=True)
class ReLU:
    """ReLU with an L1 penalty, weighted by the norms of the decoder's rows (summed over the sources of a crosscoder)."""

    sparsity: float
    name: ClassVar[str] = "relu"
    decoder_norm: ClassVar[str] = "free"

    def __post_init__(self) -> None:
        """Refuse a negative coefficient."""
        _not_negative(self, "sparsity")


Architecture = TopK | BatchTopK | Matryoshka | JumpReLU | Gated | ReLU
ARCHITECTURES: dict[str, Callable[..., Any]] = {a.name: a for a in (TopK, BatchTopK, Matryoshka, JumpReLU, Gated, ReLU)}


def _positive(owner: object, field: str) -> None:
    value = getattr(owner, field)
    if isinstance(value, bool) or not value > 0 or value == float("inf"):
        raise UserError(f"{type(owner).__name__} has {field}={value!r}; it must be a positive number.")


def _not_negative(owner: object, field: str) -> None:
    value = getattr(owner, field)
    if isinstance(value, bool) or not 0 <= value < float("inf"):
        raise UserError(f"{type(owner).__name__} has {field}={value!r}; it must be a number of at least 0.")
