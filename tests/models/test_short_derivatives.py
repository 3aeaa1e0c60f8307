"""Patterns of elementwise steps with a shorter derivative: the same values and derivatives as torch's own."""

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb, rotate_half

from repscope.models.linear import merged_mlp, short_attention, short_derivatives
from repscope.models.linear.linearization import Explicit


def normed(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def turned_norm(x):
    return torch.rsqrt((x**2).mean(dim=-1, keepdim=True) + 1e-5) * x


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


UP, GATE, DOWN = drawn(12, 8, seed=2), drawn(12, 8, seed=3), drawn(8, 12, seed=4)
COS, SIN = drawn(1, 2, 8, seed=5), drawn(1, 2, 8, seed=6)


WEIGHT = torch.nn.Parameter(drawn(8, seed=7))


def weighed(x):
    return WEIGHT * normed(x)


def rotated(x):
    return apply_rotary_pos_emb(x[:, None], x[:, None], COS, SIN)[0][:, 0]


def gated(x):
    return functional.linear(functional.silu(functional.linear(x, GATE)) * functional.linear(x, UP), DOWN)


def ungated(x):
    return functional.linear(functional.gelu(functional.linear(x, UP, UP[:, 0])), DOWN, DOWN[:, 0])


@pytest.mark.parametrize(
    ("f", "node"),
    [
        (normed, "_Normed"),
        (turned_norm, "_Normed"),
        (weighed, "_Normed"),
        (LlamaRMSNorm(8, 1e-5).double(), "Mul"),
        (rotate_half, "_Turned"),
        (rotated, "Select"),
        (gated, "_Mlp"),
        (ungated, "_Mlp"),
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
        lambda x: functional.linear(functional.silu(functional.linear(x, GATE)) * functional.linear(2 * x, UP), DOWN),
        lambda x: functional.linear(functional.silu(functional.linear(x, GATE)).mul_(2.0), DOWN),
        lambda x: x * COS + rotate_half(2 * x) * SIN,
    ],
)
def test_what_only_looks_like_one_is_left_to_torch(f):
    x = torch.randn(3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with Explicit():
        ours = f(x)
    assert not ours.grad_fn.name().startswith("_")
    c = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.autograd.grad(ours, x, c)[0], torch.autograd.grad(f(x), x, c)[0])


def test_a_norm_of_many_vectors_is_that_of_few():
    x, c = drawn(3, 2, 8).requires_grad_(), drawn(2 * short_derivatives._MANY, 3, 2, 8, seed=1)
    with Explicit():
        value = weighed(x)

    def pulled(vectors):
        return torch.func.vmap(lambda one: torch.autograd.grad(value, x, one, retain_graph=True)[0])(vectors)

    torch.testing.assert_close(pulled(c), torch.cat([pulled(part) for part in c.split(4)]))


def test_an_mlp_of_many_vectors_is_that_of_few(monkeypatch):
    x = drawn(3, 2, 8).requires_grad_()
    c = drawn(40, 3, 2, 8, seed=1)
    with Explicit():
        value = gated(x)
    merged, made = merged_mlp._Weights.merged, []
    monkeypatch.setattr(merged_mlp._Weights, "merged", lambda self, *given: (made.append(1), merged(self, *given))[1])

    def pulled(vectors):
        return torch.func.vmap(lambda one: torch.autograd.grad(value, x, one, retain_graph=True)[0])(vectors)

    torch.testing.assert_close(pulled(c), torch.cat([pulled(part) for part in c.split(2)]))
    assert len(made) == 1


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("layout", ["causal", "mask", "bias", "alone"])
def test_attention_in_one_step_is_torchs(layout, groups, few, monkeypatch):
    monkeypatch.setattr(short_attention, "_MANY", 10**6 if few else 0)
    rows, heads, queries, d = 2, 4, 1 if layout == "alone" else 3, 4
    q, k, v = (drawn(rows, n, queries, size, seed=i) for i, (n, size) in enumerate([(heads, d), (groups, d), (groups, d + 1)]))
    earlier = [drawn(rows, groups, 5, size, seed=7 + i) for i, size in enumerate((d, d + 1))]
    keys = queries + (5 if layout == "bias" else 0)
    mask = drawn(1, 1, queries, keys, seed=9)
    options = {
        "causal": {"is_causal": True},
        "mask": {"attn_mask": mask > -1},
        "bias": {"attn_mask": mask},
        "alone": {"scale": 0.3},
    }
    if layout == "mask":
        options["mask"]["attn_mask"][..., 0] = True  # every query sees a key
    before = tuple(earlier) if layout == "bias" else None

    def whole(q, k, v):
        if before is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(before, (k, v)))
        k, v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))
        out = functional.scaled_dot_product_attention(q, k, v, **options[layout])
        return torch.nan_to_num(out)

    ends = [x.clone().requires_grad_() for x in (q, k, v)]
    mode = Explicit()
    mode.before = before
    with mode:
        ours = functional.scaled_dot_product_attention(*ends, enable_gqa=True, **options[layout])
    theirs = whole(*ends)
    torch.testing.assert_close(ours, theirs)
    assert ours.grad_fn.name().startswith("_Attention")
    c = drawn(6, *ours.shape, seed=11)
    found = torch.func.vmap(lambda one: torch.autograd.grad(ours, ends, one, retain_graph=True))(c)
    for i, one in enumerate(c):
        for mine, right in zip(found, torch.autograd.grad(theirs, ends, one, retain_graph=True)):
            torch.testing.assert_close(mine[i], right)
    u = torch.zeros_like(ours, requires_grad=True)
    pulled = torch.autograd.grad(ours, ends, u, create_graph=True)
    tangents = [drawn(5, *x.shape, seed=12 + i) for i, x in enumerate(ends)]
    forth = torch.func.vmap(lambda *t: torch.autograd.grad(pulled, u, t, retain_graph=True)[0])(*tangents)
    for i in range(5):
        right = torch.func.jvp(whole, (q, k, v), tuple(t[i] for t in tangents))[1]
        torch.testing.assert_close(forth[i], right)
