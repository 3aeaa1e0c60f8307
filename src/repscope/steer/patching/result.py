"""Results of patching and ablation: arrays, a table with intervals over pairs, a figure."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope.conditions import ESTIMATE, RANDOM
from repscope.models.sites import Site
from repscope.results import Result, Row, at

if TYPE_CHECKING:
    import altair as alt

DEFINITIONS = {
    "activation patching": "metric with the clean activation in the corrupt run, less the corrupt run's",
    "attribution patching": "(clean - corrupt) · gradient at the corrupt run",
    "integrated gradients": "(clean - corrupt) · gradient averaged over embeddings from corrupt to clean",
    "mean ablation": "metric with the mean over reference prompts in place, less the plain run's",
    "zero ablation": "metric with zeros in place, less the plain run's",
}


@dataclass(frozen=True)
class Patching:
    """What patching found.

    method: which. sites: rows. tokens: columns, positions ("0" is the first) or the choices asked for. effect: (pair, site, token),
    in the metric's units, NaN where a pair has no such position. control: the same shape, the random direction; None for an
    approximation. clean, corrupt: (pair), the metric of both runs (for an ablation both are the plain run's). labels: the corrupt
    prompts' tokens. model: fingerprint. seed: of the control.
    """

    method: str
    sites: tuple[Site, ...]
    tokens: tuple[str, ...]
    effect: Float[np.ndarray, "pair site token"]
    control: Float[np.ndarray, "pair site token"] | None
    clean: Float[np.ndarray, "pair"]
    corrupt: Float[np.ndarray, "pair"]
    labels: tuple[tuple[str, ...], ...]
    model: str
    seed: int

    @property
    def restored(self) -> Float[np.ndarray, "pair site token"]:
        """The share of the clean-corrupt difference that each cell restores: 0 nothing, 1 all of it."""
        share: np.ndarray = self.effect / (self.clean - self.corrupt)[:, None, None]
        return share

    def result(self) -> Result:
        """The mean over pairs of each cell with its interval over pairs, the control beside it, as a table."""
        row = partial(
            Row.over,
            metric=self.method,
            definition=DEFINITIONS[self.method],
            model=self.model,
            item="effect on the metric",
            seed=self.seed,
        )
        rows = []
        for condition, values in ((ESTIMATE, self.effect), (RANDOM, self.control)):
            for i, site in enumerate(self.sites):
                for j, token in enumerate(self.tokens):
                    if values is None or np.isnan(values[:, i, j]).all():
                        continue
                    seen = values[:, i, j][~np.isnan(values[:, i, j])]
                    rows.append(row(seen, "pair", **at(site), token=token, condition=condition))
        return Result.of(rows, arrays={"clean": self.clean, "corrupt": self.corrupt})

    def figure(self) -> "alt.FacetChart":
        """Mean effect by site and token, the control beside it on the same scale."""
        import altair as alt

        frame = self.result().table
        kinds = {site.kind for site in self.sites}
        by_block = len(kinds) == 1 and all(site.layer is not None and site.head is None for site in self.sites)
        rows = alt.Y("site:N", title="site", sort=[str(s) for s in self.sites])
        if by_block:
            rows = alt.Y("layer:O", title=f"block ({next(iter(kinds))})", sort="descending")
        furthest = float(frame["value"].abs().max()) or 1.0
        colour = alt.Scale(scheme="blueorange", domain=[-furthest, furthest], domainMid=0)
        shown = {token: self._token(token) for token in self.tokens}
        records = [
            {"token": shown[t], "layer": None if pd.isna(layer) else int(layer), "site": s, "value": v, "condition": c}
            for t, layer, s, v, c in zip(
                frame["token"], frame["layer"].astype("object"), frame["site"], frame["value"], frame["condition"]
            )
        ]
        cells = alt.Chart(alt.InlineData(values=records)).mark_rect()
        drawn: alt.FacetChart = cells.encode(
            x=alt.X("token:N", title="token", sort=list(shown.values())),
            y=rows,
            color=alt.Color("value:Q", title="effect on the metric", scale=colour),
            tooltip=["token:N", "site:N", "condition:N", alt.Tooltip("value:Q", format=".3f")],
        ).facet(column=alt.Column("condition:N", title=self.method, sort=[ESTIMATE, RANDOM]))
        return drawn

    def _token(self, name: str) -> str:
        """A position with its token, where all pairs have the same one there (in the corrupt prompt)."""
        words = {row[int(name)].strip() for row in self.labels if int(name) < len(row)} if name.isdigit() else set()
        return f"{name} {words.pop()}" if len(words) == 1 else name

    def _repr_html_(self) -> str:
        return str(self.result()._repr_html_())
