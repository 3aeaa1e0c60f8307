"""Matching of tasks between two ways of adapting: planted matches, shared parts that must not count, and a slow twin."""

from itertools import permutations

import numpy as np
import pytest

from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.results import Result
from repscope.trace.task_shift.matching import common_share, directed, match_rows, task_match

TASKS, SITES, WIDTH = 5, 3, 40


def planted(strength, seed=0, tasks=TASKS):
    """Shifts of two ways: a large common part, a task's part shared by both (at the last site), and noise."""
    rng = np.random.default_rng(seed)
    own, common = rng.normal(size=(tasks, SITES, WIDTH)), 20 * rng.normal(size=(2, 1, SITES, WIDTH))
    own[:, :-1] = 0
    return [common[k] + strength * own + rng.normal(size=own.shape) for k in range(2)]


def slow(x, y):
    """Every cosine and every order by hand."""

    def cos(u, v):
        return float(u @ v / np.sqrt((u @ u) * (v @ v)))

    n, out = len(x), []
    for s in range(x.shape[1]):
        a, b = (z[:, s] - z[:, s].mean(0) for z in (x, y))
        c = [[cos(a[i], b[j]) for j in range(n)] for i in range(n)]
        stat = [
            np.mean([c[i][o[i]] for i in range(n)]) - np.mean([c[i][j] for i in range(n) for j in range(n) if j != o[i]])
            for o in permutations(range(n))
        ]
        out.append((c, stat[0], np.mean(np.array(stat) >= stat[0] - 1e-9), stat))
    return out


def test_match_equals_a_slow_twin():
    x, y = planted(1.0)
    found, twin = task_match(x, y), slow(x, y)
    largest = np.max([t[3] for t in twin], axis=0)
    for s, (c, match, p, _) in enumerate(twin):
        np.testing.assert_allclose(found.centred[s], c, atol=1e-12)
        np.testing.assert_allclose((found.same - found.others)[:, s].mean(), match, atol=1e-12)
        assert found.p[s] == pytest.approx(p)
    # of the largest over sites, the observed order counts with its own site
    expected = [(1 + np.sum(largest[1:] >= m - 1e-9)) / len(largest) for _, m, _, _ in twin]
    np.testing.assert_allclose(found.p_all, expected)


def test_a_common_part_raises_raw_cosines_and_no_match():
    rng = np.random.default_rng(1)
    shared = 30 * rng.normal(size=(1, SITES, WIDTH))
    x, y = (shared + rng.normal(size=(8, SITES, WIDTH)) for _ in range(2))
    found = task_match(x, y)
    assert found.raw.min() > 0.99
    assert np.abs((found.same - found.others).mean(0)).max() < 0.25
    assert found.p_all.min() > 0.05
    assert common_share(x).min() > 0.99


def test_a_planted_match_is_found_where_it_is():
    x, y = planted(2.0, tasks=8)
    found = task_match(x, y)
    assert found.p_all[-1] < 0.01 < 0.05 < found.p_all[0]
    assert found.top[:, -1].mean() == 1
    reordered = task_match(x, np.roll(y, 1, axis=0))
    assert (reordered.same - reordered.others)[:, -1].mean() < 0


def test_p_is_uniform_without_a_match():
    p = [task_match(*planted(0.0, seed=i, tasks=4)).p[0] for i in range(120)]
    assert 0.35 < np.mean(p) < 0.68
    assert np.mean(np.array(p) <= 0.05) < 0.12


def test_ties_share_the_top_place():
    x = np.zeros((4, 1, 4))
    x[:, 0] = np.eye(4)
    y = x.copy()
    y[1] = y[0]
    assert task_match(x, y).top[0, 0] == pytest.approx(0.5)


def halves(x, noise=0.0, seed=0):
    """The same shifts in both halves of the queries, with noise."""
    rng = np.random.default_rng(seed)
    return np.stack([x + noise * rng.normal(size=x.shape) for _ in range(2)], axis=1)


def test_a_shift_that_all_tasks_share_changes_nothing_but_raw_cosines():
    x, y = planted(1.0)
    rng = np.random.default_rng(7)
    moved = task_match(x + 50 * rng.normal(size=(1, SITES, WIDTH)), y + 50 * rng.normal(size=(1, SITES, WIDTH)))
    found = task_match(x, y)
    np.testing.assert_allclose(moved.centred, found.centred, atol=1e-9)
    np.testing.assert_allclose(moved.p_all, found.p_all)
    assert np.abs(moved.raw - found.raw).max() > 0.1


def test_a_way_matches_itself_by_one_and_rows_name_site_condition_and_null():
    x, y = planted(1.0)
    sites = [Site("resid_post", i) for i in range(3)]
    shifts = {"few-shot": halves(x), "LoRA": halves(y)}
    pairs = [("few-shot", "estimate", "few-shot", "few-shot"), ("LoRA", "estimate", "few-shot", "LoRA")]
    rows, cosines = match_rows(shifts, pairs, sites)
    table = Result.of(rows).table
    assert table.row_id.is_unique
    same = table[(table["item"] == "few-shot") & (table.metric == "match, same task")]
    np.testing.assert_allclose(same.value, 1)
    np.testing.assert_allclose(np.diagonal(cosines["few-shot"], axis1=1, axis2=2), 1)
    np.testing.assert_allclose(cosines["LoRA"], task_match(x, y).centred)
    null = table[(table.condition == "permuted tasks") & (table.layer == 2) & (table["item"] == "LoRA")]
    assert len(null) == 1
    assert abs(null.value.iloc[0]) < 0.1
    assert set(table[table.metric == "common share"].item) == {"few-shot", "LoRA"}


def test_what_one_half_of_the_queries_shares_with_itself_is_no_match():
    """Noise that both ways share query by query: a match of means over the same queries would be near 1."""
    noise = np.random.default_rng(3).normal(size=(8, 2, 1, WIDTH))
    rows, _ = match_rows({"few-shot": noise, "LoRA": noise}, [("LoRA", "estimate", "few-shot", "LoRA")], [Site("resid_post", 0)])
    table = Result.of(rows).table
    assert task_match(noise[:, 0], noise[:, 0]).same.min() == pytest.approx(1)
    assert abs(table[(table.metric == "match") & (table.condition == "estimate")].value.item()) < 0.3
    assert table[table.metric == "permutation p"].value.item() > 0.05


def test_sites_without_a_shift_are_left_out_and_no_others():
    x, y = planted(1.0)
    y[:, 0] = 0  # blocks below the first one that is fine-tuned
    y[:, 1] = y[2, 1]  # all tasks are the same there
    sites = [Site("resid_post", i) for i in range(3)]
    pairs = [("LoRA", "estimate", "few-shot", "LoRA"), ("few-shot", "estimate", "few-shot", "few-shot")]
    rows, cosines = match_rows({"few-shot": halves(x), "LoRA": halves(y)}, pairs, sites)
    table = Result.of(rows).table
    assert np.isfinite(table.value).all()
    assert directed(halves(y)).tolist() == [False, False, True]
    assert set(table[table["item"].eq("LoRA") & table.metric.eq("match")].layer) == {2}
    assert set(table[table["item"].eq("few-shot") & table.metric.eq("match")].layer) == {0, 1, 2}
    assert np.isnan(cosines["LoRA"][:2]).all()
    np.testing.assert_allclose(cosines["LoRA"][2], task_match(x[:, 2:], y[:, 2:]).centred[0])


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.ones((2, 1, 3)), np.ones((2, 1, 3)), "3 or more"),
        (np.ones((4, 1, 3)), np.ones((4, 1, 2)), "shapes"),
        (np.ones((4, 1, 3)), np.ones((4, 1, 3)), "no direction"),
        (np.full((4, 1, 3), np.nan), np.ones((4, 1, 3)), "finite"),
    ],
)
def test_what_cannot_be_matched_is_refused(x, y, words):
    with pytest.raises(UserError, match=words):
        task_match(x, y)
