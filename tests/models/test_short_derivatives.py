"""Patterns of elementwise steps with a shorter derivative: the same values and derivatives as torch's own."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half

from repscope.models.linear.linearization import Explicit


def normed(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def turned_norm(x):
    return torch.rsqrt((x**2).mean(dim=-1, keepdim=True) + 1e-5) * x


@pytest.mark.parametrize(
    ("f", "node"),
    [
        (normed, "_Normed"),
        (turned_norm, "_Normed"),
        (LlamaRMSNorm(8, 1e-5).double(), "Mul"),
        (rotate_half, "_Turned"),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1.0) + x, "Add"),
    ],
)
def test_values_and_derivatives_are_torchs(f, node):
    x = torch.randn(3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    c = torch.randn(5, 3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with Explicit():
        ours = f(x)
    theirs = f(x)
    assert ours.grad_fn.name().startswith(node)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    found = torch.func.vmap(lambda one: torch.autograd.grad(ours, x, one, retain_graph=True)[0])(c)
    for one, vector in zip(found, c):
        torch.testing.assert_close(one, torch.autograd.grad(theirs, x, vector, retain_graph=True)[0], rtol=1e-4, atol=1e-5)
    u = torch.zeros_like(ours, requires_grad=True)
    (pulled,) = torch.autograd.grad(ours, x, u, create_graph=True)
    (forth,) = torch.autograd.grad(pulled, u, c[0])
    torch.testing.assert_close(forth, torch.func.jvp(f, (x.detach(),), (c[0],))[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5),  # over another axis
        lambda x: x * torch.rsqrt(x.pow(3).abs().mean(-1, keepdim=True) + 1e-5),
        lambda x: (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),  # of something else
        lambda x: torch.cat([-x[..., :4], x[..., 4:]], -1),
        lambda x: torch.cat([-x[..., 4:], x[..., :4]], 1),
        lambda x: torch.cat([-x[..., 4:], 2 * x[..., :4]], -1),
    ],
)
def test_what_only_looks_like_one_is_left_to_torch(f):
    x = torch.randn(3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with Explicit():
        ours = f(x)
    assert not ours.grad_fn.name().startswith("_")
    c = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.autograd.grad(ours, x, c)[0], torch.autograd.grad(f(x), x, c)[0])
