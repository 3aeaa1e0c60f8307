"""Activations in memory or on disk, with named axes (prompt, site, token, feature). Arrays only; knows no model.

A prompt gives one vector a site (`tokens` was last, first, mean or an index) or several (`all`: ragged, one row a token).
Rows stand in the order in which the prompts were given, sites in the order in which they were asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError
from repscope.models.sites import Site, Tokens


@dataclass(frozen=True)
class Activations:
    """What a network held at some sites.

    rows: per site an array (row, feature), possibly memory-mapped. tokens: which positions were asked for.
    offsets: (prompt + 1), rows of prompt i are `offsets[i]:offsets[i + 1]`. positions: (row), token index in the prompt (for
    a mean: that of its last token). model: fingerprint of the network. single: whether one site was asked for by name.
    seconds: what it took, to lay beside `lm.plan(…).seconds`. asked: the sites as they were asked for, where one may stand twice.
    """

    rows: Mapping[Site, Float[np.ndarray, "row *feature"]]
    tokens: Tokens
    offsets: Int[np.ndarray, "prompt_plus_1"]
    positions: Int[np.ndarray, "row"]
    model: str
    single: bool
    seconds: float = 0.0
    asked: tuple[Site, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites held, each once, in the order in which they were asked for."""
        return tuple(self.rows)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, site: "str | Site") -> Float[np.ndarray, "row *feature"]:
        """The rows of one site.

        Raises
        ------
        UserError
            When that site was not captured; says which were.
        """
        wanted = Site.parse(site)
        if wanted not in self.rows:
            raise UserError(f"{wanted} was not captured; this set holds {_listed(self.sites)}.")
        return self.rows[wanted]

    def numpy(self) -> Float[np.ndarray, "prompt *site_token_feature"]:
        """One array: (prompt, feature) for one site asked for by its name, (prompt, site, feature) for several.

        Sites stand as they were asked for: in the order of the list, the blocks of a kind in the order of the forward pass.
        With `tokens="all"` the axis `token` stands before the feature, if all prompts have the same number of tokens.

        Raises
        ------
        UserError
            When prompts differ in their number of tokens, or sites in their width; names the way to read them then.
        """
        counts = np.diff(self.offsets)
        if self.tokens.ragged and counts.size and counts.min() != counts.max():
            raise UserError(
                f"The prompts have {counts.min()} to {counts.max()} tokens, which is no rectangle: "
                "read acts[site], one row a token, with acts.offsets."
            )
        if len({r.shape[1:] for r in self.rows.values()}) > 1:
            raise UserError(f"{_listed(self.sites)} differ in width: read each by acts[site].")
        rows = [self.rows[site] for site in self.asked or self.sites]
        per_site = [r.reshape(len(self), -1, *r.shape[1:]) if self.tokens.ragged else r for r in rows]
        return per_site[0] if self.single else np.stack(per_site, axis=1)

    def __repr__(self) -> str:
        return f"Activations({len(self)} prompts, {_listed(self.sites)}, tokens={self.tokens}, rows={len(self.positions)})"


def _listed(sites: tuple[Site, ...]) -> str:
    names = [str(s) for s in sites]
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])} … {names[-1]} ({len(names)} sites)"
