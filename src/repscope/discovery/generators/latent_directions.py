"""LatentCLR's directions: fixed, or a function of z, for several seeds at once.

| kind | direction k of seed s at z |
|---|---|
| `fixed` | d_k |
| `linear` | W_k z + b_k |
| `mlp` | a network with two hidden layers of z's width |

all at unit norm, times alpha. Parameters have the axes (seed, direction, …). Directions that depend on z are saved as safetensors
beside a `DirectionSet`, whose directions are their normalised means over N(0, I).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from repscope import manifest
from repscope.arrays import as_tensor
from repscope.disk import whole_file
from repscope.errors import UserError, unknown

KINDS = {"fixed": 0, "linear": 1, "mlp": 3}  #: layers of each kind
FORMAT = "repscope-latent-directions-1"


@dataclass(frozen=True, eq=False)
class LatentDirections:
    """Directions of one kind. weights: `bias` alone of fixed directions; `weight.i` and `bias.i` per layer of the others."""

    kind: str
    weights: dict[str, Tensor]

    @classmethod
    def drawn(cls, kind: str, width: int, n: int, seeds: tuple[int, ...]) -> "LatentDirections":
        """Random directions, each seed from its own generator.

        Raises
        ------
        UserError
            For an unknown kind, or no direction or seed.
        """
        if kind not in KINDS:
            raise unknown("kind of direction", kind, KINDS)
        if n < 1 or not seeds:
            raise UserError(f"{n} directions and {len(seeds)} seeds are asked for; ask for at least one of each.")
        shapes: dict[str, tuple[int, ...]] = {"bias.0": (n, width)}
        if kind != "fixed":
            shapes = {}
            for i in range(KINDS[kind]):
                shapes |= {f"weight.{i}": (n, width, width), f"bias.{i}": (n, width)}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = {name: torch.stack([torch.randn(shape, generator=g) for g in generators]) for name, shape in shapes.items()}
        scaled = {name: w / width**0.5 if name.startswith("weight") else w for name, w in drawn.items()}
        return cls(kind, scaled)

    def at(self, z: Float[Tensor, "seed sample width"]) -> Float[Tensor, "seed direction sample width"]:
        """Unit vectors for latents, which differ by seed. Differentiable."""
        bias, z = self.weights["bias.0"], as_tensor(z, "latents", "seed sample width")
        if self.kind == "fixed":
            return functional.normalize(bias, dim=-1)[:, :, None].expand(-1, -1, z.shape[1], -1)
        x = z[:, None].expand(-1, bias.shape[1], -1, -1)
        for i in range(KINDS[self.kind]):
            x = torch.einsum("sknd,skde->skne", x, self.weights[f"weight.{i}"]) + self.weights[f"bias.{i}"][:, :, None]
            x = x.relu() if i + 1 < KINDS[self.kind] else x
        return functional.normalize(x, dim=-1)

    def mean(self, count: int = 512) -> Float[Tensor, "seed direction width"]:
        """Normalised means of the unit vectors over draws from N(0, I)."""
        seeds, _, width = self.weights["bias.0"].shape
        z = torch.randn(1, count, width, generator=torch.Generator().manual_seed(0)).expand(seeds, -1, -1)
        with torch.no_grad():
            return functional.normalize(self.at(z).mean(2), dim=-1)

    def of_seed(self, index: int) -> "LatentDirections":
        """Those of one seed.

        Raises
        ------
        UserError
            If there is no such seed.
        """
        count = len(self.weights["bias.0"])
        if not 0 <= index < count:
            raise UserError(f"There is no seed {index}; these are directions of {count}, counted from 0.")
        return LatentDirections(self.kind, {name: w[index : index + 1] for name, w in self.weights.items()})

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        with whole_file(path) as partial:
            metadata = {"format": FORMAT, "kind": self.kind, "seal": manifest.UNSEALED}
            save_file({name: w.detach().contiguous() for name, w in self.weights.items()}, partial, metadata=metadata)
            manifest.seal(partial)

    @classmethod
    def load(cls, path: Path) -> "LatentDirections":
        """Read a file of `save`.

        Raises
        ------
        UserError
            For another file, or one with other bytes than were written.
        """
        manifest.need_seal(path, "copy it again")
        try:
            with safe_open(path, "pt") as file:
                held = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as directions of a latent ({str(error).rstrip('.')}).") from error
        if held.get("format") != FORMAT or held.get("kind") not in KINDS:
            raise UserError(f"{path} holds no directions of a latent; its format is {held.get('format')!r}.")
        return cls(held["kind"], weights)
