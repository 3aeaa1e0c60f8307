"""Jacobians of low rank: equal to whole ones where the rank suffices, and a certificate that tells how far where it does not."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.linear.low_rank import LowRank, joint, most_rank
from repscope.worlds.tiny import byte_tokenizer, tiny, untrained_llama

PROMPTS = ["A map of Paris", "The sea", "Two of them, or three"]


def planted(seed, height, widths, values):
    """Matrices of one column space whose joint singular values fall as given."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(height, len(values))))[0]
    return [left @ (values[:, None] * np.linalg.qr(rng.normal(size=(w, len(values))))[0].T) for w in widths]


def products(matrices):
    """The two products of `joint`, and how many vectors went through them."""
    count = {"forth": 0, "back": 0}

    def forth(v):
        count["forth"] += len(v[0])
        return sum(part @ m.T for part, m in zip(v, matrices))

    def back(u):
        count["back"] += len(u)
        return [u @ m for m in matrices]

    return forth, back, count


def test_matrices_of_that_rank_are_found_with_twice_as_many_products():
    matrices = planted(0, 60, [40, 50, 60], np.linspace(3, 1, 12))
    forth, back, count = products(matrices)
    found, told = joint(forth, back, 60, [40, 50, 60], [1.0, 2.0, 0.5], 12, block=4, probes=6)
    for low, whole in zip(found, matrices):
        assert low.rank == 12
        assert_allclose(np.asarray(low), whole, atol=1e-10)
        assert low.left is found[0].left
    assert count == {"forth": 12, "back": 18}
    assert (told.products, told.probes, told.rank) == (30, 6, 12)
    assert max(e.value for e in told.errors) < 1e-7


def test_the_certificate_tells_the_error_and_ends_where_it_is_small_enough():
    values = np.geomspace(10, 0.01, 80)
    matrices = planted(1, 80, [80, 80], values)
    forth, back, _ = products(matrices)
    errors = []
    for rank in (8, 24, 48):
        found, told = joint(forth, back, 80, [80, 80], [1.0, 1.0], rank, block=8, probes=40)
        for low, whole, e in zip(found, matrices, told.errors):
            true = np.linalg.norm(np.asarray(low) - whole) / np.linalg.norm(whole)
            best = np.linalg.norm(np.linalg.svd(whole)[1][rank:]) / np.linalg.norm(whole)
            assert best <= true <= 2 * best + 1e-12  # near what the best matrix of that rank leaves out
            assert 0.7 * true < e.value < 1.4 * true
            assert e.lo < e.value < e.hi
            assert (e.unit, e.n) == ("probe", 40)
        errors.append(told.errors[0].value)
        assert not told.within
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert told.error.value == pytest.approx(np.mean([e.value for e in told.errors]), rel=0.3)
    _, stopped = joint(forth, back, 80, [80, 80], [1.0, 1.0], 70, tolerance=1.5 * errors[1], block=8, probes=40)
    assert stopped.within
    assert stopped.error.hi <= 1.5 * errors[1]
    assert 16 <= stopped.rank <= 32


@pytest.mark.parametrize(("height", "widths"), [(576, [576] * 30), (576, [576]), (2048, [2048] * 2), (4096, [4096] * 33)])
def test_the_most_columns_are_a_third_of_the_products_and_less_than_a_quarter_of_the_numbers(height, widths):
    rank = most_rank(height, widths)
    assert 2 * rank + 8 <= height / 3
    for more, allowed in ((0, True), (1, False)):
        numbers = (rank + more) * (widths[0] + height / len(widths))
        assert (2 * (rank + more) + 8 <= height / 3 and numbers < height * widths[0] / 4) == allowed


def test_a_rank_below_the_columns_asked_for_gives_no_noise():
    matrices = planted(2, 30, [30], np.ones(3))
    forth, back, _ = products(matrices)
    found, _ = joint(forth, back, 30, [30], [1.0], 9, block=3, probes=4)
    assert_allclose(np.asarray(found[0]), matrices[0], atol=1e-10)


def test_low_rank_is_used_like_an_array():
    rng = np.random.default_rng(0)
    low = LowRank(rng.normal(size=(7, 3)), rng.normal(size=(3, 5)))
    whole = np.asarray(low)
    rows, column = rng.normal(size=(4, 5)), rng.normal(size=5)
    assert_allclose(rows @ low.T, rows @ whole.T)
    assert_allclose(low @ column, whole @ column)
    assert (low.shape, low.T.shape, low.rank, low.size) == ((7, 5), (5, 7), 3, 36)
    u, s, v = low.svd()
    assert_allclose((u * s) @ v, whole, atol=1e-12)
    assert_allclose(s, np.linalg.svd(whole)[1][:3])
    assert low.astype(np.float32).left.dtype == np.float32
    with pytest.raises(UserError, match="no product"):
        LowRank(np.zeros((3, 2)), np.zeros((3, 2)))


def test_of_full_rank_it_is_the_affine_map_of_every_source():
    lm = tiny()
    jac = lm.jacobian(PROMPTS, ["embed", "resid_post.0", "resid_post.2"], "resid_post.3", source_tokens=2)
    maps, told = jac.mean().low_rank(32, block=5)
    for site, (weight, bias) in jac.mean().affine().items():
        low, low_bias = maps[site]
        assert_allclose(np.asarray(low), weight, atol=2e-5 * np.abs(weight).max())
        assert_allclose(low_bias, bias, atol=2e-5 * np.abs(bias).max())
    assert told.products == told.probes + 32 + -(-32 // 3)  # the prompts, of three lengths, take turns in one of the two kinds


@pytest.mark.parametrize("tokens", ["last", 1])
def test_of_low_rank_the_bias_is_that_of_the_map_itself(tokens):
    """W is QQᵀJ, so b is the mean of o - QQᵀJ s."""
    jac = tiny().jacobian(PROMPTS, ["resid_post.0", "resid_post.1"], "resid_post.3", source_tokens=tokens)
    maps, _ = jac.mean().low_rank(4, block=2)
    for site, (low, bias) in maps.items():
        q, each = low.left, jac[site].matrix()
        assert_allclose(q.T @ q, np.eye(4), atol=1e-10)
        slow = np.mean([o - q @ (q.T @ (j @ s)) for o, j, s in zip(jac.value, each, jac[site].point)], 0)
        assert_allclose(bias, slow, atol=1e-4 * np.abs(slow).max())
        assert_allclose(np.asarray(low), q @ (q.T @ each.mean(0)), atol=1e-4 * np.abs(each).max())


def test_prompts_of_one_length_take_turns_where_they_are_in_several_passes():
    prompts, ends = ["of a", "to b", "on c", "in d", "at e"], (["resid_post.0", "resid_post.1"], "resid_post.3")
    together, turns = (tiny().jacobian(prompts, *ends, at_once=n).mean() for n in (None, 2))
    for mean, products in ((together, 8 + 2 * 10), (turns, 8 + 10 + 4)):
        maps, told = mean.low_rank(10, block=2)
        assert told.products == products
        for (low, _), whole in zip(maps.values(), mean.matrix().values()):
            assert_allclose(np.asarray(low), low.left @ (low.left.T @ whole), atol=1e-5)
    assert together.low_rank()[1].rank == turns.low_rank()[1].rank == 1


def test_the_same_seed_gives_the_same_map():
    jac = tiny().jacobian(PROMPTS, ["resid_post.0"], "resid_post.3").mean()
    (a, _), (b, _), (c, _) = (jac.low_rank(4, seed=seed)[0]["resid_post.0"] for seed in (1, 1, 2))
    assert (a.left == b.left).all()
    assert not np.allclose(a.left, c.left)


def test_a_wide_network():
    """d = 2,048: fewer than a third of the products, and factors of less than a quarter of the matrix."""
    model = untrained_llama(0, vocab_size=259, hidden_size=2048, intermediate_size=512, num_hidden_layers=2, num_key_value_heads=4)
    lm = LanguageModel(model, byte_tokenizer(), "wide")
    jac = lm.jacobian(["of a", "to b"], ["embed", "resid_post.0"], "resid_post.1", source_tokens=3)
    maps, told = jac.mean().low_rank(96, block=48)
    for e, (low, _) in zip(told.errors, maps.values()):
        assert low.size < 2048**2 / 4
        assert low.shape == (2048, 2048)
        assert 0 < e.value < 1
    assert told.products < 2048 / 3
    probe = np.random.default_rng(3).normal(size=(2, 2048))
    rows = jac["resid_post.0"].mean().vjp(probe)
    missing = rows - (probe @ maps["resid_post.0"][0].left) @ maps["resid_post.0"][0].right
    assert 0.6 < np.linalg.norm(missing) / np.linalg.norm(rows) / told.errors[1].value < 1.6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 33}, "from 1 to 32"),
        ({"rank": 4, "tolerance": 1.0}, "relative error of 1.0"),
        ({"rank": 4, "probes": 0}, "number of probes is 0"),
        ({"rank": 4, "block": True}, "block is True"),
    ],
)
def test_what_is_not_possible_is_refused(given, said):
    jac = tiny().jacobian(PROMPTS, ["resid_post.0"], "resid_post.3").mean()
    with pytest.raises(UserError, match=said):
        jac.low_rank(**given)
