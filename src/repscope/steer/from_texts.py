"""Steering directions fitted to two sets of texts by four methods.

With h⁺ and h⁻ the activations at a site and token of the positive and the negative texts (n × d each)

    difference of means     mean h⁺ - mean h⁻                     CAA: Rimsky et al. 2024, arXiv:2312.06681
    PCA of differences      first right singular vector of D, D_i = h⁺_i - h⁻_i; RepE: Zou et al. 2023, arXiv:2310.01405
    logistic regression     weights of an L2-penalised fit of the label, features standardised
    linear discriminant     Σ⁻¹ (mean h⁺ - mean h⁻), Σ the pooled covariance within classes, shrunk as Ledoit & Wolf 2004

1. One pass captures all texts at all blocks; every method is fitted at each.
2. A direction points from negative to positive. Its scale is the distance between the class means along it: a step of this norm
   moves one mean to the other.
3. Evaluation on texts of held-out groups: AUC, the share of (positive, negative) pairs in which the positive text has the larger
   projection, with an interval over positive texts. Control: the same fit with the labels of exactly half of the texts (or pairs)
   swapped; with random swaps a remainder of the difference would give AUCs near 0 or 1.

PCA is not centred: the first component of *centred* differences (repeng's `pca_diff`) is the direction of largest variance of the
differences, and depends on their mean only through its sign.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from repscope import stats
from repscope.conditions import SWAPPED
from repscope.data.contrasts import Contrast
from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError, unknown
from repscope.models.language import LanguageModel
from repscope.models.sites import Site
from repscope.results import Result, Row
from repscope.results import at as at_site
from repscope.steer.effects import in_turn

Rows = Float[np.ndarray, "text d_model"]


def _means(x: Rows, positive: Bool[np.ndarray, "text"], paired: bool) -> Float[np.ndarray, "d_model"]:
    return np.asarray(x[positive].mean(0) - x[~positive].mean(0))


def _differences(x: Rows, positive: Bool[np.ndarray, "text"], paired: bool) -> Float[np.ndarray, "d_model"]:
    if not paired:
        raise UserError("PCA of differences needs pairs of texts, and these are labelled texts; choose another method.")
    _, _, right = np.linalg.svd(x[positive] - x[~positive], full_matrices=False)
    return np.asarray(right[0])


def _logistic(x: Rows, positive: Bool[np.ndarray, "text"], paired: bool) -> Float[np.ndarray, "d_model"]:
    from sklearn.linear_model import LogisticRegression

    spread = x.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    fit = LogisticRegression(C=0.1, max_iter=500).fit((x - x.mean(0)) / spread, positive)
    return np.asarray(fit.coef_[0] / spread)


def _discriminant(x: Rows, positive: Bool[np.ndarray, "text"], paired: bool) -> Float[np.ndarray, "d_model"]:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return np.asarray(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, positive).coef_[0])


#: name → fitting function of rows (positive first in each pair), which are positive, and whether they are pairs
METHODS: dict[str, Callable[[Rows, Bool[np.ndarray, "text"], bool], Float[np.ndarray, "d_model"]]] = {
    "difference of means": _means,
    "PCA of differences": _differences,
    "logistic regression": _logistic,
    "linear discriminant": _discriminant,
}


@dataclass(frozen=True, eq=False)
class FittedDirections:
    """Directions of a contrast, one per method and site.

    directions: named "method, site". result: AUC of each on held-out groups, with its control; empty without held-out texts.
    """

    directions: DirectionSet
    result: Result

    def at(self, method: str, site: str | Site) -> Direction:
        """The direction of a method at a site.

        Raises
        ------
        UserError
            If there is none; suggests the nearest names.
        """
        return self.directions[f"{method}, {site}"]


def fit(
    lm: LanguageModel,
    texts: Contrast,
    *,
    held_out: Contrast | None = None,
    at: str | Site | Sequence[str | Site] = "resid_post",
    tokens: str | int = "last",
    methods: Sequence[str] = (),
    swaps: int = 5,
    seed: int = 0,
) -> FittedDirections:
    """Directions from the negative to the positive texts, at each site.

    Parameters
    ----------
    lm
        The model.
    texts
        Training texts.
    held_out
        Texts of other groups, for evaluation.
    at
        Sites; default: all blocks.
    tokens
        One position of each text, or the mean of several.
    methods
        Of `METHODS`; default: all that apply.
    swaps
        Number of fits with swapped labels, the control of the AUC.
    seed
        Of the swaps and intervals.

    Raises
    ------
    UserError
        For an unknown method, PCA of differences without pairs, or classes with equal mean activations.
    """
    chosen = list(methods) or [name for name in METHODS if texts.paired or name != "PCA of differences"]
    for name in chosen:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    train, labels = _held(lm, texts, at, tokens)
    test, theirs = _held(lm, held_out, at, tokens) if held_out is not None else ({}, labels)
    rng = np.random.default_rng(seed)
    flips = [_swapped(labels, texts.paired, rng) for _ in range(swaps)]
    norms = _norms(lm, texts, list(train))
    made: list[Direction] = []
    rows: list[Row] = []
    for site, x in train.items():
        for name in chosen:
            direction = _direction(name, x, labels, texts, site, tokens, norms[site])
            made.append(direction)
            if held_out is None:
                continue
            where = {**at_site(site), "token": str(tokens), "item": name, "split": "other groups of texts", "seed": seed}
            where |= {"metric": "auc", "definition": "P(positive farther along than negative)"}
            rows.append(Row.of(stats.mean(placed(test[site] @ direction.vector, theirs), unit="text", seed=seed), **where))
            null = []
            for flip in flips:
                other = METHODS[name](*_arranged(x, flip, texts.paired), texts.paired)
                null.append(float(placed(test[site] @ other, theirs).mean()))
            if null:
                rows.append(Row.of(stats.null(null, unit="swap"), condition=SWAPPED, **where))
    config = lm.model.config
    note = f"{texts.positive} against {texts.negative} ({texts.name})"
    found_set = DirectionSet(made, lm.fingerprint, note, architecture=str(getattr(config, "model_type", "")), blocks=lm.blocks)
    return FittedDirections(found_set, Result.of(rows))


def mean_differences(lm: LanguageModel, contrasts: Sequence[Contrast], at: str | Site) -> Float[np.ndarray, "contrast d_model"]:
    """The differences of class means of several contrasts at one site and the last token, at unit norm: those of `fit`.

    Raises
    ------
    UserError
        For classes with equal mean activations.
    """
    both = [[in_turn(lm, text, c.chat) for text in (*c.yes, *c.no)] for c in contrasts]
    rows = lm.capture([text for texts in both for text in texts], at, "last").numpy().astype(np.float64)
    found = []
    for c, x in zip(contrasts, np.split(rows, np.cumsum([len(texts) for texts in both])[:-1])):
        difference = x[: len(c.yes)].mean(0) - x[len(c.yes) :].mean(0)
        norm = float(np.linalg.norm(difference))
        if not np.isfinite(norm) or norm == 0:
            raise UserError(
                f"The difference of means at {at} has zero norm: the model gives the same for both kinds of {c.name!r}."
            )
        found.append(difference / norm)
    return np.stack(found)


def placed(scores: Float[np.ndarray, "text"], positive: Bool[np.ndarray, "text"]) -> Float[np.ndarray, "positive"]:
    """Per positive text the share of negative ones below it, ties count half; the mean is the AUC (Mann & Whitney 1947).

    >>> placed(np.array([2.0, 0.0, 1.0, -1.0]), np.array([True, True, False, False]))
    array([1. , 0.5])
    """
    order = rankdata(scores)
    inside = rankdata(scores[positive])
    share: np.ndarray = (order[positive] - inside) / max(1, int((~positive).sum()))
    return share


def _held(
    lm: LanguageModel, texts: Contrast, at: str | Site | Sequence[str | Site], tokens: str | int
) -> tuple[dict[Site, Rows], Bool[np.ndarray, "text"]]:
    both = [in_turn(lm, text, texts.chat) for text in (*texts.yes, *texts.no)]
    acts = lm.capture(both, at, tokens)
    return {site: rows.astype(np.float64) for site, rows in acts.rows.items()}, np.arange(len(both)) < len(texts.yes)


def _norms(lm: LanguageModel, texts: Contrast, sites: Sequence[Site]) -> dict[Site, float]:
    """Median norm at each site over tokens, except the first token of each text, which has massive activations."""
    some = [in_turn(lm, text, texts.chat) for text in (*texts.yes[:8], *texts.no[:8])]
    acts = lm.capture(some, sites, "all")
    later = acts.positions > 0
    return {site: float(np.median(np.linalg.norm(rows[later], axis=1))) for site, rows in acts.rows.items()}


def _direction(
    method: str, x: Rows, positive: Bool[np.ndarray, "text"], texts: Contrast, site: Site, tokens: str | int, norm: float
) -> Direction:
    weights = METHODS[method](x, positive, texts.paired)
    length = float(np.linalg.norm(weights))
    if not np.isfinite(length) or length == 0:
        raise UserError(
            f"The {method} at {site} has zero norm: at tokens={tokens!r} the model holds the same for both kinds of {texts.name!r}."
        )
    unit = weights / length
    along = float((x[positive].mean(0) - x[~positive].mean(0)) @ unit)
    unit = unit if along >= 0 else -unit
    return Direction.of(
        unit * max(abs(along), 1e-12),
        str(site),
        f"{method}, {site}",
        found_by=f"{method} at {tokens} token",
        norm=norm,
        trained_on=f"{texts.name}: {len(texts.yes)} {texts.positive}, {len(texts.no)} {texts.negative} texts",
    )


def _swapped(positive: Bool[np.ndarray, "text"], paired: bool, rng: np.random.Generator) -> Bool[np.ndarray, "text"]:
    """Labels with one half swapped: half of the pairs, or as many texts of either class as equalise the classes."""
    if paired:
        n = len(positive) // 2
        kept = rng.permutation(n) < n // 2
        return np.concatenate([kept, ~kept])
    labels = np.zeros(len(positive), dtype=bool)
    for side in (positive, ~positive):
        members = rng.permutation(np.flatnonzero(side))
        labels[members[: round(len(members) * float(positive.mean()))]] = True
    return labels


def _arranged(x: Rows, positive: Bool[np.ndarray, "text"], paired: bool) -> tuple[Rows, Bool[np.ndarray, "text"]]:
    """Rows with the positive ones first, pairs in order."""
    if not paired:
        return x, positive
    n = len(x) // 2
    first = np.where(positive[:n], np.arange(n), np.arange(n) + n)
    second = np.where(positive[:n], np.arange(n) + n, np.arange(n))
    return x[np.concatenate([first, second])], np.arange(2 * n) < n
