"""Recipe: every number that a training run depends on, beside its data.

Two runs with one recipe on one source give the same autoencoder. A step draws no random numbers: `seed` is for the initial weights
and for the order of the batches. Learning rate η_t of step t (from 0) of T: η min(1, (t + 1) / warmup), and linear to 0 over the
last `decay` steps.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from repscope.errors import UserError
from repscope.read.sae.training.architectures import ARCHITECTURES, Architecture, TopK

DecoderNorm = Literal["unit", "rescale", "free"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    architecture: one of `architectures`. latents: size of the dictionary. steps: number of batches. batch: rows per batch.
    learning_rate: of Adam; 2e-4 / √(latents / 2¹⁴) if None (Gao et al. 2024, figure 3). warmup: steps of linear warm-up of the
    learning rate. decay: steps of linear decay at the end. sparsity_warmup: steps of linear warm-up of λ. betas, eps: Adam's.
    clip: largest norm of the whole gradient; None for no clipping. decoder_norm: `unit` (rows have norm 1 after every step, and the
    gradient along them is removed), `rescale` (TopK family: latents are selected in units of the row's norm), `free`; None for the
    architecture's own. normalize: rows are scaled to a mean norm of √d, as in Conerly et al. 2024; folded into the weights at the
    end. bias: b_dec starts as the geometric median, the mean, or zero. dead_after: rows without firing after which a latent is
    dead. skip: transcoders: with a linear map from input to output beside the latents (Paulo et al. 2025). calibration: batches
    for norm and median. seed: of initial weights and batches.
    """

    architecture: Architecture
    latents: int
    steps: int
    batch: int = 4096
    learning_rate: float | None = None
    warmup: int = 0
    decay: int = 0
    sparsity_warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = 1.0
    decoder_norm: DecoderNorm | None = None
    normalize: bool = True
    bias: Literal["median", "mean", "zero"] = "median"
    dead_after: int = 10_000_000
    skip: bool = False
    calibration: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit each other."""
        for name in ("latents", "steps", "batch", "dead_after", "calibration"):
            if getattr(self, name) < 1:
                raise UserError(f"The recipe has {name}={getattr(self, name)}; it must be at least 1.")
        for name in ("warmup", "decay", "sparsity_warmup"):
            if not 0 <= getattr(self, name) <= self.steps:
                raise UserError(f"The recipe has {name}={getattr(self, name)} steps of {self.steps}; choose 0 to {self.steps}.")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"The recipe has clip={self.clip}; choose a positive norm, or None for no clipping.")
        if isinstance(self.architecture, TopK):
            if self.architecture.k > self.latents:
                raise UserError(f"The recipe has k={self.architecture.k} of {self.latents} latents; choose a smaller k.")
        elif self.decoder_norm == "rescale":
            raise UserError(f"decoder_norm='rescale' is for the TopK family; {self.architecture.name} takes 'unit' or 'free'.")
        prefixes = getattr(self.architecture, "prefixes", ())
        if prefixes and prefixes[-1] > self.latents:
            raise UserError(f"The recipe has a prefix of {prefixes[-1]} of {self.latents} latents; choose smaller prefixes.")

    @property
    def norm_of_decoder(self) -> str:
        """`decoder_norm`, or the architecture's own."""
        return self.decoder_norm or self.architecture.decoder_norm

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Ranges of latents between the prefixes of a Matryoshka; all latents as one range otherwise."""
        ends = [*getattr(self.architecture, "prefixes", ())]
        if not ends or ends[-1] != self.latents:
            ends.append(self.latents)
        return tuple(zip([0, *ends], ends))

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        full = 2e-4 / (self.latents / 2**14) ** 0.5 if self.learning_rate is None else self.learning_rate
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return full * warm * (min(1.0, (self.steps - step) / self.decay) if self.decay else 1.0)

    def sparsity(self, step: int) -> float:
        """λ of a step; 0 for the TopK family."""
        full: float = getattr(self.architecture, "sparsity", 0.0)
        return full * (min(1.0, (step + 1) / self.sparsity_warmup) if self.sparsity_warmup else 1.0)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        fields = dataclasses.asdict(self)
        fields["architecture"] = {"name": self.architecture.name, **fields["architecture"]}
        return _as_lists(fields)  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Recipe":
        """The recipe that `to_json` wrote.

        Raises
        ------
        UserError
            If it is none.
        """
        try:
            inner = _as_tuples(dict(fields["architecture"]))
            architecture = ARCHITECTURES[inner.pop("name")](**inner)
            return cls(**{**_as_tuples(fields), "architecture": architecture})
        except (KeyError, TypeError) as error:
            raise UserError(f"This is no recipe of a training run ({error}); start the run in an empty folder.") from error


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _as_lists(v) for k, v in value.items()}
    return [_as_lists(v) for v in value] if isinstance(value, tuple | list) else value


def _as_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
