"""CKA, Procrustes and RSA: identities, invariances, brute force in float64, and the mistakes of public implementations."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from repscope.align import CKAAccumulator, ProcrustesFit, angle, distance, procrustes, rdm, rsa, unbiased_cka
from repscope.align.cka import KEPT
from repscope.align.rows import slices
from repscope.errors import UserError


def rows(n=40, d=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def rotation(d, seed=1):
    return np.linalg.qr(rows(d, d, seed))[0]


def hsic_by_tuples(x, y):
    """HSIC₁ as the mean over ordered 4-tuples of different rows of K_ij (L_ij + L_kl - 2 L_ik) (Gretton et al. 2005)."""
    k, el = x @ x.T, y @ y.T
    found = [k[i, j] * (el[i, j] + el[a, b] - 2 * el[i, a]) for i, j, a, b in itertools.permutations(range(len(x)), 4)]
    return float(np.mean(found))


def cka_by_formula(pairs, biased=False):
    """Song et al.'s formula, written as it stands, over batches."""
    sums = np.zeros(3)
    for x, y in pairs:
        n, grams = len(x), []
        for side in (x, y):
            gram = side @ side.T
            np.fill_diagonal(gram, 0)
            grams.append(gram)
        one = np.ones(n)
        for s, (k, el) in enumerate((grams, (grams[0],) * 2, (grams[1],) * 2)):
            terms = np.trace(k @ el) + (one @ k @ one) * (one @ el @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ el @ one
            sums[s] += terms / (n * (n - 3))
    return sums[0] / np.sqrt(sums[1] * sums[2])


def biased_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


# ---- CKA


@settings(max_examples=10)
@given(st.integers(4, 7), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_cka_is_that_of_hsics_over_all_4_tuples(n, d, e, seed):
    x, y = rows(n, d, seed) + 3, rows(n, e, seed + 100) - 1
    y[:, 0] += x[:, 0]
    expected = hsic_by_tuples(x, y) / np.sqrt(hsic_by_tuples(x, x) * hsic_by_tuples(y, y))
    assert unbiased_cka(x, y) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_all_pairs_of_layers_over_batches_are_those_of_the_formula(kind):
    rng, found, seen = np.random.default_rng(0), CKAAccumulator(), []
    for n in (30, 31, 30):
        z = rng.standard_normal((n, 5))
        x = [(z @ rng.standard_normal((5, d)) + rng.standard_normal((n, d)) + 50).astype(kind) for d in (9, 40, 3)]
        y = [(z @ rng.standard_normal((5, d)) - 4).astype(kind) for d in (7, 20)]
        found.update(x, y)
        seen.append((x, y))
    expected = [[cka_by_formula([(x[i].astype(float), y[j].astype(float)) for x, y in seen]) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(found.matrix(), expected, atol=2e-6 if kind is np.float32 else 1e-10)
    estimate = found.estimate(1, 0)
    assert estimate.value == pytest.approx(found.matrix()[1, 0])
    assert estimate.lo <= estimate.value <= estimate.hi
    assert (estimate.n, estimate.unit) == (3, "batch")


@settings(max_examples=20)
@given(st.integers(0, 99), st.floats(-130, 30))
def test_cka_of_itself_is_one_whatever_the_scale(seed, power):
    x = rows(20, 5, seed)
    assert unbiased_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert unbiased_cka(x, 10.0**power * x) == pytest.approx(1, abs=1e-9)
    assert unbiased_cka(x.astype(np.float32), (x * 1e-30).astype(np.float32)) == pytest.approx(1, abs=1e-5)


def test_cka_ignores_rotation_shift_and_the_order_of_rows_and_not_a_linear_map():
    x, y = rows(60, 6), rows(60, 4, 5) + rows(60, 6)[:, :4]
    base, order = unbiased_cka(x, y), np.random.default_rng(2).permutation(60)
    assert unbiased_cka(x @ rotation(6) + 1e3, y) == pytest.approx(base, abs=1e-8)
    assert unbiased_cka(x[order], y[order]) == pytest.approx(base)
    assert unbiased_cka(y, x) == pytest.approx(base)
    assert abs(unbiased_cka(x * np.array([9, 1, 1, 1, 1, 1]), y) - base) > 0.05
    assert abs(unbiased_cka(x, y[order])) < base / 2


def test_independent_rows_give_zero_on_average_and_the_biased_estimator_does_not():
    """Labelled unbiased, was biased: MONAI #9129."""
    pairs = [(rows(32, 64, s), rows(32, 64, 1000 + s)) for s in range(60)]
    ours = np.array([unbiased_cka(*p) for p in pairs])
    assert abs(ours.mean()) < 4 * ours.std() / np.sqrt(len(ours))
    assert ours.min() < 0
    assert np.mean([biased_cka(*p) for p in pairs]) > 0.5


def test_one_batch_is_the_full_estimate_and_many_are_near_it():
    z = rows(512, 4)
    x, y = z @ rows(4, 8, 1) + rows(512, 8, 2), z @ rows(4, 8, 3) + rows(512, 8, 4)
    full = cka_by_formula([(x, y)])
    assert unbiased_cka(x, y, batch=512) == pytest.approx(full, abs=1e-10)
    assert unbiased_cka(x, y, batch=32) == pytest.approx(full, abs=0.03)
    each = np.mean([cka_by_formula([(x[p], y[p])]) for p in slices(512, 8)])
    assert unbiased_cka(x, y, batch=8) != pytest.approx(each, abs=1e-4), "the HSICs are averaged, not the ratios"


def test_the_diagonal_is_removed_and_not_its_vector_broadcast():
    """`K - torch.diag(K)` subtracts a vector from every row (dmarx/cka_pytorch #2): self-HSICs turn negative and CKA is NaN."""
    x = rows(12, 3)
    wrong = x @ x.T - np.diag(x @ x.T)
    assert not np.allclose(wrong, (x @ x.T) * (1 - np.eye(12)))
    assert unbiased_cka(x, x) == pytest.approx(1)


def test_the_diagonal_over_many_batches_and_layers_is_one():
    """Divided by layers, not batches (simtorch #52); only the last batch counted (ckatorch 1.0.3)."""
    found, last = CKAAccumulator(), CKAAccumulator()
    for seed in range(5):
        x = [rows(16, 4, 10 * seed + i) for i in range(3)]
        y = [x[0] if seed < 4 else rows(16, 4, 77), *x[1:]]
        found.update(x, y)
    last.update(x, y)
    np.testing.assert_allclose(np.diag(found.matrix())[1:], 1, atol=1e-12)
    assert found.matrix()[0, 0] > 0.5 > abs(last.matrix()[0, 0])


def test_both_sides_of_a_batch_are_the_same_inputs():
    """A shuffled loader compares different inputs (torch-cka): then a network scores near 0 with itself. One call holds both."""
    x = rows(256, 5)
    order = np.random.default_rng(3).permutation(256)
    assert unbiased_cka(x, x[order], batch=64) < 0.1
    assert unbiased_cka(x[order], x[order], batch=64) == pytest.approx(1)


def test_self_pairs_of_one_network_equal_those_of_two_and_tensors_are_taken():
    layers = [rows(20, 4, s) for s in range(3)]
    one, two = CKAAccumulator(), CKAAccumulator()
    one.update([torch.from_numpy(x) for x in layers])
    two.update(layers, layers)
    np.testing.assert_allclose(one.matrix(), two.matrix(), atol=1e-12)
    half = torch.from_numpy(layers[0]).bfloat16()
    assert unbiased_cka(half, layers[0]) == pytest.approx(1, abs=1e-3)


def test_what_does_not_vary_has_no_cka_until_it_does():
    found = CKAAccumulator()
    found.update([np.ones((8, 3))], [rows(8, 3)])
    assert np.isnan(found.matrix()).all()
    assert np.isnan(found.estimate(0, 0).value)
    found.update([rows(8, 3, 1)], [rows(8, 3, 1)])
    assert np.isfinite(found.matrix()).all()


def test_memory_is_flat_in_batches():
    found = CKAAccumulator()
    for seed in range(2 * KEPT + 3):
        found.update([rows(8, 3, seed)])
    assert found.batches == 2 * KEPT + 3
    assert found.estimate(0, 0).n == KEPT
    assert found.matrix()[0, 0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: unbiased_cka(rows(3), rows(3)), "at least 4 rows"),
        (lambda: unbiased_cka(rows(8), rows(9)), "8 rows and the other 9"),
        (lambda: unbiased_cka(rows(20), rows(20), batch=3), "take larger batches"),
        (lambda: unbiased_cka(rows(9), rows(9), batch=5), None),
        (lambda: unbiased_cka(np.full((8, 2), np.nan), rows(8)), "layer 0 of the first network are not finite"),
        (lambda: unbiased_cka(np.array([["a"]]), rows(8)), "give numbers"),
        (lambda: CKAAccumulator().matrix(), "call update first"),
        (lambda: CKAAccumulator().update([]), "without a layer"),
    ],
)
def test_mistakes_are_told(wrong, says):
    if says is None:  # 5 and 4 rows: no remainder of one
        assert np.isfinite(wrong())
        return
    with pytest.raises(UserError, match=says):
        wrong()


def test_another_number_of_layers_is_refused():
    found = CKAAccumulator()
    found.update([rows(8)], [rows(8)])
    with pytest.raises(UserError, match="same layers in every batch"):
        found.update([rows(8), rows(8)], [rows(8)])


# ---- Procrustes


def test_procrustes_is_zero_for_rotated_scaled_shifted_copies_and_is_the_minimum():
    x, q = rows(50, 5), rotation(5)
    assert procrustes(x, 7 * x @ q + 3) == pytest.approx(0, abs=1e-6)
    y = rows(50, 5, 9) + x
    a, b = (v - v.mean(0) for v in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    ours = procrustes(x, y)
    fit = ProcrustesFit()
    fit.update(x, y)
    assert ours == pytest.approx(np.linalg.norm(a @ fit.rotation().matrix - b), abs=1e-4)
    assert all(np.linalg.norm(a @ rotation(5, s) - b) >= ours - 1e-9 for s in range(20))
    assert angle(fit.similarity()) == pytest.approx(np.arccos(1 - ours**2 / 2))


def test_a_fit_over_batches_is_that_over_all_rows():
    x, y = rows(60, 4) + 100, rows(60, 6, 3)
    fit = ProcrustesFit()
    for part in slices(60, 13):
        fit.update(x[part], y[part])
    assert distance(fit.similarity()) == pytest.approx(procrustes(x, y), abs=1e-9)
    np.testing.assert_allclose(fit.rotation().mean_x, x.mean(0))


def test_procrustes_distance_is_symmetric_and_a_metric():
    points = [rows(30, 4, s) for s in range(4)]
    d = np.array([[procrustes(a, b) for b in points] for a in points])
    np.testing.assert_allclose(d, d.T, atol=1e-7)
    assert all(d[i, k] <= d[i, j] + d[j, k] + 1e-9 for i, j, k in itertools.permutations(range(4), 3))


def test_held_out_rows_show_the_fit_of_noise():
    """With fewer rows than features a rotation fits independent rows; held-out rows give √2."""
    x, y, more = rows(20, 40), rows(20, 40, 1), (rows(400, 40, 2), rows(400, 40, 3))
    assert procrustes(x, y) < 0.8
    assert procrustes(x, y, held_out=more) == pytest.approx(np.sqrt(2), abs=0.1)


def test_what_the_fitted_rows_do_not_determine_stays_as_it_is():
    x, later = rows(10, 40), rows(30, 40, 1)
    assert procrustes(x, x, held_out=(later, later)) < 1e-3


def test_sums_of_held_out_batches_add_up_and_widths_are_checked():
    x, y = rows(50, 4), rows(50, 6, 2)
    fit = ProcrustesFit()
    fit.update(x[:30], y[:30])
    q = fit.rotation()
    np.testing.assert_allclose(q.sums(x[30:], y[30:]), q.sums(x[30:38], y[30:38]) + q.sums(x[38:], y[38:]))
    with pytest.raises(UserError, match="maps 4 features to 6"):
        q.sums(y, x)
    with pytest.raises(UserError, match="rows of one site"):
        fit.update(y, x)
    with pytest.raises(UserError, match="call update first"):
        ProcrustesFit().rotation()
    with pytest.raises(UserError, match="not finite"):
        ProcrustesFit().update(np.full((4, 2), np.inf), rows(4, 2))


# ---- RSA


def test_rsa_is_scipys_spearman_of_squared_distances():
    x, y = rows(15, 4), rows(15, 6, 1) + 0.5
    pairs = list(itertools.combinations(range(15), 2))
    a, b = ([((v[i] - v[j]) ** 2).sum() for i, j in pairs] for v in (x, y))
    np.testing.assert_allclose(rdm(x), np.divide(a, 4))  # per channel
    assert rsa(x, y) == pytest.approx(spearmanr(a, b).statistic)
    c = [1 - np.corrcoef(x[i], x[j])[0, 1] for i, j in pairs]
    np.testing.assert_allclose(rdm(x, "correlation"), c, atol=1e-12)


def test_rsa_ignores_rotation_scale_and_shift_and_is_near_zero_for_independent_rows():
    x = rows(30, 5)
    assert rsa(x, 1e-9 * x @ rotation(5) + 1e-9) == pytest.approx(1)
    found = [rsa(rows(30, 5, s), rows(30, 5, 500 + s)) for s in range(30)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(30)
    assert np.isnan(rsa(np.ones((5, 2)), rows(5)))


def test_equal_rows_have_a_distance_of_exactly_zero():
    x = np.repeat(rows(5, 7), 2, axis=0) + 1e3
    assert (rdm(x) == 0).sum() == 5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: rsa(rows(2), rows(2)), "at least 3 rows"),
        (lambda: rsa(rows(4), rows(5)), "4 rows and the other 5"),
        (lambda: rdm(rows(4), "cosine"), "no dissimilarity 'cosine'"),
        (lambda: rdm(np.ones((4, 3)), "correlation"), "Row 0 is constant"),
        (lambda: rdm(np.full((4, 3), np.inf)), "not finite"),
    ],
)
def test_mistakes_of_rsa_are_told(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong()
