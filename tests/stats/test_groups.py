import numpy as np
import pytest
from scipy.stats import mannwhitneyu, rankdata, spearmanr
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from repscope.errors import UserError
from repscope.stats.clustering import UNIFORM, bimodality
from repscope.stats.groups import rank_correlations, ranks, separation, separation_given
from repscope.stats.permutation import spearman


def test_separation_is_the_auc_and_its_slow_twin():
    rng = np.random.default_rng(0)
    x, labels = np.round(rng.normal(size=20), 1), np.arange(20) % 3 == 0
    told = separation(x, labels, draws=200)
    assert told.auc == pytest.approx(roc_auc_score(labels, x))
    assert told.p == pytest.approx(mannwhitneyu(x[labels], x[~labels]).pvalue)
    assert (told.mean_a, told.mean_b) == (pytest.approx(x[labels].mean()), pytest.approx(x[~labels].mean()))
    assert (told.n, told.n_a) == (20, 7)
    rng, drawn = np.random.default_rng(0), []
    no, yes = (rng.multinomial(m, np.full(m, 1 / m), size=200) for m in (13, 7))
    for a, b in zip(yes, no, strict=True):
        top, bottom = np.repeat(x[labels], a), np.repeat(x[~labels], b)
        drawn.append(roc_auc_score([1] * 7 + [0] * 13, np.r_[top, bottom]))
    np.testing.assert_allclose([told.lo, told.hi], np.quantile(drawn, [0.025, 0.975]))


def test_separation_turns_only_when_asked():
    x, labels = [5.0, 6, 7, 1, 2, 5.5], [0, 0, 0, 1, 1, 1]
    as_is, turned = separation(x, labels), separation(x, labels, oriented=True)
    assert as_is.auc == pytest.approx(1 / 9)
    assert turned.auc == pytest.approx(8 / 9)
    assert (turned.lo, turned.hi) == (pytest.approx(1 - as_is.hi), pytest.approx(1 - as_is.lo))
    assert turned.mean_a == as_is.mean_a < as_is.mean_b
    assert separation(x, ["small"] * 3 + ["tall"] * 3).auc == as_is.auc


@pytest.mark.parametrize("within", [False, True])
def test_separation_given_is_its_slow_twin(within):
    rng = np.random.default_rng(1)
    labels = np.arange(20) % 3 == 0
    x = rng.normal(size=20) + labels
    y = x + rng.normal(size=20) + labels

    def left(runs):
        u, v, kind = x[runs], y[runs], labels[runs]
        columns = [u, kind, ~kind] if within else [u, np.ones_like(u)]
        slope = np.linalg.lstsq(np.stack(columns, axis=1).astype(float), v, rcond=None)[0][0]
        return roc_auc_score(kind, v - slope * u)

    told = separation_given(y, labels, x, within=within, draws=150)
    assert told.value == pytest.approx(left(np.arange(20)))
    rng, counts = np.random.default_rng(0), np.zeros((150, 20), dtype=int)
    counts[:, ~labels] = rng.multinomial(13, np.full(13, 1 / 13), size=150)
    counts[:, labels] = rng.multinomial(7, np.full(7, 1 / 7), size=150)
    drawn = [left(np.repeat(np.arange(20), row)) for row in counts]
    np.testing.assert_allclose([told.lo, told.hi], np.quantile(drawn, [0.025, 0.975]))
    assert separation_given(y, labels, np.ones(20), within=within).value == separation(y, labels).auc


def test_a_score_that_only_follows_another_separates_nothing_beyond_it():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 40)
    x = rng.normal(size=80) + 3 * labels
    follows, more = x + rng.normal(size=80), x + rng.normal(size=80) + 3 * labels
    assert separation(follows, labels).lo > 0.9
    for within in (False, True):
        told = separation_given(follows, labels, x, within=within)
        assert told.lo < 0.5 < told.hi
        assert separation_given(more, labels, x, within=within).lo > 0.5


@pytest.mark.parametrize("flip", [1, -1])
def test_groups_that_do_not_overlap_have_an_interval_with_a_width(flip):
    told = separation(flip * np.arange(24.0), np.arange(24) >= 12)
    assert told.method.startswith("score")
    assert told.auc == (flip > 0)
    assert (told.lo, told.hi) == (pytest.approx(0.832, abs=1e-3), 1) if flip > 0 else (0, pytest.approx(0.168, abs=1e-3))
    one = separation([1.0, 2, 3, 4, 2.5], [0, 0, 0, 0, 1])
    assert one.method.startswith("score")
    assert one.lo < one.auc < one.hi


def test_both_intervals_cover():
    rng, hits = np.random.default_rng(0), {"bootstrap": 0, "score": 0}
    from repscope.stats.groups import _score_interval

    for _ in range(200):
        x, labels = rng.normal(size=30) + np.repeat([0, 1.0], 15), np.repeat([0, 1], 15)
        told, truth = separation(x, labels, draws=300), 0.7602  # Φ(1/√2)
        hits["bootstrap"] += told.lo <= truth <= told.hi
        lo, hi = _score_interval(told.auc, 15, 15)
        hits["score"] += lo <= truth <= hi
    assert min(hits.values()) > 178  # .95 of 200 less three standard errors


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=30), 1)
    y = x + rng.normal(size=30)
    told = spearman(x, y)
    assert told.rho == pytest.approx(spearmanr(x, y)[0])
    assert told.lo < told.rho < told.hi
    assert told.p < 0.01
    assert spearman(x, -y).p == pytest.approx(told.p, abs=0.005)  # two-sided
    flat = spearman(x, np.ones(30))
    assert np.isnan(flat.rho)
    assert flat.p == 1


def test_ranks_in_a_draw_are_ranks_of_the_items_drawn():
    rng = np.random.default_rng(0)
    x, y = np.round(rng.normal(size=(2, 12)), 0)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=5)
    weights = np.concatenate([weights, [[12] + [0] * 11]])
    told = rank_correlations([x, y], weights)
    for row, w, r in zip(ranks(x, weights.astype(float)), weights, told, strict=True):
        items = np.repeat(np.arange(12), w)
        np.testing.assert_allclose(row[items] + 0.5, rankdata(x[items]))
        if len(set(items)) > 1:
            assert r == pytest.approx(spearmanr(x[items], y[items])[0])
    assert np.isnan(told[-1])  # one item, drawn twelve times


def test_one_heap_and_two():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=100), np.r_[rng.normal(size=50), 6 + rng.normal(size=50)]
    heap, heaps = bimodality(one), bimodality(two)
    assert (heap.modes, heap.peaks, heaps.modes, heaps.peaks) == (1, 1, 2, 2)
    assert heap.sarle < UNIFORM < heaps.sarle
    assert bimodality(np.linspace(0, 1, 20_001)).sarle == pytest.approx(UNIFORM, abs=1e-3)
    skewed = bimodality(rng.exponential(size=200))
    assert (skewed.modes, skewed.peaks) == (2, 1)  # two components are not two modes
    for k, bic in ((1, heaps.bic_1), (2, heaps.bic_2)):
        fit = GaussianMixture(k, n_init=5, random_state=0).fit(two[:, None])
        assert bic == pytest.approx(fit.bic(two[:, None]), abs=0.1)


def test_bic_differences_do_not_depend_on_the_unit():
    x = np.r_[np.linspace(0.839, 0.840, 10), np.linspace(0.844, 0.845, 10)]
    small, large = bimodality(x), bimodality(1000 * x)
    assert small.bic_1 - small.bic_2 == pytest.approx(large.bic_1 - large.bic_2)
    assert small.bic_1 + 2 * 20 * np.log(1000) == pytest.approx(large.bic_1)
    assert small.modes == large.modes == 2


def test_equal_scores_are_one_heap():
    told = bimodality([0.5] * 10)
    assert told.modes == told.peaks == 1
    assert np.isnan(told.sarle)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: separation([1.0, np.nan, 2], [0, 1, 1]), "score of run 1 is nan"),
        (lambda: separation([1.0, 2, 3], [0, 0, 0]), "labels name 1 groups of runs; a separation needs two"),
        (lambda: separation([1.0, 2, 3], [0, 1, 2]), "labels name 3"),
        (lambda: separation([1.0, 2, 3], [0, 1]), "one label per run"),
        (lambda: separation([1.0], [0]), "at least 2 runs"),
        (lambda: separation_given([1.0, 2, 3], [0, 1, 1], [1.0, 2]), "3 values of one score and 2 of the other"),
        (lambda: bimodality([1.0, 2, 3]), "at least 4 runs"),
        (lambda: spearman([1.0, 2, 3, 4], [1.0, 2, 3, 4, 5]), "4 scores of one kind and 5"),
    ],
)
def test_mistakes_are_told(call, says):
    with pytest.raises(UserError, match=says):
        call()
