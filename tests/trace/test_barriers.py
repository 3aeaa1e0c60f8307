"""Barriers by their names, the convexity gap, and curves between stacked networks, against brute force."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import stack, unstack
from repscope.trace.barriers import HEIGHTS, barrier, convexity_gap, height
from repscope.trace.interpolation import all_pairs, curves
from repscope.worlds.hans import classifier, fine_tuning

LINES = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(3, 9)), elements=st.floats(0, 10))
WORLD = fine_tuning.World(width=16)


def chord_by_hand(curve):
    n = len(curve)
    return max(0.0, *(curve[i] - ((n - 1 - i) * curve[0] + i * curve[-1]) / (n - 1) for i in range(n)))


@settings(max_examples=60, deadline=None)
@given(LINES)
def test_barriers_and_gap_are_those_by_hand(lines):
    for i, curve in enumerate(lines):
        n = len(curve)
        parts = [curve[a:b] for a in range(n) for b in range(a + 2, n + 1)]
        assert barrier(lines, definition="chord")[i] == pytest.approx(chord_by_hand(curve), abs=1e-9)
        assert convexity_gap(lines)[i] == pytest.approx(max(chord_by_hand(p) for p in parts), abs=1e-9)
        assert barrier(lines, definition="larger endpoint")[i] == pytest.approx(max(curve) - max(curve[0], curve[-1]))
        assert barrier(lines, definition="mean endpoint")[i] == pytest.approx(max(curve) - (curve[0] + curve[-1]) / 2)


@settings(max_examples=60, deadline=None)
@given(LINES, st.floats(-3, 3), st.floats(-3, 3))
def test_the_gap_is_at_least_the_barrier_and_ignores_straight_lines(lines, slope, shift):
    gap, whole = convexity_gap(lines), barrier(lines, definition="chord")
    assert (gap >= whole).all()
    tilted = lines + shift + slope * np.linspace(0, 1, lines.shape[-1])
    np.testing.assert_allclose(convexity_gap(tilted), gap, atol=1e-9)
    np.testing.assert_allclose(convexity_gap(lines[:, ::-1]), gap, atol=1e-9)


def test_definitions_agree_where_the_ends_do_and_only_there():
    level, sloped = np.array([1.0, 3.0, 1.0]), np.array([1.0, 3.0, 2.0])
    assert len({float(barrier(level, definition=d)) for d in HEIGHTS[:3]}) == 1
    assert [float(barrier(sloped, definition=d)) for d in HEIGHTS[:3]] == [1.5, 1.0, 1.5]
    assert barrier(np.array([0.0, 0.0, 3.0, 4.0]), definition="larger endpoint") == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: barrier(np.zeros(2), definition="chord"), "2 points has no inside"),
        (lambda: barrier(np.zeros(5), definition="height"), "definition of a barrier 'height'"),
        (lambda: height(np.zeros(5), "gap"), "definition of a barrier 'gap'"),
        (lambda: curves(networks(1), lambda s: {}), "1 runs and 0 pairs"),
        (lambda: curves(networks(2), lambda s: {}, points=2), "2 points has no inside"),
        (lambda: curves(networks(2), lambda s: {}, [(0, 2)]), "names run 2, and there are 2"),
    ],
)
def test_mistakes_are_told(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong()


def test_a_barrier_has_no_default():
    with pytest.raises(TypeError):
        barrier(np.zeros(5))


def networks(runs, seed=0):
    g = torch.Generator().manual_seed(seed)
    states = [classifier.random_weights(WORLD.shape(), i) for i in range(runs)]
    return stack({k: v + 0.2 * torch.randn(v.shape, generator=g) for k, v in s.items()} for s in states)


def test_curves_are_those_of_one_network_at_a_time():
    state, evaluate = networks(5), fine_tuning.evaluator(WORLD, 0, ambiguous=40, permuted=20)
    found = curves(state, evaluate, points=6)
    assert found.pairs.tolist() == all_pairs(5).tolist()
    rng = np.random.default_rng([13, 0])
    ids, labels = (torch.from_numpy(a) for a in WORLD.task.ambiguous(rng, 40))
    permuted = torch.from_numpy(WORLD.task.permuted(rng, 20)[0])
    for row, (i, j) in enumerate(found.pairs):
        for col, alpha in enumerate(found.alphas):
            a, b = unstack(state, i), unstack(state, j)
            net = classifier.as_module(WORLD.shape(), {k: (1 - alpha) * a[k] + alpha * b[k] for k in a})
            with torch.no_grad():
                assert found.losses["loss"][row, col] == pytest.approx(float(functional.cross_entropy(net(ids), labels)), abs=1e-5)
                wrong = float((net(permuted).argmax(-1) != 0).double().mean())
            assert found.losses["ood error"][row, col] == pytest.approx(wrong, abs=1e-9)


def test_a_matrix_is_symmetric_and_knows_where_there_is_no_line():
    found = curves(networks(4), fine_tuning.evaluator(WORLD, 0, 30, 10), [(0, 1), (3, 1)], points=4)
    matrix = found.matrix("loss", "convexity gap")
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.isnan(matrix[0, 2])
    assert matrix[1, 3] == convexity_gap(found.losses["loss"])[1]
    assert np.isnan(found.ends("loss")).tolist() == [False, False, True, False]
    with pytest.raises(UserError, match="did you mean 'loss'"):
        found.matrix("los", "chord")


def test_a_run_trained_among_others_is_the_run_trained_alone():
    base = fine_tuning.pretrain(WORLD, [0, 1], [0])[0]
    runs = fine_tuning.run_plan(["rule", "lexical overlap", "none"], [0, 1, 0])
    tuning = fine_tuning.FineTuning(fine_tuning.Schedule(12, 4e-3), early_bias=6, batch=8)
    together = fine_tuning.training_run(WORLD, base, runs, tuning)
    list(together.until([12]))
    for i in range(len(runs)):
        alone = fine_tuning.training_run(WORLD, base, runs.iloc[i : i + 1], tuning)
        list(alone.until([12]))
        np.testing.assert_allclose(np.array(together.losses)[:, i], np.array(alone.losses)[:, 0], atol=1e-4)


def test_in_float64_many_steps_agree_to_the_last_digits():
    base = {k: v.double() for k, v in fine_tuning.pretrain(WORLD, [0], [5])[5].items()}
    runs = fine_tuning.run_plan(["rule", "lexical overlap"])
    tuning = fine_tuning.FineTuning(fine_tuning.Schedule(40, 4e-3), early_bias=20, batch=8)
    together = fine_tuning.training_run(WORLD, base, runs, tuning)
    list(together.until([40]))
    for i in range(2):
        alone = fine_tuning.training_run(WORLD, base, runs.iloc[i : i + 1], tuning)
        list(alone.until([40]))
        np.testing.assert_allclose(np.array(together.losses)[:, i], np.array(alone.losses)[:, 0], atol=1e-10)


def test_a_kept_descent_goes_on_where_it_was(tmp_path):
    base = fine_tuning.pretrain(WORLD, [0], [3])[3]
    runs = fine_tuning.run_plan(["rule", "none"])
    tuning = fine_tuning.FineTuning(fine_tuning.Schedule(10, 4e-3), early_bias=6, batch=8)
    whole = dict(fine_tuning.training_run(WORLD, base, runs, tuning).until([4, 10]))
    first = fine_tuning.training_run(WORLD, base, runs, tuning)
    list(first.until([5]))
    again = fine_tuning.training_run(WORLD, base, runs, tuning)
    again.load(first.save(tmp_path / "kept.safetensors"))
    assert again.step == 5
    rest = dict(again.until([4, 10]))
    assert list(rest) == [10]
    assert all(torch.equal(value, whole[10][name]) for name, value in rest[10].items())
    other = fine_tuning.training_run(WORLD, base, runs.iloc[:1], tuning)
    with pytest.raises(UserError, match="of other sizes"):
        other.load(tmp_path / "kept.safetensors")
    (tmp_path / "cut").write_bytes(b"no")
    with pytest.raises(UserError, match="contains no training state"):
        other.load(tmp_path / "cut")


@pytest.mark.parametrize(
    ("wrong", "says"), [({"group": "rul"}, "did you mean 'rule'"), ({"init": 3}, "starts from network 3, and 1 are pretrained")]
)
def test_runs_that_cannot_be_are_told(wrong, says):
    base = fine_tuning.pretrain(WORLD, [0], [0])[0]
    with pytest.raises(UserError, match=says):
        fine_tuning.training_run(
            WORLD,
            base,
            pd.DataFrame([{"init": 0, "group": "rule", "head_seed": 0, "data_seed": 0} | wrong]),
            fine_tuning.FineTuning(),
        )


def test_a_fork_beyond_the_pretraining_is_told():
    with pytest.raises(UserError, match="Pretraining has 1200 steps"):
        fine_tuning.pretrain(WORLD, [0], [1300])
