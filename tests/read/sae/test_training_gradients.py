"""Losses and gradients of each architecture against autograd on the dense form in float64."""

import dataclasses

import pytest
import torch

from repscope.read.sae.training import BatchTopK, Gated, JumpReLU, Matryoshka, Recipe, ReLU, TopK
from repscope.read.sae.training.dense_step import DenseStep
from repscope.read.sae.training.layout import Layout
from repscope.read.sae.training.parameters import initial
from repscope.read.sae.training.selection import Selector
from repscope.read.sae.training.sparse_codes import codes_of_flat, decode, products_at, sums_by_latent
from repscope.read.sae.training.topk_step import TopKStep

ROWS, D, LATENTS = 700, 12, 96


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Three chunks of rows, the last one not full."""
    monkeypatch.setattr("repscope.read.sae.training.selection.BUFFER", 300 * LATENTS)


def _rows(width=D, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, 5, generator=g).double() @ torch.randn(5, width, generator=g).double() + 0.3


def _start(recipe, layout, x, y):
    p = initial(recipe, layout, x, y)
    g = torch.Generator().manual_seed(9)
    return {n: v.double() + 0.05 * torch.randn(v.shape, generator=g) for n, v in p.items()}


def _layout(transcoder):
    return Layout(("a",), ("b",) if transcoder else ("a",), (D,), (7,) if transcoder else (D,), (1.0,), (1.0,))


def _dense_topk(recipe, p, x, y, subtract, dead):
    """The loss as its papers write it, with whole matrices."""
    a = recipe.architecture
    h = (x - p["b_dec"] if subtract else x) @ p["encoder"].T + p["b_enc"]
    norms = p["decoder"].norm(dim=1) if recipe.decoder_norm == "rescale" else torch.ones(recipe.latents).double()
    scaled = h * norms
    if isinstance(a, BatchTopK):
        kept = torch.zeros(scaled.numel(), dtype=torch.bool)
        kept[scaled.relu().flatten().topk(a.k * len(x)).indices] = True
        kept = kept.view_as(scaled)
    else:
        kept = torch.zeros_like(scaled, dtype=torch.bool).scatter(1, scaled.topk(a.k, dim=1).indices, True)
    z = scaled.relu() * kept
    unit = p["decoder"] / norms[:, None]
    base = p["b_dec"] + (x @ p["skip"] if "skip" in p else 0.0)
    ends = [last for _, last in recipe.levels]
    errors = [y - z[:, :m] @ unit[:m] - base for m in ends]
    loss = sum(e.square().sum(1).mean() for e in errors)
    if len(dead):
        top = scaled[:, dead].topk(min(a.aux_k, len(dead)), dim=1)
        aux = torch.zeros(len(x), len(dead)).double().scatter(1, top.indices, top.values.relu()) / norms[dead]
        loss = loss + a.aux * (errors[-1].detach() - aux @ p["decoder"][dead]).square().sum(1).mean()
    return loss


CASES = [
    (TopK(4), "unit", False, 0),
    (TopK(4), "rescale", False, 0),
    (TopK(4, aux_k=6), "free", False, 40),  # fewer dead latents than 12 per selected one: dense products
    (TopK(4, aux_k=2), "free", False, 60),  # more: sparse products
    (TopK(4, aux_k=9), "rescale", False, 5),  # all of the dead ones
    (TopK(4), "free", True, 0),
    (BatchTopK(4), "unit", False, 0),
    (BatchTopK(4, aux_k=3), "rescale", False, 30),
    (Matryoshka(4, prefixes=(16, 40)), "unit", False, 0),
    (Matryoshka(4, prefixes=(16, 40), aux_k=5), "free", True, 30),
]


@pytest.mark.parametrize(("architecture", "norm", "transcoder", "dead"), CASES)
def test_sparse_gradients_are_those_of_the_dense_loss(architecture, norm, transcoder, dead):
    recipe = Recipe(architecture, LATENTS, steps=1, decoder_norm=norm, skip=transcoder)
    layout = _layout(transcoder)
    x = _rows()
    y = _rows(7, seed=1) if transcoder else x
    p = _start(recipe, layout, x, y)
    quiet = torch.arange(3, 3 + dead)
    result = TopKStep(recipe, layout.d_out, torch.float64)(p, x, y, subtract=layout.subtract_b_dec, dead=quiet)
    leaves = {n: v.clone().requires_grad_() for n, v in p.items()}
    loss = _dense_topk(recipe, leaves, x, y, layout.subtract_b_dec, quiet)
    loss.backward()
    assert sum(result.losses.values()) == pytest.approx(loss.item(), rel=1e-12)
    assert result.active <= 4
    for name, leaf in leaves.items():
        error = (result.gradients[name] - leaf.grad).norm() / leaf.grad.norm()
        assert error < 1e-11, name


def test_float32_gradients_are_close_to_float64():
    recipe = Recipe(TopK(4), LATENTS, steps=1)
    layout, x = _layout(False), _rows()
    p = _start(recipe, layout, x, x)
    exact, single = (
        TopKStep(recipe, D, kind)(
            {n: v.to(kind) for n, v in p.items()}, x.to(kind), x.to(kind), subtract=True, dead=torch.arange(0)
        )
        for kind in (torch.float64, torch.float32)
    )
    for name, value in exact.gradients.items():
        assert (single.gradients[name] - value).norm() / value.norm() < 1e-5, name


def test_a_guess_of_the_threshold_changes_nothing():
    x, encoder, bias = _rows(), torch.randn(LATENTS, D).double(), torch.zeros(LATENTS).double()
    selector = Selector(LATENTS, 3, True, 0, torch.float64, chunk=64)
    plain = selector.select(x, encoder, bias)
    for guess in (0.5 * plain.smallest, 2 * plain.smallest, 1e9):
        again = selector.select(x, encoder, bias, floor=guess)
        assert torch.equal(plain.codes.latents, again.codes.latents)
        assert torch.equal(plain.codes.values, again.codes.values)
    h = (x @ encoder.T).relu()
    assert plain.smallest == h.flatten().topk(3 * ROWS).values.min()
    assert len(plain.codes.values) == 3 * ROWS


def test_equal_activations_still_give_k_per_row_on_average():
    selector = Selector(8, 2, True, 0, torch.float32)
    found = selector.select(torch.ones(6, 4), torch.ones(8, 4), torch.zeros(8)).codes
    assert len(found.values) == 12


def test_products_of_sparse_codes_are_those_of_the_dense_matrix():
    flat = torch.tensor([17, 3, 4, 25, 20])  # rows 0, 0, 2, 2, 3 of width 8; row 1 is empty
    codes = codes_of_flat(flat, torch.tensor([1.0, 2.0, -3.0, 4.0, 0.5]), rows=4, width=8)
    z, left, decoder = codes.dense(), torch.randn(4, 5), torch.randn(8, 5)
    assert (z != 0).sum() == 5
    torch.testing.assert_close(decode(codes, decoder), z @ decoder)
    torch.testing.assert_close(sums_by_latent(codes, left), z.T @ left)
    torch.testing.assert_close(products_at(codes, left, decoder), (left @ decoder.T)[codes.row_of, codes.latents])
    part, kept = codes.part(3, 6)
    assert torch.equal(part.dense(), z[:, 3:6])
    assert torch.equal(codes.values[kept], part.values)
    empty = codes_of_flat(flat[:0], flat[:0].float(), rows=4, width=8)
    assert decode(empty, decoder).shape == (4, 5)
    assert not sums_by_latent(empty, left).any()


class _Step(torch.autograd.Function):
    """H(h − θ) with the rectangle kernel: arXiv:2407.14435, equations 11 and 12."""

    @staticmethod
    def forward(ctx, h, theta, epsilon, jump):
        ctx.save_for_backward(h, theta)
        ctx.epsilon, ctx.jump = epsilon, jump
        return (h if jump else torch.ones_like(h)) * (h > theta)

    @staticmethod
    def backward(ctx, grad):
        h, theta = ctx.saved_tensors
        kernel = ((h - theta).abs() < ctx.epsilon / 2) / ctx.epsilon
        d_theta = -(theta if ctx.jump else 1.0) * kernel * grad
        return (grad * (h > theta) if ctx.jump else None), d_theta.sum(0), None, None


def _dense_other(recipe, p, x, y, subtract):
    a, rows = recipe.architecture, x - p["b_dec"] if subtract else x
    h = rows @ p["encoder"].T
    base = p["b_dec"] + (x @ p["skip"] if "skip" in p else 0.0)
    if isinstance(a, JumpReLU):
        theta = p["log_threshold"].exp()
        h = h + p["b_enc"]
        z, l0 = _Step.apply(h, theta, a.bandwidth, True), _Step.apply(h, theta, a.bandwidth, False).sum(1).mean()
        extra = a.sparsity * (l0 if a.target_l0 is None else (l0 / a.target_l0 - 1) ** 2)
    elif isinstance(a, Gated):
        gate = h + p["b_gate"]
        z = (gate > 0) * (h * p["r_mag"].exp() + p["b_mag"]).relu()
        frozen = gate.relu() @ p["decoder"].detach() + p["b_dec"].detach()
        extra = a.sparsity * gate.relu().sum(1).mean() + (y - frozen).square().sum(1).mean()
    else:
        z = (h + p["b_enc"]).relu()
        extra = a.sparsity * (z * sum(part.norm(dim=1) for part in p["decoder"].split(4, dim=1))).sum(1).mean()
    return (y - z @ p["decoder"] - base).square().sum(1).mean() + extra


@pytest.mark.parametrize("transcoder", [False, True])
@pytest.mark.parametrize("architecture", [JumpReLU(0.3, 0.4, 0.2), JumpReLU(2.0, 0.4, 0.2, target_l0=5.0), Gated(0.2), ReLU(0.1)])
def test_dense_gradients_are_those_of_the_papers_loss(architecture, transcoder):
    recipe = Recipe(architecture, LATENTS, steps=1, skip=transcoder)
    layout, x = _layout(transcoder), _rows()
    layout = dataclasses.replace(layout, widths_out=(8,) if transcoder else (D,))
    y = _rows(8, seed=1) if transcoder else x
    p = _start(recipe, layout, x, y)
    result = DenseStep(recipe, (4,) * (y.shape[1] // 4))(p, x, y, subtract=layout.subtract_b_dec, sparsity=architecture.sparsity)
    leaves = {n: v.clone().requires_grad_() for n, v in p.items()}
    loss = _dense_other(recipe, leaves, x, y, layout.subtract_b_dec)
    loss.backward()
    assert sum(result.losses.values()) == pytest.approx(loss.item(), rel=1e-12)
    assert set(result.gradients) == set(p)
    for name, leaf in leaves.items():
        error = (result.gradients[name] - leaf.grad).norm() / leaf.grad.norm().clamp(min=1e-12)
        assert error < 1e-11, name
