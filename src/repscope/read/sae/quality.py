"""What an autoencoder keeps of a layer, on held-out texts: variance explained, and the model's loss when it replaces the layer.

1. Capture the site on whole texts; squared error and squared distance to the mean per text.
2. Replace the site by the reconstruction, run on, and take the cross-entropy of each next token, and KL(model ‖ replaced).
3. The same with the mean of the site in its place is the floor: CE recovered = (CE_mean − CE) / (CE_mean − CE_model).

The first token of each text stays as it is and is left out of the error: it has no context, and in many models a norm hundreds of
times that of the others, so that it would be most of the variance. Sums per text, so that intervals are over texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.edits import Edit
from repscope.models.sites import Site

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

Reconstruct = Callable[[Float[Tensor, "row d"]], Float[Tensor, "row d"]]
_CHUNK = 1 << 24  #: logits at a time


@dataclass(frozen=True)
class Errors:
    """Sums over the tokens of each text but its first. squared: errors. spread: distances to the mean. tokens: their number."""

    squared: Float[np.ndarray, "text"]
    spread: Float[np.ndarray, "text"]
    tokens: Int[np.ndarray, "text"]


@dataclass(frozen=True)
class Losses:
    """Sums over the next tokens of each text. nats: cross-entropy. kl: KL(model ‖ replaced). tokens: their number."""

    nats: Float[np.ndarray, "text"]
    kl: Float[np.ndarray, "text"]
    tokens: Int[np.ndarray, "text"]


class HeldOut:
    """Held-out texts of a network at one site: rows, and the model's own predictions, captured once.

    Parameters
    ----------
    lm
        The network.
    site
        The site.
    texts
        Token ids of each text, two tokens or more.
    mean
        (d), of the site over the corpus.
    """

    def __init__(
        self, lm: "LanguageModel", site: str | Site, texts: Sequence[Int[np.ndarray, "token"]], mean: Float[Tensor, "d"]
    ) -> None:
        self.lm, self.site, self.texts = lm, site, list(texts)
        held = lm.capture(self.texts, site, "all")
        rows = torch.from_numpy(np.array(held[held.sites[0]], np.float32))
        self.rows = rows.flatten(1)  #: (token, d), first tokens included
        self.offsets = held.offsets
        self.mean = mean.float().flatten()
        self._firsts = np.asarray(rows[torch.from_numpy(self.offsets[:-1].copy())])
        self._hidden: Tensor | None = None

    @property
    def inner(self) -> Int[np.ndarray, "token"]:
        """Indices of all tokens but the first of each text."""
        return np.setdiff1d(np.arange(len(self.rows)), self.offsets[:-1])

    def errors(self, reconstruct: Reconstruct) -> Errors:
        """Squared errors of a reconstruction, per text."""
        with torch.no_grad():
            left = (self.rows - reconstruct(self.rows)).double().square().sum(1).numpy()
            spread = (self.rows - self.mean).double().square().sum(1).numpy()
        return Errors(self.per_text(left), self.per_text(spread), np.diff(self.offsets) - 1)

    def per_text(self, values: Float[np.ndarray, "token"]) -> Float[np.ndarray, "text"]:
        """Sums of a number per token over the tokens of each text but its first."""
        kept = np.asarray(values, np.float64).copy()
        kept[self.offsets[:-1]] = 0
        return np.asarray(np.add.reduceat(kept, self.offsets[:-1]))

    def losses(self, reconstruct: Reconstruct | None = None) -> Losses:
        """Losses of the model, or with the site replaced by a reconstruction (at all tokens but the first).

        Raises
        ------
        UserError
            When the network has no head, or the reconstruction changes nothing.
        """
        if self._hidden is None:
            self._hidden = self._last()
        if reconstruct is None:
            return self._compared(self._hidden)
        with torch.no_grad():
            if torch.allclose(reconstruct(self.rows), self.rows, rtol=1e-5, atol=1e-6):  # an edit that changes nothing is refused
                return self._compared(self._hidden)
        replaced = Edit.map(self.site, reconstruct, name="reconstruction")
        first = Edit.replace(self.site, self._firsts, tokens="first", per_prompt=True)
        with torch.no_grad(), self.lm.edit(replaced, first):
            after = self._last()
        return self._compared(after)

    def constant(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """The mean in place of every row: the floor of CE recovered."""
        return self.mean.to(x).expand_as(x).clone()

    def _last(self) -> Float[Tensor, "token d_model"]:
        """What the head reads, at every token."""
        held = self.lm.capture(self.texts, self.lm.last, "all")
        return torch.from_numpy(np.array(held[held.sites[0]], np.float32))

    def _compared(self, hidden: Float[Tensor, "token d_model"]) -> Losses:
        """Cross-entropy of each next token, and the divergence from the model's own prediction of it."""
        ids = np.concatenate(self.texts)
        read = np.setdiff1d(np.arange(len(ids)), self.offsets[1:] - 1)  # every token that has a next one
        nats, kl = np.zeros(len(ids)), np.zeros(len(ids))
        assert self._hidden is not None
        step = max(1, _CHUNK // max(1, self.lm.vocabulary))
        for start in range(0, len(read), step):
            at = read[start : start + step]
            logp = self._log_probabilities(hidden[at])
            nats[at + 1] = -logp[torch.arange(len(at)), torch.from_numpy(ids[at + 1].astype(np.int64))].double().numpy()
            if hidden is not self._hidden:
                own = self._log_probabilities(self._hidden[at])
                kl[at + 1] = (own.exp() * (own - logp)).sum(1).double().numpy()
        return Losses(self.per_text(nats), self.per_text(kl), np.diff(self.offsets) - 1)

    def _log_probabilities(self, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        return torch.from_numpy(self.lm.unembed(hidden.numpy(), normed=True)).log_softmax(-1)


def principal_components(
    rows: Float[Tensor, "row d"], mean: Float[Tensor, "d"], k: int
) -> Callable[[Float[Tensor, "row d"]], Float[Tensor, "row d"]]:
    """Reconstruction from the k leading principal components: the baseline of equal L0."""
    centred = (rows - mean).double()
    vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -k:].float()

    def reconstruct(x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        basis, centre = vectors.to(x), mean.to(x)
        kept: Tensor = centre + (x - centre) @ basis @ basis.T
        return kept

    return reconstruct
