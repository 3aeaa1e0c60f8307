"""Path attribution: contribution of each head and MLP to a Jacobian between two sites.

With t the target, c a component, u and v a pair of (for example singular) vectors, ċ_p = ∂c_p/∂source v the effect of the
perturbation v on c at position p, and ū_p = ∂(uᵀt)/∂c_p:

    through   Σ_p ū_p · ċ_p                 decrease of uᵀJv if the derivative of c is cut (c frozen)
    writes    uᵀ ċ at the target's position  direct contribution of c to the residual stream there

1. One pass adds zeros at every z, attn_out and mlp_out in between; its graph gives all ū by one backward pass, all ċ by one more
   (`linearized`). No ablation is run.
2. A head's ċ in the residual stream is its z through its rows of the output projection, where no norm mixes the heads.
3. A path goes through several components, so `through` does not add up to uᵀJv. `writes` does, with the direct path, between sites
   of a residual stream that is a sum. A large `writes` is a direct effect, a large `through` a total effect.
4. Control: as many pairs of random directions of equal norms.

First order only; for large perturbations use `steer.patching.methods`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.conditions import ESTIMATE, RANDOM
from repscope.directions.random import random_like
from repscope.errors import UserError
from repscope.models.engine.hooks import head_outputs
from repscope.models.jacobian import Jacobian, as_numpy
from repscope.models.language import LanguageModel
from repscope.models.linear.jacobian_passes import plan_jacobian
from repscope.models.prompts import PromptLike
from repscope.models.sites import Site
from repscope.results import Result, Row, at

_STREAM = ("resid_pre", "resid_mid", "resid_post")
_ADDED = (*_STREAM, "attn_out", "mlp_out")  #: sites that reach the stream of later blocks unchanged
_DEFINITIONS = {
    "through": "what uᵀJv loses when the component's derivative is cut; shares overlap",
    "writes": "uᵀ what the component adds to the residual stream at the target's position; adds up, the direct path included",
}


@dataclass(frozen=True, eq=False)
class PathAttribution:
    """Contributions of components to uᵀJv.

    source, target: the ends. sites: components, each head as `z.BLOCK.HEAD`. through, writes: (prompt, pair, site), in the target's
    units; `writes` is NaN if a norm mixes heads or the stream is not a sum from source to target. total: uᵀJv, (prompt, pair).
    direct: its part through no component, NaN as `writes`. random: the control, or None. model: fingerprint. seed: of the control.
    notes: why components or `writes` are missing.
    """

    source: Site
    target: Site
    sites: tuple[Site, ...]
    through: Float[np.ndarray, "prompt pair site"]
    writes: Float[np.ndarray, "prompt pair site"]
    total: Float[np.ndarray, "prompt pair"]
    direct: Float[np.ndarray, "prompt pair"]
    random: "PathAttribution | None"
    model: str
    seed: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        prompts, pairs, sites = self.through.shape
        return f"Pieces({self.source} → {self.target}: {sites} components, {pairs} pairs, {prompts} prompts)"

    def result(self) -> Result:
        """Table of each component's mean contribution over prompts with its interval, and of the random control."""
        rows = self._rows(ESTIMATE) + (self.random._rows(RANDOM) if self.random is not None else [])
        return Result.of(rows, arrays={"total": self.total, "direct": self.direct}, notes=self.notes)

    def _rows(self, condition: str) -> list[Row]:
        columns: list[tuple[str, str, Site, Any]] = [
            ("uᵀJv", "the whole map", self.target, self.total),
            ("writes", "the direct path: source and target are one position of one stream", self.source, self.direct),
        ]
        for metric, values in (("through", self.through), ("writes", self.writes)):
            columns += [(metric, _DEFINITIONS[metric], site, values[:, :, i]) for i, site in enumerate(self.sites)]
        rows = []
        for metric, definition, site, each in columns:
            for pair in range(each.shape[1]):
                if np.isnan(each[:, pair]).any():
                    continue
                where = {"metric": metric, "definition": definition, "model": self.model, "item": f"pair {pair}", **at(site)}
                rows.append(Row.over(each[:, pair], "prompt", condition=condition, seed=self.seed, **where))
        return rows

    def _repr_html_(self) -> str:
        return str(self.result()._repr_html_())


def path_attribution(
    lm: LanguageModel,
    prompts: Iterable[PromptLike],
    source: str | Site,
    target: str | Site,
    u: Float[np.ndarray, "pair d_target"],
    v: Float[np.ndarray, "pair d_source"],
    *,
    source_tokens: str | int = "last",
    target_tokens: str | int = "last",
    control: bool = True,
    seed: int = 0,
) -> PathAttribution:
    """Contribution to uᵀJv of each head, attention and MLP between two sites.

    Parameters
    ----------
    lm
        A language model.
    prompts, source, target, source_tokens, target_tokens
        As for `LanguageModel.jacobian`, with one source.
    u, v
        Pairs of directions at the target and at the source, such as `triplets.u` and `triplets.v`.
    control
        Whether to compute random pairs as well.
    seed
        Of the random pairs.

    Raises
    ------
    UserError
        As `LanguageModel.jacobian`; for unequal numbers of u and v, or no component between the two sites.

    >>> from repscope.worlds.tiny import tiny
    >>> lm = tiny()
    >>> ends = ("resid_post.0", "resid_post.2")
    >>> found = lm.jacobian(["A map"], *ends).svd(2)
    >>> parts = path_attribution(lm, ["A map"], *ends, found.u, found.v)
    >>> np.allclose(parts.total, found.s, rtol=0.01), len(parts.sites)
    (True, 12)
    """
    first, last = _ends(lm, source, target)
    watch = _between(lm, first, last)
    jac = Jacobian.over(plan_jacobian(lm, lm.tokenizer, prompts, first, last, source_tokens, target_tokens, watch))
    given = jac._vectors(u, jac.shape[0], "u"), jac._vectors(v, jac.shape[1], "v")
    if len(given[0]) != len(given[1]):
        raise UserError(f"There are {len(given[0])} vectors u and {len(given[1])} vectors v; give them pair by pair.")
    why = _no_sum(lm, first, last)
    adds, notes = not why, _missing(lm, watch, why)

    def of(pair: tuple[Tensor, Tensor], random: PathAttribution | None) -> PathAttribution:
        found = _measured(lm, jac, watch, pair, adds=adds)
        return PathAttribution(first, last, tuple(_components(lm, watch)), *found, random, lm.fingerprint, seed, notes)

    return of(given, of(_random(given, seed), None) if control else None)


def _ends(lm: LanguageModel, source: str | Site, target: str | Site) -> tuple[Site, Site]:
    ends = lm.resolve(source), lm.resolve(target)
    for name, found in (("source", ends[0]), ("target", ends[1])):
        if len(found) != 1:
            raise UserError(f"The {name} is {len(found)} sites; name one, such as {found[-1]}.")
        if found[0].kind == "module":
            raise UserError(f"{found[0]} has no known place among the blocks; choose a site such as resid_post.8.")
    return ends[0][0], ends[1][0]


def _between(lm: LanguageModel, source: Site, target: Site) -> list[Site]:
    """The whole components between two sites, in the order of the forward pass."""
    assert lm.anatomy is not None
    every = [s for s in lm.anatomy.taps if s.kind in ("z", "attn_out", "mlp_out")]
    end = replace(target, head=None)  # a target head stands for its whole z, which is not its own component
    found = sorted((s for s in every if source.depth < s.depth < end.depth), key=lambda s: s.depth)
    if not found:
        raise UserError(f"No head and no MLP of {lm.name} stands between {source} and {target}; take ends further apart.")
    return found


def _no_sum(lm: LanguageModel, source: Site, target: Site) -> str:
    """Why the stream from source to target is not a sum of components; empty if it is."""
    assert lm.anatomy is not None
    if source.kind not in _ADDED or target.kind not in _STREAM:
        return f"{source} → {target} is not from the residual stream to the residual stream"
    if lm.anatomy.form == "post-norm":
        return "a norm follows each sum in its blocks"
    if lm.anatomy.form == "residual only":
        return lm.anatomy.refused.get("attn_out", "its blocks do not all add up in one way")
    for edit in lm.installed:  # an added vector leaves the derivative unchanged; other edits of the stream do not
        stream = edit.site.kind in _STREAM or edit.site.kind == "module"
        within = edit.site.kind == "module" or source.depth < edit.site.depth <= target.depth
        if not edit.asleep and edit.edit.kind != "add" and stream and within:
            return f"an edit changes the stream itself at {edit.site}"
    return ""


def _missing(lm: LanguageModel, watch: list[Site], no_sum: str) -> tuple[str, ...]:
    """Notes on unsupported components and missing `writes`."""
    assert lm.anatomy is not None
    reasons = {kind: lm.anatomy.refused.get(kind) for kind in ("z", "attn_out", "mlp_out", "head_out")}
    notes = [f"Some or all {kind} are left out: {reasons[kind]}." for kind in ("z", "attn_out", "mlp_out") if reasons[kind]]
    if no_sum:
        return (*notes, f"No writes are given: {no_sum}.")
    if reasons["head_out"] and any(s.kind == "z" for s in watch):
        notes.append(f"Some or all heads have no writes: {reasons['head_out']}.")
    return tuple(notes)


def _components(lm: LanguageModel, watch: list[Site]) -> list[Site]:
    """The same, heads one by one."""
    return [s for site in watch for s in (lm.resolve(f"{site}.*") if site.kind == "z" else [site])]


def _random(like: tuple[Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    u, v = (torch.from_numpy(random_like(as_numpy(x), rng)).to(x) for x in like)
    return u, v


def _measured(
    lm: LanguageModel, jac: Jacobian, watch: list[Site], pair: tuple[Tensor, Tensor], *, adds: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`through` and `writes` (prompt, pair, component), uᵀJv and the direct part of it (prompt, pair)."""
    shape = (len(jac), len(pair[0]), len(_components(lm, watch)))
    through, writes = np.empty(shape), np.full(shape, np.nan)
    total, direct = np.empty(shape[:2]), np.full(shape[:2], np.nan)
    for group, made in jac._passes():
        rows = list(group.inputs)
        assert made.places is not None
        source, target = made.places
        pulled = as_numpy(made.jvp([pair[1]], [0]))
        total[rows] = np.einsum("vt,vrt->rv", as_numpy(pair[0]).astype(np.float64), pulled.astype(np.float64))
        if adds:  # the share of the target's positions that are the source's
            overlap = max(0, min(source.stop, target.stop) - max(source.start, target.start))
            direct[rows] = overlap / (target.stop - target.start) * (pair[0] * pair[1]).sum(1).double().numpy()
        at = 0
        for site, back, forth in zip(watch, *made.through(*pair, 0)):
            heads = lm.tap(site).heads if site.kind == "z" else 1
            parts = (back.double() * forth.double()).sum(2)  # (pair, row, …), the token summed over
            through[rows, :, at : at + heads] = as_numpy(parts.reshape(*parts.shape[:2], heads, -1).sum(3).transpose(0, 1))
            said = _added(lm, site, forth[:, :, target].mean(2)) if adds else None
            if said is not None:
                u = pair[0].to(said)[:, None, None]
                writes[rows, :, at : at + heads] = as_numpy((said * u).sum(-1).transpose(0, 1))
            at += heads
    return through, writes, total, direct


def _added(lm: LanguageModel, site: Site, tangent: Tensor) -> Tensor | None:
    """Contribution of a component's tangent to the residual stream, (pair, row, part, d_model); None if a norm mixes the heads."""
    if site.kind != "z":
        return tangent.double()[:, :, None]
    assert lm.anatomy is not None
    assert site.layer is not None
    tap = lm.anatomy.taps.get(Site("head_out", site.layer))
    if tap is None:
        return None
    return head_outputs(tangent.flatten(-2), lm.module.get_submodule(tap.path), tap.heads).double()
