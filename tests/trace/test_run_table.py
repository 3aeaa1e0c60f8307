"""What is said of a set of runs: planted basins are found, and nothing is found where nothing was planted."""

import numpy as np
import pytest

from repscope.conditions import ESTIMATE, SHUFFLED_GROUPS
from repscope.results import table_of
from repscope.trace.barriers import GAP
from repscope.trace.interpolation import Curves, all_pairs
from repscope.trace.run_table import RunMeasurements, rows


def held(across, quality=0.0, seed=0, runs=12, grouped=True):
    """Curves whose middle is higher across groups by `across`; behaviour by group; quality may follow the group."""
    rng = np.random.default_rng(seed)
    group = np.repeat(["rule", "lexical overlap"], runs // 2)
    pairs = all_pairs(runs)
    apart = group[pairs[:, 0]] != group[pairs[:, 1]]
    loss = 0.1 + 0.02 * rng.random(runs) + quality * (group == "lexical overlap")
    top = loss[pairs].mean(1) + 0.05 + 0.01 * rng.random(len(pairs)) + across * apart
    losses = np.stack([loss[pairs[:, 0]], top, loss[pairs[:, 1]]], 1)
    behaviour = np.where(group == "rule", 0.9, 0.1) + 0.05 * rng.random(runs)
    curves = Curves(runs, pairs, np.linspace(0, 1, 3), {"loss": losses})
    euclid = curves.filled(1 + 0.01 * rng.random(len(pairs)))
    return RunMeasurements(curves, euclid, behaviour, curves.ends("loss"), group if grouped else None)


def table(measured, **where):
    found = table_of(rows(measured, permutations=199, **where))
    return {(r["condition"], r["metric"], r["item"]): r for r in found.to_dict("records")}


def test_planted_basins_are_found():
    found = table(held(0.1))
    ratio = found[ESTIMATE, "ratio", GAP]
    assert ratio["value"] == pytest.approx(0.155 / 0.055, rel=0.05)
    assert ratio["lo"] > found[SHUFFLED_GROUPS, "ratio", GAP]["hi"]
    assert found[ESTIMATE, "ARI", f"spectral, {GAP}, δ median"]["value"] == 1
    assert found[ESTIMATE, "mantel p", GAP]["value"] < 0.05
    assert found[ESTIMATE, "ARI", "spectral, Euclidean distance"]["value"] < 0.5
    assert found[ESTIMATE, "AUC", "share of the rule"]["value"] == 1


def test_nothing_is_found_where_nothing_was_planted():
    found = table(held(0.0))
    assert found[ESTIMATE, "ratio", GAP]["lo"] < 1 < found[ESTIMATE, "ratio", GAP]["hi"]
    assert abs(found[ESTIMATE, "ARI", f"average linkage, {GAP}, double-centred"]["value"]) < 0.5
    assert found[ESTIMATE, "mantel p", GAP]["value"] > 0.05


def test_quality_that_follows_the_arms_is_said():
    assert table(held(0.0, quality=0.5))[ESTIMATE, "AUC", "ID loss"]["value"] == 1
    assert table(held(0.0))[ESTIMATE, "AUC", "ID loss"]["value"] < 0.9


def test_without_arms_the_groups_are_strategies():
    measured = held(0.1, grouped=False)
    assert (measured.groups == held(0.1).groups).all()
    found = table(measured, condition="no early bias", split="x")
    assert found["no early bias", "ratio", GAP]["split"] == "x"


def test_one_strategy_alone_has_no_groups_to_compare():
    measured = held(0.1, grouped=False)
    alone = RunMeasurements(measured.curves, measured.euclidean, np.full(12, 0.9), measured.quality)
    found = table(alone)
    assert (ESTIMATE, "ratio", GAP) not in found
    assert (ESTIMATE, "height", f"within: {GAP}") in found


def test_shuffled_groups_of_each_kind_of_run_stand_apart_and_nothing_is_divided_by_nothing():
    measured = held(0.1)
    assert (SHUFFLED_GROUPS, "ratio", GAP) in table(measured)
    assert ("no early bias, shuffled groups", "ratio", GAP) in table(measured, condition="no early bias")
    flat = Curves(12, measured.curves.pairs, measured.curves.alphas, {"loss": np.ones_like(measured.curves.losses["loss"])})
    found = table(RunMeasurements(flat, measured.euclidean, measured.behaviour, measured.quality, measured.training_groups))
    assert (SHUFFLED_GROUPS, "ratio", GAP) not in found
    assert np.isnan(found[ESTIMATE, "ratio", GAP]["value"])
