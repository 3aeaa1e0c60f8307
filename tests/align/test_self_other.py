"""Self and other: planted sharing is found, separate codes are not, stimuli are seen through, wiring predicts shared coding."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from repscope.align.self_other import cross_decode, shared_units, trials
from repscope.align.self_other.cross_decoding import PENALTIES, _areas, _decoded
from repscope.align.structure_function import dyads, like_to_like
from repscope.data.connectomes import named_matrix
from repscope.errors import UserError
from repscope.worlds.watching_agents import two_agents


def of(kind, seed, agent=0, **how):
    world = two_agents(kind, seed=seed, **how)
    return trials(world.patterns[agent], world.tables[agent], stimulus="stimulus")


def test_planted_sharing_is_found_and_separate_codes_are_not():
    draws = 20
    for kind, right in (("shared", 19), ("separate", 19)):
        found = [cross_decode(of(kind, seed), permutations=40, controls=False, draws=2).shared for seed in range(draws)]
        assert sum(f == (kind == "shared") for f in found) >= right


def test_a_decoder_of_own_outcomes_works_on_observed_ones_as_well_as_on_own():
    found = cross_decode(of("shared", 1), permutations=60, draws=100)
    assert found.share > 0.8
    assert found.across["self to other"].lo > found.null["self to other"].value
    assert found.controls["identity removed"]["self to other"].value > 0.8
    assert abs(found.controls["identity decoder"]["self to other"].value - 0.5) < 0.3
    apart = cross_decode(of("separate", 1), permutations=60, draws=100)
    assert min(e.value for e in apart.within.values()) > 0.7, "both outcomes are coded"
    assert apart.share < 0.5


def test_intervals_across_unrelated_codes_contain_a_half():
    """A decoder that is fitted once has a chance alignment with the other code, which an interval over tested trials leaves out."""
    inside = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        codes = np.linalg.qr(rng.standard_normal((20, 2)))[0].T
        own, outcome = np.arange(120) < 60, rng.integers(0, 2, 120)
        x = rng.standard_normal((120, 20)) + 1.5 * (2 * outcome - 1)[:, None] * codes[(~own).astype(int)]
        table = pd.DataFrame({"agent": np.where(own, "self", "other"), "outcome": outcome})
        found = cross_decode(trials(x, table), permutations=20, controls=False, draws=120)
        inside += [e.lo <= 0.5 <= e.hi for e in found.across.values()]
    assert np.mean(inside) >= 0.85


def test_a_stimulus_that_predicts_outcomes_is_seen_through():
    """Disjoint populations, but both agents respond to what is shown: matched stimuli leave nothing."""
    plain, matched = [], []
    for seed in range(4):
        found = cross_decode(of("stimulus", seed, trials=400), permutations=20, draws=2)
        plain += [e.value for e in found.across.values()]
        matched += [e.value for e in found.controls["matched stimuli"].values()]
    assert np.mean(plain) > 0.65
    assert abs(np.mean(matched) - 0.5) < 0.08
    kept = cross_decode(of("shared", 0, trials=400), permutations=20, draws=2).controls
    assert min(e.value for by in (kept["matched stimuli"], kept["disjoint stimuli"]) for e in by.values()) > 0.8


def test_the_decoder_is_ridge_regression_with_the_smallest_leave_one_out_error():
    rng = np.random.default_rng(0)
    x, test = rng.standard_normal((30, 8)), rng.standard_normal((9, 8))
    y = (x[:, 0] + 0.5 * rng.standard_normal(30) > 0).astype(int)
    centred = x - x.mean(0)
    mean = (np.linalg.svd(centred)[1] ** 2).mean()
    errors = []
    for penalty in PENALTIES * mean:
        missed = [
            (2 * y[i] - 1 - Ridge(alpha=penalty).fit(np.delete(centred, i, 0), np.delete(2 * y - 1, i)).predict(centred[[i]])[0])
            ** 2
            for i in range(30)
        ]
        errors.append(np.mean(missed))
    best = PENALTIES[int(np.argmin(errors))] * mean
    model = Ridge(alpha=best).fit(x, 2 * y - 1)
    assert np.allclose(_decoded(x, y[None], test)[0], model.predict(test) - (2 * y - 1).mean(), atol=1e-8)


def test_areas_are_those_of_the_ranks():
    rng = np.random.default_rng(0)
    score, outcome = rng.integers(5, size=(4, 40)).astype(float), rng.integers(2, size=40)
    assert np.allclose(_areas(score, outcome), [roc_auc_score(outcome, s) for s in score])


def test_wiring_predicts_shared_coding_where_it_was_planted():
    hits = {True: 0, False: 0}
    for wired in hits:
        for seed in range(6):
            world = two_agents("shared", wired=wired, seed=seed)
            names = [f"u{i}" for i in range(world.synapses.shape[1])]
            units = shared_units(trials(world.patterns[0], world.tables[0]))
            assert units.shared[world.shared[0]].mean() > 2 * units.shared[~world.shared[0]].mean()
            d = dyads(named_matrix(world.synapses[0], names), units.of_pairs(names))
            found = like_to_like(d, permutations=99)
            hits[wired] += found.permutation.p <= 0.05 and found.slope.value > 0
    assert hits[True] == 6
    assert hits[False] <= 1


def test_all_rows_are_rows_of_the_schema():
    found = cross_decode(of("shared", 0, trials=120), permutations=20, draws=20)
    rows = found.rows("agent 0")
    assert {"estimate", "within agent", "shuffled labels", "identity decoder", "identity removed"} <= {r.condition for r in rows}
    assert {r.split for r in rows if r.condition == "estimate"} == {"self to other", "other to self"}


def test_mistakes_are_one_sentence():
    world = two_agents(trials=60)
    x, table = world.patterns[0], world.tables[0]
    few = table.assign(outcome=np.where((table.agent == "other") & (np.arange(60) > 8), "won", table.outcome))
    for given, message in (
        ((x, few), r"There are \d trials with outcome 'lost' of 'other'; at least 8"),
        ((x[:-1], table), "59 patterns and 60 rows"),
        ((np.where(np.arange(60)[:, None] == 3, np.nan, x), table), "Patterns of 1 trials are not finite"),
        ((x, table.assign(agent="me")), "no label of column 'agent' 'me'"),
        ((x, table.assign(outcome=range(60))), "has 60 values"),
        ((x, table.rename(columns={"outcome": "result"})), "no column of the table of trials 'outcome'"),
        ((x, table.assign(agent=[None, *table.agent[1:]])), "is empty in 1 trials"),
    ):
        with pytest.raises(UserError, match=message):
            trials(*given)
    with pytest.raises(UserError, match="do not vary"):
        cross_decode(trials(np.ones_like(x), table))
    with pytest.raises(UserError, match="Populations"):
        two_agents(share=0.6)
    with pytest.raises(UserError, match="one name per unit"):
        shared_units(trials(x, table)).of_pairs(["a"])
    assert isinstance(table, pd.DataFrame)
