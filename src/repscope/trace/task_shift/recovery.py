"""How much of an adaptation one vector per site gives: the mean shift of half of the queries, added to the base at the others.

    recovered KL = 1 - Σ KL(adapted ‖ base + s v) / Σ KL(adapted ‖ base), next token after each query of the reporting half

v is the mean shift at the site over the choosing half, added at the query's last token after the neutral prefix; s is the best of
`SCALES` and 0 on the choosing half. Controls with scales of their own: a random direction and another task's vector, of equal norm.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope import stats
from repscope.conditions import ESTIMATE, OTHER_TASK, RANDOM
from repscope.models.sites import Site
from repscope.models.variants.last_token import LastTokenVariant, last_token_variants
from repscope.results import Row, at
from repscope.trace.drift.next_tokens import divergences

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

SCALES = (0.5, 1.0, 2.0)
DEFINITIONS = {
    "recovered KL": "1 - Σ KL(adapted ‖ base + s v) / Σ KL(adapted ‖ base), one vector per site, scale chosen on the other half",
    "scale": "factor of the mean shift, chosen on the other half",
}
Ids = Int[np.ndarray, "token"]
Half = Int[np.ndarray, "query"]
_ROWS = 32  #: rows of logits at a time


def recovered_kl(
    lm: "LanguageModel",
    prompts: Sequence[Ids],
    halves: tuple[Half, Half],
    base: Float[np.ndarray, "query vocab"],
    adapted: Mapping[str, Float[np.ndarray, "query vocab"]],
    own: Mapping[str, Float[np.ndarray, "site feature"]],
    other: Mapping[str, Float[np.ndarray, "site feature"]],
    sites: Sequence[Site],
    *,
    scales: Sequence[float] = SCALES,
    seed: int = 0,
    item: str = "",
    **where: Any,
) -> list[Row]:
    """Rows per way (item "ITEM, WAY"), site and condition.

    Parameters
    ----------
    prompts
        Queries after the neutral prefix.
    halves
        Indices of the choosing and the reporting queries.
    base, adapted
        Next-token logits of the base, and of each way of adapting.
    own, other
        Way → mean shifts of the choosing half, of this task and of another one; `other` may lack ways.
    """
    rng, tried = np.random.default_rng([seed, 13]), list[tuple[str, int, str, Tensor]]()
    for way, vectors in own.items():
        for i, vector in enumerate(vectors):
            norm = np.linalg.norm(vector)
            directions = {ESTIMATE: vector, RANDOM: rng.standard_normal(len(vector))}
            if way in other:
                directions[OTHER_TASK] = other[way][i]
            for condition, direction in directions.items():
                length = np.linalg.norm(direction)
                if norm and length:
                    tried.append((way, i, condition, torch.from_numpy(direction * (norm / length)).to(lm.device)))
    if not tried:
        return []
    choosing, reporting = halves
    every = [(k, s) for k in range(len(tried)) for s in scales]
    before = _without(base, adapted, choosing)
    sums = _kl(lm, prompts, choosing, adapted, tried, sites, every).sum(0).reshape(len(tried), len(scales))
    best = []
    for k, (row, (way, *_)) in enumerate(zip(sums, tried)):
        best.append((k, float(scales[int(row.argmin())]) if row.min() < before[way].sum() else 0.0))
    moved = [(k, s) for k, s in best if s]
    after = _kl(lm, prompts, reporting, adapted, tried, sites, moved) if moved else np.zeros((len(reporting), 0))
    column, without, rows = {k: c for c, (k, _) in enumerate(moved)}, _without(base, adapted, reporting), list[Row]()
    for k, scale in best:
        way, i, condition, _ = tried[k]
        left = after[:, column[k]] if k in column else without[way]
        recovered = stats.ratio(without[way] - left, without[way], unit="query", seed=seed)
        place = {"item": f"{item}, {way}", "condition": condition, "seed": seed, **at(sites[i]), **where}
        rows.append(Row.of(recovered, metric="recovered KL", definition=DEFINITIONS["recovered KL"], **place))
        rows.append(Row(metric="scale", definition=DEFINITIONS["scale"], value=scale, n=len(choosing), unit="query", **place))
    return rows


def _without(
    base: Float[np.ndarray, "query vocab"], adapted: Mapping[str, Float[np.ndarray, "query vocab"]], half: Half
) -> dict[str, Float[np.ndarray, "query"]]:
    return {way: divergences(base[half], logits[half]).tuned_base for way, logits in adapted.items()}


def _kl(
    lm: "LanguageModel",
    prompts: Sequence[Ids],
    half: Half,
    adapted: Mapping[str, Float[np.ndarray, "query vocab"]],
    tried: Sequence[tuple[str, int, str, Tensor]],
    sites: Sequence[Site],
    chosen: Sequence[tuple[int, float]],
) -> Float[np.ndarray, "query chosen"]:
    """KL(adapted ‖ base + s v) at the queries of a half, for chosen vectors and scales."""
    found = np.empty((len(half), len(chosen)))
    variants = [LastTokenVariant(sites[tried[k][1]], _added(tried[k][3] * s)) for k, s in chosen]
    for q, query in enumerate(half):
        normed = last_token_variants(lm, prompts[query], variants)[1:].float().cpu().numpy()
        for start in range(0, len(chosen), _ROWS):
            ways = [tried[k][0] for k, _ in chosen[start : start + _ROWS]]
            moved = lm.unembed(normed[start : start + _ROWS], normed=True)
            wanted = np.stack([adapted[way][query] for way in ways])
            found[q, start : start + _ROWS] = divergences(moved, wanted).tuned_base
    return found


def _added(vector: Tensor) -> Any:
    return lambda there: there + vector.to(torch.promote_types(there.dtype, torch.float32))
