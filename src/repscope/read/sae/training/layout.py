"""Layout: which sites are read and written, in which columns, and by which factor they are scaled.

An autoencoder reads and writes one site. A transcoder reads one and writes another (Dunefsky et al. 2024, arXiv:2406.11944). A
crosscoder reads several and writes the same ones; its sources stand side by side in one row, so the shared latents are those of an
autoencoder of that row: z = σ(Σ_s x_s W_enc,s + b_enc), x̂_s = z W_dec,s + b_dec,s (Lindsey et al. 2024, Sparse crosscoders).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError
from repscope.models.sites import Site

Rows = Mapping[str, Float[Tensor, "row d"]]


@dataclass(frozen=True)
class Layout:
    """sites_in, sites_out: names of the rows of a batch. widths: features of each. scales: factor of each, 1 until known."""

    sites_in: tuple[str, ...]
    sites_out: tuple[str, ...]
    widths_in: tuple[int, ...] = ()
    widths_out: tuple[int, ...] = ()
    scales_in: tuple[float, ...] = ()
    scales_out: tuple[float, ...] = ()

    @classmethod
    def of(cls, sites: str | Site | Sequence[str | Site], sites_out: str | Site | Sequence[str | Site] | None) -> "Layout":
        """The layout of one site, of a pair of sites, or of several sources.

        Raises
        ------
        UserError
            For no site, a repeated one, or several inputs with other outputs.
        """
        read = _names(sites)
        written = read if sites_out is None else _names(sites_out)
        if not read or len(set(read)) < len(read) or len(set(written)) < len(written):
            raise UserError(f"The sites are {list(read)} → {list(written)}; name each of them once.")
        if written != read and (len(read) > 1 or len(written) > 1):
            raise UserError(f"A transcoder maps one site to one other, and not {list(read)} to {list(written)}.")
        return cls(read, written)

    @property
    def transcoder(self) -> bool:
        """Whether another site is written than is read."""
        return self.sites_in != self.sites_out

    @property
    def crosscoder(self) -> bool:
        """Whether several sources share the latents."""
        return len(self.sites_in) > 1

    @property
    def subtract_b_dec(self) -> bool:
        """Whether b_dec is subtracted from the input: for autoencoders of one site."""
        return not self.transcoder and not self.crosscoder

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites that a batch must have."""
        return tuple(dict.fromkeys(self.sites_in + self.sites_out))

    @property
    def d_in(self) -> int:
        """Features read."""
        return sum(self.widths_in)

    @property
    def d_out(self) -> int:
        """Features written."""
        return sum(self.widths_out)

    def measured(self, batches: Sequence[Rows], scaled: bool) -> "Layout":
        """With the widths of these batches and, if `scaled`, the factors that make the mean norm of each site √d.

        Raises
        ------
        UserError
            If a site has only zero rows.
        """
        widths, scales = {}, {}
        for site in self.sites:
            rows = torch.cat([_rows(batch, site).float() for batch in batches])
            norm = float(torch.linalg.vector_norm(rows, dim=1).double().mean())
            if not 0 < norm < float("inf"):
                raise UserError(
                    f"The rows of {site} have a mean norm of {norm}; an autoencoder needs finite rows that are not all 0."
                )
            widths[site], scales[site] = rows.shape[1], rows.shape[1] ** 0.5 / norm if scaled else 1.0
        return replace(
            self,
            widths_in=tuple(widths[s] for s in self.sites_in),
            widths_out=tuple(widths[s] for s in self.sites_out),
            scales_in=tuple(scales[s] for s in self.sites_in),
            scales_out=tuple(scales[s] for s in self.sites_out),
        )

    def scaled(self, batch: Rows, dtype: torch.dtype) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]:
        """Input and target of a batch, scaled, side by side; the same tensor if they are equal."""
        x = _joined(batch, self.sites_in, self.widths_in, self.scales_in, dtype)
        return x, x if not self.transcoder else _joined(batch, self.sites_out, self.widths_out, self.scales_out, dtype)

    def columns_in(self, dtype: torch.dtype) -> Float[Tensor, "d_in"]:
        """The factor of each input feature."""
        return _columns(self.scales_in, self.widths_in, dtype)

    def columns_out(self, dtype: torch.dtype) -> Float[Tensor, "d_out"]:
        """The factor of each output feature."""
        return _columns(self.scales_out, self.widths_out, dtype)

    @staticmethod
    def site(names: tuple[str, ...]) -> Site | None:
        """The one site, if the name is that of a site; None for sources of a crosscoder or rows of another origin."""
        try:
            return Site.parse(names[0]) if len(names) == 1 else None
        except UserError:
            return None


def _names(sites: str | Site | Sequence[str | Site]) -> tuple[str, ...]:
    return (str(sites),) if isinstance(sites, str | Site) else tuple(str(site) for site in sites)


def _rows(batch: Rows, site: str) -> Float[Tensor, "row d"]:
    by_name = {str(name): rows for name, rows in batch.items()}
    if site not in by_name:
        raise UserError(f"The batches have no rows of {site!r}; they have {', '.join(by_name)}.")
    rows = by_name[site]
    return rows.flatten(1) if rows.dim() > 2 else rows


def _joined(
    batch: Rows, sites: tuple[str, ...], widths: tuple[int, ...], scales: tuple[float, ...], dtype: torch.dtype
) -> Float[Tensor, "row d"]:
    columns = []
    for site, width, scale in zip(sites, widths, scales):
        rows = _rows(batch, site)
        if rows.shape[1] != width:
            raise UserError(f"A batch has {rows.shape[1]} features of {site}, and the first one had {width}.")
        columns.append(rows.to(dtype) if scale == 1.0 else rows.to(dtype) * scale)
    if len({len(c) for c in columns}) > 1:
        raise UserError(f"A batch has {[len(c) for c in columns]} rows of {list(sites)}; sources need the same tokens.")
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def _columns(scales: tuple[float, ...], widths: tuple[int, ...], dtype: torch.dtype) -> Float[Tensor, "d"]:
    return torch.cat([torch.full((w,), s, dtype=dtype) for s, w in zip(scales, widths)])
