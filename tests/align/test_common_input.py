"""Common input: shared inputs by hand, the statistic by brute force, and what tests say where common input is all there is."""

import numpy as np
import pytest

from repscope.align import common_input, dyads, matched_pairs, shared_inputs, signal_given_synapse
from repscope.align.structure_function.conditional_poisson import balance, fit
from repscope.bench.wiring import (
    ABSENT,
    CARRIED,
    HOLDS,
    LIKE,
    LINK,
    PLANTED,
    SIGNALS,
    SILENT,
    common_input_bench,
    like_to_like_bench,
    signals_bench,
)
from repscope.data.connectomes import named_matrix
from repscope.errors import UserError
from repscope.results import table_of
from repscope.worlds.wired_cells import common_input as world_of_common_input
from repscope.worlds.wired_cells import wired_cells


def test_shared_inputs_are_counted():
    n = named_matrix(np.array([[0, 2, 3.0], [1, 0, 1], [0, 0, 0]]), ["a", "b", "c"])
    found = shared_inputs(n)
    assert found.at["b", "c"] == found.at["c", "b"] == 2 * 3
    assert found.at["a", "c"] == 1
    assert (np.diag(found) == 0).all()


def test_the_statistic_is_the_weighted_mean_by_brute_force():
    world = wired_cells(14, slope=1.0, seed=3)
    d = dyads(world.synapses, world.similarity, world.contact)
    found = common_input(d, permutations=99)
    n, s = d.synapses, world.similarity.to_numpy()
    top = bottom = plain = 0.0
    for i in range(14):
        for j in range(14):
            if i != j:
                c = sum(n[k, i] * n[k, j] for k in range(14))
                top, bottom, plain = top + c * s[i, j], bottom + c, plain + s[i, j]
    assert found.similarity.value == pytest.approx(top / bottom - plain / (14 * 13))
    mu = balance(n, d.exposure * np.exp(fit(n, d.function, d.exposure).slope * d.function))
    c = mu.T @ mu
    np.fill_diagonal(c, 0)
    off = ~np.eye(14, dtype=bool)
    assert found.expected == pytest.approx((c[off] * s[off]).sum() / c[off].sum() - s[off].mean())
    assert found.beyond.value == pytest.approx(found.similarity.value - found.expected)
    assert found.similarity.lo < found.similarity.value < found.similarity.hi


def test_wiring_by_the_pairwise_slope_explains_common_input():
    above = beyond = 0
    for seed in range(6):
        world = wired_cells(30, slope=1.5, hidden=0.0, seed=seed)
        found = common_input(dyads(world.synapses, world.similarity, world.contact), permutations=99)
        above += found.p <= 0.05 and found.similarity.value > 0
        beyond += found.beyond.lo > 0 or found.beyond.hi < 0
    assert above >= 5, "targets of one cell are alike"
    assert beyond <= 1, "and no more than the slope says"


def test_common_input_is_refused_where_it_means_nothing():
    world = wired_cells(16, missing=0.2, seed=0)
    with pytest.raises(UserError, match="similarity"):
        common_input(dyads(world.synapses, world.similarity, world.contact))
    with pytest.raises(UserError, match="similarity"):
        common_input(dyads(world.synapses, world.signals))
    whole = wired_cells(16, seed=0)
    with pytest.raises(UserError, match="at least 20"):
        common_input(dyads(whole.synapses, whole.similarity), permutations=3)
    with pytest.raises(UserError, match="too few"):
        wired_cells(5)
    with pytest.raises(UserError, match="too few"):
        world_of_common_input(20)


def test_synapses_that_carry_nothing_seem_to_link_cells_with_common_input():
    world = world_of_common_input(60, "common input", seed=1)
    inner = world.correlation.index
    synapses, contact = (frame.loc[inner, inner] for frame in (world.synapses, world.contact))
    by_correlation = signal_given_synapse(dyads(synapses, world.correlation, contact), permutations=99, ratio=False)
    assert by_correlation.p <= 0.05
    assert by_correlation.difference.lo > 0
    by_stimulation = signal_given_synapse(dyads(synapses, world.effect, contact), permutations=99, ratio=False)
    assert by_stimulation.difference.lo < 0 < by_stimulation.difference.hi
    raw = by_correlation.difference.value
    matched = matched_pairs(dyads(synapses, world.correlation, contact), (shared_inputs(world.synapses) + 1).loc[inner, inner])
    assert matched.difference.value < raw / 2, "equal common input leaves little of it"
    carried = world_of_common_input(60, "synapses", seed=1)
    inner = carried.effect.index
    d = dyads(carried.synapses.loc[inner, inner], carried.effect, carried.contact.loc[inner, inner])
    assert signal_given_synapse(d, permutations=99, ratio=False).difference.lo > 0


def test_the_benches_have_their_rows():
    rows = like_to_like_bench(2, cells=16, permutations=20) + signals_bench(2, cells=16, permutations=20)
    table = table_of(rows + common_input_bench(2, cells=32, permutations=20))
    assert set(table[table["metric"] == LIKE]["item"]) == {PLANTED, ABSENT}
    assert set(table[table["metric"] == SIGNALS]["item"]) == {CARRIED, SILENT}
    tests = {"estimate", "interval over cells", "pairs taken as independent"}
    assert set(table[table["metric"].isin([LIKE, SIGNALS])]["condition"]) == tests
    assert set(table[table["metric"] == HOLDS]["condition"]) == {"estimate", "pairs taken as independent"}
    link = table[table["metric"] == LINK]
    assert set(link["item"]) == {f"{c}, by {m}" for c in ("synapses", "common input") for m in ("correlation", "stimulation")}
    assert set(link["condition"]) == {"estimate", "matched pairs", "matched on common input"}
    assert (table["n"] == 2).all()
    assert table["value"].between(0, 1).all()
