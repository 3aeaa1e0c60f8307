"""Drift of stacked networks from their starting networks: weights, representations, next tokens. Arrays in, arrays out.

Weights, with Δ = W' − W per tensor: ‖Δ‖_F / ‖W‖_F; the effective rank exp H(σ / Σσ) of each matrix as a share of its full rank
(Roy & Vetterli 2007); the share of entries that are equal in float32, and after both are rounded to bfloat16.
Representations: unbiased CKA and the share of the energy of the change that one mean shift explains, per site.
Next tokens, on samples of the tuned network: KL(tuned ‖ start) and JS in nats per token; and, along greedy completions of the tuned
network, the rank of each token under the starting network given the same prefix: 1 unshifted, 2 or 3 marginal, above 3 shifted
(Lin et al. 2024). Loss on documents of the corpus.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.align.cka import unbiased_cka
from repscope.models.loading.stacked_weights import State, runs_of
from repscope.studies.drift import names
from repscope.worlds.rewarded.evaluation import log_probabilities
from repscope.worlds.rewarded.task import PROMPT
from repscope.worlds.small_lm import transformer as stacked
from repscope.worlds.small_lm.transformer import Shape

_SITES = ("embed", "resid_post.{}")


def relative_norm(start: State, tuned: State) -> Float[np.ndarray, "network"]:
    """‖Δ‖_F / ‖W‖_F over all weights of each network."""
    change = sum((tuned[k].double() - v.double()).square().flatten(1).sum(1) for k, v in start.items())
    size = sum(v.double().square().flatten(1).sum(1) for v in start.values())
    return np.asarray((torch.as_tensor(change) / torch.as_tensor(size)).sqrt())


def weights(start: State, tuned: State) -> pd.DataFrame:
    """One row per network and tensor, and per network one for all of them (module "all").

    Columns: network, module (such as "attn.c_attn"), layer (−1 outside the blocks), and each metric.
    """
    rows = []
    whole = np.zeros((5, runs_of(start)))  # changes, sizes, entries, equal in float32 and in bfloat16
    ranks = []
    for name, before in start.items():
        after = tuned[name]
        change = (after.double() - before.double()).flatten(1)
        parts = np.stack(
            [
                change.square().sum(1).numpy(),
                before.double().square().flatten(1).sum(1).numpy(),
                np.full(runs_of(start), float(change.shape[1])),
                (after == before).flatten(1).double().sum(1).numpy(),
                (after.bfloat16() == before.bfloat16()).flatten(1).double().sum(1).numpy(),
            ]
        )
        whole += parts
        rank = effective_rank(after.double() - before.double()) if before.ndim == 3 else np.full(runs_of(start), np.nan)
        if before.ndim == 3:
            ranks.append(rank)
        rows.append(_weight_rows(name, parts, rank))
    rows.append(_weight_rows("all", whole, np.mean(ranks, 0)))
    return pd.DataFrame({column: np.concatenate([r[column] for r in rows]) for column in rows[0]})


def effective_rank(change: Float[Tensor, "network row column"]) -> Float[np.ndarray, "network"]:
    """exp of the entropy of the normalised singular values, as a share of the full rank; NaN of no change."""
    values = torch.linalg.svdvals(change)
    share = values / values.sum(-1, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return np.asarray(entropy.exp() / values.shape[-1])


def _weight_rows(name: str, parts: np.ndarray, rank: np.ndarray) -> dict[str, np.ndarray]:
    module, layer = place_of(name)
    change, size, entries, same32, same16 = parts
    n = parts.shape[1]
    return {
        "network": np.arange(n),
        "tensor": np.full(n, name, dtype=object),
        "module": np.full(n, module, dtype=object),
        "layer": np.full(n, layer),
        "change": change,
        "size": size,
        names.NORM: np.sqrt(change / np.where(size > 0, size, np.nan)),
        names.RANK: rank,
        names.SAME32: same32 / entries,
        names.SAME16: same16 / entries,
    }


def place_of(name: str) -> tuple[str, int]:
    """Module and layer of a tensor of the GPT-2 layout: ("attn.c_attn", 0), ("wte", −1)."""
    parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
    if "h" in parts:
        at = parts.index("h")
        return ".".join(parts[at + 2 :]), int(parts[at + 1])
    return parts[-1], -1


def sites(shape: Shape) -> list[str]:
    """The embedding and the output of each block."""
    return ["embed", *(f"resid_post.{i}" for i in range(shape.layers))]


@torch.no_grad()
def representations(shape: Shape, start: State, tuned: State, documents: Int[Tensor, "network document token"]) -> pd.DataFrame:
    """One row per network and site: CKA on all documents and on each half of them, and the mean shift."""
    rows = []
    for i, (x, y) in enumerate(_hidden_pairs(shape, start, tuned, documents)):
        for site, a, b in zip(sites(shape), x, y, strict=True):
            half = len(a) // 2
            change = b - a
            shift = mean_shift(change.flatten(0, 1).double())
            flat = [(u.flatten(0, 1), v.flatten(0, 1)) for u, v in ((a, b), (a[:half], b[:half]), (a[half:], b[half:]))]
            scores = [float(unbiased_cka(u.numpy(), v.numpy())) for u, v in flat]
            halves = {f"{names.CKA}, half {k}": score for k, score in enumerate(scores[1:])}
            rows.append({"network": i, "site": site, names.CKA: scores[0], names.SHIFT: shift, **halves})
    return pd.DataFrame(rows)


def mean_shift(change: Float[Tensor, "row feature"]) -> float:
    """Share of the energy of a change that one vector explains, unbiased: ‖mean‖² is over pairs of different rows."""
    n, energy = len(change), float(change.square().sum())
    if not energy:
        return float("nan")
    return (float(change.sum(0).square().sum()) - energy) / (n - 1) / energy


def _hidden_pairs(
    shape: Shape, start: State, tuned: State, documents: Tensor
) -> Iterator[tuple[list[Float[Tensor, "document position feature"]], list[Float[Tensor, "document position feature"]]]]:
    """Of each network the states at all sites before and after training; those of the completion."""
    before, after = (stacked.hidden(shape, state, documents) for state in (start, tuned))
    for i in range(runs_of(start)):
        yield [x[i, :, PROMPT:] for x in before], [x[i, :, PROMPT:] for x in after]


@torch.no_grad()
def next_tokens(
    shape: Shape, start: State, tuned: State, sampled: Int[Tensor, "network document token"]
) -> dict[str, Float[np.ndarray, "network half"]]:
    """KL(tuned ‖ start) and JS in nats per token on samples of the tuned network, on each half of them."""
    p, q = (log_probabilities(shape, state, sampled) for state in (tuned, start))
    middle = torch.logaddexp(p, q) - np.log(2)
    js = ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2
    found = {names.KL: (p.exp() * (p - q)).sum(-1), names.JS: js}
    half = sampled.shape[1] // 2
    return {
        name: np.stack([part.mean((1, 2)).double().numpy() for part in (v[:, :half], v[:, half:])], 1) for name, v in found.items()
    }


@torch.no_grad()
def token_shift(
    shape: Shape, start: State, tuned: State, prompts: Int[Tensor, "network document 2"], new: int
) -> Float[np.ndarray, "network kind position"]:
    """Share of unshifted, marginal and shifted tokens of greedy completions by the tuned network, by position."""
    documents = stacked.generate(shape, tuned, prompts, new, None)
    scores = log_probabilities(shape, start, documents)
    answer = documents[..., PROMPT:, None]
    rank = 1 + (scores > scores.gather(-1, answer)).sum(-1)
    kinds = [rank == 1, (rank == 2) | (rank == 3), rank > 3]
    return np.stack([k.double().mean(1).numpy() for k in kinds], 1)


@torch.no_grad()
def corpus_loss(shape: Shape, state: State, documents: Int[Tensor, "network document token"]) -> Float[np.ndarray, "network"]:
    """Nats per token of the completion."""
    found = log_probabilities(shape, state, documents)
    return np.asarray(-found.gather(-1, documents[..., PROMPT:, None])[..., 0].mean((1, 2)).double())
