"""Statistics of latents over many rows, in one pass: density, mean, maximum, and the rows that activate each most.

1. Encode each batch of rows.
2. Per latent, add the number of rows where it is active and its sum; keep the largest activations so far with the index of their
   rows, merged with the batch's by one sort.

Memory is (latent × top) plus one batch, however many rows pass. Sums are float64. Ties of activations keep the earlier row.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.latents import Latents

LABELS = ("document", "position", "token")


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Statistics of each latent.

    rows: number of rows. density: share of rows where it is active. mean: over all rows. mean_active: over the rows where it is
    active, 0 if there is none. maximum: 0 if it never was. top: its largest activations, largest first, 0 beyond their number.
    top_rows: index of their rows in the order of the batches, -1 beyond. labels: document, position and token of those rows, if the
    batches have them.
    """

    rows: int
    density: Float[np.ndarray, "latent"]
    mean: Float[np.ndarray, "latent"]
    mean_active: Float[np.ndarray, "latent"]
    maximum: Float[np.ndarray, "latent"]
    top: Float[np.ndarray, "latent top"]
    top_rows: Int[np.ndarray, "latent top"]
    labels: Mapping[str, Int[np.ndarray, "latent top"]]

    @property
    def dead(self) -> Bool[np.ndarray, "latent"]:
        """Latents that no row activates."""
        never: np.ndarray = self.density == 0
        return never

    @property
    def l0(self) -> float:
        """Mean number of active latents per row."""
        return float(self.density.sum())

    def table(self) -> pd.DataFrame:
        """One row per latent: latent, density, mean, mean_active, maximum."""
        names = ("density", "mean", "mean_active", "maximum")
        return pd.DataFrame({"latent": np.arange(len(self.density)), **{name: getattr(self, name) for name in names}})


def feature_statistics(
    sae: SparseAutoencoder, batches: Iterable[Any], *, top: int = 16, distinct_documents: bool = False
) -> FeatureStatistics:
    """Statistics of an autoencoder's latents over batches of rows.

    Parameters
    ----------
    batches
        Batches of an activation store, or tensors (row, d_in).
    top
        Number of largest activations kept per latent.
    distinct_documents
        Keep the largest of each document only; the batches must have labels.

    Raises
    ------
    UserError
        For no row at all, batches without the autoencoder's site, labels that only some batches have, and as `encode`.
    """
    if top < 1:
        raise UserError(f"top={top} activations are to be kept per latent; keep at least 1.")
    counts, sums = np.zeros(sae.d_sae, np.int64), np.zeros(sae.d_sae)
    best = _Best(sae.d_sae, top, distinct_documents)
    rows = 0
    with torch.no_grad():
        for batch in batches:
            x, labels = _rows(sae, batch)
            latents = sae.encode(x)
            index = latents.indices.cpu().numpy()
            counts += np.bincount(index, minlength=sae.d_sae)
            sums += np.bincount(index, latents.values.double().cpu().numpy(), sae.d_sae)
            best.add(latents, rows, labels)
            rows += len(x)
    if not rows:
        raise UserError("There is no row to take statistics of; give batches with rows.")
    values, at, labels = best.result()
    active = np.maximum(counts, 1)
    return FeatureStatistics(rows, counts / rows, sums / rows, sums / active, values[:, 0], values, at, labels)


def _rows(sae: SparseAutoencoder, batch: Any) -> tuple[Tensor, dict[str, np.ndarray]]:
    """The rows of a batch at the autoencoder's site, and their labels."""
    if not hasattr(batch, "rows"):
        return torch.as_tensor(batch), {}
    held = {str(site): rows for site, rows in batch.rows.items()}
    if sae.site is None and len(held) == 1:
        x = next(iter(held.values()))
    elif str(sae.site) in held:
        x = held[str(sae.site)]
    else:
        raise UserError(f"The batches hold {', '.join(held)}, and the autoencoder is of {sae.site}; read that site.")
    given = getattr(batch, "labels", None)
    return x, {} if given is None else {name: np.asarray(getattr(given, name)).astype(np.int64) for name in LABELS}


class _Best:
    """The largest activations of each latent so far: columns value, row and labels, (latent, top) each."""

    def __init__(self, width: int, top: int, distinct: bool) -> None:
        self.width, self.top, self.distinct = width, top, distinct
        self.columns: dict[str, np.ndarray] | None = None

    def add(self, latents: Latents, first: int, labels: Mapping[str, np.ndarray]) -> None:
        """Merge a batch whose first row has the index `first`."""
        if self.distinct and "document" not in labels:
            raise UserError("Distinct documents need batches with labels; read the store with labels.")
        if self.columns is None:
            shape = (self.width, self.top)
            self.columns = {"value": np.zeros(shape, np.float32)}
            self.columns |= {name: np.full(shape, -1, np.int64) for name in ("row", *labels)}
        if set(self.columns) != {"value", "row", *labels}:
            raise UserError("Only some of the batches have labels; give all of them with labels, or none.")
        row = latents.row_of.cpu().numpy()
        latent, value = latents.indices.cpu().numpy(), latents.values.float().cpu().numpy()
        kept = value > self.columns["value"][latent, -1]
        row, latent, value = row[kept], latent[kept], value[kept]
        touched = np.unique(latent)
        if not len(touched):
            return
        new = {"value": value, "row": row + first} | {name: numbers[row] for name, numbers in labels.items()}
        old = self.columns["value"][touched] > 0
        both = {name: np.concatenate([c[touched][old], new[name]]) for name, c in self.columns.items()}
        of = np.concatenate([np.repeat(touched, old.sum(1)), latent])
        order = np.lexsort((both["row"], -both["value"], of))
        if self.distinct:  # the first of each latent and document in this order is its largest
            pairs = np.stack([of, both["document"]])[:, order]
            firsts = np.unique(pairs, axis=1, return_index=True)[1]
            order = order[np.sort(firsts)]
        of = of[order]
        starts = np.r_[0, np.flatnonzero(np.diff(of)) + 1]
        rank = np.arange(len(of)) - np.repeat(starts, np.diff(np.r_[starts, len(of)]))
        chosen = rank < self.top
        for name, column in self.columns.items():
            column[touched] = 0 if name == "value" else -1
            column[of[chosen], rank[chosen]] = both[name][order][chosen]

    def result(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Values, rows and labels."""
        held = self.columns or {}
        return held["value"], held["row"], {name: held[name] for name in LABELS if name in held}
