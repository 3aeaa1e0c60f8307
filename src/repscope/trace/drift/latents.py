"""Do the latents of a sparse autoencoder still read in the tuned network, and which latents of a crosscoder are shared?

Sparse autoencoder of the base network, on the same rows of both networks:

    unexplained variance   Σ ‖x - x̂‖² / Σ ‖x - mean x‖², mean over that network's rows
    latent correlation     Pearson's r between the latent's activations in both networks over rows; mean over latents that are
                           active in the base network on at least `LEAST` rows. Control: the base network with itself on other rows

Crosscoder over both networks (Lindsey et al. 2024), with r = ‖d_tuned‖ / (‖d_base‖ + ‖d_tuned‖) of each latent's decoder vectors:

    base only, shared, tuned only   shares of latents with r < .1, .4 ≤ r ≤ .6, r > .9 (Minder et al. 2025, arXiv:2504.02922); the
                                    others lie between. Control: norms of the second source permuted among the latents
    decoder cosine                  mean cosine of the two decoder vectors of shared latents; control: permuted

A latent that the sparsity penalty merely pushed out of one source looks exclusive too.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from repscope import stats
from repscope.conditions import ESTIMATE
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike
from repscope.models.sites import Site, Tokens
from repscope.read.sae import SparseAutoencoder
from repscope.read.sae.training.crosscoder import Crosscoder
from repscope.results import Result, Row
from repscope.results import at as at_site
from repscope.trace.drift.prompted import listed, prompt_batches

BANDS = {"base only": (0.0, 0.1), "shared": (0.4, 0.6), "tuned only": (0.9, 1.0)}  #: of r
LEAST = 4  #: rows on which a latent must be active
_DRAWS, _BATCH = 20, 8  #: permutations; prompts at a time, as latents are dense here
DEFINITIONS = {
    "unexplained variance": "Σ ‖x - x̂‖² / Σ ‖x - mean x‖² of the base's autoencoder",
    "latent correlation": "Pearson's r of a latent's activations in both networks, mean over latents",
    "base only": "share of latents with r < 0.1",
    "shared": "share of latents with 0.4 ≤ r ≤ 0.6",
    "tuned only": "share of latents with r > 0.9",
    "decoder cosine": "cosine of both decoder vectors of shared latents, mean over latents",
}


def sae_latents(
    sae: SparseAutoencoder,
    base: LanguageModel,
    tuned: LanguageModel,
    prompts: Iterable[PromptLike],
    *,
    tokens: str | int | Tokens = "all",
    site: str | Site | None = None,
    seed: int = 0,
) -> Result:
    """Whether a sparse autoencoder of the base network still reconstructs the tuned one and its latents still fire alike.

    Parameters
    ----------
    sae
        The autoencoder.
    base, tuned
        The networks before and after tuning.
    prompts
        At least 8.
    tokens
        Positions; `all` takes 16 random ones of each prompt.
    site
        By default the autoencoder's own.
    seed
        Of positions and intervals.

    Returns
    -------
    Result
        Rows; side table "latents": r, and number of active rows in both networks, per latent.

    Raises
    ------
    UserError
        For a transcoder, no site, fewer than 8 prompts, or no latent that is active often enough.
    """
    if sae.transcoder:
        raise UserError("A transcoder reconstructs another site than it reads; give an autoencoder.")
    (at,) = base.resolve(sae.written_site if site is None else site)
    held = listed(base, prompts, 8)
    batches = np.array_split(np.random.default_rng(seed).permutation(len(held)), max(2, len(held) // _BATCH))
    moments, left, count = np.zeros((7, sae.d_sae)), [], 0
    shifted = np.zeros((2, sae.d_sae))
    for batch in prompt_batches((base, tuned), held, batches, [at], tokens, seed=seed):
        x, y = (torch.from_numpy(np.ascontiguousarray(rows[at])) for rows in batch.rows)
        left.append([_unexplained(sae, x), _unexplained(sae, y)])
        u, v = (sae.encode(rows).dense().double().cpu().numpy() for rows in (x, y))
        w = np.roll(u, len(u) // 2, axis=0)
        moments += np.stack([u.sum(0), v.sum(0), (u * u).sum(0), (v * v).sum(0), (u * v).sum(0), (u > 0).sum(0), (v > 0).sum(0)])
        shifted += np.stack([(u * w).sum(0), np.zeros(sae.d_sae)])
        count += len(u)
    often = moments[5] >= LEAST
    if not often.any():
        raise UserError(f"No latent is active on {LEAST} of the {count} rows; give more prompts.")
    r = _correlation(moments[0], moments[1], moments[2], moments[3], moments[4], count)
    floor = _correlation(moments[0], moments[0], moments[2], moments[2], shifted[0], count)
    where: dict[str, Any] = {**at_site(at), "model": tuned.fingerprint, "token": str(tokens), "seed": seed}
    rows = list(_variances(np.array(left), where))
    for condition, values in ((ESTIMATE, r), ("other prompts", floor)):
        here = where | {"metric": "latent correlation", "definition": DEFINITIONS["latent correlation"], "condition": condition}
        rows.append(Row.over(values[often], "latent", **here))
    side = pd.DataFrame({"latent": np.arange(sae.d_sae), "r": r, "base": moments[5].astype(int), "tuned": moments[6].astype(int)})
    return Result.of(rows, side={"latents": side})


def crosscoder_latents(crosscoder: Crosscoder, *, model: str = "", seed: int = 0) -> Result:
    """Shares of latents that belong to the base, to both, or to the tuned network, by their decoder norms.

    Parameters
    ----------
    crosscoder
        Of two sources of equal width: the base first, the tuned network second.
    model
        Fingerprint of the tuned network.
    seed
        Of the permutations.

    Returns
    -------
    Result
        Rows; side table "latents": r and decoder cosine of each latent that has a decoder.

    Raises
    ------
    UserError
        For another number of sources than two, or sources of different widths.
    """
    if len(crosscoder.sources) != 2:
        raise UserError(f"The crosscoder has {len(crosscoder.sources)} sources; two are compared, base and tuned.")
    norms = crosscoder.decoder_norms.detach().double().cpu().numpy()
    first, second = (crosscoder.decoder(name).detach().double().cpu().numpy() for name in crosscoder.sources)
    if first.shape != second.shape:
        raise UserError(f"The sources have {first.shape[1]} and {second.shape[1]} features; their decoders cannot be compared.")
    alive = norms.sum(0) > 0
    norms, first, second = norms[:, alive], first[alive], second[alive]
    rng, count = np.random.default_rng(seed), norms.shape[1]
    orders = [rng.permutation(count) for _ in range(_DRAWS)]
    r = norms[1] / norms.sum(0)
    cosines = _cosines(first, second)
    where: dict[str, Any] = {"model": model, "seed": seed}
    rows = []
    permuted = [norms[1, o] / np.maximum(norms[0] + norms[1, o], 1e-300) for o in orders]
    for name, (low, high) in BANDS.items():
        here = where | {"metric": name, "definition": DEFINITIONS[name]}
        rows.append(Row.of(stats.proportion(_inside(r, low, high), unit="latent", seed=seed), **here))
        null = [_inside(p, low, high).mean() for p in permuted]
        rows.append(Row.of(stats.null(null, unit="permutation"), condition="permuted latents", **here))
    shared = _inside(r, *BANDS["shared"]) > 0
    if shared.any():
        here = where | {"metric": "decoder cosine", "definition": DEFINITIONS["decoder cosine"]}
        rows.append(Row.over(cosines[shared], "latent", seed=seed, **{k: v for k, v in here.items() if k != "seed"}))
        null = [_cosines(first[shared], second[o[o < count]][: shared.sum()]).mean() for o in orders]
        rows.append(Row.of(stats.null(null, unit="permutation"), condition="permuted latents", **here))
    side = pd.DataFrame({"latent": np.flatnonzero(alive), "r": r, "cosine": cosines})
    return Result.of(rows, side={"latents": side})


def _inside(r: Float[np.ndarray, "latent"], low: float, high: float) -> Float[np.ndarray, "latent"]:
    below = r < high if low == 0 else r <= high  # the outer bands are open towards the middle
    above = r > low if high == 1 else r >= low
    return (below & above).astype(np.float64)


def _cosines(a: Float[np.ndarray, "latent d"], b: Float[np.ndarray, "latent d"]) -> Float[np.ndarray, "latent"]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0))


def _unexplained(sae: SparseAutoencoder, x: Float[torch.Tensor, "row d"]) -> tuple[float, float]:
    """Squared error and squared distance to the mean, summed over rows; the latter for a mean of all rows, not of these."""
    error = x.to(sae.device, sae.dtype) - sae.reconstruct(x)
    centred = x.double() - x.double().mean(0)
    return float(error.double().pow(2).sum()), float(centred.pow(2).sum()) * len(x) / max(1, len(x) - 1)


def _variances(left: Float[np.ndarray, "batch network 2"], where: dict[str, Any]) -> Iterator[Row]:
    for k, condition in enumerate(("base network", ESTIMATE)):
        estimate = stats.ratio(left[:, k, 0], left[:, k, 1], unit="batch of prompts", seed=where["seed"])
        here = {"metric": "unexplained variance", "definition": DEFINITIONS["unexplained variance"], "condition": condition}
        yield Row.of(estimate, **here, **where)


def _correlation(
    su: np.ndarray, sv: np.ndarray, uu: np.ndarray, vv: np.ndarray, uv: np.ndarray, n: int
) -> Float[np.ndarray, "latent"]:
    """Pearson's r from sums; 0 where one side is constant."""
    bottom = np.sqrt(np.maximum(uu - su**2 / n, 0) * np.maximum(vv - sv**2 / n, 0))
    return np.asarray(np.divide(uv - su * sv / n, bottom, out=np.zeros_like(su), where=bottom > 1e-12 * np.maximum(uu, 1e-300)))
