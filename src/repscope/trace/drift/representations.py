"""How far the representations of the same prompts differ between two networks, per site.

1. Prompts are shuffled and cut into batches of nearly equal size, of at least `LEAST` prompts, 16 of them where there are enough.
   Both networks run the same prompts; tokenizers that differ are refused.
2. Per site, between the rows of the base x and of the tuned network y, with Δ = y - x:

    CKA                   unbiased, HSICs summed over batches (`align.cka`); 1 = equal up to rotation and scale
    Procrustes distance   rotation fitted on the first half of the batches, scored on the other (`align.procrustes`); 0 … √2
    RSA                   mean over batches of the rank correlation of squared distances (`align.rsa`)
    mean shift            ‖mean Δ‖² / mean ‖Δ‖²: the share of the change that one constant vector makes. The numerator is a mean
                          over pairs of different prompts: 0 on average, also below, where changes have nothing in common
    relative change       √( mean ‖Δ‖² / mean ‖x - mean x‖² )

3. Intervals: bootstrap over batches of prompts.
4. Floors under the same definitions: `another seed` (the tuned network and a third one, trained the same way), and `other prompts`
   (the base network with itself, one half of each batch with the other half), where nothing but the network is shared.

All five compare coordinates of one residual stream; only CKA, Procrustes and RSA ignore a rotation of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from repscope import stats
from repscope.align import CKAAccumulator, ProcrustesFit, Rotation, rsa
from repscope.align.procrustes import similarity
from repscope.conditions import ANOTHER_SEED, ESTIMATE
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike
from repscope.models.sites import Site, Tokens
from repscope.results import Result, Row, at
from repscope.stats import Estimate
from repscope.trace.drift.prompted import ROWS_PER_PROMPT, listed, prompt_batches, shared_sites

SEED, PROMPTS = ANOTHER_SEED, "other prompts"
#: metric → its definition
DEFINITIONS = {
    "CKA": "unbiased linear CKA, HSICs summed over batches",
    "Procrustes distance": "√(2 - 2 similarity), rotation fitted on other prompts",
    "RSA": "Spearman's rho of squared distances, mean over batches",
    "mean shift": "‖mean Δ‖² / mean ‖Δ‖², unbiased",
    "relative change": "√(mean ‖Δ‖² / mean ‖x - mean x‖²)",
}
LEAST = 8  #: prompts of a batch; the control has half as many rows
_BATCHES, _ROWS = 16, 256  #: batches, where there are enough prompts; rows of a batch
_UNIT = "batch of prompts"


@dataclass
class _Pair:
    """Sums of one pair of representations over batches, at all sites. each: (metric, site) → values of each batch."""

    cka: CKAAccumulator = field(default_factory=CKAAccumulator)
    fits: dict[Site, ProcrustesFit] = field(default_factory=dict)
    rotations: dict[Site, Rotation] = field(default_factory=dict)
    each: dict[tuple[str, Site], list[np.ndarray]] = field(default_factory=dict)

    def add(self, x: Sequence[np.ndarray], y: Sequence[np.ndarray], prompt: np.ndarray, sites: Sequence[Site], fit: bool) -> None:
        self.cka.update(x, y)
        for site, a, b in zip(sites, x, y):
            if fit:
                self.fits.setdefault(site, ProcrustesFit()).update(a, b)
            else:
                if site not in self.rotations:
                    self.rotations[site] = self.fits.pop(site).rotation()
                self._append("Procrustes distance", site, self.rotations[site].sums(a, b))
            self._append("RSA", site, np.array([rsa(a, b)]))
            self._append("mean shift", site, _energies(a, b, prompt))

    def _append(self, metric: str, site: Site, values: np.ndarray) -> None:
        self.each.setdefault((metric, site), []).append(values)


def representations(
    base: LanguageModel,
    tuned: LanguageModel,
    prompts: Iterable[PromptLike],
    *,
    at: str | Site | Sequence[str | Site] = "resid_post",
    tokens: str | int | Tokens = "last",
    other: LanguageModel | None = None,
    seed: int = 0,
) -> Result:
    """Differences of representations between two networks, with their intervals and floors.

    Parameters
    ----------
    base, tuned
        The networks before and after tuning; sites and tokenizer are the same.
    prompts
        At least 16; texts, `Prompt`s, chats or token ids.
    at
        Sites; default: all blocks.
    tokens
        One position of each prompt, the mean of several, or `all`: 16 random positions of each.
    other
        A network tuned the same way with another seed: the floor.
    seed
        Of the order of prompts and of the intervals.

    Returns
    -------
    Result
        Rows by site, metric and condition. Arrays: "CKA", (site of the base, site of the tuned network), all pairs. Side table
        "sites": their names, in the order of that array.

    Raises
    ------
    UserError
        For fewer than 16 prompts, other sites, widths or tokenizers, and as `lm.capture`.
    """
    import pandas as pd

    networks = [base, tuned] if other is None else [base, tuned, other]
    sites = shared_sites(networks, at)
    held = listed(base, prompts, 2 * LEAST)
    batches = _batches(len(held), ROWS_PER_PROMPT if Tokens.parse(tokens).ragged else 1, seed)
    pairs = {name: _Pair() for name in (ESTIMATE, PROMPTS, *([SEED] if other is not None else []))}
    for number, batch in enumerate(prompt_batches(networks, held, batches, sites, tokens, seed=seed)):
        fit = number < len(batches) // 2
        x, y, *rest = ([rows[s] for s in sites] for rows in batch.rows)
        half = len(batch.prompt) // 2
        pairs[ESTIMATE].add(x, y, batch.prompt, sites, fit)
        pairs[PROMPTS].add([r[:half] for r in x], [r[half : 2 * half] for r in x], batch.prompt[:half], sites, fit)
        for z in rest:
            pairs[SEED].add(y, z, batch.prompt, sites, fit)
    where = {"model": tuned.fingerprint, "token": str(tokens), "seed": seed}
    rows = [
        Row.of(estimate, metric=metric, definition=DEFINITIONS[metric], condition=condition, **at_site(site), **where)
        for condition, pair in pairs.items()
        for i, site in enumerate(sites)
        for metric, estimate in _estimates(pair, i, site, seed).items()
    ]
    names = pd.DataFrame({"site": pd.Series([str(s) for s in sites], dtype="string")})
    return Result.of(rows, arrays={"CKA": pairs[ESTIMATE].cka.matrix()}, side={"sites": names})


at_site = at  # the parameter `at` of the function above hides it there


def _batches(prompts: int, rows_per_prompt: int, seed: int) -> list[Int[np.ndarray, "prompt"]]:
    size = max(LEAST, min(prompts // _BATCHES, _ROWS // rows_per_prompt))
    order = np.random.default_rng(seed).permutation(prompts)
    return np.array_split(order, max(2, prompts // size))


def _energies(x: np.ndarray, y: np.ndarray, prompt: Int[np.ndarray, "row"]) -> Float[np.ndarray, "3"]:
    """Unbiased ‖mean Δ‖², mean ‖Δ‖², and the variance of x, of one batch; rows of one prompt stand together."""
    delta = y.astype(np.float64) - x
    starts = np.flatnonzero(np.diff(prompt, prepend=-1))
    sums, counts = np.add.reduceat(delta, starts, axis=0), np.diff(np.append(starts, len(prompt)))
    total, n = sums.sum(0), len(prompt)
    common = (total @ total - np.vdot(sums, sums)) / (n * n - counts @ counts)
    centred = x - x.mean(0, dtype=np.float64)
    return np.array([common, np.vdot(delta, delta) / n, np.vdot(centred, centred) / (n - 1)])


def _estimates(pair: _Pair, i: int, site: Site, seed: int) -> dict[str, Estimate]:
    def over_batches(metric: str, function: object) -> Estimate:
        values = np.stack(pair.each[metric, site])
        return stats.functions_of_ratios(values, np.ones_like(values), {metric: function}, unit=_UNIT, seed=seed)[metric]  # type: ignore[dict-item]

    found = {
        "CKA": pair.cka.estimate(i, i, seed=seed),
        "Procrustes distance": over_batches("Procrustes distance", lambda means: np.sqrt(np.maximum(2 - 2 * similarity(means), 0))),
        "RSA": over_batches("RSA", lambda means: means[:, 0]),
    }
    energies = np.stack(pair.each["mean shift", site])
    if not energies[:, 1].any():  # nothing changed, so that no share of it is defined
        zero = Estimate(0.0, 0.0, 0.0, stats.LEVEL, "no change", _UNIT, len(energies))
        return found | {"mean shift": zero, "relative change": zero}
    changes = stats.functions_of_ratios(
        energies,
        np.ones_like(energies),
        {"mean shift": lambda m: m[:, 0] / m[:, 1], "relative change": lambda m: np.sqrt(m[:, 1] / m[:, 2])},
        unit=_UNIT,
        seed=seed,
    )
    return found | changes
