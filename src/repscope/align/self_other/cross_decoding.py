"""Cross-decoding of outcomes between self and other: a decoder fitted on one agent's outcomes, tested on the other's, and back.

1. The decoder is ridge regression of the outcome (±1) on standardised units; its penalty is chosen by the exact leave-one-out error
   in the training trials. Each agent's patterns are centred on their own mean, so that a shift between agents is no information.
2. Scores are AUCs: they need no threshold. `within` is that of held-out trials of the same agent (five folds): the ceiling.
3. `across`: fitted on all own outcomes, tested on the other's, and the reverse. Its interval draws trials of both agents and fits
   the decoder again each time: between unrelated codes the area is off .5 by chance, differently from fit to fit. p: the outcomes
   of the training trials are permuted. Sharing is called present if both directions have p ≤ .05 and an AUC above .5.
4. Controls, each of which could explain an AUC above .5 without a shared code:
   - `identity decoder`: a decoder of who acted (or of self against other) in place of the outcome, tested on outcomes;
   - `identity removed`: the same cross-decoding after that decoder's axis is projected out;
   - `matched stimuli`: trials drawn so that within each agent every stimulus has both outcomes equally often: what is left is not
     the stimulus;
   - `disjoint stimuli`: fitted and tested on different stimuli, so that nothing but the outcome is in common.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from repscope import stats
from repscope.align.self_other.trial_table import OTHER, SELF, Trials, trials
from repscope.errors import UserError
from repscope.results import Row
from repscope.stats import Estimate
from repscope.stats.groups import TIE, separation

__all__ = ["SelfOther", "Trials", "cross_decode", "trials"]

PENALTIES = np.logspace(-2, 3, 6)  #: times the mean eigenvalue of the Gram matrix
FOLDS = 5
PERMUTATIONS = 200
_REFITS = 400  #: most draws of an interval that fits the decoder again
DIRECTIONS = ((SELF, OTHER), (OTHER, SELF))
SHUFFLED, IDENTITY, REMOVED = "shuffled labels", "identity decoder", "identity removed"
MATCHED, DISJOINT, WITHIN = "matched stimuli", "disjoint stimuli", "within agent"


@dataclass(frozen=True)
class SelfOther:
    """How well outcomes can be decoded within and across agents; AUCs over trials.

    within: by agent. across: by direction ("self to other"). p: by direction. null: AUCs for permuted outcomes, mean and range, by
    direction. controls: by control, then by direction. notes: controls that could not be made.
    """

    within: dict[str, Estimate]
    across: dict[str, Estimate]
    p: dict[str, float]
    null: dict[str, Estimate]
    controls: dict[str, dict[str, Estimate]]
    permutations: int
    notes: tuple[str, ...]

    @property
    def shared(self) -> bool:
        """Whether both directions decode above chance."""
        return all(self.p[d] <= 0.05 and self.across[d].value > 0.5 for d in self.across)

    @property
    def share(self) -> float:
        """Cross-decoding as a share of decoding within agents: mean of (AUC - ½) across over that within; NaN without the
        latter.
        """
        inside = np.mean([e.value for e in self.within.values()]) - 0.5
        return float((np.mean([e.value for e in self.across.values()]) - 0.5) / inside) if inside > 0.02 else float("nan")

    def rows(self, item: str = "") -> list[Row]:
        """Rows of the shared schema, metric `AUC`; the direction is the column `split`."""
        where = {"metric": "AUC", "item": item}
        found = [Row.of(e, split=d, **where) for d, e in self.across.items()]
        found += [Row.of(e, split=a, condition=WITHIN, **where) for a, e in self.within.items()]
        found += [Row.of(e, split=d, condition=SHUFFLED, **where) for d, e in self.null.items()]
        found += [Row.of(e, split=d, condition=name, **where) for name, by in self.controls.items() for d, e in by.items()]
        return found + [
            Row(metric="p", item=item, split=d, value=p, unit="permutation", n=self.permutations) for d, p in self.p.items()
        ]


class _Bootstrap(NamedTuple):
    """Of an interval."""

    seed: int
    draws: int


def cross_decode(
    held: Trials, *, permutations: int = PERMUTATIONS, seed: int = 0, controls: bool = True, draws: int = stats.DRAWS
) -> SelfOther:
    """Decode outcomes within and across agents, with all controls that the trials allow.

    Parameters
    ----------
    controls
        False skips all controls but the permutations.
    draws
        Of the bootstrap of each interval.

    Raises
    ------
    UserError
        For fewer than 20 permutations, or patterns that do not vary.
    """
    if permutations < 20:
        raise UserError(f"{permutations} permutations cannot show a p of .05; give at least 20.")
    if not held.patterns.std(0).any():
        raise UserError("The patterns do not vary from trial to trial; give patterns that do.")
    rng, how = np.random.default_rng(seed), _Bootstrap(seed, draws)
    prepared = _standardised(held)
    across: dict[str, Estimate] = {}
    null: dict[str, Estimate] = {}
    p: dict[str, float] = {}
    for source, target in DIRECTIONS:
        train, test = (_of_agent(prepared, agent) for agent in (source, target))
        shuffled = rng.permuted(np.tile(train.outcome, (permutations, 1)), axis=1)
        areas = _areas(_decoded(train.patterns, np.vstack([train.outcome, shuffled]), test.patterns), test.outcome)
        name = f"{source} to {target}"
        across[name] = _fitted_again(train, test, areas[0], how)
        p[name] = stats.p_value(areas[0] - TIE, areas[1:])
        null[name] = stats.null(areas[1:], unit="shuffle")
    within = {agent: _within(_of_agent(prepared, agent), rng, how) for agent in (SELF, OTHER)}
    made, notes = _controls(held, rng, how) if controls else ({}, [])
    return SelfOther(within, across, p, null, made, permutations, tuple(notes))


def _controls(held: Trials, rng: np.random.Generator, how: _Bootstrap) -> tuple[dict[str, dict[str, Estimate]], list[str]]:
    found: dict[str, dict[str, Estimate]] = {}
    notes = []
    prepared = _standardised(held, by_agent=held.identity is not None)
    who = held.own.astype(np.int64) if held.identity is None else held.identity
    axes = _axes(prepared.patterns, who)
    along = prepared.patterns @ axes[:, :1]
    found[IDENTITY] = {
        f"{s} to {t}": _area(along[held.own == (t == SELF), 0], held.outcome[held.own == (t == SELF)], how) for s, t in DIRECTIONS
    }
    found[REMOVED] = _across(replace(held, patterns=_without(held.patterns, axes)), how)
    if held.stimulus is None:
        return found, ["Trials have no column of stimuli: that both agents saw the same cannot be excluded."]
    chosen = _balanced(held, rng)
    if chosen.size and held.of(chosen).enough:
        found[MATCHED] = _across(held.of(chosen), how)
    else:
        notes.append("No matched stimuli: too few stimuli have both outcomes for both agents.")
    halves = np.isin(held.stimulus, rng.permutation(np.unique(held.stimulus))[::2])
    if held.of(halves).enough and held.of(~halves).enough:
        parts = [_across(held, how, fitted=half, tested=~half) for half in (halves, ~halves)]
        found[DISJOINT] = {d: min((part[d] for part in parts), key=lambda e: e.value) for d in parts[0]}  # the smaller of two
    else:
        notes.append("No disjoint stimuli: too few trials in each half of the stimuli.")
    return found, notes


def _across(
    held: Trials, how: _Bootstrap, fitted: np.ndarray | None = None, tested: np.ndarray | None = None
) -> dict[str, Estimate]:
    prepared = _standardised(held)
    found = {}
    for source, target in DIRECTIONS:
        a, b = (held.own == (agent == SELF) for agent in (source, target))
        train = prepared.of(a if fitted is None else a & fitted)
        test = prepared.of(b if tested is None else b & tested)
        area = _areas(_decoded(train.patterns, train.outcome[None], test.patterns), test.outcome)[0]
        found[f"{source} to {target}"] = _fitted_again(train, test, area, how)
    return found


def _standardised(held: Trials, by_agent: bool = True) -> Trials:
    """Units divided by their standard deviation over all trials; each agent's mean subtracted."""
    spread = held.patterns.std(0)
    x = held.patterns / np.where(spread > 0, spread, 1.0)
    groups = (held.own, ~held.own) if by_agent else (np.ones(len(x), dtype=bool),)
    for group in groups:
        x[group] -= x[group].mean(0)
    return replace(held, patterns=x)


def _of_agent(held: Trials, agent: str) -> Trials:
    return held.of(held.own == (agent == SELF))


def _decoded(
    train: Float[np.ndarray, "train unit"], outcomes: Int[np.ndarray, "column train"], test: Float[np.ndarray, "test unit"]
) -> Float[np.ndarray, "column test"]:
    """Decoder values of the test trials, for each column of outcomes; the penalty is chosen for the first."""
    u, s, vt, y = _parts(train, outcomes)
    weights = vt.T @ ((s / (s**2 + _penalty(u, s, vt, y)))[:, None] * (u.T @ y))
    return np.asarray(((test - train.mean(0)) @ weights).T)


def _parts(train: Float[np.ndarray, "train unit"], outcomes: Int[np.ndarray, "column train"]) -> tuple[np.ndarray, ...]:
    """Singular vectors and values of centred patterns, and centred outcomes of ±1 (train, column)."""
    y = (2.0 * outcomes - 1).T
    return (*np.linalg.svd(train - train.mean(0), full_matrices=False), y - y.mean(0))


def _penalty(u: np.ndarray, s: np.ndarray, vt: np.ndarray, y: np.ndarray) -> float:
    """The penalty with the smallest exact leave-one-out error of the first column."""
    mean = (s**2).sum() / max(int((s > 1e-9 * s[0]).sum()), 1)
    rotated, squares = u.T @ y[:, 0], u**2
    errors = []
    for penalty in PENALTIES:
        kept = s**2 / (s**2 + penalty * mean)
        leverage = 1 / len(u) + squares @ kept
        errors.append((((y[:, 0] - u @ (kept * rotated)) / np.maximum(1 - leverage, 1e-9)) ** 2).sum())
    return float(PENALTIES[int(np.argmin(errors))] * mean)


def _ridge(train: Float[np.ndarray, "train unit"], outcome: Int[np.ndarray, "train"], penalty: float) -> Float[np.ndarray, "unit"]:
    """Weights at a given penalty, by whichever Gram matrix is smaller."""
    x, y = train - train.mean(0), 2.0 * outcome - 1
    y = y - y.mean()
    n, p = x.shape
    found: np.ndarray = (
        np.linalg.solve(x.T @ x + penalty * np.eye(p), x.T @ y)
        if p <= n
        else x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(n), y)
    )
    return found


def _areas(scores: Float[np.ndarray, "column trial"], outcome: Int[np.ndarray, "trial"]) -> Float[np.ndarray, "column"]:
    """AUCs of each row of scores."""
    from scipy.stats import rankdata

    high = outcome == 1
    a, b = int(high.sum()), int((~high).sum())
    return np.asarray((rankdata(scores, axis=1)[:, high].sum(1) - a * (a + 1) / 2) / (a * b))


def _area(score: Float[np.ndarray, "trial"], outcome: Int[np.ndarray, "trial"], how: _Bootstrap) -> Estimate:
    return replace(separation(score, outcome, seed=how.seed, draws=how.draws).estimate, unit="trial")


def _fitted_again(train: Trials, test: Trials, area: float, how: _Bootstrap) -> Estimate:
    """An area with its interval over trials of both agents, drawn within outcomes; every fit has the penalty of the whole one."""
    rng = np.random.default_rng([how.seed, 11])
    penalty = _penalty(*_parts(train.patterns, train.outcome[None]))

    def drawn(held: Trials) -> Trials:
        each = (np.flatnonzero(held.outcome == o) for o in (0, 1))
        return held.of(np.concatenate([rng.choice(rows, len(rows)) for rows in each]))

    areas = []
    for _ in range(min(how.draws, _REFITS)):
        a, b = drawn(train), drawn(test)
        areas.append(_areas((b.patterns @ _ridge(a.patterns, a.outcome, penalty))[None], b.outcome)[0])
    return stats.of_draws(float(area), np.array(areas), unit="trial", n=len(test.outcome))


def _within(held: Trials, rng: np.random.Generator, how: _Bootstrap) -> Estimate:
    fold = np.empty(len(held.outcome), dtype=np.int64)
    for o in (0, 1):  # the same share of both outcomes in each fold
        members = rng.permutation(np.flatnonzero(held.outcome == o))
        fold[members] = np.arange(len(members)) % FOLDS
    score = np.empty(len(fold))
    for k in range(FOLDS):
        tested = fold == k
        score[tested] = _decoded(held.patterns[~tested], held.outcome[~tested][None], held.patterns[tested])[0]
    return _area(score, held.outcome, how)


def _axes(x: Float[np.ndarray, "trial unit"], who: Shaped[np.ndarray, "trial"]) -> Float[np.ndarray, "unit axis"]:
    """Orthonormal directions in which the means of groups of trials differ, the largest first."""
    means = np.stack([x[who == k].mean(0) for k in np.unique(who)])
    _, s, vt = np.linalg.svd(means - means.mean(0), full_matrices=False)
    kept = s > 1e-9 * max(float(s[0]), 1e-300)
    return np.asarray(vt[kept].T)


def _without(patterns: Float[np.ndarray, "trial unit"], axes: Float[np.ndarray, "unit axis"]) -> Float[np.ndarray, "trial unit"]:
    """Patterns, in standardised units, without these directions."""
    spread = patterns.std(0)
    x = patterns / np.where(spread > 0, spread, 1.0)
    return np.asarray(x - (x @ axes) @ axes.T)


def _balanced(held: Trials, rng: np.random.Generator) -> Int[np.ndarray, "kept"]:
    """Trials in which, within each agent, each stimulus has both outcomes equally often."""
    assert held.stimulus is not None
    kept: list[np.ndarray] = []
    for own in (True, False):
        for stimulus in np.unique(held.stimulus):
            parts = [np.flatnonzero((held.own == own) & (held.stimulus == stimulus) & (held.outcome == o)) for o in (0, 1)]
            n = min(map(len, parts))
            kept += [rng.permutation(part)[:n] for part in parts]
    return np.sort(np.concatenate(kept)).astype(np.int64)
