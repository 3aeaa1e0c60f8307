"""Streaming statistics against those of all rows at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.read import sae

D, L, ROWS, TOP = 8, 30, 700, 5


def tensor(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def one():
    bias = 0.3 * tensor(L, seed=2) - 1
    bias[7] = -100.0  # never active
    weights = tensor(D, L, seed=1), bias, tensor(L, D, seed=3), tensor(D, seed=4)
    return sae.SparseAutoencoder(*weights, sae.TopK(4), site="resid_post.1")


X = tensor(ROWS, D, seed=5)
DOCUMENT = np.arange(ROWS) // 25


def batches(sizes, labels=True):
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        numbers = np.arange(ROWS)[part]
        given = SimpleNamespace(
            document=torch.tensor(DOCUMENT[part]), position=torch.tensor(numbers % 25), token=torch.tensor(numbers * 3)
        )
        yield SimpleNamespace(rows={"resid_post.1": X[part], "mlp_out.1": X[part] * 0}, labels=given if labels else None)
        start += size
    assert start >= ROWS


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("sizes", [[ROWS], [1, 300, 2, 397], [64] * 11])
def test_equals_all_rows_at_once(one, sizes, distinct):
    found = sae.feature_statistics(one, batches(sizes), top=TOP, distinct_documents=distinct)
    dense = one.encode(X).dense().numpy()
    assert found.rows == ROWS
    np.testing.assert_allclose(found.density, (dense > 0).mean(0))
    np.testing.assert_allclose(found.mean, dense.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.maximum, dense.max(0), rtol=1e-6)
    np.testing.assert_array_equal(found.dead, dense.max(0) == 0)
    assert found.dead[7]
    assert found.dead.sum() < L // 2
    assert found.l0 == pytest.approx((dense > 0).sum(1).mean())
    for i in range(L):
        order = [r for r in np.argsort(-dense[:, i], kind="stable") if dense[r, i] > 0]
        if distinct:
            order = [r for n, r in enumerate(order) if DOCUMENT[r] not in DOCUMENT[order[:n]]]
        order = order[:TOP]
        pad = TOP - len(order)
        np.testing.assert_array_equal(found.top_rows[i], [*order, *[-1] * pad])
        np.testing.assert_allclose(found.top[i], [*dense[order, i], *[0] * pad], rtol=1e-6)
        np.testing.assert_array_equal(found.labels["document"][i], [*DOCUMENT[order], *[-1] * pad])
        np.testing.assert_array_equal(found.labels["token"][i], [*np.array(order, int) * 3, *[-1] * pad])
    table = found.table()
    assert list(table.latent) == list(range(L))
    np.testing.assert_allclose(table.mean_active * table.density, table["mean"])


def test_plain_tensors_do(one):
    found = sae.feature_statistics(one, iter([X[:300], X[300:]]), top=TOP)
    again = sae.feature_statistics(one, batches([ROWS], labels=False), top=TOP)
    np.testing.assert_array_equal(found.top_rows, again.top_rows)
    assert found.labels == {}


def test_what_is_wrong_is_one_sentence(one):
    with pytest.raises(UserError, match="no row to take statistics of"):
        sae.feature_statistics(one, [])
    with pytest.raises(UserError, match="the autoencoder is of resid_post"):
        sae.feature_statistics(one, [SimpleNamespace(rows={"a": X, "b": X})])
    with pytest.raises(UserError, match="need batches with labels"):
        sae.feature_statistics(one, [X], distinct_documents=True)
    with pytest.raises(UserError, match="Only some of the batches have labels"):
        sae.feature_statistics(one, [*batches([ROWS]), *batches([ROWS], labels=False)])
    with pytest.raises(UserError, match="keep at least 1"):
        sae.feature_statistics(one, [X], top=0)
