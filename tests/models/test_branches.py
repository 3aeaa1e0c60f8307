"""Prompts as branches of one row of tokens."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from repscope.models.prompts import Ragged
from repscope.models.variants.branches import BranchAttention, branches

ROWS = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8], [4], [5, 6, 7], [5, 6, 7, 3, 2, 1], [4, 4]]


def _ids(rows):
    return Ragged.of([np.array(row) for row in rows])


def test_every_distinct_beginning_is_one_cell():
    (row,) = branches(_ids(ROWS))
    assert sorted(row.prompts) == list(range(len(ROWS)))
    beginnings = {tuple(r[: n + 1]) for r in ROWS for n in range(len(r))}
    assert len(row.ids) == len(beginnings)
    for i, cells in zip(row.prompts, row.cells):
        assert row.ids[cells].tolist() == ROWS[i]
        assert row.positions[cells].tolist() == list(range(len(ROWS[i])))
        for n, cell in enumerate(cells):  # a cell sees its own beginning, in order, and nothing else
            assert np.flatnonzero(row.sees[cell]).tolist() == sorted(cells[: n + 1])


@pytest.mark.parametrize("most", [1, 4, 7, 11, 100])
def test_rows_stay_within_their_size(most):
    rows = list(branches(_ids(ROWS), most))
    assert sorted(i for row in rows for i in row.prompts) == list(range(len(ROWS)))
    for row in rows:
        assert len(row.ids) <= most or len({tuple(ROWS[i]) for i in row.prompts}) == 1
        for i, cells in zip(row.prompts, row.cells):
            assert row.ids[cells].tolist() == ROWS[i]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_that_of_each_prompt_alone(kv_heads):
    (row,) = branches(_ids(ROWS))
    generator = torch.Generator().manual_seed(0)
    cells = len(row.ids)
    q, k, v = (torch.randn(3, h, cells, 8, generator=generator, requires_grad=True) for h in (4, kv_heads, kv_heads))
    attention = BranchAttention(torch.from_numpy(row.sees))
    with attention:
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert attention.calls == 1
    for at in map(torch.from_numpy, row.cells):
        parts = [x[:, :, at].repeat_interleave(4 // x.shape[1], 1) for x in (q, k, v)]
        alone = functional.scaled_dot_product_attention(*parts, is_causal=True)
        assert torch.allclose(out[:, :, at], alone, atol=1e-6)
        ours, theirs = (torch.autograd.grad(x.square().sum(), (q, k, v), retain_graph=True) for x in (out[:, :, at], alone))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs))


def test_attention_to_other_tokens_is_refused():
    (row,) = branches(_ids(ROWS))
    x = torch.zeros(1, 1, 3, 8)
    with pytest.raises(RuntimeError, match="not of the row's cells"), BranchAttention(torch.from_numpy(row.sees)):
        functional.scaled_dot_product_attention(x, x, x)
