"""Shared parts of a pass: equal to whole passes with their gradients, what they leave out, and when whole passes must run."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from repscope.discovery.generators.shared_reads import SharedReads
from repscope.models.generators import DiffusionGenerator
from repscope.models.generators.shared_pass import SharedPlan, replay_error
from repscope.worlds.sprites.diffusion import CaptionedUNet, DiffusionSizes, noise_schedule


class Branched(nn.Module):
    """x alone through `first`, the vector and x together through `second`, whose activation runs twice."""

    def __init__(self, swallow=False):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.words = nn.Linear(2, 2)
        self.act = nn.SiLU()
        self.second = nn.Conv2d(5, 4, 3, padding=1, stride=2)
        self.swallow = swallow
        self.ran = []
        for name in ("first", "words", "act", "second"):
            getattr(self, name).register_forward_pre_hook(lambda m, args, name=name: self.ran.append((name, len(args[0]))))

    def forward(self, x, vector):
        skip = self.act(self.first(x))
        if self.swallow:
            vector = torch.nan_to_num(vector)
        word = self.words(vector)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.second(torch.cat([self.act(word), skip], 1)).flatten(1)


def branched(**more):
    torch.manual_seed(0)
    return Branched(**more).double().requires_grad_(False)


def inputs(rows=3):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, 1, 4, 4, generator=draw, dtype=torch.float64), torch.randn(
        2, rows, 2, generator=draw, dtype=torch.float64
    )


def test_a_pass_that_shares_parts_equals_a_whole_pass_with_its_gradient():
    network = branched()
    x, vectors = inputs()
    plan = SharedPlan(network, lambda: network(x[:1], torch.full((1, 2), torch.nan).double()))
    assert plan.shares
    base, shared = plan.record(lambda: network(x, torch.zeros(3, 2).double()))
    torch.testing.assert_close(base, network(x, torch.zeros(3, 2).double()), rtol=0, atol=0)
    both = []
    for way in (shared.replayed, None):
        v = vectors.clone().requires_grad_()
        whole = x.repeat(2, 1, 1, 1), v.flatten(0, 1)
        if way is None:
            out = network(*whole)
        else:
            network.ran.clear()
            with way(2):
                out = network(*whole)
            ran = list(network.ran)
        (grad,) = torch.autograd.grad(out.square().sum(), v)
        both.append((out.detach(), grad))
    for a, b in zip(*both):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert float(both[0][1].abs().max()) > 1e-3
    assert [name for name, _ in ran] == ["first", "act", "words", "act", "second"]
    assert not any("forward" in module.__dict__ for module in network.modules()), "modules are as they were"


def test_what_is_left_out(monkeypatch):
    """The first convolution does not run for vectors, and the second reads the two channels of the word alone."""
    network = branched()
    x, vectors = inputs()
    plan = SharedPlan(network, lambda: network(x[:1], torch.full((1, 2), torch.nan).double()))
    _, shared = plan.record(lambda: network(x, torch.zeros(3, 2).double()))
    real, seen = functional.conv2d, []
    monkeypatch.setattr(
        functional, "conv2d", lambda x, w, *rest, **more: (seen.append(tuple(w.shape)), real(x, w, *rest, **more))[1]
    )
    with shared.replayed(2):
        network(x.repeat(2, 1, 1, 1), vectors.flatten(0, 1))
    assert seen == [(4, 2, 3, 3)]


class Normed(nn.Module):
    """A norm of groups with and without the vector, an activation, a convolution; `twice` reads the norm's output again."""

    def __init__(self, twice=False, groups=3):
        super().__init__()
        self.norm, self.act, self.conv = nn.GroupNorm(groups, 6), nn.SiLU(), nn.Conv2d(6, 2, 1)
        self.again = nn.Conv2d(6, 2, 1) if twice else None
        self.normed = []
        self.norm.register_forward_hook(lambda m, args, out: self.normed.append(out.shape[1]))

    def forward(self, x, vector):
        both = torch.cat([vector[:, :, None, None] + x[:, :1], x.repeat(1, 4, 1, 1)], 1)
        out = self.norm(both)
        return self.conv(self.act(out)).flatten(1) + (0 if self.again is None else self.again(out).flatten(1))


@pytest.mark.parametrize(("more", "channels"), [({}, 2), ({"twice": True}, 6), ({"groups": 6}, 2), ({"groups": 2}, 3)])
def test_norms_of_channels_that_nothing_reads_do_not_run(more, channels):
    torch.manual_seed(0)
    network = Normed(**more).double().requires_grad_(False)
    nn.init.normal_(network.norm.weight)
    nn.init.normal_(network.norm.bias)
    x, vectors = inputs()
    plan = SharedPlan(network, lambda: network(x[:1], torch.full((1, 2), torch.nan).double()))
    _, shared = plan.record(lambda: network(x, torch.zeros(3, 2).double()))
    whole = network(x.repeat(2, 1, 1, 1), vectors.flatten(0, 1))
    network.normed.clear()
    with shared.replayed(2):
        torch.testing.assert_close(network(x.repeat(2, 1, 1, 1), vectors.flatten(0, 1)), whole, rtol=1e-12, atol=1e-12)
    assert network.normed == [channels]


def test_modules_are_as_they_were_after_an_error():
    network = branched()
    x, _ = inputs()
    plan = SharedPlan(network, lambda: network(x[:1], torch.full((1, 2), torch.nan).double()))
    _, shared = plan.record(lambda: network(x, torch.zeros(3, 2).double()))
    with pytest.raises(RuntimeError), shared.replayed(2):
        network(x.repeat(2, 1, 1, 1), torch.zeros(6, 3).double())
    assert not any("forward" in module.__dict__ for module in network.modules())
    assert all(len(module._forward_hooks) == 0 for module in network.modules())


class Attending(nn.Module):
    """Queries of x, keys and values of the words."""

    def __init__(self, **more):
        super().__init__()
        self.query, self.word, self.more = nn.Linear(1, 2), nn.Linear(2, 2), more

    def forward(self, x, vector):
        words = self.word(vector).reshape(len(x), 1, -1, 2)
        query = self.query(x.flatten(1)[:, None, :, None])
        return functional.scaled_dot_product_attention(query, words, words, **self.more).flatten(1)


@pytest.mark.parametrize(("words", "more", "calls"), [(1, {}, 0), (2, {}, 1), (1, {"attn_mask": torch.zeros(16, 1)}, 1)])
def test_attention_to_one_word_gives_its_value(words, more, calls, monkeypatch):
    torch.manual_seed(0)
    network = Attending(**more).requires_grad_(False)
    x, _ = inputs()
    x, vectors = x.float(), torch.randn(2, 3, 2 * words, generator=torch.Generator().manual_seed(2))
    many = lambda v: v.reshape(-1, words, 2)  # noqa: E731
    plan = SharedPlan(network, lambda: network(x[:1], many(torch.full((1, 2 * words), torch.nan))))
    _, shared = plan.record(lambda: network(x, many(vectors[0])))
    whole = network(x.repeat(2, 1, 1, 1), many(vectors))
    with torch.profiler.profile() as seen, shared.replayed(2):
        torch.testing.assert_close(network(x.repeat(2, 1, 1, 1), many(vectors)), whole)
    assert sum(e.count for e in seen.key_averages() if e.key == "aten::scaled_dot_product_attention") == calls


def test_the_error_of_a_replay():
    whole = torch.tensor([[2.0, -4.0]])
    assert replay_error(whole + 0.4, whole) == pytest.approx(0.1)
    assert replay_error(torch.tensor([[torch.nan, 0.0]]), whole) == float("inf")


TINY = DiffusionSizes(channels=(8, 16), words=8, timesteps=20, batch=4, steps=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = CaptionedUNet(TINY).eval().requires_grad_(False)
    return DiffusionGenerator(network.unet, noise_schedule(TINY), network.words.weight[:1].detach())


def reads_of(model, site, **more):
    return SharedReads(model, lambda x, t, v: model.predicted(x, t, "" if v is None else site, v), model.width(site), 3.0, **more)


@pytest.mark.parametrize("site", ["conditioning", "h", "x_t"])
def test_a_u_net_read_with_shared_parts(model, site):
    x, t = model.noise(2, 0), torch.tensor([3, 12])
    reads = reads_of(model, site)
    base, moved = reads.at(x, t)
    torch.testing.assert_close(base, model.predicted(x, t))
    vectors = torch.randn(3, 2, model.width(site), generator=torch.Generator().manual_seed(0))
    down = []
    handle = model.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda m, args: down.append(len(args[0])))
    grads = []
    for way in (moved, reads_of(model, site, share=False).at(x, t)[1]):
        v = vectors.clone().requires_grad_()
        down.clear()
        out = way(v)
        grads.append((out.detach(), *torch.autograd.grad(out.square().sum(), v)))
        assert down == ([6] if site == "x_t" or way is not moved else [])
    handle.remove()
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not reads.why
    again, _ = reads.at(x + 1, t)
    torch.testing.assert_close(again, model.predicted(x + 1, t))


def test_whole_passes_where_an_operation_swallows_nan(model, monkeypatch):
    """A vector that NaN does not stand for: parts would be shared that depend on it, and the comparison finds out."""
    real = model._inputs
    monkeypatch.setattr(model, "_inputs", lambda x, site, v: real(x, site, None if v is None else torch.nan_to_num(v)))
    reads = reads_of(model, "h")
    x, t = model.noise(2, 0), torch.tensor([3, 12])
    _, moved = reads.at(x, t)
    assert "differ from whole passes" in reads.why
    vectors = torch.randn(3, 2, model.width("h"), generator=torch.Generator().manual_seed(0))
    for k in range(3):
        torch.testing.assert_close(moved(vectors)[k], model.predicted(x, t, "h", vectors[k]), rtol=1e-4, atol=1e-5)
