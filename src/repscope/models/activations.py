"""Captured activations in memory or on disk, with axes prompt, site, token and feature.

Each prompt has one vector per site (`tokens` is last, first, mean or an index) or several (`all`: ragged, one row per token).
Rows follow the order of the prompts, sites the order of the request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from repscope import notebook
from repscope.errors import UserError
from repscope.models.sites import Site, Tokens

if TYPE_CHECKING:
    import altair as alt
    import xarray as xr


@dataclass(frozen=True)
class Activations:
    """Activations of a network at some sites.

    rows: per site an array (row, feature), possibly memory-mapped. tokens: the requested positions.
    offsets: (prompt + 1), rows of prompt i are `offsets[i]:offsets[i + 1]`. positions: (row), token index in the prompt (for
    a mean: that of its last token). model: fingerprint of the network. single: whether a single site was requested by name.
    seconds: run time, to compare with `lm.plan(…).seconds`. requested: the sites as requested, possibly with repetition.
    """

    rows: Mapping[Site, Float[np.ndarray, "row *feature"]]
    tokens: Tokens
    offsets: Int[np.ndarray, "prompt_plus_1"]
    positions: Int[np.ndarray, "row"]
    model: str
    single: bool
    seconds: float = 0.0
    requested: tuple[Site, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The distinct sites, in the order of the request."""
        return tuple(self.rows)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, site: "str | Site") -> Float[np.ndarray, "row *feature"]:
        """The rows of one site.

        Raises
        ------
        UserError
            When that site was not captured; lists those that were.
        """
        wanted = Site.parse(site)
        if wanted not in self.rows:
            raise UserError(f"{wanted} was not captured; these activations have {_listed(self.sites)}.")
        return self.rows[wanted]

    def numpy(self) -> Float[np.ndarray, "prompt *site_token_feature"]:
        """One array: (prompt, feature) for a single site requested by name, (prompt, site, feature) for several.

        Sites follow the order of the request; blocks of a kind follow the forward pass.
        With `tokens="all"` the axis `token` precedes the feature, if all prompts have the same number of tokens.

        Raises
        ------
        UserError
            When prompts differ in number of tokens, or sites in width; says how to read them.
        """
        counts = np.diff(self.offsets)
        if self.tokens.ragged and counts.size and counts.min() != counts.max():
            raise UserError(
                f"The prompts have {counts.min()} to {counts.max()} tokens, so they do not form one array: "
                "read acts[site], one row per token, with acts.offsets."
            )
        if len({r.shape[1:] for r in self.rows.values()}) > 1:
            raise UserError(f"{_listed(self.sites)} differ in width: read each by acts[site].")
        rows = [self.rows[site] for site in self.requested or self.sites]
        per_site = [r.reshape(len(self), -1, *r.shape[1:]) if self.tokens.ragged else r for r in rows]
        return per_site[0] if self.single else np.stack(per_site, axis=1)

    def to_pandas(self) -> pd.DataFrame:
        """One row per captured row, indexed by prompt and token position; columns are site and hidden (the feature).

        Further feature axes (heads, image positions) are flattened.
        """
        prompts = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        index = pd.MultiIndex.from_arrays([prompts, np.asarray(self.positions)], names=["prompt", "token"])
        parts = [pd.DataFrame(np.asarray(rows).reshape(len(rows), -1), index=index) for rows in self.rows.values()]
        return pd.concat(parts, axis=1, keys=[str(site) for site in self.rows], names=["site", "hidden"])

    def to_xarray(self) -> "xr.DataArray":
        """An xarray array with named dimensions: prompt, site, hidden; with `tokens="all"` prompt, site, token, hidden.

        Prompts of different numbers of tokens have the dimension row (one per token) with the coordinates prompt and token, so
        that nothing is padded. `site` has the names of the sites. Further feature axes are hidden_0, hidden_1 …

        Raises
        ------
        UserError
            When sites differ in width; says how to read them.

        >>> from repscope.worlds.tiny import tiny
        >>> acts = tiny().capture(["one", "two"], ["resid_post.0", "resid_post.1"], "last")
        >>> acts.to_xarray().sel(site="resid_post.1").dims
        ('prompt', 'hidden')
        """
        import xarray as xr

        if len({r.shape[1:] for r in self.rows.values()}) > 1:
            raise UserError(f"{_listed(self.sites)} differ in width: read each by acts[site], or all by acts.to_pandas().")
        sites, counts = self.sites, np.diff(self.offsets)
        extra = next(iter(self.rows.values())).ndim - 1
        hidden = ["hidden"] if extra == 1 else [f"hidden_{i}" for i in range(extra)]
        coords: dict[str, Any] = {"site": [str(site) for site in sites]}
        stacked = np.stack([self.rows[site] for site in sites], axis=1)  # (row, site, *hidden)
        if not self.tokens.ragged:
            dims = ["prompt", "site", *hidden]
            coords |= {"prompt": np.arange(len(self)), "token": ("prompt", np.asarray(self.positions))}
        elif counts.size and counts.min() == counts.max():
            dims = ["prompt", "site", "token", *hidden]
            stacked = np.moveaxis(stacked.reshape(len(self), int(counts[0]), *stacked.shape[1:]), 1, 2)
            coords |= {"prompt": np.arange(len(self)), "token": np.asarray(self.positions)[: int(counts[0])]}
        else:
            dims = ["row", "site", *hidden]
            prompts = np.repeat(np.arange(len(self)), counts)
            coords |= {"prompt": ("row", prompts), "token": ("row", np.asarray(self.positions))}
        return xr.DataArray(stacked, coords, dims, "activation", {"model": self.model, "tokens": str(self.tokens)})

    def figure(self) -> "alt.TopLevelMixin":
        """Norms of the activations by block: median and the range from the 5th to the 95th percentile, of at most 1,000 rows."""
        return notebook.figure(self)

    def _repr_html_(self) -> str:
        return notebook.html(self)

    def __repr__(self) -> str:
        return f"Activations({len(self)} prompts, {_listed(self.sites)}, tokens={self.tokens}, rows={len(self.positions)})"


def _listed(sites: tuple[Site, ...]) -> str:
    names = [str(s) for s in sites]
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])} … {names[-1]} ({len(names)} sites)"
