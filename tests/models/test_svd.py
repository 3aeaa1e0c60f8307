"""Leading singular triplets from products: against the whole decomposition, and what their certificate claims."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repscope.errors import UserError
from repscope.models.linear.svd import leading


class Counted:
    """A matrix that counts the vectors multiplied with it and how many went together at most."""

    def __init__(self, matrix, back=None, dtype=np.float64):
        self.matrix, self.back = matrix.astype(dtype), (matrix if back is None else back).astype(dtype)
        self.dtype, self.products, self.widest = dtype, 0, 0

    def _count(self, x):
        self.products, self.widest = self.products + len(x), max(self.widest, len(x))
        return x.astype(self.dtype)

    def jvp(self, v):
        return self._count(v) @ self.matrix.T

    def vjp(self, u):
        return self._count(u) @ self.back

    def leading(self, k, **options):
        return leading(self.jvp, self.vjp, self.matrix.shape, k, **options)


def rotated(s, d_target, d_source, seed):
    """A matrix with these singular values and random singular vectors."""
    random = np.random.default_rng([seed, 1])  # not the stream of the iteration's start
    left = np.linalg.qr(random.standard_normal((d_target, len(s))))[0]
    right = np.linalg.qr(random.standard_normal((d_source, len(s))))[0]
    return left * s @ right.T


def nearest(found, true):
    return np.abs(found[:, None] - true).min(1)


sizes = st.integers(1, 40)
spectra = st.one_of(
    st.floats(0.0, 3.0).map(lambda p: lambda n: np.arange(1, n + 1.0) ** -p),
    st.floats(0.3, 1.0).map(lambda r: lambda n: r ** np.arange(n)),
    st.integers(0, 9).map(lambda rank: lambda n: (np.arange(n) < rank) * 2.0),  # equal values; rank below k; zero
    st.lists(st.just(0.0) | st.floats(1e-9, 1e3), min_size=1, max_size=6).map(lambda x: lambda n: np.resize(sorted(x)[::-1], n)),
)
cases = st.tuples(sizes, sizes, spectra, st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=300)
@given(cases, st.floats(1e-8, 0.5), st.integers(0, 60))
def test_a_singular_value_lies_within_every_residual(case, tolerance, more):
    d_target, d_source, spectrum, k, block, seed = case
    small = min(d_target, d_source)
    k, width = min(k, small), min(block, small)
    matrix = rotated(spectrum(small), d_target, d_source, seed)
    true = np.linalg.svd(matrix, compute_uv=False)
    J = Counted(matrix)
    least = 2 * width * -(-k // width)
    told = []
    t = J.leading(k, seed=seed % 7, tolerance=tolerance, products=least + more, block=block, advance=lambda n: told.append(n))
    slack = 1e-9 * max(true[0], 1e-300)

    assert (nearest(t.s, true) <= t.residual + slack).all()
    assert (t.s <= true[:k] + slack).all()
    assert (np.diff(t.s) <= slack).all()
    assert t.products == J.products == sum(told) <= least + more
    assert J.widest <= width
    assert t.u.shape == (k, d_target)
    assert t.v.shape == (k, d_source)
    np.testing.assert_allclose(t.u @ t.u.T, np.eye(k), atol=1e-9)
    np.testing.assert_allclose(t.v @ t.v.T, np.eye(k), atol=1e-9)
    # the residual is the one of its definition, and what `converged` is about
    parts = np.hstack([t.v @ matrix.T - t.s[:, None] * t.u, t.u @ matrix - t.s[:, None] * t.v])
    rho = np.sqrt((parts**2).sum(1) / 2)
    assert (t.residual >= rho - slack).all()
    assert (t.residual <= np.where(rho < t.s - slack, 1, np.sqrt(2)) * rho + slack).all()
    assert t.converged == bool((t.residual <= tolerance * np.maximum(t.s, 1e-3 * t.s[0])).all())


@settings(deadline=None, max_examples=100)
@given(cases)
def test_with_products_for_the_whole_matrix_it_is_the_whole_decomposition(case):
    d_target, d_source, spectrum, k, block, seed = case
    small = min(d_target, d_source)
    matrix = rotated(spectrum(small), d_target, d_source, seed)
    true = np.linalg.svd(matrix, compute_uv=False)
    t = Counted(matrix).leading(min(k, small), tolerance=1e-8, products=4 * (small + 20), block=max(block, k))
    assert t.converged
    np.testing.assert_allclose(t.s, true[: len(t.s)], atol=1e-9 * true[0])


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_number_of_products_does_not_grow_with_d(exponent):
    needed = []
    for d in (64, 256, 1024, 2048, 16384):
        s = np.arange(1, d + 1.0) ** -exponent  # diagonal: the iteration sees a spectrum, whatever the axes
        t = leading(lambda v, s=s: v * s, lambda u, s=s: u * s, (d, d), 16)
        assert t.converged
        assert (np.abs(t.s - s[:16]) <= 0.01 * s[:16]).all()
        needed.append(t.products)
    assert max(needed[1:]) <= min(needed[1:]) + 8  # one more half step at most
    assert max(needed) <= 192


def test_a_matrix_of_low_rank_ends_soon():
    t = Counted(rotated(np.array([3.0, 2.0, 1.0]), 200, 150, 0)).leading(8, tolerance=1e-9)
    np.testing.assert_allclose(t.s, [3, 2, 1, 0, 0, 0, 0, 0], atol=1e-12)
    assert t.converged
    assert t.products <= 24


def test_a_zero_matrix_has_zero_values():
    t = Counted(np.zeros((30, 20))).leading(4)
    assert t.converged
    assert not t.s.any()
    assert not t.residual.any()
    np.testing.assert_allclose(t.v @ t.v.T, np.eye(4), atol=1e-12)


def test_products_of_low_precision_show_in_the_certificate():
    """float16 products of a matrix of rank 8: exact ones would leave no residual at all."""
    matrix = rotated(np.linspace(2, 1, 8), 60, 50, 1)
    true = np.linalg.svd(matrix, compute_uv=False)
    exact, coarse = (Counted(matrix, dtype=d).leading(8, tolerance=1e-9) for d in (np.float64, np.float16))
    assert exact.converged
    assert not coarse.converged
    assert (coarse.residual > 1e-5).all()
    assert (nearest(coarse.s, true) <= coarse.residual).all()


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_products_that_are_not_adjoint_never_converge(factor):
    """The values are between those of the two, and whichever is right, one of its values lies within the residual."""
    matrix = rotated(np.linspace(2, 1, 30), 30, 30, 2)
    t = Counted(matrix, factor * matrix).leading(5, tolerance=1e-3)
    assert not t.converged
    for true in (matrix, factor * matrix):
        assert (nearest(t.s, np.linalg.svd(true, compute_uv=False)) <= t.residual * (1 + 1e-9)).all()
    np.testing.assert_allclose(t.residual, abs(factor - 1) / 2 * np.linspace(2, 1, 30)[:5], rtol=1e-6)


def test_stopping_early_is_said():
    t = Counted(rotated(np.linspace(2, 1, 80), 80, 80, 3)).leading(4, products=8, block=4)
    assert t.products == 8
    assert not t.converged
    assert "not converged" in repr(t)


def test_the_same_seed_gives_the_same_triplets():
    matrix = rotated(np.linspace(2, 0, 40), 40, 60, 4)
    a, b, c = (Counted(matrix).leading(3, seed=s, tolerance=1e-9) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.u, b.u)
    assert not np.array_equal(a.u, c.u)
    np.testing.assert_allclose(a.v, c.v, atol=1e-6)  # signs are fixed too
    assert (a.v.max(1) >= -a.v.min(1)).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 6}, "no 6 singular values"),
        ({"k": 0}, "no 0 singular values"),
        ({"k": 5, "products": 9}, "at least 10 products"),
        ({"k": 2, "tolerance": 0.0}, "tolerance above 0"),
        ({"k": 2, "block": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        Counted(np.ones((5, 9))).leading(**options)


def test_products_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        Counted(np.full((5, 9), np.nan)).leading(2)


@pytest.mark.parametrize("options", [{"k": 2.5}, {"k": True}, {"products": 9.5}, {"block": 1.5}])
def test_counts_are_whole_numbers(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is .*; it must be a whole number"):
        leading(lambda v: v, lambda u: u, (4, 4), **options)
