"""Structure and function: fast paths against dense fits, planted slopes, permutation nulls, controls, errors."""

import numpy as np
import pandas as pd
import pytest

from repscope.align.structure_function import (
    compare_wiring,
    dyads,
    like_to_like,
    matched_pairs,
    permute_nodes,
    rewired,
    signal_given_synapse,
)
from repscope.align.structure_function.conditional_poisson import balance, fit, margins, projected
from repscope.align.structure_function.signals import APART, NO_EXPOSURE, SYNAPSE, as_outcome
from repscope.data.connectomes import edges_to_matrix, named_matrix
from repscope.errors import UserError


def frame(x, names=None):
    return named_matrix(x, names or [f"n{i}" for i in range(len(x))])


def simulated(n=40, slope=1.0, seed=0, rate=0.4, exposure=True, dims=3):
    """Cells with latent features; similarity is their correlation, synapses follow it with degrees and exposure that vary."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, dims))
    s = np.corrcoef(latent)
    area = rng.gamma(1.0, 1.0, (n, n)) * (rng.random((n, n)) < 0.7) if exposure else np.ones((n, n))
    mu = rate * np.exp(rng.normal(0, 0.7, (n, 1)) + rng.normal(0, 0.7, n) + slope * s) * area
    np.fill_diagonal(mu, 0)
    return rng.poisson(mu).astype(float), s, area


def held(n=40, missing=0.0, seed=0, **how):
    synapses, s, area = simulated(n, seed=seed, **how)
    if missing:
        hidden = np.random.default_rng(seed + 99).random((n, n)) < missing
        s = np.where(hidden | hidden.T, np.nan, s)
    return dyads(frame(synapses), frame(s), frame(area) if how.get("exposure", True) else None)


def dense(n, s, e, effects):
    """The slope and its information by iteratively reweighted least squares with a dummy variable per cell."""
    i, j = np.nonzero((e > 0) & (n.sum(1)[:, None] > 0) & (n.sum(0) > 0))
    parts = [s[i, j][:, None]]
    if effects in ("both", "pre"):
        parts.append(np.eye(len(n))[i])
    if effects in ("both", "post"):
        parts.append(np.eye(len(n))[j])
    if effects == "none":
        parts.append(np.ones((len(i), 1)))
    x, y, offset = np.concatenate(parts, 1), n[i, j], np.log(e[i, j])
    beta = np.zeros(x.shape[1])
    beta[1:] = np.log(y.mean() / e[i, j].mean()) / (2 if effects == "both" else 1)
    for _ in range(60):
        mu = np.exp(x @ beta + offset)
        beta += np.linalg.lstsq(x * np.sqrt(mu)[:, None], (y - mu) / np.sqrt(mu), rcond=None)[0]
    root = np.sqrt(np.exp(x @ beta + offset))[:, None]
    rest = x[:, :1] * root
    others = x[:, 1:] * root
    rest = rest - others @ np.linalg.lstsq(others, rest, rcond=None)[0]
    return beta[0], float((rest**2).sum())


@pytest.mark.parametrize("effects", ["both", "pre", "post", "none"])
def test_the_slope_is_that_of_a_regression_with_one_dummy_per_cell(effects):
    d = held(14, missing=0.1, seed=3, rate=1.5)
    found = fit(d.synapses, d.function, d.exposure, effects)
    slope, information = dense(d.synapses, d.function, d.exposure, effects)
    assert found.slope == pytest.approx(slope, abs=1e-6)
    assert found.information == pytest.approx(information, rel=1e-5)


def test_margins_of_expected_counts_are_those_of_the_synapses():
    d = held(20)
    mu = balance(d.synapses, d.exposure)
    for axis in (0, 1):
        assert np.allclose(mu.sum(axis), d.synapses.sum(axis), atol=1e-6)
    rest = projected(d.function, margins(mu))
    assert np.abs((mu * rest).sum(0)).max() < 1e-7
    assert np.abs((mu * rest).sum(1)).max() < 1e-7


@pytest.mark.parametrize("effects", ["both", "pre", "post", "none"])
@pytest.mark.parametrize("how", [{}, {"exposure": False}])
def test_one_fit_for_all_permutations_equals_a_fit_for_each(effects, how):
    d = held(16, seed=5, **how)
    assert d.complete
    fast, slow = (permute_nodes(d, effects=effects, permutations=50, refit=refit) for refit in (False, True))
    assert np.allclose(fast.null, slow.null, atol=1e-6)
    assert np.allclose(fast.slopes, slow.slopes, atol=1e-6)
    assert (fast.z, fast.p) == (pytest.approx(slow.z, abs=1e-7), slow.p)


def test_pairs_that_were_not_measured_move_with_their_cells():
    d = held(16, missing=0.2, seed=2)
    assert not d.complete
    found = permute_nodes(d, permutations=30)
    order = np.concatenate([[np.arange(16)], np.zeros((0, 16), int)])
    assert found.z == pytest.approx(_score_by_hand(d, order[0]), abs=1e-7)
    assert 0 < found.p <= 1


def _score_by_hand(d, order):
    synapses, function, exposure = d.given
    s = function[np.ix_(order, order)]
    pairs = np.isfinite(s) & (exposure > 0) & ~np.eye(len(s), dtype=bool)
    n, s, e = (np.where(pairs, x, 0.0) for x in (synapses, s, exposure))
    mu = balance(n, e)
    return (s * (n - mu)).sum() / np.sqrt((mu * projected(s, margins(mu)) ** 2).sum())


def test_a_planted_slope_is_recovered_and_its_interval_holds_it():
    hits, values = 0, []
    for seed in range(12):
        found = like_to_like(held(36, slope=1.0, seed=seed), permutations=99)
        hits += found.slope.lo <= 1.0 <= found.slope.hi
        values.append(found.slope.value)
        assert found.permutation.p <= 0.05
    assert abs(np.mean(values) - 1) < 0.1
    assert hits >= 10


def test_permuting_cells_keeps_its_level_where_the_naive_interval_does_not():
    """Similarity that follows the cells' own features, independent of the wiring; wiring that follows other features of them."""
    runs, by_cells, by_pairs = 100, 0, 0
    for seed in range(runs):
        synapses, *_ = simulated(28, slope=1.5, seed=seed, rate=1.0, exposure=False, dims=2)
        _, s, _ = simulated(28, seed=10_000 + seed, exposure=False, dims=2)
        d = dyads(frame(synapses), frame(s))
        found = fit(d.synapses, d.function, d.exposure)
        by_pairs += abs(found.slope) > 1.96 / np.sqrt(found.information)
        by_cells += permute_nodes(d, permutations=99, seed=seed).p <= 0.05
    assert by_cells / runs < 0.11
    assert by_pairs / runs > 0.2


def test_rewiring_keeps_both_degree_sequences_and_only_uses_pairs_that_count():
    d = held(30, seed=1)
    other = rewired(d, seed=4)
    assert not np.array_equal(other.synapses, d.synapses)
    for axis in (0, 1):
        assert np.array_equal((other.synapses > 0).sum(axis), (d.synapses > 0).sum(axis))
    assert np.array_equal(other.synapses.sum(1), d.synapses.sum(1))
    assert not (other.synapses[~d.pairs] > 0).any()
    names = [f"n{i}" for i in range(8)]
    full = np.ones((8, 8)) - np.eye(8)
    with pytest.raises(UserError, match="no rewired control"):
        rewired(dyads(frame(full, names), frame(np.random.default_rng(0).random((8, 8)), names)))


def test_a_planted_slope_is_gone_in_rewired_connectomes():
    d = held(40, slope=1.5, seed=0)
    drawn = [fit(r.synapses, r.function, r.exposure).slope for r in (rewired(d, seed=k) for k in range(10))]
    assert fit(d.synapses, d.function, d.exposure).slope > max(drawn)
    assert abs(np.mean(drawn)) < 0.3


def test_matched_pairs_have_equal_exposure_and_show_the_planted_difference():
    found = matched_pairs(held(40, slope=1.5, seed=0, rate=0.2))
    assert abs(found.gap) < 0.15
    assert found.difference.lo > 0
    assert found.connected - found.unconnected == pytest.approx(found.difference.value)
    null = matched_pairs(held(40, slope=0.0, seed=0, rate=0.2))
    assert null.difference.lo < 0 < null.difference.hi


def test_similarity_acts_on_exposure_alone_if_that_is_what_was_planted():
    rng = np.random.default_rng(0)
    n = 50
    s = np.corrcoef(rng.standard_normal((n, 3)))
    area = np.exp(1.0 * s + rng.normal(0, 0.5, (n, n))) * (rng.random((n, n)) < 0.6)
    synapses = rng.poisson(0.3 * area).astype(float)
    np.fill_diagonal(synapses, 0)
    d = dyads(frame(synapses), frame(s), frame(area))
    synaptic, axonal = (like_to_like(d, scale=scale, permutations=99) for scale in ("synaptic", "axonal"))
    assert axonal.slope.lo > 0.5
    assert synaptic.slope.lo < 0 < synaptic.slope.hi
    assert like_to_like(d.without_exposure(), permutations=99).slope.lo > 0, "without the exposure it looks synaptic"


def _signalling(seed=0, effect=3.0, n=40):
    rng = np.random.default_rng(seed)
    touching = rng.random((n, n)) < 0.5
    area = touching * rng.gamma(2.0, 1.0, (n, n))
    synapses = (rng.random((n, n)) < 0.3) * touching * rng.integers(1, 5, (n, n))
    np.fill_diagonal(synapses, 0)
    base = 0.06 * np.exp(rng.normal(0, 0.5, (n, 1)) + rng.normal(0, 0.5, n))
    happened = (rng.random((n, n)) < base * np.where(synapses > 0, effect, 1.0)).astype(float)
    happened[rng.random((n, n)) < 0.2] = np.nan
    return dyads(frame(synapses.astype(float)), frame(happened), frame(area))


def test_synapses_that_carry_signals_are_found_and_others_are_not():
    found = signal_given_synapse(_signalling(), permutations=199)
    assert found.p <= 0.05
    assert found.difference.lo > 0
    assert found.ratio.slope.lo < np.log(3) < found.ratio.slope.hi
    assert set(found.groups) == {SYNAPSE, APART, NO_EXPOSURE}
    joined = as_outcome(_signalling())
    i, j = np.nonzero(joined.pairs & (joined.function > 0))
    assert found.groups[SYNAPSE].value == pytest.approx(joined.synapses[i, j].mean())
    assert found.naive[SYNAPSE].n == len(i) == found.sizes[SYNAPSE]
    rejected = sum(
        signal_given_synapse(_signalling(seed, effect=1.0, n=24), permutations=99, ratio=False).p <= 0.05 for seed in range(40)
    )
    assert rejected <= 6


def test_the_interval_of_a_share_leaves_out_each_cell():
    d = _signalling(n=12)
    found = signal_given_synapse(d, permutations=20, ratio=False).groups[SYNAPSE]
    f, pairs = d.given[1], d.connected
    without = []
    for k in range(12):
        left = pairs.copy()
        left[k] = left[:, k] = False
        without.append(f[left].mean())
    nodes = 11 / 12 * np.sum((np.array(without) - np.mean(without)) ** 2)
    u = np.where(pairs, np.nan_to_num(f) - found.value, 0)
    single = ((u + u.T) ** 2).sum() / 2 / pairs.sum() ** 2
    from scipy.stats import t

    assert found.hi - found.value == pytest.approx(t.ppf(0.975, 11) * np.sqrt(max(nodes - single, nodes / 2)))


def test_all_rows_have_their_controls():
    table = compare_wiring(held(24, slope=1.0), permutations=49, rewirings=4, item="toy").table
    slope = table[table.metric == "like-to-like slope"].set_index("condition")
    assert {"estimate", "pairs taken as independent", "permuted cells", "rewired, degrees kept", "no exposure offset"} <= set(
        slope.index
    )
    assert {"axonal slope", "difference with a synapse", "node permutation p"} <= set(table.metric)
    table = compare_wiring(_signalling(n=24), "signal", permutations=49, rewirings=4).table
    assert {"share with a signal", "difference with a synapse", "log ratio with a synapse"} <= set(table.metric)


def test_mistakes_are_one_sentence():
    x, names = np.ones((8, 8)) - np.eye(8), list("abcdefgh")
    s = pd.DataFrame(np.arange(64.0).reshape(8, 8), index=names, columns=names)
    good = frame(x, names)
    for given, message in (
        ((good.rename(index=str.upper, columns=str.upper), s), r"Only 0 of 8 cells of the connectome \(such as 'A'\)"),
        ((good * 0, s), "The connectome is empty"),
        ((good + np.eye(8), s), "8 connections of a cell with itself"),
        ((-good, s), "negative from 'a' to 'b'"),
        ((good, s * 0 + 2), "is 2 for all 56 pairs"),
        ((good, s, -good), "exposure is negative"),
        ((x, s), "0 names; give an array"),
    ):
        with pytest.raises(UserError, match=message) as error:
            dyads(*given)
        assert str(error.value).count("\n") == 0
    assert dyads(good + np.eye(8), s, self_loops="drop").pairs.sum() == 56
    with pytest.raises(UserError, match="Only 4 of 8"):
        dyads(good, s.rename(index=lambda n: n if n < "e" else n.upper(), columns=lambda n: n if n < "e" else n.upper()))
    with pytest.raises(UserError, match="at least 20"):
        permute_nodes(held(16), permutations=5)
    with pytest.raises(UserError, match="axonal scale"):
        like_to_like(held(16, exposure=False), scale="axonal")
    with pytest.raises(UserError, match="exposure or distance"):
        matched_pairs(held(16, exposure=False))


def test_what_does_not_match_is_counted():
    synapses, s, area = simulated(20)
    names = [f"n{i}" for i in range(20)]
    d = dyads(frame(synapses, names), frame(s[1:, 1:], names[1:]), frame(area[:-1, :-1], names[:-1]))
    assert len(d.names) == 18
    assert d.counts["Cells of the connectome without a functional name"] == 1
    assert d.counts["Cells that are in both but have no exposure"] == 1
    assert d.counts["Pairs without exposure"] == int((area[1:-1, 1:-1] == 0).sum() - (np.diag(area)[1:-1] == 0).sum())
    assert any(note.startswith("Connected pairs among these") for note in d.notes) == bool(d.counts["Connected pairs among these"])


def test_edges_become_a_matrix_and_bad_tables_are_refused():
    edges = pd.DataFrame({"pre": [1, 1, 2, 3], "post": [2, 2, 3, 3], "n": [1, 2, 1, 5]})
    with pytest.raises(UserError, match="a cell with itself"):
        edges_to_matrix(edges, weight="n")
    found = edges_to_matrix(edges, weight="n", self_loops="drop")
    assert found.loc["1", "2"] == 3
    assert found.loc["3"].sum() == 0
    assert list(edges_to_matrix(edges[:3], examined=[1, 2, 9]).index) == ["1", "2", "9"]
    for table, message in (
        (edges[:0], "is empty"),
        (edges[:3].assign(n=-1), "negative"),
        (edges[:3].assign(post=[2, None, 3]), "1 rows with an empty cell"),
        (edges[:3].assign(n=list("abc")), "contains text"),
    ):
        with pytest.raises(UserError, match=message):
            edges_to_matrix(table, weight="n")
    with pytest.raises(UserError, match="no column"):
        edges_to_matrix(edges, weight="m")
    with pytest.raises(UserError, match="not among those given as presynaptic"):
        edges_to_matrix(edges[:3], examined=[1])


def test_a_dense_connectome_has_no_axonal_scale_and_says_so():
    synapses, s, area = simulated(16)
    dense_one = frame(np.maximum(synapses, 1.0) * (1 - np.eye(16)))
    found = compare_wiring(dyads(dense_one, frame(s), frame(area + 0.1)), permutations=39, rewirings=2)
    assert not found.table["metric"].str.contains("axonal").any()
    assert any("axonal scale is not determined" in note for note in found.notes)
    with pytest.raises(UserError, match="No pair has a count of synapses"):
        dyads(frame(np.full((16, 16), np.nan)), frame(s))
