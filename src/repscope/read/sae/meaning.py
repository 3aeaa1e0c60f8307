"""What latents write: the tokens that they promote and suppress, and the labelled directions that they are nearest to.

The logit effect of a latent is head(norm(w)) - head(norm(0)), with w its decoder vector, centred over the vocabulary: the direct
path from the site to the logits, up to a positive factor that depends on the rest of the residual stream (logit lens of a
direction). Paths through later blocks are left out; at early sites they matter most.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope.directions.sets import DirectionSet
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.read.sae.autoencoder import SparseAutoencoder

_CHUNK = 256  #: latents at a time


def logit_effects(sae: SparseAutoencoder, lm: LanguageModel, latents: Sequence[int], top: int = 10) -> pd.DataFrame:
    """Tokens that latents promote and suppress most, by the direct path.

    Returns
    -------
    DataFrame
        One row per latent, sign and rank: latent, sign (promoted, suppressed), rank, token, effect.

    Raises
    ------
    UserError
        As `LanguageModel.unembed`: a model without head, vectors that are not of the residual stream.
    """
    if top < 1:
        raise UserError(f"top={top} tokens are to be listed per latent; list at least 1.")
    vectors = sae.decoder_vectors(latents).detach().float().cpu().numpy()
    base = lm.unembed(np.zeros((1, sae.d_out), np.float32))
    texts: dict[int, str] = {}
    rows = []
    for start in range(0, len(vectors), _CHUNK):
        effects = _centred(lm.unembed(vectors[start : start + _CHUNK]) - base)
        count = min(top, effects.shape[1])
        for i, effect in zip(latents[start : start + _CHUNK], effects):
            order = np.argsort(effect, kind="stable")
            for sign, ids in (("promoted", order[::-1][:count]), ("suppressed", order[:count])):
                for rank, token in enumerate(ids):
                    text = texts.setdefault(int(token), lm.tokenizer.decode([int(token)]))
                    rows.append((int(i), sign, rank, text, float(effect[token])))
    return pd.DataFrame(rows, columns=["latent", "sign", "rank", "token", "effect"])


def nearest_directions(
    sae: SparseAutoencoder, labelled: DirectionSet, latents: Sequence[int] | None = None, k: int = 1
) -> pd.DataFrame:
    """The labelled directions of largest absolute cosine with each latent's decoder vector.

    Returns
    -------
    DataFrame
        One row per latent and rank: latent, rank, direction, cosine (with its sign). A decoder vector of zero has none.

    Raises
    ------
    UserError
        For directions of another width, or none.
    """
    if not len(labelled):
        raise UserError("There is no labelled direction to compare with; give a set that has some.")
    matrix = np.stack([d.vector for d in labelled]) if len({d.width for d in labelled}) == 1 else np.empty((0, 0))
    if matrix.shape[1] != sae.d_out:
        raise UserError(f"The labelled directions are not of width {sae.d_out}, that of the autoencoder; give those of its site.")
    chosen = list(range(sae.d_sae)) if latents is None else [int(i) for i in latents]
    vectors = sae.decoder_vectors(chosen).detach().double().cpu().numpy()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors / np.where(norms > 0, norms, 1) @ matrix.T
    order = np.argsort(-np.abs(cosines), axis=1, kind="stable")[:, :k]
    rows = [
        (i, rank, labelled.names[j], float(cosine[j]))
        for i, norm, cosine, best in zip(chosen, norms[:, 0], cosines, order)
        if norm > 0
        for rank, j in enumerate(best)
    ]
    return pd.DataFrame(rows, columns=["latent", "rank", "direction", "cosine"])


def _centred(effects: Float[np.ndarray, "latent vocab"]) -> Float[np.ndarray, "latent vocab"]:
    centred: np.ndarray = effects - effects.mean(1, keepdims=True)
    return centred
