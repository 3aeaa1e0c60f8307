"""Sparse autoencoders inside a model, as edits: splice the reconstruction in, clamp or ablate latents.

    splice            x' = y(a)                     the reconstruction replaces the site
    splice, error     x' = x + y(f(a)) - y(a)       latents changed by f, with the reconstruction's error left as it is
    clamp, ablate     x' = x + (c - a_i) w_i        a latent set to c (0 to ablate), everything else as it is

w_i is the latent's decoder vector in the units of the site (`decoder_vectors`), times the row's own scale under a normalisation by
row. The second and third agree. A transcoder reads one site and writes a later one, so it makes two edits, to be given together.

Templeton et al. 2024, Scaling monosemanticity (clamp with error); Marks et al. 2024, arXiv:2403.19647 (errors as nodes).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.sites import Site
from repscope.read.sae.activations import ELEMENTWISE
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.latents import Latents


def splice(
    sae: SparseAutoencoder, *, tokens: str | int = "all", error: bool = False, change: Callable[[Latents], Latents] | None = None
) -> list[Edit]:
    """Edits that replace a site by its reconstruction: `with lm.edit(*splice(sae)): …`.

    Parameters
    ----------
    sae
        An autoencoder whose site is known.
    tokens
        Positions, as for any edit.
    error
        Add the reconstruction error of the unchanged latents, so that only the change of latents acts.
    change
        A function of the latents, row by row; by default they stay.

    Raises
    ------
    UserError
        If the site is unknown, or an error term is asked for without a change, which would change nothing.
    """
    if error and change is None:
        raise UserError("With its error term an unchanged reconstruction is the activation itself; give change=, or error=False.")

    def new(one: SparseAutoencoder, x: Tensor, y: Tensor) -> Tensor:
        if change is None:
            return one.reconstruct(x)
        latents = one.encode(x)
        after = one.decode(change(latents))
        if error:
            return y + (after - one.decode(latents)).to(y.dtype)
        return after if one.W_skip is None else after + x.to(one.dtype) @ one.W_skip

    return _edits(sae, tokens, f"splice of {sae}", new)


def clamp(sae: SparseAutoencoder, latents: Mapping[int, float], *, tokens: str | int = "all") -> list[Edit]:
    """Edits that set latents to values, in units of their activations, wherever they stand otherwise: `clamp(sae, {17: 8.0})`.

    Raises
    ------
    UserError
        If the site is unknown, a latent does not exist, or a value is not finite.
    """
    if not latents:
        raise UserError("No latent was given to clamp; give {index: value}.")
    for index, value in latents.items():
        if not math.isfinite(value):
            raise UserError(f"Latent {index} is to be clamped at {value}; give a finite number.")
    chosen = list(latents)
    values = list(latents.values())
    sae.decoder_vectors(chosen)

    def new(one: SparseAutoencoder, x: Tensor, y: Tensor) -> Tensor:
        if isinstance(one.activation, ELEMENTWISE):
            active = one.columns(chosen).encode(x)
            now = active.dense()
        else:
            active = one.encode(x)
            now = active.select(chosen)
        added = (torch.tensor(values, dtype=one.dtype, device=one.device) - now) @ one.decoder_vectors(chosen)
        scale = one.row_scale(active)
        return y + (added if scale is None else added * scale).to(y.dtype)

    return _edits(sae, tokens, f"clamp of latents {', '.join(map(str, chosen[:4]))}{' …' if len(chosen) > 4 else ''}", new)


def ablate(sae: SparseAutoencoder, latents: Sequence[int], *, tokens: str | int = "all") -> list[Edit]:
    """Edits that set latents to zero and leave everything else, the reconstruction error included.

    Raises
    ------
    UserError
        As `clamp`.
    """
    return clamp(sae, dict.fromkeys(latents, 0.0), tokens=tokens)


def _edits(
    sae: SparseAutoencoder, tokens: str | int, name: str, new: Callable[[SparseAutoencoder, Tensor, Tensor], Tensor]
) -> list[Edit]:
    """One edit of the site; for a transcoder one that reads its input, and one that writes its output."""
    held: dict[torch.device, SparseAutoencoder] = {}

    def there(x: Tensor) -> SparseAutoencoder:
        if x.device not in held:
            held[x.device] = sae.to(x.device)
        return held[x.device]

    if not sae.transcoder:
        return [Edit.map(sae.written_site, lambda x: new(there(x), x, x), tokens=tokens, name=name)]
    read = _read_site(sae)
    latest: list[Tensor] = []  # both sites see the same positions of a pass in the same order

    def keep(x: Tensor) -> None:
        latest[:] = [x]

    def write(y: Tensor) -> Tensor:
        if not latest or len(latest[0]) != len(y):
            raise UserError(f"The transcoder's input at {read} was not seen before its output; give both edits, in this order.")
        return new(there(y), latest.pop(), y)

    return [
        Edit.observe(read, keep, tokens=tokens, name=f"input of {name}"),
        Edit.map(sae.written_site, write, tokens=tokens, name=name),
    ]


def _read_site(sae: SparseAutoencoder) -> Site:
    if sae.site is None:
        raise UserError("Nothing says where this transcoder reads; give site=.")
    return sae.site
