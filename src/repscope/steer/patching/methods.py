"""Activation patching: effects of activations, per site and token, on a metric of prompt pairs.

With m a metric of the next-token logits, x the clean prompt, x' the corrupt one of as many tokens, for each site s and position t

    exact          m(x' with that of x at s, t) - m(x')     Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262
    attribution    (x_st - x'_st) · dm/dx'_st               Nanda 2023; Kramár et al. 2024, arXiv:2403.00745
    integrated     the same, the gradient averaged over input embeddings from x' to x, at the midpoints of equal steps
                                                            Hanna, Pezzelle & Belinkov 2024, arXiv:2403.17806 (EAP-IG)

1. All cells of one pair are variants of the corrupt prompt: they share its lower blocks and earlier positions (`prompt_variants`).
2. A cell before the first token that differs holds the same activation in both runs; its effect is 0 by causality and is not run.
3. Control, for the exact method: the activation moved as far in a random direction. It may move the metric as well: then it is
   size that does.
4. The approximations cost two forward and one backward pass a pair (and step); they are first order, and only that: compare first.

`ablation` is the same machinery with the mean over reference prompts, or zero, in the place of the clean run.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError, unknown
from repscope.models.engine.hooks import Handler, HookPoint, unhooked
from repscope.models.language import LanguageModel
from repscope.models.prompts import Encoded, PromptLike, Ragged, as_prompts, encode
from repscope.models.sites import Site, Tokens
from repscope.models.variants.prompt_variants import PromptVariant, run_variants
from repscope.progress import progress
from repscope.steer.patching.result import Patching

Metric = Callable[[Float[Tensor, "row vocab"], int], Float[Tensor, "row"]]


def logit_difference(lm: LanguageModel, answer: str | Sequence[str], other: str | Sequence[str]) -> Metric:
    """The metric logit(answer) - logit(other), one pair of answers for all prompts or one for each.

    Raises
    ------
    UserError
        When an answer is not one token of this model.
    """
    ids = [[_one_token(lm, word) for word in ([words] if isinstance(words, str) else words)] for words in (answer, other)]

    def metric(logits: Float[Tensor, "row vocab"], pair: int) -> Float[Tensor, "row"]:
        yes, no = (words[pair if len(words) > 1 else 0] for words in ids)
        return logits[:, yes] - logits[:, no]

    return metric


def activation_patching(
    lm: LanguageModel,
    clean: Sequence[PromptLike],
    corrupt: Sequence[PromptLike],
    metric: Metric,
    at: str | Site | Sequence[str | Site] = "resid_post",
    tokens: str | Sequence[str] = "all",
    *,
    control: bool = True,
    seed: int = 0,
) -> Patching:
    """Put each activation of the clean run into the corrupt run, one at a time; for the other direction exchange the two.

    Parameters
    ----------
    lm
        A causal language model with a head.
    clean, corrupt
        Prompts, pair by pair of one length in tokens.
    metric
        Given the last token's logits (row, vocab) and the number of the pair, one number per row; `logit_difference` makes one.
    at
        Sites; a kind stands for all its blocks, `z.*.*` for every head.
    tokens
        `all` positions, or choices such as `["subject.last", "last"]`.
    control
        Whether to move each activation as far in a random direction as well, for twice the work.
    seed
        Of those directions.

    Raises
    ------
    UserError
        When a pair differs in length or not at all, the network is edited or not causal, or the metric gives no number per row.
    """
    clean, corrupt = (list(as_prompts(lm.tokenizer, prompts)) for prompts in (clean, corrupt))
    sites, encoded, names = _prepared(lm, clean, corrupt, at, tokens)
    generator = torch.Generator().manual_seed(seed)
    effect = np.full((len(clean), len(sites), len(names)), np.nan)
    noise = np.full_like(effect, np.nan) if control else None
    ends = np.zeros((2, len(clean)))
    with progress("Patching", len(clean)) as advance:
        for pair, (good, bad) in enumerate(zip(*encoded)):
            ends[:, pair] = [_measured(lm, metric, [good, bad][i], pair) for i in (0, 1)]
            put, was = (_captured(lm, row, sites) for row in (good, bad))
            first = int(np.flatnonzero(good != bad)[0])
            forks: list[PromptVariant] = []
            cells: list[tuple[np.ndarray, int, int]] = []
            for j, t in enumerate(_positions(lm, corrupt[pair], tokens, len(bad))):
                for i, site in enumerate(sites):
                    for table in (effect, noise) if noise is not None else (effect,):
                        if t < first or torch.equal(put[site][t], was[site][t]):
                            table[pair, i, j] = 0.0
                            continue
                        new = put[site][t] if table is effect else _elsewhere(put[site][t], was[site][t], generator)
                        forks.append(PromptVariant(site, t, t + 1, new[None]))
                        cells.append((table, i, j))
            for (table, i, j), value in zip(cells, _values(lm, metric, bad, forks, pair)):
                table[pair, i, j] = value - ends[1, pair]
            advance(1)
    labels = _labels(lm, encoded[1])
    return Patching("activation patching", tuple(sites), names, effect, noise, ends[0], ends[1], labels, lm.fingerprint, seed)


def attribution_patching(
    lm: LanguageModel,
    clean: Sequence[PromptLike],
    corrupt: Sequence[PromptLike],
    metric: Metric,
    at: str | Site | Sequence[str | Site] = "resid_post",
    tokens: str | Sequence[str] = "all",
    *,
    steps: int = 0,
) -> Patching:
    """A first-order guess at `activation_patching` from gradients: for the price of a few passes, all cells.

    Parameters
    ----------
    lm, clean, corrupt, metric, at, tokens
        As for `activation_patching`.
    steps
        0 takes the gradient at the corrupt run; more take the mean over so many points from corrupt to clean embeddings
        (integrated gradients), which mends saturation.

    Raises
    ------
    UserError
        As `activation_patching`; for a number of steps below 0.
    """
    if steps < 0:
        raise UserError(f"steps is {steps}; 0 is attribution patching, 1 and more integrate so many gradients.")
    clean, corrupt = (list(as_prompts(lm.tokenizer, prompts)) for prompts in (clean, corrupt))
    sites, encoded, names = _prepared(lm, clean, corrupt, at, tokens)
    effect = np.full((len(clean), len(sites), len(names)), np.nan)
    ends = np.zeros((2, len(clean)))
    with progress("Attributing", len(clean)) as advance:
        for pair, (good, bad) in enumerate(zip(*encoded)):
            ends[:, pair] = [_measured(lm, metric, row, pair) for row in (good, bad)]
            put, was = (_captured(lm, row, sites) for row in (good, bad))
            slopes = _slopes(lm, metric, good, bad, pair, sites, steps)
            for j, t in enumerate(_positions(lm, corrupt[pair], tokens, len(bad))):
                for i, site in enumerate(sites):
                    effect[pair, i, j] = float(((put[site][t] - was[site][t]) * slopes[site][t]).sum())
            advance(1)
    method = "integrated gradients" if steps else "attribution patching"
    labels = _labels(lm, encoded[1])
    return Patching(method, tuple(sites), names, effect, None, ends[0], ends[1], labels, lm.fingerprint, 0)


def ablation(
    lm: LanguageModel,
    prompts: Sequence[PromptLike],
    metric: Metric,
    at: str | Site | Sequence[str | Site] = "attn_out",
    tokens: str | Sequence[str] = "every",
    *,
    by: Literal["mean", "zero"] = "mean",
    reference: Sequence[PromptLike] | None = None,
    control: bool = True,
    seed: int = 0,
) -> Patching:
    """Put the mean over reference prompts (or zero) in the place of each site, one at a time.

    Parameters
    ----------
    lm, metric, at, control, seed
        As for `activation_patching`. The control moves each position as far, in a random direction.
    prompts
        Where the metric is read.
    tokens
        `every` ablates all positions of a prompt at once; `all` one position at a time; or choices such as `["last"]`.
    by
        `mean` or `zero`.
    reference
        What the mean is taken over, all positions of them but each one's first, which is like no other; the prompts when not given.

    Raises
    ------
    UserError
        As `activation_patching`.
    """
    if by not in ("mean", "zero"):
        raise unknown("ablation", by, ("mean", "zero"))
    sites = _forkable(lm, at)
    prompts = list(as_prompts(lm.tokenizer, prompts))
    encoded = encode(lm.tokenizer, prompts, Tokens("all"), lm.context, causal=lm.causal).ids
    means = {}
    if by == "mean":
        over = list(reference if reference is not None else prompts)
        acts = lm.capture(over, sites, "all")
        kept = acts.positions > 0 if (acts.positions > 0).any() else acts.positions >= 0
        means = {site: torch.from_numpy(acts[site][kept].mean(0, dtype=np.float64)).float() for site in sites}
    longest = max(len(row) for row in encoded)
    names = ("every",) if tokens == "every" else _names(tokens, longest)
    generator = torch.Generator().manual_seed(seed)
    effect = np.full((len(encoded), len(sites), len(names)), np.nan)
    noise = np.full_like(effect, np.nan) if control else None
    plain = np.zeros(len(encoded))
    with progress("Ablating", len(encoded)) as advance:
        for n, row in enumerate(encoded):
            plain[n] = _measured(lm, metric, row, n)
            was = _captured(lm, row, sites)
            spans = [(0, len(row))] if tokens == "every" else [(t, t + 1) for t in _positions(lm, prompts[n], tokens, len(row))]
            forks, cells = [], []
            for j, (a, b) in enumerate(spans):
                for i, site in enumerate(sites):
                    there = was[site][a:b]
                    new = means[site].expand_as(there) if by == "mean" else torch.zeros_like(there)
                    forks.append(PromptVariant(site, a, b, new))
                    cells.append((effect, i, j))
                    if noise is not None:
                        moved = torch.stack([_elsewhere(x, y, generator) for x, y in zip(new, there)])
                        forks.append(PromptVariant(site, a, b, moved))
                        cells.append((noise, i, j))
            for (table, i, j), value in zip(cells, _values(lm, metric, row, forks, n)):
                table[n, i, j] = value - plain[n]
            advance(1)
    return Patching(f"{by} ablation", tuple(sites), names, effect, noise, plain, plain, _labels(lm, encoded), lm.fingerprint, seed)


def _prepared(
    lm: LanguageModel,
    clean: Sequence[PromptLike],
    corrupt: Sequence[PromptLike],
    at: str | Site | Sequence[str | Site],
    tokens: str | Sequence[str],
) -> tuple[list[Site], list[Ragged], tuple[str, ...]]:
    sites = _forkable(lm, at)
    if len(clean) != len(corrupt):
        raise UserError(f"There are {len(clean)} clean and {len(corrupt)} corrupt prompts; give them pair by pair.")
    encoded = [encode(lm.tokenizer, prompts, Tokens("all"), lm.context, causal=lm.causal).ids for prompts in (clean, corrupt)]
    for i, (good, bad) in enumerate(zip(*encoded)):
        if len(good) != len(bad):
            raise UserError(
                f"The prompts of pair {i} have {len(good)} and {len(bad)} tokens; patching needs positions that correspond, so "
                "choose words of as many tokens (lm.tokens shows them)."
            )
        if np.array_equal(good, bad):
            raise UserError(f"The two prompts of pair {i} are the same, so there is nothing to restore.")
    return sites, encoded, _names(tokens, max(len(row) for row in encoded[1]))


def _forkable(lm: LanguageModel, at: str | Site | Sequence[str | Site]) -> list[Site]:
    lm.head()
    if lm.installed:
        raise UserError("Patching compares runs of the network as it is; leave the `edit` context first.")
    sites = lm.resolve(at)
    for site in sites:
        lm.write_tap(site)
    return sites


def _names(tokens: str | Sequence[str], longest: int) -> tuple[str, ...]:
    if tokens == "all":
        return tuple(str(t) for t in range(longest))
    names = (tokens,) if isinstance(tokens, str) else tuple(tokens)
    if pooled := [n for n in names if Tokens.parse(n).pooled or Tokens.parse(n).ragged]:
        raise UserError(f"{pooled[0]!r} names no single position; patching takes `all`, or choices such as 'subject.last'.")
    return names


def _positions(lm: LanguageModel, prompt: PromptLike, tokens: str | Sequence[str], length: int) -> list[int]:
    if tokens == "all":
        return list(range(length))
    names = _names(tokens, length)
    return [int(encode(lm.tokenizer, [prompt], Tokens.parse(name), lm.context, causal=lm.causal).start[0]) for name in names]


def _captured(lm: LanguageModel, row: Int[np.ndarray, "token"], sites: Sequence[Site]) -> dict[Site, Tensor]:
    """What one prompt holds, (token, *feature) a site."""
    acts = lm.capture([row], sites, "all")
    return {site: torch.from_numpy(acts[site]) for site in sites}


def _measured(lm: LanguageModel, metric: Metric, row: Int[np.ndarray, "token"], pair: int) -> float:
    return float(_scores(metric, torch.from_numpy(lm.logits([row])), pair)[0])


def _values(
    lm: LanguageModel, metric: Metric, row: Int[np.ndarray, "token"], forks: Sequence[PromptVariant], pair: int
) -> Float[np.ndarray, "fork"]:
    if not forks:
        return np.zeros(0)
    hidden, head = run_variants(lm, row, forks), lm.head()
    with unhooked(lm.model):
        parts = [_scores(metric, head(part).float(), pair) for part in torch.split(hidden, 256)]
    return np.asarray(torch.cat(parts).double().cpu().numpy())


def _slopes(
    lm: LanguageModel,
    metric: Metric,
    good: Int[np.ndarray, "token"],
    bad: Int[np.ndarray, "token"],
    pair: int,
    sites: Sequence[Site],
    steps: int,
) -> dict[Site, Tensor]:
    """The metric's gradient at each site and position of the corrupt run, or its mean over the path to the clean one."""
    copies, length, head = max(steps, 1), len(bad), lm.head()
    totals: dict[Site, Tensor] = {}
    hooks: list[tuple[HookPoint, Handler]] = []
    if steps:
        embed = lm.resolve("embed")
        apart = _captured(lm, good, embed)[embed[0]] - _captured(lm, bad, embed)[embed[0]]
        share = (torch.arange(steps) + 0.5) / steps

        def along(value: Tensor) -> Tensor:
            return value + share.to(value).view(-1, 1, 1) * apart.to(value)

        hooks.append((lm.write_tap(embed[0]), along))

    def scalar(hidden: Float[Tensor, "row feature"], which: Int[np.ndarray, "row"]) -> Tensor:
        return _scores(metric, head(hidden).float(), pair).sum()

    def sink(site: Site, _: Int[np.ndarray, "row"], rows: Tensor) -> None:
        totals[site] = torch.unflatten(rows.detach().float().cpu(), 0, (copies, length)).mean(0)

    whole = Encoded(Ragged.of([bad] * copies), np.zeros(copies, dtype=np.int64), np.full(copies, length))
    last = np.full(copies, length - 1)
    lm.differentiate(sites, whole, Tokens("all"), (lm.last, last), scalar, sink, copies * length, hooks)
    return totals


def _scores(metric: Metric, logits: Float[Tensor, "row vocab"], pair: int) -> Float[Tensor, "row"]:
    scores = metric(logits, pair)
    if not isinstance(scores, Tensor) or scores.shape != (len(logits),):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"The metric gave {shape} for {len(logits)} rows of logits; it must give one number each.")
    return scores


def _elsewhere(new: Tensor, old: Tensor, generator: torch.Generator) -> Tensor:
    """As far from the old activation as the new one, in a random direction."""
    direction = torch.randn(old.shape, generator=generator)
    moved: Tensor = old + direction * (new - old).norm() / direction.norm()
    return moved


def _labels(lm: LanguageModel, rows: Sequence[Int[np.ndarray, "token"]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(lm.tokenizer.decode([int(i)]) for i in row) for row in rows)


def _one_token(lm: LanguageModel, word: str) -> int:
    ids = lm.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UserError(f"{word!r} is {len(ids)} tokens of {lm.name} ({lm.tokens(word)}); a logit difference needs one.")
    return int(ids[0])
