"""How much of a tuned network's next-token KL one constant vector recovers, added to the base network at one site.

    recovered KL = 1 - Σ KL(tuned ‖ base + s v) / Σ KL(tuned ‖ base), over the answer tokens of the reporting half of the prompts

1. v is the mean change of activations over the texts of the choosing half; first tokens, whose norms dominate, are left out.
2. s is the best of `scales` and 0 on the choosing half, for every site and vector.
3. Controls, with scales chosen the same way: random directions of equal norm, and the mean change of another pair of networks.
4. The site that is best on the choosing half has rows of its own ("chosen on the other half").
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import ESTIMATE, RANDOM
from repscope.directions.random import random_like
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike, Ragged
from repscope.models.sites import Site
from repscope.results import CHOSEN, Result, Row
from repscope.results import at as at_site
from repscope.trace.drift.next_tokens import Answered, answered, divergences, hidden_before
from repscope.trace.drift.prompted import listed, same_ids, shared_sites

ANOTHER = "vector of another pair"
#: metric → its definition
DEFINITIONS = {
    "recovered KL": "1 - Σ KL(tuned ‖ base + s v) / Σ KL(tuned ‖ base), s chosen on the other half",
    "scale": "factor s of the mean change, chosen on the other half",
}
SCALES = (0.25, 0.5, 1.0, 2.0)
_CHUNK, _ROWS = 8, 32


def constant_vector(
    base: LanguageModel,
    tuned: LanguageModel,
    prompts: Iterable[PromptLike],
    *,
    at: str | Site | Sequence[str | Site] = "resid_post",
    answers: Sequence[str] | None = None,
    new_tokens: int = 16,
    scales: Sequence[float] = SCALES,
    other: tuple[LanguageModel, LanguageModel] | None = None,
    random: int = 3,
    seed: int = 0,
) -> Result:
    """How much of the tuned network's next-token KL one constant vector per site recovers.

    Parameters
    ----------
    base, tuned
        The networks before and after tuning, with one vocabulary.
    prompts
        At least 8.
    at
        Sites; the vector is added at one of them, at all tokens.
    answers, new_tokens
        Given answers, or the longest greedy one of the tuned network; KL is of the answers' tokens.
    scales
        Factors of the mean change; 0 is tried as well.
    other
        Base and tuned network of another pair (of the same widths): the control of the vector.
    random
        Number of random directions.
    seed
        Of the halves, the random directions and the intervals.

    Returns
    -------
    Result
        Rows per site and condition, and for the site chosen on the choosing half; arrays "vector SITE".

    Raises
    ------
    UserError
        For fewer than 8 prompts, scales that are not positive, and networks that cannot be compared.
    """
    if not scales or min(scales) <= 0:
        raise UserError(f"The scales are {list(scales)}; give factors above 0.")
    sites, held = shared_sites((base, tuned), at), listed(tuned, prompts, 8)
    same_ids((base, tuned, *(other or ())), held)
    texts = answered(tuned, held, answers=answers, new_tokens=new_tokens)
    order = np.random.default_rng(seed).permutation(len(texts))
    choosing, reporting = (np.sort(half) for half in np.array_split(order, 2))
    vectors = _vectors((base, tuned), texts, choosing, sites)
    candidates = _candidates(vectors, None if other is None else _vectors(other, texts, choosing, sites), random, seed)
    if not any(v.any() for v in vectors.values()):
        return Result.of([], notes=("No activation differs between the networks, so there is no vector to add.",))
    tried = [_Try(c, s) for c in candidates for s in scales]
    before, after = _kl(base, tuned, texts, choosing, tried)
    best: list[tuple[_Try, float]] = []  #: per candidate, the best scale on the choosing half and what it recovers there
    for k, candidate in enumerate(candidates):
        shares = 1 - after[k * len(scales) : (k + 1) * len(scales)].sum(1) / before.sum() if before.sum() else np.zeros(len(scales))
        i = int(np.argmax(shares))
        best.append((_Try(candidate, float(scales[i]) if shares[i] > 0 else 0.0), max(0.0, float(shares[i]))))
    before, after = _kl(base, tuned, texts, reporting, [one for one, _ in best])
    where: dict[str, Any] = {"model": tuned.fingerprint, "seed": seed, "split": "halves"}
    rows = list(_recovered(best, before, after, where))
    notes = () if before.sum() else ("The networks predict the same on the reporting half, so no share of the KL is defined.",)
    return Result.of(rows, arrays={f"vector {s}": v for s, v in vectors.items()}, notes=notes)


@dataclass(frozen=True, eq=False)
class _Candidate:
    condition: str
    site: Site
    vector: Float[np.ndarray, "feature"]


@dataclass(frozen=True, eq=False)
class _Try:
    candidate: _Candidate
    scale: float


def _candidates(vectors: dict[Site, np.ndarray], others: dict[Site, np.ndarray] | None, random: int, seed: int) -> list[_Candidate]:
    rng, made = np.random.default_rng(seed), []
    for site, v in vectors.items():
        made.append(_Candidate(ESTIMATE, site, v))
        made += [_Candidate(RANDOM, site, random_like(v[None], rng)[0]) for _ in range(random)]
        if others is not None and (size := float(np.linalg.norm(others[site]))):
            made.append(_Candidate(ANOTHER, site, others[site] * (np.linalg.norm(v) / size)))
    return made


def _vectors(
    pair: tuple[LanguageModel, LanguageModel], texts: Answered, rows: Int[np.ndarray, "prompt"], sites: Sequence[Site]
) -> dict[Site, Float[np.ndarray, "feature"]]:
    """Mean over texts of the mean change of activations, first tokens left out where there are others."""
    sums: dict[Site, Any] = dict.fromkeys(sites, 0.0)
    for start in range(0, len(rows), _CHUNK):
        ids = Ragged.of(texts.ids[int(i)] for i in rows[start : start + _CHUNK])
        x, y = (lm.capture(ids, list(sites), "all") for lm in pair)
        for site in sites:
            a, b = (acts[site].reshape(len(acts[site]), -1).astype(np.float64) for acts in (x, y))
            if a.shape != b.shape:
                raise UserError(f"{site} has {a.shape[1]} features in one network and {b.shape[1]} in the other; name other sites.")
            for k in range(len(ids)):
                mine = slice(int(x.offsets[k]) + (len(ids[k]) > 1), int(x.offsets[k + 1]))
                sums[site] = sums[site] + (b[mine] - a[mine]).mean(0)
    return {site: total / len(rows) for site, total in sums.items()}


def _kl(
    base: LanguageModel, tuned: LanguageModel, texts: Answered, rows: Int[np.ndarray, "prompt"], tried: Sequence[_Try]
) -> tuple[Float[np.ndarray, "prompt"], Float[np.ndarray, "try prompt"]]:
    """KL(tuned ‖ base) summed over each prompt's answer tokens: without a vector, and with each."""
    before, after = np.zeros(len(rows)), np.zeros((len(tried), len(rows)))
    for start in range(0, len(rows), _CHUNK):
        chunk = [int(i) for i in rows[start : start + _CHUNK]]
        here = slice(start, start + len(chunk))
        logits = [torch.from_numpy(tuned.unembed(h, normed=True)) for h in hidden_before(tuned, texts, chunk)]
        before[here] = _sums(base, hidden_before(base, texts, chunk), logits)
        for k, one in enumerate(tried):
            added = one.scale * one.candidate.vector
            if not np.any(added):
                after[k, here] = before[here]
                continue
            with base.edit(Edit.add(one.candidate.site, added, tokens="all")):
                after[k, here] = _sums(base, hidden_before(base, texts, chunk), logits)
    return before, after


def _sums(
    lm: LanguageModel, hidden: Sequence[Float[np.ndarray, "token d_model"]], logits: Sequence[torch.Tensor]
) -> Float[np.ndarray, "prompt"]:
    def whole(h: np.ndarray, p: torch.Tensor) -> float:
        parts = [slice(i, i + _ROWS) for i in range(0, len(h), _ROWS)]
        return sum(float(divergences(lm.unembed(h[part], normed=True), p[part]).tuned_base.sum()) for part in parts)

    return np.array([whole(h, p) for h, p in zip(hidden, logits)])


def _recovered(
    best: Sequence[tuple[_Try, float]],
    before: Float[np.ndarray, "prompt"],
    after: Float[np.ndarray, "candidate prompt"],
    where: dict[str, Any],
) -> Iterator[Row]:
    """Shares on the reporting half, per site and at the site that was best on the choosing half."""
    if not before.sum():
        return
    conditions = list(dict.fromkeys(one.candidate.condition for one, _ in best))
    for condition in conditions:
        mine: dict[Site, list[int]] = {}
        for k, (one, _) in enumerate(best):
            if one.candidate.condition == condition:
                mine.setdefault(one.candidate.site, []).append(k)
        chosen = max(mine, key=lambda s: float(np.mean([best[k][1] for k in mine[s]])))
        for name, ks in [*((at_site(s), ks) for s, ks in mine.items()), ({"site": CHOSEN, "item": str(chosen)}, mine[chosen])]:
            here = where | name | {"condition": condition}
            sums, function = (after[ks].mean(0)[:, None], before[:, None]), {"share": lambda ratios: 1 - ratios[:, 0]}
            share = stats.functions_of_ratios(*sums, function, unit="prompt", seed=where["seed"])["share"]
            yield Row.of(share, metric="recovered KL", definition=DEFINITIONS["recovered KL"], **here)
            scale = float(np.mean([best[k][0].scale for k in ks]))
            yield Row(value=scale, metric="scale", definition=DEFINITIONS["scale"], n=len(ks), unit="direction", **here)
