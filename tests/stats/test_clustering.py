import time

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr
from sklearn.metrics import adjusted_rand_score

from repscope.errors import UserError
from repscope.stats.clustering import agreement, average_linkage, double_centred, sensitivity, spectral
from repscope.stats.distances import checked, triangle, upper
from repscope.stats.permutation import across_within, across_within_null, mantel


def symmetric(n, rng):
    m = np.abs(rng.normal(size=(n, n)))
    m = m + m.T
    np.fill_diagonal(m, 0)
    return m


def blocks(sizes, within=0.1, across=1.0, noise=0.02, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    d = np.where(labels[:, None] == labels, within, across) + noise * symmetric(len(labels), np.random.default_rng(seed))
    np.fill_diagonal(d, 0)
    return d, labels


def with_quality(seed=0, sizes=(12, 12), step=0.05):
    """Blocks under a run's own effect that is far larger than the step between them: what the pilot met."""
    rng = np.random.default_rng(seed)
    d, labels = blocks(sizes, within=0.02, across=0.02 + step, noise=0.002, seed=seed)
    quality = rng.exponential(0.3, len(labels))
    d = d + quality[:, None] + quality
    np.fill_diagonal(d, 0)
    return d, labels


@pytest.mark.parametrize("cluster", [spectral, average_linkage])
def test_blocks_are_found_and_numbered_by_size(cluster):
    d, labels = blocks((5, 9))
    kept = d.copy()
    found = cluster(d)
    assert (found == 1 - labels).all()  # 0 is the block of nine
    assert (d == kept).all()
    order = np.random.default_rng(1).permutation(14)
    assert (cluster(d[np.ix_(order, order)]) == found[order]).all()
    three, truth = blocks((4, 5, 6))
    assert adjusted_rand_score(cluster(three, clusters=3), truth) == 1


def test_medians_go_with_the_unit_and_the_published_scale_does_not():
    d, labels = blocks((12, 12), within=0.03, across=0.05, noise=0.02, seed=1)
    at = {s.name: s for s in sensitivity(d)}
    middle = at["median"].labels
    assert list(at) == ["¼ median", "½ median", "median", "2 medians", "4 medians", "published"]
    assert agreement(middle, labels).ari == 1
    assert agreement(middle, labels).p < 0.001
    assert at["¼ median"].scale == pytest.approx(np.median(upper(d)) / 4)
    assert at["published"].scale == 1.0
    large = spectral(d, scale=1000 * at["median"].scale)
    assert (at["published"].labels == large).all()
    assert agreement(at["published"].labels, labels).ari < 1
    for s, t in zip(sensitivity(d)[:5], sensitivity(1000 * d)[:5], strict=True):
        assert (s.labels == t.labels).all()
    assert (spectral(100 * d, scale=1.0) != large).any()


@pytest.mark.parametrize("seed", range(3))
def test_double_centring_takes_a_runs_own_effect_off(seed):
    d, labels = with_quality(seed)
    assert adjusted_rand_score(average_linkage(d), labels) < 0.2
    assert adjusted_rand_score(spectral(d), labels) < 0.5
    left = double_centred(d)
    assert adjusted_rand_score(average_linkage(left), labels) == 1
    np.testing.assert_allclose(left.sum(axis=1), 0, atol=1e-12)
    quality = np.random.default_rng(9).normal(size=len(d))
    moved = d + quality[:, None] + quality + 2 * np.abs(quality).max()
    np.fill_diagonal(moved, 0)
    np.testing.assert_allclose(double_centred(moved), left, atol=1e-12)


def test_double_centring_is_the_least_squares_fit():
    d = symmetric(7, np.random.default_rng(0))
    i, j = np.triu_indices(7, 1)
    design = np.zeros((i.size, 7))
    design[np.arange(i.size), i] = design[np.arange(i.size), j] = 1
    own = np.linalg.lstsq(design, upper(d), rcond=None)[0]
    np.testing.assert_allclose(upper(double_centred(d)), upper(d) - design @ own, atol=1e-12)


def test_two_odd_runs_are_a_cluster_and_one_is_its_own_effect():
    d, labels = blocks((2, 20), noise=0.0)
    assert (average_linkage(double_centred(d)) == 1 - labels).all()
    alone = double_centred(blocks((1, 20), noise=0.0)[0])
    assert (alone == 0).all()
    assert (average_linkage(alone) == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.37])
def test_equal_distances_are_one_cluster(value):
    d = np.full((6, 6), value)
    np.fill_diagonal(d, 0)
    assert (spectral(d) == 0).all()
    assert (average_linkage(d) == 0).all()
    assert all(agreement(s.labels, [0, 0, 0, 1, 1, 1]).ari == 0 for s in sensitivity(d))
    assert len({s.labels.tobytes() for s in sensitivity(d)}) == 1
    told = mantel(d, symmetric(6, np.random.default_rng(0)))
    assert np.isnan(told.rho)
    assert told.p == 1
    assert triangle(d).violations == 0


def test_a_median_of_zero_and_far_runs_still_make_clusters():
    d = np.zeros((10, 10))
    d[:9, 9] = d[9, :9] = 1.0  # 36 of 45 pairs at 0
    assert spectral(d).tolist() == [0] * 9 + [1]
    far, labels = blocks((6, 6), within=1e-3, across=1e3, noise=0.0)
    assert (spectral(far, scale=1.0) == labels).all()  # all similarities across are 0 in floating point


def _slow_mantel(a, b, given, permutations, seed):
    def rho(x, y, z=None):
        if z is None:
            return spearmanr(x, y)[0]
        ab, ac, bc = spearmanr(x, y)[0], spearmanr(x, z)[0], spearmanr(y, z)[0]
        return (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))

    n = len(a)
    i, j = np.triu_indices(n, 1)
    pairs = [m[i, j] for m in (a, b, given) if m is not None]
    observed, rng = rho(*pairs), np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    from scipy.stats import rankdata

    ranked = [rankdata(v) - rankdata(v).mean() for v in pairs]
    first, second = ranked[:2]
    if given is not None:
        first, second = (v - (v @ ranked[2]) / (ranked[2] @ ranked[2]) * ranked[2] for v in ranked[:2])
    square = np.zeros((n, n))
    square[i, j] = square[j, i] = first
    beyond = 0
    for order in orders:
        moved = square[np.ix_(order, order)][i, j]
        if given is not None:
            moved = moved - (moved @ ranked[2]) / (ranked[2] @ ranked[2]) * ranked[2]
        beyond += np.corrcoef(moved, second)[0, 1] >= observed - 1e-9
    drawn = []
    for counts in rng.multinomial(n, np.full(n, 1 / n), size=permutations):
        runs = np.repeat(np.arange(n), counts)
        x, y = np.triu_indices(n, 1)
        other = runs[x] != runs[y]
        cells = (runs[x][other], runs[y][other])
        drawn.append(rho(*[m[cells] for m in (a, b, given) if m is not None]))
    return observed, (1 + beyond) / (1 + permutations), *np.nanquantile(drawn, [0.025, 0.975])


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_mantel_is_its_slow_twin(partial, ties):
    rng = np.random.default_rng(3)
    a, b, c = (symmetric(9, rng) for _ in range(3))
    b, c = b + 0.5 * a, c + 0.5 * a
    if ties:
        a, b, c = (np.round(m) for m in (a, b, c))
    given = c if partial else None
    fast = mantel(a, b, given, permutations=150, seed=4, draws=150)
    slow = _slow_mantel(a, b, given, 150, 4)
    np.testing.assert_allclose([fast.rho, fast.p, fast.lo, fast.hi], slow, atol=1e-9)
    assert (fast.n, fast.permutations) == (9, 150)


def test_mantel_p_is_uniform_where_there_is_nothing():
    rng = np.random.default_rng(0)
    plain, partial, both = [], [], []
    for _ in range(150):
        scores = rng.normal(size=(3, 12))  # each matrix of a score: pairs depend on each other, as those of runs do
        a, b, c = (np.abs(s[:, None] - s) for s in scores)
        plain.append(mantel(a, b, permutations=199, draws=10).p)
        partial.append(mantel(a + c, b, c, permutations=199, draws=10).p)
        both.append(mantel(a + c, b + c, c, permutations=199, draws=10).p)
    for found in (plain, partial):
        assert kstest(found, "uniform").pvalue > 0.01
        assert np.mean(np.array(found) <= 0.05) < 0.11
    assert np.mean(np.array(both) <= 0.05) < 0.15  # ranks leave a little of the third; without it nearly all are


def test_mantel_finds_what_is_planted_and_a_third_matrix_takes_it_away():
    rng = np.random.default_rng(1)
    behaviour, quality = rng.normal(size=(2, 24))
    gap, worse = np.abs(behaviour[:, None] - behaviour), np.abs(quality[:, None] - quality)
    planted = mantel(gap + 0.3 * symmetric(24, rng), gap)
    assert planted.p < 0.001
    assert 0 < planted.lo < planted.rho < planted.hi <= 1
    assert planted.estimate.n == 24
    by_quality, too = worse + 0.2 * symmetric(24, rng), worse + 0.2 * symmetric(24, rng)
    assert mantel(by_quality, too).p < 0.001
    assert mantel(by_quality, too, worse).p > 0.05
    itself = mantel(by_quality, too, by_quality)
    assert np.isnan(itself.rho)
    assert itself.p == 1


def test_mantel_of_24_runs_is_quick():
    a, b = (symmetric(24, np.random.default_rng(s)) for s in (0, 1))
    began = time.process_time()
    mantel(a, b, symmetric(24, np.random.default_rng(2)))
    assert time.process_time() - began < 1.5


def test_across_within_and_its_slow_twin():
    d, labels = blocks((4, 5))
    told = across_within(d, labels, draws=300)
    same = (labels[:, None] == labels)[np.triu_indices(9, 1)]
    assert told.value == pytest.approx(upper(d)[~same].mean() / upper(d)[same].mean())
    assert told.method == "bootstrap within groups"
    assert told.n == 9
    rng, counts = np.random.default_rng(0), np.zeros((300, 9), dtype=int)
    counts[:, :4] = rng.multinomial(4, [0.25] * 4, size=300)
    counts[:, 4:] = rng.multinomial(5, [0.2] * 5, size=300)
    drawn = []
    for row in counts:
        runs = np.repeat(np.arange(9), row)
        pairs = [(i, j) for k, i in enumerate(runs) for j in runs[:k] if i != j]
        kinds = [[d[p] for p in pairs if (labels[p[0]] == labels[p[1]]) == kind] for kind in (False, True)]
        drawn.append(np.mean(kinds[0]) / np.mean(kinds[1]))
    np.testing.assert_allclose([told.lo, told.hi], np.quantile(drawn, [0.025, 0.975]))
    noise = across_within(symmetric(20, np.random.default_rng(5)), np.arange(20) % 2)
    assert noise.lo < 1 < noise.hi
    none = across_within(np.where(labels[:, None] == labels, 0.0, 1.0), labels)
    assert np.isnan(none.value)


def test_the_null_of_across_within_is_that_of_permuted_labels():
    d = symmetric(8, np.random.default_rng(5))
    labels = np.repeat([0, 1], 4)
    found = across_within_null(d, labels, 200, np.random.default_rng(6))
    again = np.random.default_rng(6)
    drawn = [across_within(d, again.permutation(labels), draws=1).value for _ in range(200)]
    assert found.value == pytest.approx(np.mean(drawn))
    assert (found.lo, found.hi) == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    assert (found.unit, found.n, found.method) == ("shuffle", 200, "draws")
    assert across_within_null(np.zeros((8, 8)), labels, 3, again) is None


def test_agreement_is_rands_and_its_p_counts_permutations():
    a, b = np.repeat([0, 1], 6), np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0])
    told = agreement(a, b, permutations=400, seed=2)
    assert told.ari == pytest.approx(adjusted_rand_score(a, b))
    orders = np.random.default_rng(2).permuted(np.tile(np.arange(12), (400, 1)), axis=1)
    beyond = sum(adjusted_rand_score(a, b[o]) >= told.ari - 1e-12 for o in orders)
    assert told.p == (1 + beyond) / 401
    assert agreement(a, ["x"] * 6 + ["y"] * 6).ari == 1
    assert agreement(a, [0] * 12).p == 1


def test_triangle_is_its_slow_twin():
    assert triangle(np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))).violations == 0
    d = symmetric(6, np.random.default_rng(0)) ** 3
    over = [d[i, k] - d[i, j] - d[j, k] for i in range(6) for j in range(6) for k in range(6) if len({i, j, k}) == 3]
    told = triangle(d)
    assert told.n == len(over) == 120
    assert told.violations == np.mean(np.array(over) > 0) > 0
    assert told.largest == pytest.approx(max(over))


GOOD = blocks((3, 3))[0]


def spoilt(i, j, value, both=True):
    d = GOOD.copy()
    d[i, j] = value
    if both:
        d[j, i] = value
    return d


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.zeros((3, 4)), "shape"),
        (np.zeros((3, 3)), "3 runs; at least 4"),
        (np.zeros(5), "shape"),
        (spoilt(1, 2, np.nan), "runs 1 and 2 are not a finite number"),
        (spoilt(0, 5, np.inf), "runs 0 and 5 are not a finite number"),
        (spoilt(2, 4, 9.0, both=False), "runs 2 and 4 are not the same in both orders"),
        (spoilt(3, 3, 0.5), "runs 3 and 3 are not 0"),
        (spoilt(0, 1, -0.5), "runs 0 and 1 are negative"),
        (np.full((5, 5), np.nan), "not a finite number"),
    ],
)
def test_what_is_no_matrix_of_distances(matrix, says):
    with pytest.raises(UserError, match=says):
        checked(matrix)
    with pytest.raises(UserError, match=says):
        spectral(matrix)


def test_small_asymmetry_is_rounding_and_signed_matrices_are_taken_where_they_may_be():
    d = spoilt(0, 1, GOOD[0, 1] * (1 + 1e-7), both=False)
    assert (checked(d) == checked(d).T).all()
    assert (checked(spoilt(0, 1, -0.5), signed=True)[0, 1]) == -0.5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: spectral(GOOD, clusters=6), "ask for 2 to 5"),
        (lambda: average_linkage(GOOD, clusters=1), "ask for 2 to 5"),
        (lambda: spectral(GOOD, scale=0.0), "above 0"),
        (lambda: mantel(GOOD, blocks((3, 4))[0]), "6 and 7 runs"),
        (lambda: across_within(GOOD, [0] * 6), "6 runs in 1 groups"),
        (lambda: across_within(GOOD, range(6)), "6 runs in 6 groups"),
        (lambda: across_within(GOOD, [0, 1]), "one label per run"),
        (lambda: agreement([0, 1], [0, 1, 1]), "one label per run"),
    ],
)
def test_mistakes_are_told(call, says):
    with pytest.raises(UserError, match=says):
        call()
